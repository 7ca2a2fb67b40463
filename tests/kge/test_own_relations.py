"""Relations of their own for every size, and gradients that reach down by a factor."""

from typing import Any

import pytest
import torch

import croppable
from croppable.checks import check_croppable
from croppable.core import crop
from croppable.kge.baselines import extract, magnitude
from croppable.kge.evaluate import at_sizes
from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.objective import LinkPrediction
from croppable.kge.predict import embeddings
from croppable.kge.prefixes import damped
from croppable.kge.ranking import rank_triples
from croppable.kge.scores import SCORES
from croppable.med import MED

SIZES = (2, 4, 8)
ANCHOR, RELATION, TARGET = torch.tensor([0, 5, 2]), torch.tensor([0, 2, 1]), torch.tensor([4, 1, 3])
SIDE = torch.tensor([True, False, True])


def model_of(score: str = "complex", relations: Any = "own", reciprocal: bool = False) -> KGEModel:
    torch.manual_seed(0)
    model = KGEModel(20, 3, SIZES, score, relations=relations, reciprocal=reciprocal)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def step_of(reach: float, compiled: Any = "none", relations: Any = "own", **options: Any) -> LinkPrediction:
    model = model_of(relations=relations, reciprocal=True)
    objective = MED(SIZES, task="multiclass", **{"mutual": 0.0, "w1": 1.0, "w3": 0.5, **options})
    return LinkPrediction(model, objective, n3=0.03, n3_balance=2.3, reach=reach, compiled=compiled)


@pytest.mark.parametrize("score", SCORES)
def test_a_size_scores_as_its_crop_and_as_the_model_alone(score: str) -> None:
    model = model_of(score)
    scores = model.forward_nested(SIZES, ANCHOR, RELATION)
    for own, size in zip(scores, SIZES, strict=True):
        torch.testing.assert_close(own, crop(model, size)(ANCHOR, RELATION))
        torch.testing.assert_close(own, model.alone(size)(ANCHOR, RELATION))


def test_a_larger_size_reads_the_shared_dims_by_its_own_relations() -> None:
    model = model_of()
    before = model.forward_nested(SIZES, ANCHOR, RELATION).detach()
    with torch.no_grad():
        model.relation[1] += 1
    changed = (model.forward_nested(SIZES, ANCHOR, RELATION) != before).flatten(1).any(1)
    assert changed.tolist() == [False, True, False]


def test_the_laws_of_cropping_hold() -> None:
    model = model_of()
    check_croppable(model, (ANCHOR, RELATION), SIZES)
    small = crop(crop(model, 4), 2)
    assert small.relation.shape == (1, 3, 2, 2)
    assert torch.equal(small.relation[0], model.relation[0, :, :2])


def test_a_checkpoint_gives_every_size_back(tmp_path: Any) -> None:
    model = model_of()
    croppable.save(model, tmp_path / "it")
    for size in SIZES:
        loaded = croppable.load(tmp_path / "it", size=size)
        assert torch.equal(loaded(ANCHOR, RELATION), crop(model, size)(ANCHOR, RELATION))


@pytest.mark.parametrize("score", ["complex", "transe-l1", "pairre"])
def test_ranks_are_those_of_the_reference(score: str) -> None:
    model = model_of(score)
    triples = torch.randint(3, (40, 3), generator=torch.Generator().manual_seed(1))
    known = KnownTriples(triples, 20, 3)
    fast = rank_triples(model, triples, known, sizes=(2, 8))
    slow = rank_triples(model, triples, known, sizes=(2, 8), compiled=False)
    assert torch.equal(fast.optimistic_SKT, slow.optimistic_SKT)
    assert torch.equal(fast.pessimistic_SKT, slow.pessimistic_SKT)


def test_other_sizes_take_the_relations_that_a_crop_takes() -> None:
    model = model_of()
    for other in (at_sizes(model, (3, 8)), extract(model, (3, 8))):
        torch.testing.assert_close(crop(other, 3)(ANCHOR, RELATION), crop(model, 3)(ANCHOR, RELATION))
        torch.testing.assert_close(other(ANCHOR, RELATION), model(ANCHOR, RELATION))


def test_what_needs_one_relation_table_says_so() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="alone"):
        magnitude(model)
    assert magnitude(model.alone(8)).shape == (8,)
    assert torch.equal(embeddings(model, "relation"), embeddings(model.alone(8), "relation"))
    with pytest.raises(ValueError, match="relations must be one of shared, own"):
        KGEModel(2, 2, (2,), relations="mine")  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", [1, 2])
def test_damping_keeps_values_and_divides_gradients(parts: int) -> None:
    rows = torch.randn(3, 8) if parts == 1 else torch.randn(3, 8, parts)
    rows.requires_grad_()
    out = damped(rows, SIZES, 0.5, parts)
    assert torch.equal(out, rows)
    out.sum().backward()
    assert rows.grad is not None
    per_dim = rows.grad if parts == 1 else rows.grad[..., 0]
    assert per_dim[0].tolist() == [0.25] * 2 + [0.5] * 2 + [1.0] * 4


@pytest.mark.parametrize("relations", ["own", "shared"])
def test_at_reach_zero_the_smallest_size_trains_as_if_alone(relations: Any) -> None:
    step = step_of(0.0, relations=relations)
    alone = LinkPrediction(crop(step.model, 2), MED((2,), task="multiclass", mutual=0.0, w1=0.0, w3=0.0))
    step.n3, step.objective.w3.data[()] = 0.0, 0.0
    step(ANCHOR, RELATION, TARGET, None, SIDE)["loss"].backward()
    alone(ANCHOR, RELATION, TARGET, None, SIDE)["loss"].backward()
    nested, own = step.model.entity.grad, alone.model.entity.grad
    assert nested is not None
    assert own is not None
    torch.testing.assert_close(nested[:, :2], own / len(SIZES))


def test_at_reach_one_nothing_changes() -> None:
    plain, damping = step_of(1.0, relations="shared"), step_of(1.0 - 1e-9, relations="shared")
    for step in (plain, damping):
        step(ANCHOR, RELATION, TARGET, None, SIDE)["loss"].backward()
    for one, other in zip(plain.model.parameters(), damping.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("relations", ["own", "shared"])
@pytest.mark.parametrize("reach", [0.25, 0.0])
def test_streamed_sizes_have_the_losses_and_gradients_of_full_scores(reach: float, relations: Any) -> None:
    found = []
    for compiled in ("none", "auto"):
        step = step_of(reach, compiled, relations)
        losses = step(ANCHOR, RELATION, TARGET, None, SIDE)
        losses["loss"].backward()
        found.append([losses["loss"].detach(), losses["n3"].detach(),
                      step.model.entity.grad, step.model.relation.grad])  # fmt: skip
    for slow, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)


def test_n3_of_own_relations_by_hand() -> None:
    step = step_of(0.5, mutual=0.0)
    losses = step(ANCHOR, RELATION, TARGET, None, "tail")
    share = [1.0, 2 / 3, 1 / 3]
    reached = [(1 + 0.5 + 0.25) / 3, 1.5 / 3, 1 / 3]
    segments = [slice(0, 2), slice(2, 4), slice(4, 8)]

    def cubes(rows: torch.Tensor) -> float:
        return float(rows.detach().norm(dim=-1).pow(3).sum(-1).mean())

    expected = 0.0
    for k, part in enumerate(segments):
        for ids in (ANCHOR, TARGET):
            expected += share[k] ** 1.3 * reached[k] * cubes(step.model.entity[ids][:, part])
        for size in range(k, 3):
            own = step.model.relation[size][RELATION][:, part]
            expected += share[k] ** 1.3 / 3 * cubes(own)
    assert float(losses["n3"].detach()) == pytest.approx(0.03 * expected, rel=1e-5)


@pytest.mark.parametrize("relations", ["own", "shared"])
def test_n3_of_every_size_reaches_as_far_down_as_its_loss(relations: Any) -> None:
    weights = (0.5, 0.2, 0.1)
    model = model_of(relations=relations)
    step = LinkPrediction(model, MED(SIZES, task="multiclass", mutual=0.0), n3=weights, reach=0.5)
    step(ANCHOR, RELATION, TARGET)["n3"].backward()
    found = [parameter.grad for parameter in model.parameters()]

    rows = model.lookup(ANCHOR, RELATION, TARGET, "tail")
    penalty = torch.zeros(())
    for size, weight in zip(SIZES, weights, strict=True):
        cubes = [some.norm(dim=-1).pow(3).sum(-1).mean() for some in model.rows_at(size, *rows, reach=0.5)]
        penalty = penalty + weight * sum(cubes) / 3
    expected = torch.autograd.grad(penalty, list(model.parameters()))
    for mine, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, gradient)


def test_an_n3_for_every_size_needs_as_many_weights() -> None:
    with pytest.raises(ValueError, match="n3 must be one weight or one per size"):
        LinkPrediction(model_of(), MED(SIZES), n3=(0.1, 0.2))


def test_an_ensemble_is_taught_from_full_scores() -> None:
    options = {"mutual": 0.0, "w1": 0.0, "distill": 1.0, "teacher": "ensemble"}
    losses = [step_of(0.25, compiled, **options)(ANCHOR, RELATION, TARGET, None, SIDE)
              for compiled in ("none", "auto")]  # fmt: skip
    assert float(losses[0]["distill"].detach()) > 0.01
    torch.testing.assert_close(losses[1]["loss"], losses[0]["loss"])
    shared = [step_of(1.0, compiled, "shared", **options)(ANCHOR, RELATION, TARGET, None, SIDE)["distill"]
              for compiled in ("none", "auto")]  # fmt: skip
    torch.testing.assert_close(shared[1], shared[0])


def test_a_reach_outside_of_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match="reach must be from 0 to 1, got 2"):
        LinkPrediction(model_of(), MED(SIZES), reach=2)
