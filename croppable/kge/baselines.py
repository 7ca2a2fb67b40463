"""Smaller models out of a finished one, without training: what cropping is compared with.

Each function returns an ordinary `KGEModel` of its own memory, and only the order or the axes of its dims
are new: at the full size it scores as before, and its leading dims are what the method keeps. The names
are those of MED's paper (arXiv 2407.02779, section on baselines):

- Ext: ``extract(model, sizes)``, the leading dims as they are.
- Ext-V: ``reordered(model, magnitude(model))``, after magnitude pruning (Han et al., arXiv 1506.02626).
- Ext-L: ``reordered(model, loss_contribution(model, triples))``, after pruning by the change of the loss
  (Molchanov et al., arXiv 1611.06440, the oracle of section 2.1).
- PCA: ``rotated(model)``, principal axes of the entity table (Pearson 1901).

Smaller models that a larger one teaches are croppable/kge/distillation.py's affair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from croppable.core import copy_mode, fill, named_tensors, validate_sizes
from croppable.kge.model import KGEModel
from croppable.kge.scores import SCORES, Side
from croppable.losses import example_losses

__all__ = ["extract", "loss_contribution", "magnitude", "reordered", "rotated"]

_SCORES_AT_ONCE = 2**22  # numbers: a dim's losses stay in the cache's reach


@torch.no_grad()
def extract(model: KGEModel, sizes: Sequence[int]) -> KGEModel:
    """Take the leading dims of a model as a model of ``sizes`` (Ext).

    `croppable.crop` gives one size with the cuts that the model has; this gives the cuts as well, so that a
    model that was trained at one size can be measured and saved at many. A size has the calibration that a
    crop to it would have.

    Args:
        model: A model; left as it is.
        sizes: Ascending, the last at most the model's own size.

    Raises:
        ValueError: If the sizes are not ascending or do not fit.
    """
    sizes = validate_sizes(sizes, min(sizes[-1], model.size) if sizes else model.size)
    with torch.device("meta"):
        small = model.like(sizes)
    rows = [sum(own < size for own in model.sizes) for size in sizes]  # a crop uses its last row
    tensors = dict(named_tensors(model))
    own = {"relation"} if model.relations == "own" else set()
    calibration = {name: t[rows] for name, t in tensors.items() if t.ndim == 1 or name in own}
    copy_mode(model, small)
    return fill(small, tensors | calibration)


def _require_one_table(model: KGEModel) -> None:
    if model.relations == "own":
        raise ValueError(
            "dims are ranked and moved in one relation table, and this model has one per size: pass "
            "model.alone(model.size), its full size by itself"
        )


@torch.no_grad()
def magnitude(model: KGEModel) -> Tensor:
    """Return the mean absolute value of each dim over the entity and relation tables, ``[D]`` (for Ext-V).

    RotatE's relations are phases, all of modulus one: there only the entities count.
    """
    _require_one_table(model)
    tables = [model.entity] if model.score == "rotate" else [model.entity, model.relation]
    return torch.cat([_per_dim(table.abs()) for table in tables]).mean(0)


def _per_dim(table: Tensor) -> Tensor:
    """Mean over the parts of a dim, ``[rows, D]``."""
    return table.mean(-1) if table.ndim == 3 else table


@torch.no_grad()
def loss_contribution(
    model: KGEModel,
    triples: Tensor,
    *,
    task: Literal["binary", "multiclass"] = "multiclass",
    batch_size: int = 512,
) -> Tensor:
    """Return how much the loss grows when a dim alone is removed, exactly, ``[D]`` (for Ext-L).

    c_d = L(scores without dim d) - L(scores), both sides of every triple asked against all entities. An
    additive score loses a dim by subtracting its term: one pass. Others are scored once per dim with that
    dim zero in both tables, which is the same by definition.

    Args:
        model: A model.
        triples: Training triples ``[T, 3]``, or a sample of them; the cost is T x entities x dims.
        task: "multiclass": softmax cross-entropy; "binary": the mean of binary cross-entropies over answers
            plus that over the other entities, as `croppable.MED` takes them.
        batch_size: Queries at once.

    Raises:
        ValueError: If there are no triples.
    """
    _require_one_table(model)
    if not len(triples):
        raise ValueError("the loss needs at least one triple, got none: pass training triples")
    growth = torch.zeros(model.size, dtype=torch.float64, device=model.entity.device)
    batch_size = max(1, min(batch_size, _SCORES_AT_ONCE // model.num_entities))
    sides: tuple[Side, ...] = ("tail", "head")
    triples = triples.to(model.entity.device)
    for start in range(0, len(triples), batch_size):
        head, relation, tail = triples[start : start + batch_size].unbind(1)
        for side in sides:
            anchor, target = (head, tail) if side == "tail" else (tail, head)
            scores = _scores_without(model, anchor, relation, side)
            whole, *without = (_loss(some, target, task) for some in scores)
            growth += (torch.stack(without) - whole) * len(head)
    return (growth / (2 * len(triples))).to(model.entity.dtype)


def _loss(scores: Tensor, target: Tensor, task: Literal["binary", "multiclass"]) -> Tensor:
    losses = example_losses(scores[None].double(), target, task)[0]
    if task == "multiclass":
        return losses.mean()
    positive = losses.gather(1, target[:, None])
    return positive.mean() + (losses.sum() - positive.sum()) / max(1, losses.numel() - len(target))


def _scores_without(model: KGEModel, anchor: Tensor, relation: Tensor, side: Side) -> Iterator[Tensor]:
    """Yield the scores of all entities ``[B, E]``: with all dims, without dim 0, without dim 1, and so on."""
    if not model.function.additive:
        yield model(anchor, relation, None, side)
        for dim in range(model.size):
            yield _with_zero_dim(model, dim)(anchor, relation, None, side)
        return
    function, (scale, shift) = model.function, model.calibrate((model.size,))
    own, relation_rows, candidates = model.lookup(anchor, relation, None, side)
    query = function.query(own, relation_rows, model.form(side))

    def terms(dim: int) -> Tensor:
        return function.partial(query[:, None, dim : dim + 1], candidates[:, dim : dim + 1])[..., 0]

    total = sum((terms(dim) for dim in range(1, model.size)), terms(0))
    yield function.finish(total) * scale + shift
    for dim in range(model.size):
        yield function.finish(total - terms(dim)) * scale + shift


def _with_zero_dim(model: KGEModel, dim: int) -> KGEModel:
    """Copy a model and zero a dim of both tables: its term is then zero in every score."""
    copy = extract(model, model.sizes)
    copy.entity[:, dim] = 0
    copy.relation[:, dim] = 0
    return copy


@torch.no_grad()
def reordered(model: KGEModel, importance: Tensor) -> KGEModel:
    """Sort the dims of both tables, the most important first; scores at the full size stay.

    Args:
        model: A model; left as it is.
        importance: ``[D]``, as from `magnitude` or `loss_contribution`; equals keep their order.

    Raises:
        ValueError: If there is not one finite number per dim.
    """
    _require_one_table(model)
    if importance.shape != (model.size,) or not importance.isfinite().all():
        raise ValueError(
            f"importance must be {model.size} finite numbers, one per dim, got "
            f"{tuple(importance.shape)}: {importance}"
        )
    order = importance.sort(descending=True, stable=True).indices
    copy = extract(model, model.sizes)
    copy.entity.copy_(model.entity[:, order])
    copy.relation.copy_(model.relation[:, order])
    return copy


@torch.no_grad()
def rotated(model: KGEModel, *, anyway: bool = False) -> KGEModel:
    """Rotate the dims of both tables to the principal axes of the entities, the largest variance first.

    Only the Euclidean distance of translations, |Q (h + r - t)| = |h + r - t|, takes a rotation: the scores
    that are `Score.rotatable`. The leading d dims then are the best linear approximation of the entities
    in d dims. A rotation mixes dims, and every other score here treats dims one by one: an L1 distance has
    another unit ball, a diagonal bilinear form becomes a full one, moduli and phases belong to one dim.

    Args:
        model: A model; left as it is.
        anyway: Rotate where the score does not allow it, to see what that does. **The scores are then
            others, at the full size too**; the parts of a dim are rotated alike.

    Raises:
        ValueError: If the score does not allow it and ``anyway`` is False.
    """
    _require_one_table(model)
    if not (model.function.rotatable or anyway):
        allowed = ", ".join(name for name, score in SCORES.items() if score.rotatable)
        raise ValueError(
            f"a rotation changes the scores of {model.score} and leaves only those of {allowed} as they are: "
            f"use one of these, or pass anyway=True to see what it does"
        )
    centred = (model.entity - model.entity.mean(0)).double().reshape(model.num_entities, model.size, -1)
    variance = torch.einsum("edp,efp->df", centred, centred)
    axes = torch.linalg.eigh(variance).eigenvectors.flip(1)  # eigh sorts ascending
    copy = extract(model, model.sizes)
    for mine, theirs in ((copy.entity, model.entity), (copy.relation, model.relation)):
        mine.copy_(torch.einsum("nd...,df->nf...", theirs.double(), axes))
    return copy
