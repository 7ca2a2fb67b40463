"""The functions that MED is made of, by worked examples; med_scores.py has the numbers."""

import re
from math import exp, log
from typing import Any

import pytest
import torch
from med_scores import FIRST, LN2, LN3, LN4, LN4_3, SCORES
from torch import Tensor

from croppable.losses import (
    dynamic_weights,
    example_losses,
    kl_divergence,
    mutual_huber,
    prior_error,
    true_column,
    true_mask,
)


def test_huber_is_quadratic_up_to_one_and_linear_beyond() -> None:
    smaller, larger = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([0.5, 1.0, 3.0, -3.0])
    assert mutual_huber(smaller, larger).tolist() == [0.125, 0.5, 2.5, 3.5]
    assert mutual_huber(smaller, larger, delta=2.0).tolist() == [0.125, 0.5, 4.0, 6.0]


def test_huber_of_sigmoids_compares_probabilities() -> None:
    value = mutual_huber(torch.tensor([LN3]), torch.tensor([0.0]), sigmoid=True)
    assert value.item() == pytest.approx(0.5 * 0.25**2)


def test_huber_has_a_gradient_to_both_sides() -> None:
    smaller, larger = torch.tensor(0.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    mutual_huber(smaller, larger).backward()
    assert (smaller.grad, larger.grad) == (-0.5, 0.5)


def test_kl_of_three_quarters_against_a_half() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[LN3, 0.0]])
    assert kl_divergence(student, teacher).tolist() == pytest.approx([0.75 * log(1.5) + 0.25 * log(0.5)])
    torch.testing.assert_close(kl_divergence(student, teacher + 7), kl_divergence(student, teacher))
    assert kl_divergence(teacher, teacher).tolist() == [0]


def test_shapes_that_would_broadcast_are_refused() -> None:
    for function in (mutual_huber, kl_divergence):
        with pytest.raises(ValueError, match=re.escape("must have one shape, got (2, 3) and (3,)")):
            function(torch.zeros(2, 3), torch.zeros(3))


def test_dynamic_weights_grow_with_the_size() -> None:
    w3 = torch.tensor(2 * LN2)
    fractions = torch.tensor([0.25, 0.5, 1.0])
    assert dynamic_weights(fractions, w3).tolist() == pytest.approx([2**0.5, 2, 4])
    assert dynamic_weights(fractions, torch.tensor(0.0)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("task", "targets", "losses", "errors"),
    [
        ("binary", FIRST, [[LN4_3, LN2], [LN2, LN4_3]], [[0.25, 0.5], [0.5, 0.25]]),
        ("multiclass", FIRST, [LN4_3, LN4_3], [0.25, 0.25]),
        ("multiclass", 1 - FIRST, [LN4, LN4], [0.75, 0.75]),
    ],
)
def test_losses_and_errors_of_examples(
    task: Any, targets: Tensor, losses: list[Any], errors: list[Any]
) -> None:
    torch.testing.assert_close(example_losses(SCORES[:1], targets, task), torch.tensor([losses]))
    torch.testing.assert_close(prior_error(SCORES[:1], targets, task), torch.tensor([errors]))


def test_losses_and_errors_of_regression() -> None:
    outputs, targets = torch.tensor([[[1.0], [3.0]]], requires_grad=True), torch.tensor([1.0, 1.0])
    assert example_losses(outputs, targets, "regression").tolist() == [[0, 4]]
    errors = prior_error(outputs, targets, "regression")
    torch.testing.assert_close(errors, torch.tensor([[0.0, 1 - exp(-4)]]))
    assert not errors.requires_grad


def test_the_true_column_is_marked_and_taken_at_every_size() -> None:
    targets = torch.tensor([1, 0])
    assert true_mask(SCORES, targets).tolist() == [[False, True], [True, False]]
    assert true_column(SCORES, targets).tolist() == [
        [SCORES[0, 0, 1], 0.0],
        [SCORES[1, 0, 1], SCORES[1, 1, 0]],
    ]
