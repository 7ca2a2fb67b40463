"""Compiled softmax over a tile of entities at every size, forward and backward, on the CPU.

Between the matrix products of croppable/kge/streaming.py, whose torch code is the specification, these do in
one pass what takes torch a dozen. The file needs numba (extra "kge").

Shapes: K sizes, B queries, T entities of a tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from croppable.kge.loss_kernels import exp_of_negative
from croppable.kge.step_kernels import Floats
from croppable.kge.vector_code import cached, part, part_without_nan, span, sum_part

__all__ = ["absorb", "gradients_of_tile"]

ZERO, ONE = np.float32(0), np.float32(1)

Number = Any  # float32 inside the compiled code


@part
def _next_scores(products: Floats, sums: Floats, scale: Number, shift: Number, scores: Floats) -> None:
    """Add the products of a segment to the running sums and calibrate them."""
    for n in range(len(sums)):
        sums[n] += products[n]
        scores[n] = shift + scale * sums[n]


@part_without_nan
def _largest(row: Floats) -> Number:
    top = row[0]
    for n in range(len(row)):
        top = row[n] if row[n] > top else top
    return top


@sum_part
def _fill_weights(scores: Floats, top: Number, weights: Floats) -> tuple[Number, Number]:
    """Write exp(s - top); return the sums of the weights, and of weights times scores."""
    total, moment = ZERO, ZERO
    for n in range(len(scores)):
        weight = exp_of_negative(scores[n] - top)
        weights[n] = weight
        total += weight
        moment += weight * scores[n]
    return total, moment


@sum_part
def _dot(a: Floats, b: Floats) -> Number:
    total = ZERO
    for n in range(len(a)):
        total += a[n] * b[n]
    return total


@cached
def absorb(
    products: Floats,
    begin: int,
    end: int,
    calibration: Floats,
    neighbours: bool,
    last: bool,
    top: Floats,
    total: Floats,
    mean: Floats,
    below: Floats,
    under_last: Floats,
) -> None:
    """Take a tile into the running sums of the queries begin..end.

    Args:
        products: Terms of each segment [K, B, T].
        begin: First query.
        end: One more than the last query.
        calibration: Factor and offset of each size [2, K].
        neighbours: Whether ``below`` is wanted.
        last: Whether ``under_last`` is wanted.
        top: Largest score so far [K, B].
        total: Sum of exp(s - top) [K, B].
        mean: Sum of exp(s - top) s [K, B].
        below: Sum of exp(s' - top') s, where s' and top' are of the next size [K, B].
        under_last: Sum of exp(s' - top') s, where s' and top' are of the last size [K, B].
    """
    sizes, count = products.shape[0], products.shape[2]
    scores, weights = np.empty((sizes, count), np.float32), np.empty(count, np.float32)
    sums = np.empty(count, np.float32)
    for b in range(begin, end):
        sums[:] = 0
        for k in range(sizes):
            row, out = span(scores, k * count, count), span(weights, 0, count)
            source = span(products, (k * products.shape[1] + b) * count, count)
            _next_scores(source, span(sums, 0, count), calibration[0, k], calibration[1, k], row)
            before, largest = top[k, b], _largest(row)
            largest = largest if largest > before else before
            shrink = exp_of_negative(before - largest)
            more, moment = _fill_weights(row, largest, out)
            top[k, b] = largest
            total[k, b] = total[k, b] * shrink + more
            mean[k, b] = mean[k, b] * shrink + moment
            if neighbours and k:
                smaller = span(scores, (k - 1) * count, count)
                below[k - 1, b] = below[k - 1, b] * shrink + _dot(out, smaller)
            if last and k == sizes - 1:
                for j in range(sizes):
                    other = span(scores, j * count, count)
                    under_last[j, b] = under_last[j, b] * shrink + _dot(out, other)


@part
def _fill_probabilities(scores: Floats, log_sum: Number, out: Floats) -> None:
    for n in range(len(scores)):
        out[n] = exp_of_negative(scores[n] - log_sum)


@sum_part
def _row_gradient(
    p: Floats, s: Floats, smaller: Floats, larger: Floats, last: Floats, plain: Number, by_s: Number,
    by_smaller: Number, by_larger: Number, by_last: Number, scale: Number, more: Floats, out: Floats,
) -> tuple[Number, Number]:  # fmt: skip
    """Write a size's gradient by totals, on top of ``more``; return its sum by scores, and that times s."""
    total, moment = ZERO, ZERO
    for n in range(len(p)):
        pull = p[n] * (plain + by_s * s[n] + by_smaller * smaller[n])
        pull += by_larger * larger[n] + by_last * last[n]
        total += pull
        moment += pull * s[n]
        out[n] = more[n] + pull * scale
    return total, moment


@cached
def gradients_of_tile(
    products: Floats,
    begin: int,
    end: int,
    calibration: Floats,
    teach_down: bool,
    log_sum: Floats,
    mean: Floats,
    below: Floats,
    upstream: Floats,
    moments: Floats,
) -> None:
    """Replace the terms of each segment by the gradients of all sizes that hold it, queries begin..end.

    Args:
        products: Terms of each segment [K, B, T]; overwritten.
        begin: First query.
        end: One more than the last query.
        calibration: Factor and offset of each size [2, K].
        teach_down: Whether ``below`` has no gradient by the larger neighbour.
        log_sum: See `streaming.Softmax` [K, B].
        mean: See there [K, B].
        below: See there; the last size has none [K, B].
        upstream: Gradients by log_sum, mean, below and under_last [4, K, B].
        moments: Filled: sums of the gradients by scores, and of these times the scores [B, K, 2].
    """
    sizes, queries, count = products.shape
    scores, p = np.empty((sizes, count), np.float32), np.empty((sizes, count), np.float32)
    sums = np.empty(count, np.float32)
    for b in range(begin, end):
        sums[:] = 0
        for k in range(sizes):
            row = span(scores, k * count, count)
            source = span(products, (k * queries + b) * count, count)
            _next_scores(source, span(sums, 0, count), calibration[0, k], calibration[1, k], row)
            _fill_probabilities(row, log_sum[k, b], span(p, k * count, count))
        sums[:] = 0
        for k in range(sizes - 1, -1, -1):
            by_smaller = ZERO if teach_down or k == 0 else upstream[2, k - 1, b]
            by_larger = ZERO if k + 1 == sizes else upstream[2, k, b]
            by_s, plain = upstream[1, k, b], upstream[0, k, b] + upstream[1, k, b] * (ONE - mean[k, b])
            if k:
                plain -= by_smaller * below[k - 1, b]
            # The row of a neighbour that is not there is any: its factor is zero.
            smaller = span(scores, max(k - 1, 0) * count, count)
            larger = span(p, min(k + 1, sizes - 1) * count, count)
            more = span(sums, 0, count)
            if k + 1 < sizes:
                more = span(products, ((k + 1) * queries + b) * count, count)
            total, moment = _row_gradient(
                span(p, k * count, count), span(scores, k * count, count), smaller, larger,
                span(p, (sizes - 1) * count, count), plain, by_s, by_smaller, by_larger, upstream[3, k, b],
                calibration[0, k], more, span(products, (k * queries + b) * count, count),
            )  # fmt: skip
            moments[b, k, 0], moments[b, k, 1] = total, moment
