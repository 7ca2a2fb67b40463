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
    FIXED,
    SUMS,
    judge_fixed_row,
    judge_row,
    weigh_columns,
)
from croppable.kge.loss_kernels import Number
from croppable.kge.step_kernels import Floats, Ints, own_scores, pool_scores
from croppable.kge.vector_code import SQUARE, cached, part, span

__all__ = [
    "STEEPEST",
    "TOGETHER",
    "constants_of",
    "judge_own",
    "judge_pool",
    "judge_usual",
    "weigh_usual",
]

STEEPEST = 4.0  # bound of w1 and w2, for which the polynomial of weights is made
TOGETHER = 8  # queries whose sigmas at a size lie together where candidates are shared
_FIXED, _EXP_NEAR = np.array(FIXED, np.float32), np.array(EXP_NEAR, np.float32)


@part
def constants_of(w: Number) -> Floats:
    """`FIXED`, and the coefficients in q of exp((w (q + 1/2) - max(w, 0)) / 4), each in SQUARE places."""
    numbers = np.empty((len(_FIXED) + len(_EXP_NEAR), SQUARE), np.float32)
    for i in range(len(_FIXED)):
        numbers[i] = _FIXED[i]
    power = math.exp((0.5 * w - max(w, 0.0)) / 4)
    for i in range(len(_EXP_NEAR)):
        numbers[len(_FIXED) + i] = power * _EXP_NEAR[i]
        power *= w / 4
    return numbers.reshape(-1)


@part
def _judge_rows(
    scores: Floats, at: int, count: int, apart: int, sign: Number, learned: bool, constants: Floats,
    nobody: Floats, sigma: Floats, place: int, sums: Floats,
) -> None:  # fmt: skip
    """Judge a row of scores of every size and add to the sums.

    Args:
        scores: Flat.
        at: Where the scores of the first size begin.
        count: Scores of a row.
        apart: How far two sizes are apart.
        sign: 1, or -1 to judge targets.
        learned: As in `judge_usual`.
        constants: From `constants_of`.
        nobody: At least ``count`` zeros.
        sigma: Flat; filled from ``place`` on as far apart.
        place: See there.
        sums: Of every size [K, SUMS, SQUARE], flat.
    """
    side = SUMS * SQUARE
    for k in range(len(sums) // side):
        error = span(sigma, place + (k - 1) * apart, count) if k else span(nobody, 0, count)
        row, now = span(scores, at + k * apart, count), span(sigma, place + k * apart, count)
        if learned:
            judge_row(row, error, now, count, sign, constants, span(sums, k * side, side))
        else:
            judge_fixed_row(row, error, now, count, sign, constants, span(sums, k * side, side))


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
    groups, sizes, count = scores.shape
    constants, nobody = constants_of(w), np.zeros(count, np.float32)
    flat, out, number = scores.reshape(-1), sigma.reshape(-1), sizes * count
    for g in range(groups):
        at = g * number
        _judge_rows(flat, at, count, count, sign, learned, constants, nobody, out, at, sums)
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
    sums, constants = np.zeros(len(stats) * SUMS * SQUARE, np.float32), constants_of(w)
    count, sizes, flat, one = negatives.shape[1], len(stats), sigma.reshape(-1), np.float32(1)
    scores, nobody = np.empty((1, sizes, 1, count), np.float32), np.zeros(count, np.float32)
    row = scores.reshape(-1)
    for b in range(begin, end):
        own_scores(kind, queries, table, negatives, bounds, calibration, b, b + 1, scores)
        place = b * sizes * count
        _judge_rows(row, 0, count, count, one, learned, constants, nobody, flat, place, sums)
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
        begin: See there; a multiple of TOGETHER.
        end: See there.
        sigma: Filled for these queries [ceil(B / TOGETHER), K, TOGETHER, C].
        stats: See there.
    """
    sums, constants = np.zeros(len(stats) * SUMS * SQUARE, np.float32), constants_of(w)
    sizes, count = len(stats), len(columns)
    apart, flat, one = TOGETHER * count, sigma.reshape(-1), np.float32(1)
    scores, nobody = np.empty((1, sizes, TOGETHER, count), np.float32), np.zeros(apart, np.float32)
    row = scores.reshape(-1)
    for b in range(begin, end, TOGETHER):
        last = min(b + TOGETHER, end)
        number, place = (last - b) * count, b * sizes * count
        pool_scores(kind, queries, pool, columns, targets, bounds, calibration, b, last, scores)
        _judge_rows(row, 0, number, apart, one, learned, constants, nobody, flat, place, sums)
    _fill_stats(sums, w, stats)


@cached
def weigh_usual(
    sigma: Floats, w: Number, slopes: Floats, out: Floats, start: int, group_stride: int, stride: int
) -> None:
    """Write for every score and segment the gradients by totals, summed over the sizes that hold it.

    Args:
        sigma: From `judge_usual` or `judge_own` [G, K, N].
        w: w1 or w2.
        slopes: For every size the factor of its weighted loss, and of its Huber losses with the size before
            and after, zero behind the last size [3, K'].
        out: Aligned to 64 bytes; filled past the cache at start + g group_stride + n stride + k, flat, for
            K' values of k.
        start: See there.
        group_stride: See there.
        stride: See there.
    """
    groups, sizes, count = sigma.shape
    constants, flat, target, by = constants_of(w), sigma.reshape(-1), out.reshape(-1), slopes.reshape(-1)
    for g in range(groups):
        for block in range(0, count, SQUARE):
            n = min(block, count - SQUARE)  # the last squares may overlap
            place, at = start + g * group_stride + n * stride, g * sizes * count + n
            weigh_columns(flat, at, count, sizes, constants, by, target, place, stride)
