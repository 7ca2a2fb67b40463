"""Binary losses of a batch by compiled kernels: rows in, losses of all sizes out, gradients analytic.

The specification is `LinkPrediction` without compilation. The file needs numba (extra "kge"); nothing but
`LinkPrediction` imports it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from croppable.kge.compiled_batch import Batch
from croppable.kge.compiled_plan import Plan
from croppable.kge.ranking_compiled import STEPS
from croppable.kge.scores import Score, Side
from croppable.med import MED

__all__ = ["Plan", "binary_losses", "supports"]

STEEPEST = 80.0  # exp(-w2) of more would vanish in float32


def supports(score: Score, entity: Tensor, objective: MED) -> bool:
    """Whether the kernels compute what is asked: float32 on the CPU, a score and an objective they know."""
    return (
        type(score) in STEPS
        and entity.device.type == "cpu"
        and entity.dtype == torch.float32
        and objective.task == "binary"
        and not (objective.mutual and objective.mutual_form == "kl")
        and not objective.distills
        and abs(float(objective.w2.detach())) <= STEEPEST
    )


def binary_losses(
    plan: Plan,
    entity: Tensor,
    relation_rows: Tensor,
    scale: Tensor,
    shift: Tensor,
    anchor: Tensor,
    target: Tensor,
    negatives: Tensor,
    side: Side,
) -> tuple[Tensor, Tensor]:
    """Compute what the objective is made of; differentiable by the four tensors after the plan, w1 and w2.

    Args:
        plan: What stays the same from batch to batch.
        entity: The whole table.
        relation_rows: ``[B, d(, p)]``.
        scale: Factor of the scores of each size ``[K]``.
        shift: Added to them ``[K]``.
        anchor: Ids ``[B]``.
        target: Ids ``[B]``.
        negatives: Ids ``[B, N]``, ``[C]`` shared by all queries, or ``[G, C]`` of G < B pools, each shared by
            a run of queries.
        side: The side that is asked for.

    Returns:
        L_EI of every size ``[K]``, and the sum of mutual losses of neighbours ``[K - 1]``.

    Raises:
        IndexError: If an id is not one of an entity.
        ValueError: If the batch's tensors do not fit together.
    """
    _check_ids(len(entity), anchor, target, negatives)
    weights = (plan.objective.w1, plan.objective.w2)
    ids = (anchor, target, negatives)
    improvement, mutual = _Binary.apply(  # type: ignore[no-untyped-call]
        entity, relation_rows, scale, shift, *weights, plan, ids, side
    )
    return improvement, mutual


def _check_ids(num_entities: int, anchor: Tensor, target: Tensor, negatives: Tensor) -> None:
    """Kernels do not check what they read, so this does."""
    batch = len(anchor)
    fits = negatives.ndim == 1 or (negatives.ndim == 2 and len(negatives) <= batch)
    if target.shape != (batch,) or not fits:
        raise ValueError(
            f"expected anchors [B], targets [B] and negatives [B, N], [C] or [G, C] of fewer pools than "
            f"queries, got {tuple(anchor.shape)}, {tuple(target.shape)} and {tuple(negatives.shape)}"
        )
    for name, ids in (("anchor", anchor), ("target", target), ("negative", negatives)):
        if ids.dtype != torch.int64:
            raise ValueError(f"{name} ids must be int64, got {ids.dtype}")
        if not ids.numel():
            raise ValueError(f"a batch needs at least one {name}, got shape {tuple(ids.shape)}")
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= num_entities:
            raise IndexError(f"{name} ids must be from 0 to {num_entities - 1}, got {low} to {high}")


class _Binary(torch.autograd.Function):
    """`_Batch` as a node of autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        entity: Tensor,
        relation_rows: Tensor,
        scale: Tensor,
        shift: Tensor,
        w1: Tensor,
        w2: Tensor,
        plan: Plan,
        ids: tuple[Tensor, Tensor, Tensor],
        side: Side,
    ) -> tuple[Tensor, Tensor]:
        """Judge the batch."""
        calibration = torch.stack([scale, shift])
        fixed, learned = not any(ctx.needs_input_grad[2:4]), any(ctx.needs_input_grad[4:6])
        batch = Batch(plan, entity, relation_rows, calibration, (w1, w2), ids, side, fixed, learned)
        batch.judge()
        ctx.batch = batch
        return batch.losses()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gather all gradients."""
        return (*ctx.batch.gradients(*upstream), None, None, None)
