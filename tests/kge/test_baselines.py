"""Smaller models out of a finished one: full scores stay, planted dims are found, rotations are refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import croppable
from croppable.core import named_tensors
from croppable.kge.baselines import extract, loss_contribution, magnitude, reordered, rotated
from croppable.kge.model import KGEModel
from croppable.kge.scores import SCORES
from croppable.med import MED

SIZES = (2, 5, 6)
SIDES: tuple[Any, ...] = ("tail", "head")
TRIPLES = torch.tensor([[0, 0, 1], [1, 1, 2], [2, 2, 3], [4, 0, 5], [6, 1, 0]])
ANCHOR, RELATION = TRIPLES[:, 0], TRIPLES[:, 1]


def model_of(score: str = "complex", sizes: tuple[int, ...] = SIZES, **options: Any) -> KGEModel:
    torch.manual_seed(0)
    model = KGEModel(7, 3, sizes, score, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def full_scores(model: KGEModel) -> Tensor:
    with torch.no_grad():
        return torch.stack([model(ANCHOR, RELATION, None, side) for side in SIDES])


def weights(model: KGEModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model)}


def unchanged(model: KGEModel, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(model))


# ------------------------------------------------------------------------------------------------ Ext


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("calibration", ["none", "affine"])
def test_extracted_sizes_are_the_crops(score: str, calibration: Any) -> None:
    model = model_of(score, calibration=calibration, margin=1.0)
    small = extract(model, (1, 2, 4, 5))
    assert small.sizes == (1, 2, 4, 5)
    nested = small.forward_nested(small.sizes, ANCHOR, RELATION)
    for scores, size in zip(nested, small.sizes, strict=True):
        cropped = croppable.crop(model, size)
        torch.testing.assert_close(scores, cropped(ANCHOR, RELATION))


def test_extracting_touches_neither_the_model_nor_the_random_numbers() -> None:
    model = model_of(reciprocal=True).eval()
    model.labels = "names"
    before, state = weights(model), torch.get_rng_state()
    small = extract(model, (2, 6))
    assert torch.equal(state, torch.get_rng_state())
    assert (small.reciprocal, small.labels, small.training) == (True, "names", False)
    with torch.no_grad():
        small.entity.zero_()
    assert unchanged(model, before)


def test_extracting_more_than_there_is_names_both_sizes() -> None:
    with pytest.raises(ValueError, match=re.escape("own size 6, got (2, 7)")):
        extract(model_of(), (2, 7))


# ------------------------------------------------------------------------------------- Ext-V and Ext-L


@pytest.mark.parametrize("score", SCORES)
def test_reordering_keeps_the_full_scores_and_sorts_the_dims(score: str) -> None:
    model = model_of(score, reciprocal=score == "complex")
    before = weights(model)
    importance = torch.tensor([0.1, 3.0, 0.1, -2.0, 5.0, 4.0])
    other = reordered(model, importance)
    torch.testing.assert_close(full_scores(other), full_scores(model))
    order = [4, 5, 1, 0, 2, 3]
    assert torch.equal(other.entity, model.entity[:, order])
    assert torch.equal(other.relation, model.relation[:, order])
    assert other.sizes == model.sizes
    assert unchanged(model, before)


@pytest.mark.parametrize("importance", [torch.ones(5), torch.tensor([1, 2, 3, 4, 5, torch.nan])])
def test_importance_is_one_finite_number_per_dim(importance: Tensor) -> None:
    with pytest.raises(ValueError, match="importance must be 6 finite numbers, one per dim"):
        reordered(model_of(), importance)


def test_magnitude_is_the_mean_absolute_value_of_both_tables() -> None:
    model = KGEModel(2, 1, (2,), "complex")
    with torch.no_grad():
        model.entity.copy_(torch.tensor([[[1.0, -3.0], [0, 0]], [[-2, 2], [0, 2]]]))
        model.relation.copy_(torch.tensor([[[-1.0, 3.0], [6, 4]]]))
    assert magnitude(model).tolist() == [12 / 6, 12 / 6]
    model = KGEModel(2, 1, (2,), "rotate")
    with torch.no_grad():
        model.entity.copy_(torch.tensor([[[1.0, -3.0], [0, 0]], [[-2, 2], [0, 2]]]))
        model.relation.fill_(100.0)
    assert magnitude(model).tolist() == [8 / 4, 2 / 4], "a phase has no magnitude"


def task_loss(model: KGEModel, task: Any) -> Tensor:
    """The loss of all triples at both sides, as training without any mechanism takes it."""
    plain = MED((model.size,), task=task, mutual=0.0, w1=0.0, w2=0.0, w3=0.0)
    sides = [("tail", 0, 2), ("head", 2, 0)]
    with torch.no_grad():
        losses = [
            plain(model(TRIPLES[:, a], RELATION, None, side)[None].double(), TRIPLES[:, t])
            for side, a, t in sides
        ]
    return torch.stack(losses).mean().float()


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_loss_contribution_is_the_growth_of_the_loss_without_the_dim(score: str, task: Any) -> None:
    model = model_of(score, calibration="affine", margin=0.5)
    expected = []
    for dim in range(model.size):
        without = extract(model, model.sizes)
        with torch.no_grad():
            without.entity[:, dim] = 0
            without.relation[:, dim] = 0
        expected.append(task_loss(without, task) - task_loss(model, task))
    found = loss_contribution(model, TRIPLES, task=task, batch_size=5)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-4)
    if task == "multiclass":  # binary weights are normalised over a batch
        torch.testing.assert_close(found, loss_contribution(model, TRIPLES, task=task, batch_size=2))


@pytest.mark.parametrize("score", ["complex", "transe-l1"])
def test_ext_l_puts_planted_useless_dims_last(score: str) -> None:
    model = model_of(score, (8,))
    useless = [0, 3, 4]
    with torch.no_grad():
        model.entity[:, useless] = 0
        model.relation[:, useless] = 0
        for parameter in model.parameters():
            parameter.mul_(0.1)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.3)
    keep = torch.ones(8)
    keep[useless] = 0
    for _ in range(60):  # gradients of planted dims are dropped: they stay useless
        loss = sum(
            torch.nn.functional.cross_entropy(model(TRIPLES[:, a], RELATION, None, side), TRIPLES[:, t])
            for side, a, t in (("tail", 0, 2), ("head", 2, 0))
        )
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            parameter.grad *= keep.reshape(1, 8, *[1] * (parameter.ndim - 2))
        optimizer.step()
    contribution = loss_contribution(model, TRIPLES)
    assert contribution[useless].tolist() == [0, 0, 0]
    useful = reordered(model, contribution)
    assert not useful.entity[:, 5:].any()
    small, unsorted = extract(useful, (5,)), extract(model, (5,))
    torch.testing.assert_close(full_scores(small), full_scores(model))
    assert task_loss(small, "multiclass") < task_loss(unsorted, "multiclass")


def test_loss_contribution_needs_triples() -> None:
    with pytest.raises(ValueError, match="at least one triple, got none"):
        loss_contribution(model_of(), TRIPLES[:0])


# ------------------------------------------------------------------------------------------------ PCA


def test_a_rotation_keeps_the_euclidean_distances_and_sorts_by_variance() -> None:
    model = model_of("transe-l2", calibration="scale", margin=2.0)
    other = rotated(model)
    torch.testing.assert_close(full_scores(other), full_scores(model))
    variance = other.entity.var(0)
    assert (variance.diff() <= 0).all()
    assert variance[0] > model.entity.var(0).max()
    covariance = other.entity.T.cov()
    torch.testing.assert_close(covariance, covariance.diag().diag(), atol=1e-5, rtol=0)


def test_the_leading_axes_of_entities_in_a_plane_keep_everything() -> None:
    model = model_of("transe-l2")
    plane = torch.linalg.qr(torch.randn(6, 6))[0][:, :2]
    with torch.no_grad():
        model.entity.copy_(torch.randn(7, 2) @ plane.T)
        model.relation.copy_(torch.randn(3, 2) @ plane.T)
    small = extract(rotated(model), (2,))
    torch.testing.assert_close(full_scores(small), full_scores(model), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(full_scores(extract(model, (2,))), full_scores(model), atol=0.1)


@pytest.mark.parametrize("score", SCORES)
def test_where_the_scores_would_change_it_says_so(score: str) -> None:
    model = model_of(score)
    if SCORES[score].rotatable:
        assert score == "transe-l2"
        return
    with pytest.raises(
        ValueError, match=f"a rotation changes the scores of {score} and .* those of transe-l2"
    ):
        rotated(model)
    other = rotated(model, anyway=True)
    assert not torch.allclose(full_scores(other), full_scores(model), atol=1e-3)
    assert torch.linalg.norm(other.entity).item() == pytest.approx(torch.linalg.norm(model.entity).item())


# ------------------------------------------------------------------------------- all of them are models


@pytest.mark.parametrize("method", [magnitude, lambda m: loss_contribution(m, TRIPLES), None])
def test_the_result_saves_and_loads_at_any_size(tmp_path: Path, method: Any) -> None:
    model = model_of("transe-l2")
    other = rotated(model) if method is None else reordered(model, method(model))
    croppable.save(other, tmp_path / "model")
    for size in (1, 2, 6):
        loaded = croppable.load(tmp_path / "model", size=size)
        assert torch.equal(full_scores(loaded), full_scores(croppable.crop(other, size)))
