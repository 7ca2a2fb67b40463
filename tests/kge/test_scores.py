"""Every score function against a formula for one triple in plain Python, at every prefix size, and PyKEEN."""

import cmath
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from croppable.core import crop
from croppable.kge.model import KGEModel
from croppable.kge.prefixes import prefix_scores, prefix_sums, scores_at
from croppable.kge.scores import SCORES, ComplEx, DistMult, PairRE, RotatE, Score, SimplE, TransEL1, TransEL2

SIZES = (1, 2, 3, 5)
SIDES = ("tail", "head")


def complex_row(row: list[list[float]]) -> list[complex]:
    return [complex(re, im) for re, im in row]


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def transe_l1(h: list[float], r: list[float], t: list[float]) -> float:
    return -sum(abs(a + b - c) for a, b, c in zip(h, r, t, strict=True))


def transe_l2(h: list[float], r: list[float], t: list[float]) -> float:
    return -math.sqrt(sum((a + b - c) ** 2 for a, b, c in zip(h, r, t, strict=True)))


def distmult(h: list[float], r: list[float], t: list[float]) -> float:
    return sum(a * b * c for a, b, c in zip(h, r, t, strict=True))


def complex_(h: Any, r: Any, t: Any) -> float:
    rows = zip(complex_row(h), complex_row(r), complex_row(t), strict=True)
    return sum(a * b * c.conjugate() for a, b, c in rows).real


def rotate(h: Any, phases: list[float], t: Any) -> float:
    rows = zip(complex_row(h), phases, complex_row(t), strict=True)
    return -sum(abs(a * cmath.exp(1j * phase) - c) for a, phase, c in rows)


def simple(h: Any, r: Any, t: Any) -> float:
    rows = list(zip(h, r, t, strict=True))
    forward = sum(h_head * r_forward * t_tail for (h_head, _), (r_forward, _), (_, t_tail) in rows)
    inverse = sum(t_head * r_inverse * h_tail for (_, h_tail), (_, r_inverse), (t_head, _) in rows)
    return (forward + inverse) / 2


def pairre(h: list[float], r: Any, t: list[float]) -> float:
    rows = zip(unit(h), r, unit(t), strict=True)
    return -sum(abs(a * r_head - c * r_tail) for a, (r_head, r_tail), c in rows)


# One formula for one triple per score function: rows are lists of d numbers, or of d lists of parts.
ORACLES: dict[str, Callable[[Any, Any, Any], float]] = {
    "transe-l1": transe_l1,
    "transe-l2": transe_l2,
    "distmult": distmult,
    "complex": complex_,
    "rotate": rotate,
    "simple": simple,
    "pairre": pairre,
}
CLASSES = {c.name: c for c in (TransEL1, TransEL2, DistMult, ComplEx, RotatE, SimplE, PairRE)}


def model_of(score: str, *, reciprocal: bool = False) -> KGEModel:
    torch.manual_seed(0)
    model = KGEModel(6, 3, SIZES, score, reciprocal=reciprocal).double()
    with torch.no_grad():
        model.entity.normal_()
        model.relation.normal_()
    return model


def oracle(model: KGEModel, size: int, head: int, relation: int, tail: int) -> float:
    entity, rows = model.entity[:, :size].tolist(), model.relation[:, :size].tolist()
    return ORACLES[model.score](entity[head], rows[relation], entity[tail])


def expected(model: KGEModel, size: int, anchor: int, relation: int, candidate: int, side: str) -> float:
    pair = (anchor, candidate) if side == "tail" else (candidate, anchor)
    return oracle(model, size, pair[0], relation, pair[1])


def test_every_score_has_an_oracle_and_a_class() -> None:
    assert set(ORACLES) == set(CLASSES) == set(SCORES)
    assert all(type(SCORES[name]) is kind for name, kind in CLASSES.items())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("score", SCORES)
def test_scores_equal_the_formula_of_one_triple_at_every_size(score: str, side: Any) -> None:
    model = model_of(score)
    anchor, relation = torch.tensor([0, 5, 2]), torch.tensor([0, 2, 2])
    own = torch.tensor([[1, 0], [5, 4], [3, 3]])
    shared = torch.tensor([4, 0, 1, 1])
    for candidates in (own, shared, None):
        scores = model.forward_nested(SIZES, anchor, relation, candidates, side)
        rows = (
            own if candidates is own else (shared if candidates is shared else torch.arange(6)).expand(3, -1)
        )
        assert scores.shape == (len(SIZES), *rows.shape)
        for k, size in enumerate(SIZES):
            naive = [
                [expected(model, size, a, r, c, side) for c in row]
                for a, r, row in zip(anchor.tolist(), relation.tolist(), rows.tolist(), strict=True)
            ]
            torch.testing.assert_close(scores[k], torch.tensor(naive, dtype=torch.double))
            torch.testing.assert_close(crop(model, size)(anchor, relation, candidates, side), scores[k])


@pytest.mark.parametrize("score", SCORES)
def test_both_sides_give_a_triple_one_score(score: str) -> None:
    model = model_of(score)
    head, relation, tail = torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([4, 1])
    asked_tail = model(head, relation, tail[:, None], "tail")
    torch.testing.assert_close(model(tail, relation, head[:, None], "head"), asked_tail)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("shared", [False, True])
def test_one_pass_equals_the_sizes_one_by_one_in_value_and_gradient(
    score: str, side: Any, shared: bool
) -> None:
    torch.manual_seed(0)
    function = SCORES[score]

    def rows(*shape: int, parts: int) -> Tensor:
        full = (*shape, 5) if parts == 1 else (*shape, 5, parts)
        return torch.randn(full, dtype=torch.double, requires_grad=True)

    anchor = rows(4, parts=function.entity_parts)
    relation = rows(4, parts=function.relation_parts)
    candidates = rows(*((7,) if shared else (4, 7)), parts=function.entity_parts)
    given = (anchor, relation, candidates)
    fast = prefix_scores(function, SIZES, *given, side)
    slow = torch.stack([scores_at(function, size, *given, side) for size in SIZES])
    torch.testing.assert_close(fast, slow)
    weights = torch.randn_like(fast)
    gradients = [torch.autograd.grad((out * weights).sum(), given) for out in (fast, slow)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("score", [name for name, function in SCORES.items() if function.product])
def test_a_product_is_the_plain_product_of_query_and_candidate(score: str) -> None:
    function = SCORES[score]
    parts = () if function.entity_parts == 1 else (function.entity_parts,)
    query, candidate = torch.randn(3, 5, *parts), torch.randn(3, 5, *parts)
    product = (query * candidate).reshape(3, 5, -1).sum(-1)
    torch.testing.assert_close(function.partial(query, candidate), product)
    assert function.finish(product) is product


@pytest.mark.parametrize("score", [name for name, function in SCORES.items() if function.distance])
def test_a_distance_is_zero_at_best_and_its_gradient_finite_there(score: str) -> None:
    model = KGEModel(2, 1, (3,), score)
    with torch.no_grad():
        model.entity.fill_(0.5)
        model.relation.fill_(1.0 if score == "pairre" else 0.0)
    best = model(torch.tensor([0]), torch.tensor([0]), torch.tensor([[1]]))
    assert best.item() == pytest.approx(0, abs=1e-9)
    best.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    with torch.no_grad():
        model.entity[1] += torch.tensor(0.1) * torch.arange(1, 4).reshape(3, *[1] * (model.entity.ndim - 2))
    assert model(torch.tensor([0]), torch.tensor([0]), torch.tensor([[1]])).item() < -1e-3


def test_prefix_sums_by_hand() -> None:
    terms = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    assert prefix_sums(terms, (2, 4, 6)).tolist() == [[3], [10], [21]]
    assert prefix_sums(terms, (1, 4)).tolist() == [[1], [10]]
    assert prefix_sums(terms, (4,)).tolist() == [[10]]


def test_transe_by_hand() -> None:
    h, r, t = (torch.tensor([row]) for row in ([1.0, 2.0], [1.0, -1.0], [5.0, -2.0]))
    for name, value in (("transe-l1", -6.0), ("transe-l2", -math.sqrt(9 + 9))):
        assert scores_at(SCORES[name], 2, h, r, t[None], "tail").item() == pytest.approx(value)


def test_a_new_score_must_define_its_formula() -> None:
    class Unfinished(Score):
        name = "unfinished"

    rows = torch.zeros(1, 2)
    with pytest.raises(NotImplementedError, match=re.escape("Unfinished must define query()")):
        Unfinished().query(rows, rows, "tail")
    with pytest.raises(NotImplementedError, match=re.escape("Unfinished must define partial()")):
        Unfinished().partial(rows, rows)


# ------------------------------------------------------------------------- an independent implementation


def pykeen_scores(model: KGEModel, heads: Tensor, relations: Tensor, tails: Tensor) -> Tensor:
    """Score triples by PyKEEN's interaction functions on the model's tables."""
    modules = pytest.importorskip(
        "pykeen.nn.modules", reason="PyKEEN, the oracle of scores, is not installed"
    )
    entity, relation = model.entity.detach().contiguous(), model.relation.detach().contiguous()

    class SumOfModuli(modules.Interaction):  # theirs is the Euclidean norm of the moduli
        def forward(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return -(h * r - t).abs().sum(-1)

    interactions = {
        "transe-l1": lambda: modules.TransEInteraction(p=1),
        "transe-l2": lambda: modules.TransEInteraction(p=2),
        "distmult": modules.DistMultInteraction,
        "complex": modules.ComplExInteraction,
        "rotate": SumOfModuli,
        "simple": modules.SimplEInteraction,
        "pairre": lambda: modules.PairREInteraction(p=1),
    }
    if model.score in ("complex", "rotate"):
        entity = torch.view_as_complex(entity)
        relation = torch.polar(torch.ones_like(relation), relation) if model.score == "rotate" else relation
        relation = relation if relation.is_complex() else torch.view_as_complex(relation)
    if model.score == "pairre":  # their model's constraint, not their interaction's
        entity = torch.nn.functional.normalize(entity, dim=-1)

    def rows(table: Tensor, ids: Tensor) -> Any:
        return table[ids].unbind(-1) if table.ndim == 3 else table[ids]

    head, tail = rows(entity, heads), rows(entity, tails)
    if model.score == "simple":  # they order an entity's rows by role: forward first, which is as a tail
        tail = tail[::-1]
    return interactions[model.score]()(head, rows(relation, relations), tail)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("size", SIZES)
def test_pykeen_gives_cropped_tables_the_same_scores(score: str, size: int) -> None:
    small = crop(model_of(score), size)
    triples = torch.cartesian_prod(torch.arange(6), torch.arange(3), torch.arange(6))
    heads, relations, tails = triples.unbind(1)
    theirs = pykeen_scores(small, heads, relations, tails)
    ours = small(heads, relations, tails[:, None])[:, 0]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(small(tails, relations, heads[:, None], "head")[:, 0], theirs)
