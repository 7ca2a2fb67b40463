"""Softmax over every entity at all sizes, without the K x B x E scores.

Entities pass by in tiles: forward keeps a running log-sum-exp per query and size, backward scores each tile
again. Memory is that of one tile. The Kullback-Leibler terms of MED come along as expectations of scores.
The specification is `MED.terms` on the full scores.

Shape suffixes: K sizes, B queries, E entities, T entities of a tile, D dims, P parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from croppable.compiling import import_kernels
from croppable.kge.prefixes import gpu_pool_kernels, prefix_sums, segment_terms
from croppable.kge.scores import Score
from croppable.med import MED

__all__ = [
    "Plan",
    "Softmax",
    "Sums",
    "absorb",
    "softmax_losses",
    "streamed_softmax",
    "supports",
    "weights_of_tile",
]

TILE = {"cpu": 2**22}  # scores of a tile: 16 MB stay in the last cache
TILE_ELSEWHERE = 2**26
NARROWEST = 16  # entities of a tile at least


class Softmax(NamedTuple):
    """What losses need of the softmax p_k over all entities at size k, with scores s_k.

    Attributes:
        own: Score of the target ``[K, B]``.
        log_sum: Log of the sum of exponentials ``[K, B]``.
        mean: Expectation of s_k under p_k ``[K, B]``.
        below: Expectation of s_k under p_(k+1), the larger neighbour ``[K - 1, B]``.
        under_last: Expectation of s_k under the detached p of the last size ``[K, B]``.
    """

    own: Tensor
    log_sum: Tensor
    mean: Tensor
    below: Tensor
    under_last: Tensor


def supports(score: Score, objective: MED) -> bool:
    """Whether `softmax_losses` computes the objective of that score."""
    neighbours = not objective.mutual or objective.mutual_form == "kl"
    teachers = not objective.distills or objective.teacher == "largest"
    return score.additive and objective.task == "multiclass" and neighbours and teachers


def softmax_losses(
    score: Score,
    objective: MED,
    query: Tensor,
    table: Tensor,
    target: Tensor,
    scale: Tensor,
    shift: Tensor,
) -> dict[str, Tensor]:
    """Compute the losses of `MED.terms` against every entity.

    Args:
        score: An additive score.
        objective: An objective that `supports` accepts.
        query: Query rows ``[B, D(, P)]``.
        table: Entity rows ``[E, D(, P)]``.
        target: Ids of the answers ``[B]``.
        scale: Factor of the scores of each size ``[K]``.
        shift: Added to them ``[K]``.

    Returns:
        As `MED.terms`.
    """
    neighbours = bool(objective.mutual) and len(objective.sizes) > 1
    found = streamed_softmax(
        score, objective.sizes, query, table, target, scale, shift,
        neighbours=neighbours, last=objective.distills, teach_down=objective.teach_down,
    )  # fmt: skip
    losses = found.log_sum - found.own
    zero = losses.new_zeros(())
    mutual = distill = zero
    if neighbours:
        teacher_mean, teacher_sum = found.mean[1:], found.log_sum[1:]
        if objective.teach_down:
            teacher_mean, teacher_sum = teacher_mean.detach(), teacher_sum.detach()
        divergence = teacher_mean - teacher_sum - found.below + found.log_sum[:-1]
        total = divergence.sum() if objective.mutual_reduction == "sum" else divergence.mean(1).sum()
        mutual = objective.mutual * total
    if objective.distills and len(objective.sizes) > 1:
        teacher = (found.mean[-1] - found.log_sum[-1]).detach()
        divergence = teacher - found.under_last[:-1] + found.log_sum[:-1]
        distill = objective.distillation(divergence.mean(1))
    return objective.reduce(objective.improve(losses), mutual, distill)


def streamed_softmax(
    score: Score,
    sizes: Sequence[int],
    query: Tensor,
    table: Tensor,
    target: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    neighbours: bool = False,
    last: bool = False,
    teach_down: bool = False,
) -> Softmax:
    """Compute `Softmax`, differentiable by query, table, scale and shift; arguments as in `softmax_losses`.

    Args:
        score: An additive score.
        sizes: Ascending, K of them.
        query: ``[B, D(, P)]``.
        table: ``[E, D(, P)]``.
        target: ``[B]``.
        scale: ``[K]``.
        shift: ``[K]``.
        neighbours: Whether ``mean`` and ``below`` are wanted; otherwise they are zero.
        last: Whether ``mean`` and ``under_last`` are wanted; otherwise they are zero.
        teach_down: Whether ``below`` has no gradient by the larger neighbour.
    """
    plan = Plan(score, tuple(sizes), neighbours, last, teach_down)
    return Softmax(*_Streamed.apply(query, table, scale, shift, target, plan))  # type: ignore[no-untyped-call]


class Plan(NamedTuple):
    """What stays the same from tile to tile; see `streamed_softmax`."""

    score: Score
    sizes: tuple[int, ...]
    neighbours: bool
    last: bool
    teach_down: bool

    def tiles(self, queries: int, table: Tensor) -> Iterator[slice]:
        """Cut the table so that a tile's largest tensor has about TILE numbers."""
        widths = [b - a for a, b in zip((0, *self.sizes), self.sizes, strict=False)]
        wide = len(self.sizes) if self.score.product else max(len(self.sizes), *widths)
        count = TILE.get(table.device.type, TILE_ELSEWHERE) // (queries * wide)
        step = max(NARROWEST, min(count, len(table)))
        return (slice(start, start + step) for start in range(0, len(table), step))

    def own_scores(self, query: Tensor, rows: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Score every query's target ``[K, B]``."""
        totals = prefix_sums(self.score.partial(query, rows), self.sizes)
        return self.score.finish(totals) * scale[:, None] + shift[:, None]

    def through_terms(self, query: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Turn gradients by the terms of segments ``[K, B, T]`` into those by queries and rows."""
        kernels = gpu_pool_kernels(self.score, query)
        if kernels is not None:
            found: tuple[Tensor, Tensor] = kernels.through_terms(self.score, self.sizes, query, rows, weights)
            return found
        by_query, by_rows = torch.empty_like(query), torch.empty_like(rows)
        parts = query[0, 0].numel()
        for weight, start, stop in zip(weights, (0, *self.sizes), self.sizes, strict=False):
            if self.score.product:
                span = slice(start * parts, stop * parts)
                by_query.flatten(1)[:, span] = weight @ rows.flatten(1)[:, span]
                by_rows.flatten(1)[:, span] = weight.T @ query.flatten(1)[:, span]
            else:
                with torch.enable_grad():
                    q, c = (t[:, start:stop].detach().requires_grad_() for t in (query, rows))
                    terms = self.score.partial(q[:, None], c).sum(-1)
                by_query[:, start:stop], by_rows[:, start:stop] = torch.autograd.grad(terms, (q, c), weight)
        return by_query, by_rows


class Sums(NamedTuple):
    """Running sums over tiles, changed in place.

    Attributes:
        top: Largest score so far ``[K, B]``.
        total: Sum of exp(s - top) ``[K, B]``.
        mean: Sum of exp(s - top) s ``[K, B]``.
        below: The same with the weights of the next size; the last size has none ``[K, B]``.
        under_last: The same with the weights of the last size ``[K, B]``.
    """

    top: Tensor
    total: Tensor
    mean: Tensor
    below: Tensor
    under_last: Tensor


def absorb(plan: Plan, terms: Tensor, calibration: Tensor, sums: Sums) -> None:
    """Take a tile into the running sums.

    Args:
        plan: What stays the same.
        terms: From `segment_terms` ``[K, B, T]``; used up.
        calibration: Scale and shift ``[2, K]``.
        sums: Changed.
    """
    scores = _scores(plan, _run(terms), calibration)
    before = sums.top.clone()
    torch.maximum(before, scores.amax(-1), out=sums.top)
    shrink = (before - sums.top).exp()
    weights = torch.sub(scores, sums.top[..., None], out=terms).exp_()
    sums.total.mul_(shrink).add_(weights.sum(-1))
    if plan.neighbours or plan.last:
        sums.mean.mul_(shrink).add_(torch.einsum("kbt,kbt->kb", weights, scores))
    if plan.neighbours:
        more = torch.einsum("kbt,kbt->kb", weights[1:], scores[:-1])
        sums.below[:-1].mul_(shrink[1:]).add_(more)
    if plan.last:
        sums.under_last.mul_(shrink[-1]).add_(torch.einsum("bt,kbt->kb", weights[-1], scores))


def weights_of_tile(
    plan: Plan, terms: Tensor, calibration: Tensor, found: Softmax, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients by the terms of segments ``[K, B, T]``, and by scale and shift ``[2, K]``.

    Args:
        plan: What stays the same.
        terms: From `segment_terms` ``[K, B, T]``; used up.
        calibration: Scale and shift ``[2, K]``.
        found: From forward.
        upstream: Gradients by log_sum, mean, below and under_last ``[4, K, B]``.
    """
    scores = _scores(plan, _run(terms), calibration)
    by_sum, by_mean, by_below, by_last = upstream[..., None]
    p = (scores - found.log_sum[..., None]).exp_()
    # d mean_k / d s_k = p_k (1 + s_k - mean_k)
    gradient = (by_sum + by_mean * (1 - found.mean[..., None])) * p
    if plan.neighbours or plan.last:
        gradient.addcmul_(by_mean * p, scores)
    if plan.neighbours:
        # below_k = sum p_(k+1) s_k: by s_k it is p_(k+1), by s_(k+1) it is p_(k+1) (s_k - below_k)
        weighted = by_below[:-1] * p[1:]
        gradient[:-1] += weighted
        if not plan.teach_down:
            gradient[1:].addcmul_(weighted, scores[:-1] - found.below[..., None])
    if plan.last:
        gradient += by_last * p[-1]
    finished = plan.score.finish(terms)
    by_calibration = torch.stack([torch.einsum("kbt,kbt->k", gradient, finished), gradient.sum((1, 2))])
    gradient *= calibration[0, :, None, None]
    if type(plan.score).finish is not Score.finish:
        with torch.enable_grad():
            totals = terms.detach().requires_grad_()
            gradient = torch.autograd.grad(plan.score.finish(totals), totals, gradient)[0]
    for k in range(len(gradient) - 2, -1, -1):
        gradient[k] += gradient[k + 1]  # a segment is part of all larger sizes
    return gradient, by_calibration


def _run(terms: Tensor) -> Tensor:
    """Turn the terms of segments into totals, in place."""
    for k in range(1, len(terms)):
        terms[k] += terms[k - 1]
    return terms


def _scores(plan: Plan, totals: Tensor, calibration: Tensor) -> Tensor:
    scale, shift = calibration[..., None, None]
    return torch.addcmul(shift, plan.score.finish(totals), scale)


class _Streamed(torch.autograd.Function):
    """`streamed_softmax` as a node of autograd."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, table: Tensor, scale: Tensor, shift: Tensor, target: Tensor, plan: Plan
    ) -> tuple[Tensor, ...]:
        """Let all tiles pass by."""
        shape, calibration = (len(plan.sizes), len(query)), torch.stack([scale, shift])
        take, _ = _workers(plan, query)
        sums = Sums(query.new_full(shape, -torch.inf), *(query.new_zeros(shape) for _ in range(4)))
        for tile in plan.tiles(len(query), table):
            take(plan, segment_terms(plan.score, plan.sizes, query, table[tile]), calibration, sums)
        log_sum = sums.top + sums.total.log()
        own = plan.own_scores(query, table[target], scale, shift)
        below = sums.below[:-1] / sums.total[1:]
        found = Softmax(own, log_sum, sums.mean / sums.total, below, sums.under_last / sums.total[-1])
        ctx.save_for_backward(query, table, scale, shift, target, *found)
        ctx.plan = plan
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Let all tiles pass by again."""
        query, table, scale, shift, target, *rest = ctx.saved_tensors
        plan, found, calibration = ctx.plan, Softmax(*rest), torch.stack([scale, shift])
        _, weigh = _workers(plan, query)
        by_found = torch.stack([*upstream[1:3], F.pad(upstream[3], (0, 0, 0, 1)), upstream[4]])
        by_query, by_table = torch.zeros_like(query), torch.empty_like(table)
        by_calibration = torch.zeros_like(calibration)
        for tile in plan.tiles(len(query), table):
            terms = segment_terms(plan.score, plan.sizes, query, table[tile])
            weights, more_calibration = weigh(plan, terms, calibration, found, by_found)
            more, by_table[tile] = plan.through_terms(query, table[tile], weights)
            by_query += more
            by_calibration += more_calibration
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (query, table[target], scale, shift)]
            own = plan.own_scores(leaves[0], leaves[1], leaves[2], leaves[3])
        more, rows, by_scale, by_shift = torch.autograd.grad(own, leaves, upstream[0])
        by_table.index_add_(0, target, rows)
        by_scale, by_shift = by_calibration + torch.stack([by_scale, by_shift])
        return by_query + more, by_table, by_scale, by_shift, None, None


def _workers(plan: Plan, query: Tensor) -> tuple[Callable[..., None], Callable[..., tuple[Tensor, Tensor]]]:
    """Return who works on tiles: compiled kernels where they can, otherwise the functions above."""
    identity = type(plan.score).finish is Score.finish
    if identity and query.device.type == "cpu" and query.dtype == torch.float32:
        kernels = import_kernels("croppable.kge.compiled_softmax")
        if kernels is not None:
            return kernels.absorb, kernels.weights_of_tile
    return absorb, weights_of_tile
