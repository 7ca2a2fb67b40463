"""Losses and weights of a batch for the usual objective, compiled, on the CPU: one pass each way.

The general form is croppable/kge/loss_kernels.py with `gather_weights`; this one has neither logits that grow
with scores nor a calibration that learns, so that scores are not needed again for gradients. The file needs
numba (extra "kge").

Shapes: G groups of scores (queries; or 1, all targets), N >= SQUARE scores of each, K sizes, K' the next
multiple of SQUARE.
"""

from __future__ import annotations

import math

import numpy as np

from croppable.kge.judge_code import (
    EXP_NEAR,
    SUMS,
    judge_fixed_row,
    judge_row,
    weigh_columns,
    weigh_columns_past,
)
from croppable.kge.loss_kernels import Number
from croppable.kge.step_kernels import Floats, Ints, own_scores, pool_scores
from croppable.kge.vector_code import SQUARE, cached, part, span

__all__ = ["STEEPEST", "judge_own", "judge_pool", "judge_usual", "weigh_usual"]

STEEPEST = 4.0  # bound of w1 and w2, for which the polynomial of weights is made
FEW = 4  # queries whose scores wait to be judged
_EXP_NEAR = np.array(EXP_NEAR, np.float32)


@part
def _polynomial(w: Number) -> Floats:
    """Coefficients in q of exp((w (q + 1/2) - max(w, 0)) / 4)."""
    factors = np.empty(len(_EXP_NEAR), np.float32)
    power = math.exp((0.5 * w - max(w, 0.0)) / 4)
    for i in range(len(factors)):
        factors[i] = power * _EXP_NEAR[i]
        power *= w / 4
    return factors


@part
def _judge_groups(
    scores: Floats, first: int, groups: int, sign: Number, learned: bool, factors: Floats, sigma: Floats,
    sums: Floats,
) -> None:  # fmt: skip
    """Judge all scores given; sigma of the group ``first`` and those behind is filled, ``sums`` added to."""
    sizes, count = scores.shape[1], scores.shape[2]
    nobody = np.zeros(count, np.float32)
    for g in range(groups):
        for k in range(sizes):
            at, place = (g * sizes + k) * count, ((first + g) * sizes + k) * count
            error = span(sigma, place - count, count) if k else span(nobody, 0, count)
            row, now = span(scores, at, count), span(sigma, place, count)
            total = span(sums, k * SUMS * SQUARE, SUMS * SQUARE)
            if learned:
                judge_row(row, error, now, count, sign, factors, total)
            else:
                judge_fixed_row(row, error, now, count, sign, factors, total)


@part
def _fill_stats(sums: Floats, w: Number, stats: Floats) -> None:
    totals = sums.reshape(len(stats), SUMS, SQUARE)
    for k in range(len(stats)):
        stats[k, 0], stats[k, 5] = max(w, np.float32(0)), np.float32(0.5) * totals[k, 2].sum()
        stats[k, 1], stats[k, 2] = totals[k, 0].sum(), totals[k, 1].sum()
        stats[k, 3], stats[k, 4] = totals[k, 3].sum(), totals[k, 4].sum()


@cached
def judge_usual(scores: Floats, sign: Number, w: Number, learned: bool, sigma: Floats, stats: Floats) -> None:
    """Judge every score as a negative: sigma, and the sums that the losses are made of, over all groups.

    Args:
        scores: [G, K, N].
        sign: 1, or -1 to judge targets.
        w: Strength of evolutionary improvement, w1 or w2, from -4 to 4.
        learned: Whether the gradient by w is asked for; the sums that only it needs are else zero.
        sigma: Filled with sigma(sign score) [G, K, N].
        stats: Filled as `judge` does [K, STATS].
    """
    sums = np.zeros(len(stats) * SUMS * SQUARE, np.float32)
    _judge_groups(scores, 0, len(scores), sign, learned, _polynomial(w), sigma, sums)
    _fill_stats(sums, w, stats)


@cached
def judge_own(
    kind: int, queries: Floats, table: Floats, negatives: Ints, bounds: Ints, calibration: Floats, w: Number,
    learned: bool, begin: int, end: int, sigma: Floats, stats: Floats,
) -> None:  # fmt: skip
    """Score and judge the own candidates of queries, a few at a time, so that scores stay in the cache.

    Args:
        kind: As all to ``calibration`` and then ``begin`` and ``end``, in `own_scores`.
        queries: See there.
        table: See there.
        negatives: See there.
        bounds: See there.
        calibration: See there.
        w: w2.
        learned: As in `judge_usual`.
        begin: See there.
        end: See there.
        sigma: Filled for these queries [B, K, N].
        stats: As in `judge_usual`.
    """
    sums, factors = np.zeros(len(stats) * SUMS * SQUARE, np.float32), _polynomial(w)
    scores = np.empty((FEW, len(stats), negatives.shape[1]), np.float32)
    for b in range(begin, end, FEW):
        last = min(b + FEW, end)
        own_scores(kind, queries, table, negatives, bounds, calibration, b, last, scores)
        _judge_groups(scores, b, last - b, np.float32(1), learned, factors, sigma, sums)
    _fill_stats(sums, w, stats)


@cached
def judge_pool(
    kind: int, queries: Floats, pool: Floats, columns: Ints, targets: Ints, bounds: Ints, calibration: Floats,
    w: Number, learned: bool, begin: int, end: int, sigma: Floats, stats: Floats,
) -> None:  # fmt: skip
    """As `judge_own`, for candidates that all queries share.

    Args:
        kind: As all to ``calibration``, in `pool_scores`.
        queries: See there.
        pool: See there.
        columns: See there.
        targets: See there.
        bounds: See there.
        calibration: See there.
        w: As all that follow, in `judge_own`.
        learned: See there.
        begin: See there.
        end: See there.
        sigma: See there.
        stats: See there.
    """
    sums, factors = np.zeros(len(stats) * SUMS * SQUARE, np.float32), _polynomial(w)
    scores = np.empty((FEW, len(stats), len(columns)), np.float32)
    for b in range(begin, end, FEW):
        last = min(b + FEW, end)
        pool_scores(kind, queries, pool, columns, targets, bounds, calibration, b, last, scores)
        _judge_groups(scores, b, last - b, np.float32(1), learned, factors, sigma, sums)
    _fill_stats(sums, w, stats)


@cached
def weigh_usual(
    sigma: Floats, w: Number, slopes: Floats, past: bool, out: Floats, start: int, group_stride: int,
    stride: int,
) -> None:  # fmt: skip
    """Write for every score and segment the gradients by totals, summed over the sizes that hold it.

    Args:
        sigma: From `judge_usual` [G, K, N].
        w: w1 or w2.
        slopes: For every size the factor of its weighted loss, and of its Huber losses with the size before
            and after [3, K'], zero behind the last size.
        past: Whether to write past the cache.
        out: Aligned to 64 bytes; filled at start + g group_stride + n stride + k, flat, for
            K' values of k.
        start: See there.
        group_stride: See there.
        stride: See there.
    """
    groups, sizes, count = sigma.shape
    factors, flat, target = _polynomial(w), sigma.reshape(-1), out.reshape(-1)
    for g in range(groups):
        for block in range(0, count, SQUARE):
            n = min(block, count - SQUARE)  # the last squares may overlap
            place = start + g * group_stride + n * stride
            at = g * sizes * count + n
            if past:
                weigh_columns_past(flat, at, count, sizes, factors, slopes.reshape(-1), target, place, stride)
            else:
                weigh_columns(flat, at, count, sizes, factors, slopes.reshape(-1), target, place, stride)
