"""A trunk of nested sizes and segments above it that are models of their own."""

from typing import Any

import pytest
import torch

from croppable.core import crop
from croppable.kge.model import KGEModel
from croppable.kge.n3 import n3_weights
from croppable.kge.objective import LinkPrediction
from croppable.kge.optimizing import make_optimizer
from croppable.med import MED

SIZES = (2, 4, 8, 12)
PARTS = (slice(0, 4), slice(4, 8), slice(8, 12))  # the trunk and two branches
ANCHOR, RELATION, TARGET = torch.tensor([0, 5, 2]), torch.tensor([0, 2, 1]), torch.tensor([4, 1, 3])
SIDE = torch.tensor([True, False, True])
OFF: dict[str, Any] = {"task": "multiclass", "mutual": 0.0, "w1": 0.0, "w3": 0.0}


def model_of(score: str = "complex", **options: Any) -> KGEModel:
    torch.manual_seed(0)
    model = KGEModel(20, 3, SIZES, score, **{"relations": "own", "reciprocal": True, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def step_of(score: str = "complex", trunk: int | None = 4, **options: Any) -> LinkPrediction:
    return LinkPrediction(model_of(score), MED(SIZES, **OFF), trunk=trunk, **options)


def part_scores(model: KGEModel, place: int, part: slice) -> torch.Tensor:
    """Scores of all entities from some dims alone, with the relations of the size at ``place``."""
    rows = [model.entity[ANCHOR][:, part], model.relation[place][RELATION][:, part], model.entity[:, part]]
    anchor, relation, table = (torch.view_as_complex(x.detach().contiguous()) for x in rows)
    return ((anchor * relation) @ table.conj().T).real


def test_a_size_above_the_trunk_is_scored_by_its_last_segment_alone() -> None:
    step = step_of()
    scores = step.scores(ANCHOR, RELATION, TARGET)[0].detach()
    torch.testing.assert_close(scores[:2], step.model.forward_nested((2, 4), ANCHOR, RELATION))
    torch.testing.assert_close(scores[2], part_scores(step.model, 2, PARTS[1]))
    torch.testing.assert_close(scores[3], part_scores(step.model, 3, PARTS[2]))


@pytest.mark.parametrize("score", ["complex", "distmult", "simple"])
def test_joined_sizes_score_the_mean_of_their_parts_by_dims(score: str) -> None:
    step = step_of(score)
    trunk, *branches = step.scores(ANCHOR, RELATION, TARGET)[0].detach()[1:]
    small = crop(step.model, 4)
    step.join()
    found = step.model.forward_nested((8, 12), ANCHOR, RELATION)
    torch.testing.assert_close(found[0], trunk + branches[0])  # 4 dims each
    torch.testing.assert_close(found[1], trunk + branches[0] + branches[1])
    torch.testing.assert_close(step.model.alone(12)(ANCHOR, RELATION), found[1])
    torch.testing.assert_close(crop(step.model, 4).relation, small.relation)


def test_parts_of_other_widths_weigh_by_their_dims() -> None:
    model = KGEModel(20, 3, (2, 6, 14), "distmult", relations="own")
    torch.nn.init.normal_(model.entity)
    torch.nn.init.normal_(model.relation)
    step = LinkPrediction(model, MED((2, 6, 14), **OFF), trunk=2)
    trunk, *branches = step.scores(ANCHOR, RELATION, TARGET)[0].detach()
    step.join()
    found = model.forward_nested((6, 14), ANCHOR, RELATION)
    torch.testing.assert_close(found[0] * 4, 2 * trunk + 4 * branches[0])
    torch.testing.assert_close(found[1] * 8, 2 * trunk + 4 * branches[0] + 8 * branches[1])


def test_the_loss_of_a_branch_moves_its_own_dims_alone() -> None:
    step = step_of()
    scores = step.scores(ANCHOR, RELATION, TARGET)[0]
    entity, relation = torch.autograd.grad(scores[2].square().sum(), [step.model.entity, step.model.relation])
    assert entity.abs().sum((0, 2)).bool().tolist() == [False] * 4 + [True] * 4 + [False] * 4
    assert relation.abs().sum((1, 3)).bool().tolist() == [
        [False] * 12, [False] * 12, [False] * 4 + [True] * 4 + [False] * 4, [False] * 12
    ]  # fmt: skip


@pytest.mark.parametrize("reach", [1.0, 0.25])
def test_streamed_losses_are_those_of_full_scores(reach: float) -> None:
    found = []
    for compiled in ("none", "auto"):
        step = step_of(compiled=compiled, reach=reach, n3=0.03)
        losses = step(ANCHOR, RELATION, TARGET, None, SIDE)
        losses["loss"].backward()
        found.append([losses["loss"].detach(), *(p.grad for p in step.model.parameters())])
    for whole, tiles in zip(*found, strict=True):
        torch.testing.assert_close(tiles, whole)


def test_negatives_of_each_query_and_pools_are_scored_alike() -> None:
    step = step_of()
    negatives = torch.tensor([7, 9, 11])
    own = step.scores(ANCHOR, RELATION, TARGET, negatives.expand(3, 3))[0]
    torch.testing.assert_close(step.scores(ANCHOR, RELATION, TARGET, negatives)[0], own)


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_every_step_of_the_optimizer_joins(kind: Any) -> None:
    step = step_of(n3=0.01)
    optimizer = make_optimizer(step, kind, 0.1, touched_rows=20)
    for _ in range(2):
        optimizer.zero_grad()
        step(ANCHOR, RELATION, TARGET)["loss"].backward()
        optimizer.step()
    trunk, *branches = step.scores(ANCHOR, RELATION, TARGET)[0].detach()[1:]
    torch.testing.assert_close(
        step.model.forward_nested((12,), ANCHOR, RELATION)[0], trunk + branches[0] + branches[1]
    )


def test_n3_of_a_branch_by_hand() -> None:
    shared, own = n3_weights((8.0, 4.0, 2.0, 1.0), SIZES, balance=1.0, reach=0.5, trunk=4)
    assert (4 * shared).tolist() == [8 + 0.5 * 4, 4, 2, 1]
    assert (4 * own).tolist() == [[8, 0, 0, 0], [4, 4, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]


def test_without_a_trunk_joining_does_nothing() -> None:
    step = step_of(trunk=None)
    before = step.model.relation.detach().clone()
    step.join()
    assert torch.equal(step.model.relation, before)


@pytest.mark.parametrize("trunk", [3, 12])
def test_a_trunk_is_one_of_the_smaller_sizes(trunk: int) -> None:
    with pytest.raises(ValueError, match=rf"one of the sizes but the last, \(2, 4, 8, 12\), got {trunk}"):
        step_of(trunk=trunk)


@pytest.mark.parametrize(("score", "relations"), [("complex", "shared"), ("rotate", "own")])
def test_a_trunk_needs_a_product_and_relations_of_each_size(score: str, relations: Any) -> None:
    model = model_of(score, relations=relations)
    with pytest.raises(ValueError, match=f"got '{score}' with relations='{relations}'"):
        LinkPrediction(model, MED(SIZES, **OFF), trunk=4)


def test_a_step_makes_no_tensor_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a tensor is copied to the device, and the step waits until that is done."""
    objective = MED(SIZES, task="multiclass", distill=1.0, teacher="ensemble", size_weights=(1, 2, 2, 1))
    n3 = (0.4, 0.3, 0.2, 0.1)
    step = LinkPrediction(model_of(), objective, trunk=4, reach=0.5, n3=n3, logq_correction=True)
    expected = step(ANCHOR, RELATION, TARGET, torch.arange(9), SIDE)["loss"]

    def refuse(*_args: Any, **_options: Any) -> None:
        raise AssertionError("made of numbers")

    for place, name in ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "new_tensor")):
        monkeypatch.setattr(place, name, refuse)
    monkeypatch.setattr(torch, "repeat_interleave", refuse)
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", refuse)
    negatives = torch.arange(9)
    assert torch.equal(step(ANCHOR, RELATION, TARGET, negatives, SIDE)["loss"], expected)
