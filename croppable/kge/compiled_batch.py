"""One batch for the compiled kernels: its arrays, its losses and all of its gradients.

The batch is cut into pieces whose scores stay in the cache. The specification is `LinkPrediction` without
compilation; croppable/kge/compiled_step.py hands the results to autograd. The file needs numba (extra "kge").

Shapes: B queries, N negatives of each or C shared by all, A rows that only one query uses (its target, then
its negatives), W numbers of a row (dims x parts), K sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from croppable.kge.compiled_plan import Plan
from croppable.kge.gradient_kernels import gather_weights, group_uses, pool_gradients, row_gradients
from croppable.kge.loss_kernels import STATS, judge, judge_gradients
from croppable.kge.pieces import LEAST, cut, even_cuts, on_all_threads
from croppable.kge.ranking_kernels import SQUARED
from croppable.kge.scores import Side
from croppable.kge.step_kernels import LANES, own_scores, pool_scores, target_scores
from croppable.kge.usual_kernels import judge_own, judge_pool, judge_usual, weigh_usual
from croppable.kge.vector_code import PERMUTED, SQUARE

__all__ = ["Batch"]

PIECE = 2**17  # scores of a piece, half a megabyte
PIECES = 4  # for each thread, so that none waits long for another
POOLED = 16  # queries whose weights for a pool stay in the cache


@lru_cache(maxsize=8)
def _segments(sizes: tuple[int, ...], parts: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Bounds of segments in a row, and the ``firsts`` and ``places`` of `row_gradients`."""
    bounds = np.array([0, *sizes]) * parts
    segment = np.repeat(np.arange(len(sizes)), np.diff(bounds))
    segment = np.pad(segment, (0, -len(segment) % PERMUTED), mode="edge")
    firsts = np.minimum(segment[::PERMUTED], max(0, len(sizes) - PERMUTED))
    return bounds, firsts, (segment - np.repeat(firsts, PERMUTED)).astype(np.int32)


class Found(NamedTuple):
    """Gradients on their way to the entity table.

    Attributes:
        queries: ``[B, W]``.
        pool: ``[C, W]``, or None.
        weights: Of segments, for every use of a row ``[B, A, K']``.
        calibration: Sums over all scores of the gradient, and of the gradient times the score ``[K, 2]``;
            None where they are not asked for.
    """

    queries: Tensor
    pool: Tensor | None
    weights: Tensor
    calibration: Tensor | None


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
        self.shared = negatives.ndim == 1
        with torch.enable_grad():
            self.anchor_rows = entity[self.anchor].requires_grad_()
            self.relation_rows = relation_rows.detach().requires_grad_()
            self.query = plan.score.query(self.anchor_rows, self.relation_rows, side)
        queries = self.query.detach().flatten(1).contiguous()
        self.queries, self.table = queries.numpy(), entity.flatten(1).contiguous().numpy()
        self.bounds, self.firsts, self.places = _segments(plan.sizes, plan.score.entity_parts)
        self.negatives = negatives
        own = self.target[:, None] if self.shared else torch.cat([self.target[:, None], negatives], 1)
        self.own_ids = own.contiguous().numpy()
        batch, sizes = len(queries), len(plan.sizes)
        self.usual = plan.usual(fixed, min(batch, negatives.shape[-1]), *strengths)
        self.sigma, self.own = torch.empty(batch, sizes, negatives.shape[-1]), torch.empty(1, sizes, batch)
        self.scores = None if self.usual else torch.empty_like(self.sigma)
        self.own_sigma, self.own_stats = torch.empty_like(self.own), torch.empty(1, sizes, STATS)
        self.pool = entity.flatten(1)[self.negatives] if self.shared else None

    def _transposed_pool(self, pool: Tensor) -> NDArray[Any]:
        rows = F.pad(pool, (0, 0, 0, -len(pool) % LANES))
        return rows.view(-1, LANES, rows.shape[1]).transpose(1, 2).contiguous().numpy()

    def pieces(self) -> list[tuple[int, int]]:
        """Ranges of queries: whose scores stay in the cache, or a few for each thread if none are kept."""
        count, numbers = len(self.queries), (1 + self.sigma.shape[-1]) * self.queries.shape[1]
        many = -(-count // (PIECES * torch.get_num_threads()))
        return cut(count, many if self.usual else PIECE // self.sigma[0].numel(), numbers)

    def judge(self) -> None:
        """Score and judge all candidates."""
        kind, plan, calibration = self.plan.kind, self.plan, self.calibration.numpy()
        scores, sigma = None if self.scores is None else self.scores.numpy(), self.sigma.numpy()
        targets, negatives, pieces = self.target.numpy(), self.negatives.numpy(), self.pieces()
        own = bool(plan.objective.adversarial)
        judging = plan.judging(False, *self.strengths)
        number = {begin: i for i, (begin, _) in enumerate(pieces)}
        self.stats = torch.empty(len(pieces) if self.usual else len(sigma), sigma.shape[1], STATS)
        stats = self.stats.numpy()
        pool = None if self.pool is None else self._transposed_pool(self.pool)

        def piece(begin: int, end: int) -> None:
            segments, learned = (self.bounds, calibration), self.learned
            if scores is None:
                strength: Any = (judging.w, learned, begin, end, sigma, stats[number[begin]])
                if pool is None:
                    judge_own(kind, self.queries, self.table, negatives, *segments, *strength)
                else:
                    judge_pool(kind, self.queries, pool, negatives, targets, *segments, *strength)
            else:
                out: Any = (*segments, begin, end, scores[begin:end])
                if pool is None:
                    own_scores(kind, self.queries, self.table, negatives, *out)
                else:
                    pool_scores(kind, self.queries, pool, negatives, targets, *out)
                judge(scores[begin:end], *judging, own, sigma[begin:end], stats[begin:end])
            begin, end = (min(-(-place // LANES) * LANES, len(targets)) for place in (begin, end))
            target_scores(kind, self.queries, self.table, targets, *segments, begin, end, self.own[0].numpy())

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
        weigh = self._usual_weights if self.usual else self._weights
        found = weigh(factors.float(), own_factors.float(), pulls)
        ids = [torch.from_numpy(self.own_ids).flatten(), self.anchor]
        if self.shared:
            ids.append(self.negatives)
        touched, by_touched = self._through_rows(torch.cat(ids), found)
        by_query = found.queries.view_as(self.query)
        inner = torch.autograd.grad(self.query, (self.anchor_rows, self.relation_rows), by_query)
        _add_rows(by_touched, touched, self.anchor, inner[0].flatten(1))
        if found.pool is not None:
            _add_rows(by_touched, touched, self.negatives, found.pool)
        by_entity = by_touched.view(-1, *self.entity.shape[1:])
        if touched is not None:
            by_entity = torch.sparse_coo_tensor(
                touched[None], by_entity, self.entity.shape, is_coalesced=True, check_invariants=False
            )
        by_calibration = self._by_calibration(found.calibration)
        return by_entity, inner[1], *by_calibration, *self._by_strengths(by_improvement)

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

    def _usual_weights(self, factors: Tensor, own_factors: Tensor, pulls: Tensor) -> Found:
        """As `_weights`, where scores are known no more."""
        (batch, sizes, count), plan = self.sigma.shape, self.plan
        padded = sizes + -sizes % SQUARE
        pulls = pulls if plan.objective.mutual else torch.zeros_like(pulls)
        slopes, uses = torch.zeros(2, 3, padded), 1 if self.shared else 1 + count
        for own, by_loss, slope in ((True, own_factors[0], slopes[0]), (False, factors[0], slopes[1])):
            scale = self.calibration[0] * float(plan.judging(own, *self.strengths).sign)
            slope[0, :sizes] = by_loss * scale
            slope[1, :sizes] = 0 if plan.objective.teach_down else pulls * scale
            slope[2, : sizes - 1] = pulls[1:] * scale[:-1]
        weights, sigma, stride = torch.empty(batch, uses, padded), self.sigma.numpy(), uses * padded
        w1, w2 = (np.float32(float(w)) for w in self.strengths)
        out, by_score = weights.view(-1).numpy(), slopes[1].numpy()
        weigh_usual(self.own_sigma.numpy(), w1, slopes[0].numpy(), True, out, 0, 0, stride)

        def piece(begin: int, end: int) -> None:
            weigh_usual(sigma[begin:end], w2, by_score, True, out, begin * stride + padded, stride, padded)

        def for_pool(begin: int, end: int) -> NDArray[Any]:
            some = torch.empty(end - begin, 1 + count, padded).numpy()
            weigh_usual(sigma[begin:end], w2, by_score, False, some.reshape(-1), padded, some[0].size, padded)
            return some

        if self.shared:
            return self._through_pool(for_pool, weights, None)
        on_all_threads(piece, self.pieces())
        return Found(torch.zeros(self.queries.shape), None, weights, None)

    def _weights(self, factors: Tensor, own_factors: Tensor, pulls: Tensor) -> Found:
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
        moments, weights = torch.empty(batch, sizes, 2), torch.empty(batch, 1 + count, max(PERMUTED, sizes))

        def piece(begin: int, end: int) -> None:
            scores, sigma, stats = (array[begin:end] for array in per_query)
            gradients = np.empty(scores.shape, np.float32)
            factor = factors.numpy() if len(factors) == 1 else factors.numpy()[begin:end]
            judge_gradients(
                scores, *judging, teach_down, sigma, stats, factor, *shared, gradients,
                moments.numpy()[begin:end],
            )  # fmt: skip
            gather_weights(gradients, own_gradients[0].numpy(), begin, weights.numpy()[begin:end])

        on_all_threads(piece, self.pieces())
        sums = moments.sum(0, dtype=torch.float64) + own_moments[0]
        if not self.shared:
            return Found(torch.zeros(self.queries.shape), None, weights, sums)
        own = weights[:, :1].contiguous()
        return self._through_pool(lambda begin, end: weights.numpy()[begin:end], own, sums)

    def _through_pool(
        self, weights: Callable[[int, int], NDArray[Any]], own: Tensor, calibration: Tensor | None
    ) -> Found:
        """Let the queries and the candidates that they share pull at each other.

        Args:
            weights: Those of some queries ``[., 1 + C, K']``; the first of each query is not used.
            own: Those of the targets ``[B, 1, K']``.
            calibration: As in `Found`.
        """
        assert self.pool is not None
        by_query = torch.zeros(self.queries.shape)
        pieces = cut(len(by_query), -(-len(by_query) // torch.get_num_threads()), self.pool.numel())
        numbers, by_pools = self.pool.numpy(), torch.zeros(len(pieces), *self.pool.shape)

        def piece(begin: int, end: int) -> None:
            by_pool = by_pools[pieces.index((begin, end))].numpy()
            for first in range(begin, end, POOLED):
                last = min(first + POOLED, end)
                pool_gradients(
                    self.plan.kind, self.queries[first:last], numbers, weights(first, last), self.firsts,
                    self.places, by_query.numpy()[first:last], by_pool,
                )  # fmt: skip

        on_all_threads(piece, pieces)
        return Found(by_query, by_pools.sum(0), own, calibration)

    def _through_rows(self, ids: Tensor, found: Found) -> tuple[Tensor | None, Tensor]:
        """Return the touched rows, None for all, with their gradients; add to those of the queries.

        Args:
            ids: All uses of rows, those with weights first.
            found: Weights, and gradients of the queries.
        """
        touched = None
        if self.plan.sparse:
            order = ids.argsort(stable=True)
            touched, counts = torch.unique_consecutive(ids[order], return_counts=True)
            rows, starts, uses = touched.numpy(), F.pad(counts.cumsum(0), (1, 0)).numpy(), order.numpy()
        else:
            own = self.own_ids.reshape(-1)
            rows = np.arange(len(self.table))
            starts, uses = np.empty(len(rows) + 1, np.int64), np.empty(len(own), np.int64)
            group_uses(own, starts, uses)
        out = torch.empty(len(rows), self.table.shape[1])
        work = (len(rows) + len(uses)) * self.queries.shape[1]
        bounds = even_cuts(starts, max(1, min(torch.get_num_threads(), work // LEAST)))
        by_queries = torch.zeros(len(bounds) - 1, *self.queries.shape)

        def piece(index: int, _: int) -> None:
            begin, end = bounds[index : index + 2]
            row_gradients(
                self.plan.kind, self.queries, self.table, rows[begin:end], starts[begin : end + 1], uses,
                found.weights.numpy(), self.firsts, self.places, by_queries[index].numpy(),
                out.numpy()[begin:end],
            )  # fmt: skip

        on_all_threads(piece, [(i, i + 1) for i in range(len(by_queries))])
        for more in by_queries:
            found.queries.add_(more)
        return touched, out


def _add_rows(table: Tensor, touched: Tensor | None, ids: Tensor, more: Tensor) -> None:
    """Add rows to a table that holds the touched rows, or all."""
    table.index_add_(0, ids if touched is None else torch.searchsorted(touched, ids), more)


def _mean_loss(sums: Tensor) -> Tensor:
    """The weighted mean of losses ``[..., K]``, from stats ``[..., K, STATS]``."""
    return sums[..., 2] / sums[..., 1]


def _by_strength(sums: Tensor) -> Tensor:
    """Gradient of `_mean_loss` by the strength w in the logits of the weights."""
    _, total, lost, moment, both, _ = sums.double().unbind(-1)
    return both / total - moment / total * (lost / total)
