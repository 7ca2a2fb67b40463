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
from croppable.kge.step_kernels import Floats
from croppable.kge.vector_code import SQUARE, cached, part, span

__all__ = ["STEEPEST", "judge_usual", "weigh_usual"]

STEEPEST = 4.0  # bound of w1 and w2, for which the polynomial of weights is made
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
    sizes, count = scores.shape[1], scores.shape[2]
    factors, nobody = _polynomial(w), np.zeros(count, np.float32)
    sums = np.zeros(sizes * SUMS * SQUARE, np.float32)
    for g in range(len(scores)):
        for k in range(sizes):
            at = (g * sizes + k) * count
            error = span(sigma, at - count, count) if k else span(nobody, 0, count)
            row, now = span(scores, at, count), span(sigma, at, count)
            total = span(sums, k * SUMS * SQUARE, SUMS * SQUARE)
            if learned:
                judge_row(row, error, now, count, sign, factors, total)
            else:
                judge_fixed_row(row, error, now, count, sign, factors, total)
    totals = sums.reshape(sizes, SUMS, SQUARE)
    for k in range(sizes):
        stats[k, 0], stats[k, 5] = max(w, np.float32(0)), np.float32(0.5) * totals[k, 2].sum()
        stats[k, 1], stats[k, 2] = totals[k, 0].sum(), totals[k, 1].sum()
        stats[k, 3], stats[k, 4] = totals[k, 3].sum(), totals[k, 4].sum()


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
