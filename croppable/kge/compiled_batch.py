"""One batch for the compiled kernels: its arrays, its losses and all of its gradients.

The batch is cut into pieces whose scores stay in the cache. The specification is `LinkPrediction` without
compilation; croppable/kge/compiled_step.py hands the results to autograd. The file needs numba (extra "kge").

Shapes: B queries, N negatives of each or C of each of G pools, A rows that only one query uses (its target,
then its negatives), W numbers of a row (dims x parts), K sizes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from croppable.kge.compiled_gradients import (
    Pools,
    Rows,
    Steps,
    add_rows,
    cut_blocks,
    cut_runs,
    group,
    sums_of_rows,
    through_pools,
    through_rows,
)
from croppable.kge.compiled_plan import Plan
from croppable.kge.gradient_kernels import gather_weights
from croppable.kge.loss_kernels import STATS, judge, judge_gradients
from croppable.kge.pieces import cut, on_all_threads
from croppable.kge.ranking_kernels import SQUARED
from croppable.kge.sampling import runs_of_pools
from croppable.kge.scores import Side
from croppable.kge.step_kernels import LANES, own_scores, pool_scores, target_scores
from croppable.kge.usual_kernels import TOGETHER, judge_own, judge_pool, judge_usual, weigh_usual
from croppable.kge.vector_code import PERMUTED, SQUARE

__all__ = ["Batch"]

PIECE = 2**17  # scores of a piece, half a megabyte
PIECES = 4  # for each thread, so that none waits long for another


@lru_cache(maxsize=8)
def _segments(sizes: tuple[int, ...], parts: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Bounds of segments in a row, and the ``firsts`` and ``places`` of `row_gradients`."""
    bounds = np.array([0, *sizes]) * parts
    segment = np.repeat(np.arange(len(sizes)), np.diff(bounds))
    segment = np.pad(segment, (0, -len(segment) % PERMUTED), mode="edge")
    firsts = np.minimum(segment[::PERMUTED], max(0, len(sizes) - PERMUTED))
    return bounds, firsts, (segment - np.repeat(firsts, PERMUTED)).astype(np.int32)


class Batch:
    """The arrays of one batch between forward and backward."""

    def __init__(
        self,
        plan: Plan,
        entity: Tensor,
        relation_rows: Tensor,
        calibration: Tensor,
        strengths: tuple[Tensor, Tensor],
        ids: tuple[Tensor, Tensor, Tensor],
        side: Side,
        fixed: bool,
        learned: bool,
    ) -> None:
        """Look the queries up.

        Args:
            plan: What stays the same.
            entity: ``[E, d(, p)]``.
            relation_rows: ``[B, d(, p)]``.
            calibration: Scale and shift ``[2, K]``.
            strengths: w1 and w2.
            ids: Anchors, targets and negatives.
            side: The form of the score.
            fixed: Whether no gradient of the calibration is asked for.
            learned: Whether gradients of w1 and w2 are asked for.
        """
        self.learned = learned
        self.plan, self.entity, self.calibration, self.strengths = plan, entity, calibration, strengths
        self.anchor, self.target, negatives = (i.contiguous() for i in ids)  # kernels know one layout
        self.shared = negatives.shape[:-1] != self.target.shape
        with torch.enable_grad():
            self.anchor_rows = entity.detach().index_select(0, self.anchor).requires_grad_()
            self.relation_rows = relation_rows.detach().requires_grad_()
            self.query = plan.score.query(self.anchor_rows, self.relation_rows, side)
        queries = self.query.detach().flatten(1).contiguous() + 0  # and -0 is 0; see lanes_pull_code.py
        table = entity.flatten(1).contiguous().numpy()
        bounds, firsts, places = _segments(plan.sizes, plan.score.entity_parts)
        self.rows = Rows(plan.kind, queries.numpy(), table, bounds, firsts, places)
        self.negatives = negatives
        self.own_ids = torch.cat([self.target[:, None], *([] if self.shared else [negatives])], 1)
        batch, sizes, count = len(queries), len(plan.sizes), negatives.shape[-1]
        self.usual = plan.usual(fixed, min(batch, count), *strengths)
        blocks = (-(-batch // TOGETHER), sizes, TOGETHER, count)
        self.sigma = torch.empty(blocks if self.usual and self.shared else (batch, sizes, count))
        self.own = torch.empty(1, sizes, batch)
        self.scores = None if self.usual else torch.empty_like(self.sigma)
        self.own_sigma, self.own_stats = torch.empty_like(self.own), torch.empty(1, sizes, STATS)
        self.pools = self._pools() if self.shared else None

    def _pools(self) -> Pools:
        """Look up the rows of the candidates that queries share."""
        ids = self.negatives if self.negatives.ndim == 2 else self.negatives[None]
        rows = self.entity.flatten(1)[ids]
        return Pools(ids.numpy(), _by_lanes(rows), runs_of_pools(len(self.target), len(ids)))

    def pieces(self) -> list[tuple[int, int]]:
        """Ranges of queries: whose scores stay in the cache, or a few for each thread if none are kept."""
        count, width = self.rows.queries.shape
        numbers = (1 + self.negatives.shape[-1]) * width
        if self.usual:
            if self.pools is None:
                return cut_blocks(count, PIECES, 1, numbers)
            return self.pools.pieces(PIECES, TOGETHER, numbers)
        runs = [(0, count)] if self.pools is None else self.pools.runs
        return cut_runs(runs, lambda queries: cut(queries, PIECE // self.sigma[0].numel(), numbers))

    def judge(self) -> None:
        """Score and judge all candidates."""
        kind, plan, calibration = self.plan.kind, self.plan, self.calibration.numpy()
        scores, sigma = None if self.scores is None else self.scores.numpy(), self.sigma.numpy()
        targets, negatives, pieces = self.target.numpy(), self.negatives.numpy(), self.pieces()
        own = bool(plan.objective.adversarial)
        judging = plan.judging(False, *self.strengths)
        number = {begin: i for i, (begin, _) in enumerate(pieces)}
        self.stats = torch.empty(len(pieces) if self.usual else len(sigma), len(plan.sizes), STATS)
        stats, pools, (_, queries, table, bounds, *_) = self.stats.numpy(), self.pools, self.rows

        def piece(begin: int, end: int) -> None:
            segments, learned = (bounds, calibration), self.learned
            pool = pools.of(begin) if pools is not None else 0
            if scores is None:
                strength: Any = (judging.w, learned, begin, end, sigma, stats[number[begin]])
                if pools is None:
                    judge_own(kind, queries, table, negatives, *segments, *strength)
                else:
                    some = (pools.rows[pool], pools.ids[pool])
                    judge_pool(kind, queries, *some, targets, *segments, *strength)
            else:
                out: Any = (*segments, begin, end, scores[begin:end, :, None])
                if pools is None:
                    own_scores(kind, queries, table, negatives, *out)
                else:
                    pool_scores(kind, queries, pools.rows[pool], pools.ids[pool], targets, *out)
                judge(scores[begin:end], *judging, own, sigma[begin:end], stats[begin:end])
            begin, end = (min(-(-place // LANES) * LANES, len(targets)) for place in (begin, end))
            target_scores(kind, queries, table, targets, *segments, begin, end, self.own[0].numpy())

        on_all_threads(piece, pieces)
        judging = plan.judging(True, *self.strengths)
        own_scored, own_sigma, own_stats = (t.numpy() for t in (self.own, self.own_sigma, self.own_stats))
        if self.usual:
            judge_usual(own_scored, judging.sign, judging.w, self.learned, own_sigma, own_stats[0])
        else:
            judge(own_scored, *judging, True, own_sigma, own_stats)
        self.sums, self.own_sums = self.stats.sum(0, dtype=torch.float64), self.own_stats[0].double()

    def losses(self) -> tuple[Tensor, Tensor]:
        """Turn the sums into L_EI of every size and the mutual losses of neighbours."""
        adversarial = self.plan.objective.adversarial
        negative = _mean_loss(self.stats).mean(0) if adversarial else _mean_loss(self.sums)
        mutual = self.sums[1:, 5] + self.own_sums[1:, 5]
        return (negative + _mean_loss(self.own_sums)).float(), mutual.float()

    def gradients(self, by_improvement: Tensor, by_mutual: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of entity, relation rows, scale, shift, w1 and w2."""
        adversarial = self.plan.objective.adversarial
        sums = self.stats[..., 1] * len(self.stats) if adversarial else self.sums[None, :, 1]
        factors, own_factors = by_improvement / sums, by_improvement / self.own_sums[None, :, 1]
        pulls = F.pad(by_mutual, (1, 0))
        steps = (self._usual_steps if self.usual else self._steps)(
            factors.float(), own_factors.float(), pulls
        )
        touched, by_touched, by_relation = self._through(steps)
        by_entity = by_touched.view(-1, *self.entity.shape[1:])
        if touched is not None:
            by_entity = torch.sparse_coo_tensor(
                touched[None], by_entity, self.entity.shape, is_coalesced=True, check_invariants=False
            )
        by_calibration = self._by_calibration(steps.calibration)
        return by_entity, by_relation, *by_calibration, *self._by_strengths(by_improvement)

    def _through(self, steps: Steps) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the touched rows, None for all, with their gradients, and those of the relations' rows."""
        ids = [self.own_ids.flatten(), self.anchor, *([self.negatives.flatten()] if self.shared else [])]
        some = ids if self.plan.sparse or self.shared else ids[:1]
        uses = group(torch.cat(some), len(self.rows.table), self.plan.sparse)
        if self.pools is not None:
            by_query, by_target, by_pool = through_pools(self.rows, steps, self.target.numpy(), self.pools)
            by_anchor, by_relation = self._through_query(by_query)
            return uses.touched, sums_of_rows(uses, by_target, by_anchor, by_pool), by_relation
        by_touched, by_query = through_rows(self.rows, steps, uses)
        by_anchor, by_relation = self._through_query(by_query)
        add_rows(by_touched, uses.touched, self.anchor, by_anchor)
        return uses.touched, by_touched, by_relation

    def _through_query(self, by_query: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the rows that queries are made of, anchors' flat."""
        rows = self.anchor_rows, self.relation_rows
        by_anchor, by_relation = torch.autograd.grad(self.query, rows, by_query.view_as(self.query))
        return by_anchor.flatten(1), by_relation

    def _by_strengths(self, by_improvement: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of w1 and w2."""
        if not self.learned:
            return None, None
        adversarial = self.plan.objective.adversarial
        by_negatives = _by_strength(self.stats).mean(0) if adversarial else _by_strength(self.sums)
        both = (_by_strength(self.own_sums), by_negatives)
        by_w1, by_w2 = ((by_improvement * by).sum().float() for by in both)
        return by_w1, by_w2

    def _by_calibration(self, sums: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of scale and shift."""
        if sums is None:
            return None, None
        scale, shift = self.calibration
        by_shift, moment = sums.unbind(-1)
        return ((moment - shift * by_shift) / scale).float(), by_shift.float()

    def _usual_steps(self, factors: Tensor, own_factors: Tensor, pulls: Tensor) -> Steps:
        """As `_steps`, where scores are known no more."""
        plan, sizes, (batch, count) = self.plan, len(self.plan.sizes), self.own_ids.shape
        padded = sizes + -sizes % SQUARE
        factor = pulls.numpy() if plan.objective.mutual else np.zeros(sizes, np.float32)
        slopes = np.zeros((2, 3, padded), np.float32)
        for own, by_loss, slope in ((True, own_factors[0], slopes[0]), (False, factors[0], slopes[1])):
            scale = self.calibration[0].numpy() * plan.judging(own, *self.strengths).sign
            slope[0, :sizes] = by_loss.numpy() * scale
            slope[1, :sizes] = 0 if plan.objective.teach_down else factor * scale
            slope[2, : sizes - 1] = factor[1:] * scale[:-1]
        uses = 1 if self.shared else count
        weights, sigma, stride = torch.empty(batch, uses, padded), self.sigma.numpy(), uses * padded
        w1, w2 = (np.float32(float(w)) for w in self.strengths)
        out, by_score = weights.view(-1).numpy(), slopes[1]
        weigh_usual(self.own_sigma.numpy(), w1, slopes[0], out, 0, 0, stride)
        if self.shared:
            return Steps(self.sigma, weights[:, 0], True, w2, by_score, None)

        def piece(begin: int, end: int) -> None:
            weigh_usual(sigma[begin:end], w2, by_score, out, begin * stride + padded, stride, padded)

        on_all_threads(piece, self.pieces())
        return Steps(weights, weights[:, 0], False, w2, by_score, None)

    def _steps(self, factors: Tensor, own_factors: Tensor, pulls: Tensor) -> Steps:
        """Find the gradients by totals, from factors of losses and of Huber losses."""
        assert self.scores is not None
        plan, kind, teach_down = self.plan, self.plan.kind, self.plan.objective.teach_down
        batch, sizes, count = self.scores.shape
        shared = (pulls.numpy(), self.calibration.numpy(), kind == SQUARED)
        own_gradients, own_moments = torch.empty_like(self.own), torch.empty(1, sizes, 2)
        judge_gradients(
            self.own.numpy(), *plan.judging(True, *self.strengths), teach_down, self.own_sigma.numpy(),
            self.own_stats.numpy(), own_factors.numpy(), *shared, own_gradients.numpy(), own_moments.numpy(),
        )  # fmt: skip
        judging = plan.judging(False, *self.strengths)
        per_query = [t.numpy() for t in (self.scores, self.sigma, self.stats)]
        padded = max(PERMUTED, sizes)
        moments = torch.empty(batch, sizes, 2)
        values = torch.empty_like(self.scores) if self.shared else torch.empty(batch, 1 + count, padded)

        def piece(begin: int, end: int) -> None:
            scores, sigma, stats = (array[begin:end] for array in per_query)
            out = values.numpy()[begin:end]
            gradients = out if self.shared else np.empty(scores.shape, np.float32)
            factor = factors.numpy() if len(factors) == 1 else factors.numpy()[begin:end]
            judge_gradients(
                scores, *judging, teach_down, sigma, stats, factor, *shared, gradients,
                moments.numpy()[begin:end],
            )  # fmt: skip
            if not self.shared:
                gather_weights(gradients, own_gradients[0].numpy(), begin, out)

        on_all_threads(piece, self.pieces())
        own = own_gradients.new_zeros(batch, padded)
        own[:, :sizes] = own_gradients[0].flip(0).cumsum(0).flip(0).t()
        sums = moments.sum(0, dtype=torch.float64) + own_moments[0]
        values = values[:, :, None] if self.shared else values
        return Steps(values, own, False, judging.w, np.zeros((3, padded), np.float32), sums)


def _by_lanes(pool: Tensor) -> NDArray[Any]:
    """Transpose the rows of pools ``[G, C, W]`` by LANES, as `pool_scores` takes those of one."""
    rows = F.pad(pool, (0, 0, 0, -pool.shape[1] % LANES))
    return rows.view(len(pool), -1, LANES, rows.shape[2]).transpose(2, 3).contiguous().numpy()


def _mean_loss(sums: Tensor) -> Tensor:
    """The weighted mean of losses ``[..., K]``, from stats ``[..., K, STATS]``."""
    return sums[..., 2] / sums[..., 1]


def _by_strength(sums: Tensor) -> Tensor:
    """Gradient of `_mean_loss` by the strength w in the logits of the weights."""
    _, total, lost, moment, both, _ = sums.double().unbind(-1)
    return both / total - moment / total * (lost / total)
