"""Thresholds equal an exhaustive search, probabilities a reference fit, made negatives are false."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from croppable.core import crop
from croppable.kge.classify import (
    Thresholds,
    _best_threshold,
    classification_rows,
    fit_calibration,
    fit_thresholds,
    negatives,
    score_triples,
)
from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.triples import graph_from_triples, read_graph


def model_of(entities: int, relations: int, score: str = "transe-l1", **options: object) -> KGEModel:
    torch.manual_seed(0)
    model = KGEModel(entities, relations, (2, 4, 6), score, **options)
    with torch.no_grad():
        for table in model.parameters():
            table.normal_()
    return model


@pytest.mark.parametrize("score", ["transe-l1", "complex"])
@pytest.mark.parametrize("reciprocal", [False, True])
def test_scores_of_triples_are_those_of_every_crop(score: str, reciprocal: bool) -> None:
    model = model_of(9, 3, score, reciprocal=reciprocal, calibration="affine")
    triples = torch.tensor([[0, 0, 1], [8, 2, 8], [3, 1, 4]])
    scores = score_triples(model, triples)
    for k, size in enumerate(model.sizes):
        small = crop(model, size)
        for t, (head, relation, tail) in enumerate(triples.tolist()):
            full = small(torch.tensor([head]), torch.tensor([relation]), None, "tail")
            assert scores[k, t].item() == pytest.approx(full[0, tail].item(), abs=1e-5)
    assert score_triples(model, triples, (4,)).shape == (1, 3)
    assert score_triples(model, triples[:0]).shape == (3, 0)
    with pytest.raises(ValueError, match="ids must be 0 to 8"):
        score_triples(model, torch.tensor([[0, 0, 9]]))
    with torch.no_grad():
        model.entity[8] = torch.inf
    with pytest.raises(ValueError, match=r"triple \(8, 2, 8\)"):
        score_triples(model, triples)


@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=12))
def test_the_threshold_is_the_best_of_all(pairs: list[tuple[int, bool]]) -> None:
    scores = [float(score) for score, _ in pairs]
    truth = [true for _, true in pairs]

    def right(threshold: float) -> int:
        return sum((score >= threshold) == true for score, true in zip(scores, truth, strict=True))

    found = float(_best_threshold(torch.tensor([scores]), torch.tensor(truth))[0])
    assert right(found) == max(right(t / 2) for t in range(-12, 13))
    assert found not in scores, "a threshold lies between scores, where rounding decides nothing"


def test_thresholds_are_per_size_and_relation_with_a_fallback() -> None:
    model = model_of(20, 4)
    triples = torch.tensor(list(itertools.product(range(6), range(3), range(6))))
    true, false = triples[::2], triples[1::2]
    thresholds = fit_thresholds(model, true, false)
    assert thresholds.values_KR.shape == (3, 4)
    scores, truth = score_triples(model, torch.cat([true, false])), torch.arange(108) < 54
    assert torch.equal(thresholds.values_KR[:, 3], _best_threshold(scores, truth)), "relation 3 has no data"
    relation = torch.cat([true, false])[:, 1]
    for k, r in itertools.product(range(3), range(3)):
        own = relation == r
        best = _best_threshold(scores[k : k + 1, own], truth[own])
        assert thresholds.values_KR[k, r] == best[0]
    decided = thresholds.classify(model, triples)
    assert decided.shape == (3, 108)
    with pytest.raises(ValueError, match="need true and false triples, got 54 and 0"):
        fit_thresholds(model, true, false[:0])


def test_a_threshold_decides_from_itself_on() -> None:
    model = model_of(3, 1)
    triples = torch.tensor([[0, 0, 1]])
    exact = score_triples(model, triples, (6,)).double()
    assert Thresholds((6,), exact).classify(model, triples).all()
    assert not Thresholds((6,), exact + 1e-9).classify(model, triples).any()


def platt(true: Tensor, false: Tensor) -> tuple[float, float]:
    """Fit by a general optimizer instead of Newton's method."""
    scores = torch.cat([true, false]).double()
    target = torch.full_like(scores, 1 / (len(false) + 2))
    target[: len(true)] = (len(true) + 1) / (len(true) + 2)
    weights = torch.zeros(2, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = weights[0] * scores + weights[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights[0].item(), weights[1].item()


@pytest.mark.parametrize(("n_true", "n_false", "gap"), [(50, 50, 1.0), (200, 20, 0.3), (5, 5, 30.0)])
def test_the_calibration_is_the_maximum_likelihood_fit(n_true: int, n_false: int, gap: float) -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(n_true, generator=generator) + gap
    false = torch.randn(n_false, generator=generator)
    calibration = fit_calibration(true, false)
    assert (calibration.scale, calibration.offset) == pytest.approx(platt(true, false), rel=1e-3, abs=1e-3)
    moved = fit_calibration(1000 * true - 9e5, 1000 * false - 9e5)
    assert moved.probability(1000 * true - 9e5).tolist() == pytest.approx(
        calibration.probability(true).tolist(), abs=1e-4
    )


def test_what_cannot_be_calibrated_says_why() -> None:
    with pytest.raises(ValueError, match="needs true and false triples, got 0 and 3"):
        fit_calibration(torch.empty(0), torch.zeros(3))
    with pytest.raises(ValueError, match="do not score higher"):
        fit_calibration(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]))
    with pytest.raises(ValueError, match="do not score higher"):
        fit_calibration(torch.ones(3), torch.ones(3))


def test_made_negatives_are_false_and_reproducible() -> None:
    generator = torch.Generator().manual_seed(1)
    triples = torch.stack([torch.randint(n, (300,), generator=generator) for n in (8, 3, 8)], 1)
    known = KnownTriples(triples, 8, 3)
    made = negatives(triples, known, seed=4)
    assert not known.contains(made).any()
    assert torch.equal(made, negatives(triples, known, seed=4))
    assert not torch.equal(made, negatives(triples, known, seed=5)[: len(made)])
    full = torch.tensor([(h, 0, t) for h in range(3) for t in range(3)])
    assert len(negatives(full, KnownTriples(full, 3, 1))) == 0, "nothing false is left to be drawn"


def test_rows_of_a_hand_made_graph_are_right() -> None:
    graph = graph_from_triples(
        [("a", "r", "b")],
        [("a", "r", "b")],
        [("b", "r", "a"), ("a", "s", "b")],
        valid_negatives=[("b", "r", "b")],
        test_negatives=[("a", "r", "a")],
    )
    model = KGEModel(2, 2, (1,))
    with torch.no_grad():
        model.entity.copy_(torch.tensor([[0.0], [1.0]]))
        model.relation.copy_(torch.tensor([[1.0], [5.0]]))
    # -|h + r - t|: valid a r b 0 (true), b r b -1 (false): the threshold is -0.5 for r, and so for s.
    # test: b r a -2 (true, called false), a s b -4 (true, called false), a r a -1 (false, called false).
    rows = classification_rows(model, graph)
    values = {row["relation"]: (row["value"], row["num_triples"]) for row in rows}
    assert values == {None: (pytest.approx(1 / 3), 3), "r": (0.5, 2), "s": (0.0, 1)}
    assert {row["metric"] for row in rows} == {"accuracy"}
    assert {row["negatives"] for row in rows} == {"own"}


@pytest.mark.parametrize("name", ["codex-s", "nations"])
def test_rows_of_a_benchmark_cover_all_sizes(data_dir: Path, name: str) -> None:
    graph = read_graph(data_dir / "kg" / name)
    model = model_of(graph.num_entities, graph.num_relations)
    rows = classification_rows(model, graph)
    overall = [row for row in rows if row["relation"] is None]
    assert [row["size"] for row in overall] == [2, 4, 6]
    # Random vectors know nothing but how often a relation is true in validation, which CoDEx tells.
    assert all(0.4 < row["value"] < 0.85 for row in overall)
    assert {row["negatives"] for row in rows} == {"own" if name == "codex-s" else "random"}
