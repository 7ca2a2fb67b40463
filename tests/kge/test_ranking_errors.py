"""What ranking refuses, and what it then says."""

import math

import pytest
import torch
from torch import Tensor

from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.ranking import rank_triples

WAYS = pytest.mark.parametrize("compiled", [False, True], ids=["reference", "compiled"])


@WAYS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("entity", "triple"),
    [(7, r"\(head 2, relation 0, tail 7\)"), (3, r"\(head 2, relation 0, tail 3\)"), (2, r"\(head 2, ")],
    ids=["candidate", "target", "anchor"],
)
def test_scores_that_are_not_finite_are_an_error(
    bad: float, entity: int, triple: str, compiled: bool
) -> None:
    model = KGEModel(9, 1, (2, 4), "transe-l1")
    with torch.no_grad():
        model.entity[entity, 3] = bad
    asked = torch.tensor([[2, 0, 3]])
    with pytest.raises(ValueError, match=rf"the score of triple {triple}.* at size 4: ranking needs finite"):
        rank_triples(model, asked, KnownTriples(asked, 9, 1), compiled=compiled)


@WAYS
def test_overflow_of_a_calibration_is_an_error(compiled: bool) -> None:
    model = KGEModel(9, 1, (2, 4), "transe-l1", calibration="scale")
    with torch.no_grad():
        model.log_scale[0] = 100
    asked = torch.tensor([[2, 0, 3]])
    with pytest.raises(ValueError, match=r"is -inf at size 2: .* train with a lower learning rate"):
        rank_triples(model, asked, KnownTriples(asked, 9, 1), compiled=compiled)


@pytest.mark.parametrize(
    ("triples", "message"),
    [
        (torch.zeros(0, 3, dtype=torch.long), r"non-empty \[T, 3\] tensor, got shape \(0, 3\)"),
        (torch.zeros(3, dtype=torch.long), r"non-empty \[T, 3\] tensor, got shape \(3,\)"),
        (torch.tensor([[0, 0, 4]]), r"entity ids must lie in 0..3, .*, got 0..4"),
        (torch.tensor([[-1, 0, 3]]), r"entity ids must lie in 0..3, .*, got -1..3"),
        (torch.tensor([[0, 1, 3]]), r"relation ids must lie in 0..0, .*, got 1..1"),
    ],
)
def test_bad_triples(triples: Tensor, message: str) -> None:
    known = KnownTriples(torch.tensor([[0, 0, 1]]), 4, 1)
    with pytest.raises(ValueError, match=message):
        rank_triples(KGEModel(4, 1, (1,), "distmult"), triples, known)


@pytest.mark.parametrize("sizes", [(), (4, 2), (2, 2), (0, 2), (2, 5)])
def test_bad_sizes(sizes: tuple[int, ...]) -> None:
    asked = torch.tensor([[0, 0, 1]])
    with pytest.raises(ValueError, match="sizes must be positive integers, strictly increasing"):
        rank_triples(KGEModel(3, 1, (2, 4), "distmult"), asked, KnownTriples(asked, 3, 1), sizes=sizes)


def test_filter_of_another_graph_is_refused() -> None:
    known = KnownTriples(torch.tensor([[0, 0, 1]]), 5, 1)
    with pytest.raises(ValueError, match=r"must have the model's 4 entities and 1 relations, got 5 and 1"):
        rank_triples(KGEModel(4, 1, (1,), "distmult"), torch.tensor([[0, 0, 1]]), known)


def test_unknown_tie_policy() -> None:
    asked = torch.tensor([[0, 0, 1]])
    ranks = rank_triples(KGEModel(2, 1, (1,), "distmult"), asked, KnownTriples(asked, 2, 1))
    with pytest.raises(
        ValueError, match=r"ties must be one of \('realistic', 'optimistic', 'pessimistic'\), got 'best'"
    ):
        ranks.by_ties("best")
