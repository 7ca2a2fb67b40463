"""MED by worked examples: every number here was found with pencil and paper (med_scores.py)."""

import re
from math import exp, log
from typing import Any

import pytest
import torch
from med_scores import FIRST, LN2, LN3, LN4, LN4_3, SCORES, SIZES
from torch import Tensor
from torch.nn import functional as F

from croppable.med import MED

OFF: dict[str, Any] = {"mutual": 0.0, "w1": 0.0, "w2": 0.0, "w3": 0.0}
PAPER: dict[str, Any] = {
    "learnable": True,
    "evolution_form": "reciprocal",
    "reduction": "sum",
    "mutual_reduction": "sum",
}


def loss(scores: Tensor = SCORES, targets: Tensor = FIRST, **options: Any) -> float:
    return MED(SIZES, **{**OFF, "reduction": "sum", **options})(scores, targets).item()


# ------------------------------------------------------------------------- the parts of the objective


def test_all_off_is_the_plain_nested_sum() -> None:
    binary = F.binary_cross_entropy_with_logits(SCORES, torch.tensor([1.0, 0.0]).expand(2, 2, 2))
    assert loss() == pytest.approx(4 * binary.item())  # two sizes, positives and negatives apart
    assert loss() == pytest.approx(
        (LN4_3 + LN2) / 2 + (LN2 + LN4_3) / 2 + (LN2 + LN4_3) / 2 + (LN4 + LN2) / 2
    )
    classes = torch.tensor([1, 0])
    expected = sum(F.cross_entropy(scores, classes).item() for scores in SCORES)
    assert loss(targets=classes, task="multiclass") == pytest.approx(expected)
    predictions, values = SCORES[:, :, :1], torch.tensor([1.0, 2.0])
    expected = sum(F.mse_loss(column[:, 0], values).item() for column in predictions)
    assert loss(predictions, values, task="regression") == pytest.approx(expected)


def test_the_mean_over_sizes_divides_by_their_number() -> None:
    everything = {"mutual": 1.0, "w1": 1.0, "w2": 1.0, "w3": 1.0, "distill": 0.3}
    assert loss(**everything, reduction="mean") == pytest.approx(loss(**everything) / 2)


SMALL = (LN4_3 + LN2) / 2 + (LN2 + LN4_3) / 2  # the first size weighs all alike
LARGE_POSITIVES, LARGE_NEGATIVES = (LN2 + LN4_3) / 2, (LN4 + LN2) / 2


def test_evolution_weighs_positives_by_the_error_of_the_size_before() -> None:
    # errors 1/4 and 1/2: weights proportional to 2^1 and 2^2
    assert loss(w1=4 * LN2) == pytest.approx(SMALL + (1 * LN2 + 2 * LN4_3) / 3 + LARGE_NEGATIVES)


def test_evolution_weighs_negatives_by_the_error_of_the_size_before() -> None:
    # errors 1/2 and 1/4: weights proportional to 2^2 and 2^1, over all negatives of the batch together
    assert loss(w2=4 * LN2) == pytest.approx(SMALL + LARGE_POSITIVES + (2 * LN4 + 1 * LN2) / 3)


def test_evolution_as_the_paper_writes_it() -> None:
    # exp(w1 / sigma(s)): sigma 3/4 and 1/2 give 2^2 and 2^3
    value = loss(w1=1.5 * LN2, evolution_form="reciprocal")
    assert value == pytest.approx(SMALL + (1 * LN2 + 2 * LN4_3) / 3 + LARGE_NEGATIVES)


def test_the_papers_form_stays_finite_where_sigma_is_zero() -> None:
    scores = SCORES.clone()
    scores[0, 0, 0] = -200.0
    assert loss(scores, w1=1.0, evolution_form="reciprocal") == pytest.approx(
        (200 + LN2) / 2 + (LN2 + LN4_3) / 2 + LN2 + LARGE_NEGATIVES
    )  # all weight on the query that the smaller size got wrong


def test_evolution_of_classes_weighs_whole_examples() -> None:
    classes = torch.tensor([1, 1])  # errors 3/4 and 3/4: weights stay equal
    assert loss(targets=classes, task="multiclass", w1=3.0) == pytest.approx(LN4 + (LN4_3 + LN4) / 2)
    classes = torch.tensor([0, 1])  # errors 1/4 and 3/4: weights proportional to 2^1 and 2^3
    assert loss(targets=classes, task="multiclass", w1=4 * LN2) == pytest.approx(
        (LN4_3 + LN4) / 2 + (1 * LN4 + 4 * LN4) / 5
    )


def test_evolution_of_regression_weighs_by_the_squared_error() -> None:
    outputs = torch.tensor([[[1.0], [2.0]], [[3.0], [5.0]]])
    targets = torch.ones(2)
    w1 = LN2 / (1 - exp(-1))  # errors 0 and 1 - 1/e: weights proportional to 1 and 2
    assert loss(outputs, targets, task="regression", w1=w1) == pytest.approx(1 / 2 + (1 * 4 + 2 * 16) / 3)


def test_dynamic_loss_weights() -> None:
    large = LARGE_POSITIVES + LARGE_NEGATIVES
    assert loss(w3=2 * LN2) == pytest.approx(2 * SMALL + 4 * large)
    assert loss(w3=2 * LN2, size_weights=(3, 0.5)) == pytest.approx(6 * SMALL + 2 * large)


@pytest.mark.parametrize(
    ("form", "reduction", "value"),
    [
        ("huber", "mean", LN3 - 0.5),  # every score moves by ln 3 > 1
        ("huber", "sum", 4 * (LN3 - 0.5)),
        ("huber-sigmoid", "mean", 0.5 * 0.25**2),
        ("huber-sigmoid", "sum", 2 * 0.25**2),
        # teachers (1/4, 3/4) and (3/4, 1/4), students (3/4, 1/4) twice: ln 3 / 2 and nothing
        ("kl", "mean", LN3 / 4),
        ("kl", "sum", LN3 / 2),
    ],
)
def test_mutual_learning(form: Any, reduction: Any, value: float) -> None:
    parts = MED(
        SIZES, **{**OFF, "mutual": 2.0}, mutual_form=form, mutual_reduction=reduction, reduction="sum"
    )
    assert parts.terms(SCORES, FIRST)["mutual"].item() == pytest.approx(2 * value)


def test_teaching_down_leaves_the_larger_neighbour_alone() -> None:
    for teach_down in (False, True):
        scores = SCORES.clone().requires_grad_()
        MED(SIZES, **{**OFF, "mutual": 1.0}, teach_down=teach_down).terms(scores, FIRST)["mutual"].backward()
        assert scores.grad is not None
        assert bool(scores.grad[0].any())
        assert bool(scores.grad[1].any()) == (not teach_down)


def test_distillation_comes_from_the_detached_largest_size() -> None:
    scores = torch.stack([SCORES[0], SCORES[0], SCORES[1]]).requires_grad_()
    terms = MED((1, 5, 10), **OFF, distill=2.0, reduction="sum").terms(scores, FIRST)
    assert terms["distill"].item() == pytest.approx(2 * 2 * LN3 / 4)
    terms["distill"].backward()
    assert scores.grad is not None
    assert not scores.grad[-1].any()


def test_an_ensemble_of_all_sizes_teaches_every_one_of_them() -> None:
    scores = torch.tensor([[[0.0, 0.0]], [[2 * LN3, 0.0]]], requires_grad=True)  # p of 1/2 and of 9/10
    # the mean of log-probabilities has odds of 3: p = 3/4
    from_half = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)
    from_nine = 0.75 * log(0.75 / 0.9) + 0.25 * log(0.25 / 0.1)
    options: dict[str, Any] = {**OFF, "distill": 2.0, "teacher": "ensemble", "reduction": "sum"}
    terms = MED(SIZES, **options).terms(scores, torch.tensor([0]))
    assert terms["distill"].item() == pytest.approx(2 * (from_half + from_nine))
    terms["distill"].backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad[:, 0, 0], torch.tensor([2 * (0.5 - 0.75), 2 * (0.9 - 0.75)]))


def test_every_size_may_be_taught_with_a_weight_of_its_own() -> None:
    scores = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    options: dict[str, Any] = {**OFF, "teacher": "ensemble", "reduction": "sum"}
    each = [MED((1, 5, 10), **options, distill=[float(k == i) for k in range(3)]) for i in range(3)]
    parts = [one.terms(scores, torch.zeros(4, dtype=torch.int64))["distill"] for one in each]
    weighted = MED((1, 5, 10), **options, distill=(3.0, 2.0, 0.0))
    terms = weighted.terms(scores, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(terms["distill"], 3 * parts[0] + 2 * parts[1])
    terms["distill"].backward()
    assert scores.grad is not None
    assert scores.grad.flatten(1).any(1).tolist() == [True, True, False]
    assert not MED((1, 5), **OFF, distill=(0.0, 0.0)).distills
    with pytest.raises(ValueError, match=r"distill must have one value per size, got \(1.0,\) for \(1, 5\)"):
        MED((1, 5), distill=(1.0,))


def test_an_ensemble_of_regressions_is_their_mean() -> None:
    outputs = torch.tensor([[[1.0], [2.0]], [[1.5], [6.0]]])  # means 1.25 and 4
    options: dict[str, Any] = {**OFF, "distill": 1.0, "teacher": "ensemble", "reduction": "sum"}
    terms = MED(SIZES, **options, task="regression").terms(outputs, torch.ones(2))
    assert terms["distill"].item() == pytest.approx(2 * (0.25**2 / 2 + 1.5) / 2)


def test_distillation_of_regression_is_huber() -> None:
    outputs = torch.tensor([[[1.0], [2.0]], [[1.5], [5.0]]])
    terms = MED(SIZES, **OFF, distill=1.0, task="regression", reduction="sum").terms(outputs, torch.ones(2))
    assert terms["distill"].item() == pytest.approx((0.125 + 2.5) / 2)


def test_self_adversarial_weights_are_normalised_per_query() -> None:
    # negatives at size 2 of query A: ln 3 and 0; with temperature 1 they weigh 3/4 and 1/4
    scores = torch.tensor([[[0.0, LN3, 0.0], [0.0, 0.0, 0.0]]])
    value = MED((5,), **OFF, adversarial=1.0)(scores, FIRST)
    assert value.item() == pytest.approx(LN2 + (0.75 * LN4 + 0.25 * LN2) / 2 + LN2 / 2)


# ------------------------------------------------------------------- switches, subsets and the paper's mode


def test_each_mechanism_is_switched_off_by_its_weight_alone() -> None:
    scores = torch.cat([SCORES, torch.full((2, 2, 1), 0.5)], -1)
    for name in ("mutual", "w1", "w2", "w3", "distill", "adversarial"):
        plain = loss(scores)
        assert loss(scores, **{name: 1.0}) != pytest.approx(plain, rel=1e-3), f"{name} does nothing"
        assert loss(scores, **{name: 0.0}) == plain
    plain = loss()
    for form in ("huber", "huber-sigmoid", "kl"):
        assert loss(mutual_form=form) == plain
    assert loss(evolution_form="reciprocal") == plain
    assert loss(learnable=True) == plain


def test_the_parts_add_up_to_the_loss() -> None:
    terms = MED(SIZES, distill=0.5).terms(SCORES, FIRST)
    assert set(terms) == {"loss", "evolution", "mutual", "distill"}
    assert terms["loss"].item() == pytest.approx(
        sum(terms[k].item() for k in ("evolution", "mutual", "distill"))
    )
    assert MED(SIZES, distill=0.5)(SCORES, FIRST) == terms["loss"]


@pytest.mark.parametrize(("task", "columns"), [("binary", 4), ("multiclass", 4), ("regression", 1)])
def test_a_single_size_is_plain_training(task: Any, columns: int) -> None:
    torch.manual_seed(0)
    scores, targets = torch.randn(1, 6, columns), torch.randint(max(2, columns), (6,))
    targets = targets.float() if task == "regression" else targets
    everything = MED((10,), task=task, distill=1.0, w3=0.0, learnable=True)
    plain = MED((10,), task=task, **OFF)
    torch.testing.assert_close(everything(scores, targets), plain(scores, targets))
    everything(scores, targets).backward()
    assert all(w.grad is not None for w in everything.parameters() if w.requires_grad)


def test_only_some_sizes_can_be_given() -> None:
    three = MED((1, 5, 10), size_weights=(7.0, 1.0, 2.0), w3=1.0)
    two = MED((5, 10), size_weights=(1.0, 2.0), w3=1.0)
    assert three(SCORES, FIRST, sizes=(5, 10)).item() == pytest.approx(two(SCORES, FIRST).item())
    # without the full size its dims still are what the others are measured by
    lone = MED((1, 5, 10), **{**OFF, "w3": 2 * LN2})(SCORES[:1], FIRST, sizes=(5,))
    assert lone.item() == pytest.approx(2 * SMALL)


def test_the_papers_weights_start_at_one_and_learn() -> None:
    med = MED(SIZES, **PAPER)
    assert {name: w.item() for name, w in med.named_parameters()} == {"w1": 1, "w2": 1, "w3": 1}
    terms = med.terms(SCORES, FIRST)
    assert {"w1", "w2", "w3"} <= set(terms)
    assert not terms["w1"].requires_grad
    terms["loss"].backward()
    assert all(w.grad is not None and w.grad.isfinite() for w in med.parameters())


def test_weights_do_not_learn_unless_asked_to_nor_where_they_do_nothing() -> None:
    assert not any(w.requires_grad for w in MED(SIZES).parameters())
    classes = MED(SIZES, task="multiclass", learnable=True)
    assert {n for n, w in classes.named_parameters() if w.requires_grad} == {"w1", "w3"}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_w3_can_only_fall(seed: int, task: Any) -> None:
    torch.manual_seed(seed)
    med = MED((2, 5, 10), task=task, learnable=True)
    med(3 * torch.randn(3, 4, 5), torch.randint(5, (4,))).backward()
    assert med.w3.grad is not None
    assert med.w3.grad >= 0


@pytest.mark.parametrize("form", ["linear", "reciprocal"])
def test_w1_and_w2_fall_where_what_was_hard_stays_hard(form: Any) -> None:
    # The same scores at both sizes: the weights move towards the triples that are already easy.
    med = MED(SIZES, learnable=True, evolution_form=form)
    med(SCORES[:1].expand(2, 2, 2), FIRST).backward()
    assert med.w1.grad is not None
    assert med.w2.grad is not None
    assert med.w1.grad > 0
    assert med.w2.grad > 0


def test_the_weights_of_examples_carry_no_gradient() -> None:
    scores = SCORES.clone().requires_grad_()
    terms = MED(SIZES, mutual=0.0, w3=0.0, reduction="sum").terms(scores, FIRST)
    gradient = torch.autograd.grad(terms["loss"], scores)[0]
    alone = SCORES.clone().requires_grad_()
    plain = torch.autograd.grad(MED(SIZES, **OFF, reduction="sum")(alone, FIRST), alone)[0]
    torch.testing.assert_close(gradient[0], plain[0])  # the smaller size feels its own loss only


def test_half_precision_scores_are_summed_in_float32() -> None:
    terms = MED(SIZES).terms(SCORES.bfloat16(), FIRST)
    assert {value.dtype for value in terms.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "ranking"}, "task must be one of binary, multiclass, regression, got 'ranking'"),
        ({"mutual_form": "l2"}, "mutual_form must be one of huber, huber-sigmoid, kl, got 'l2'"),
        ({"mutual_reduction": "max"}, "mutual_reduction must be one of mean, sum, got 'max'"),
        ({"evolution_form": "square"}, "evolution_form must be one of linear, reciprocal, got 'square'"),
        ({"reduction": "none"}, "reduction must be one of mean, sum, got 'none'"),
        ({"size_weights": (1.0,)}, "one value per size, got (1.0,) for (5, 10)"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MED(SIZES, **options)


@pytest.mark.parametrize(
    ("task", "scores", "targets", "message"),
    [
        ("binary", torch.zeros(3, 2, 2), FIRST, "outputs must be [K=2, B, C], got (3, 2, 2)"),
        ("binary", torch.zeros(2, 2), FIRST, "outputs must be [K=2, B, C], got (2, 2)"),
        ("regression", torch.zeros(2, 2, 2), FIRST, "outputs must be [K=2, B, 1], got (2, 2, 2)"),
        ("regression", torch.zeros(2, 2, 1), torch.zeros(2, 1), "targets must be [B=2], one per example"),
        ("multiclass", torch.zeros(2, 2, 3), torch.zeros(3), "[B=2], one per example, got (3,)"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(task: Any, scores: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MED(SIZES, task=task)(scores, targets)


def test_the_repr_shows_the_switches() -> None:
    assert "sizes=(5, 10), task=binary, mutual=1.0, distill=0.0" in repr(MED(SIZES))
