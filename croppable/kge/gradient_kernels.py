"""Compiled gradients of the scores in croppable/kge/step_kernels.py, on the CPU.

Every query and every row of the table gathers its own gradient: each number is written once, by one thread,
in a fixed order, so results do not depend on the number of threads, and no table has to be zeroed first. The
file needs numba (extra "kge").

Shapes: B queries, A rows that only one query uses (its target, then its negatives), C negatives shared by
all, W numbers of a row (dims x parts), K sizes, K' = max(K, PERMUTED), V = W / PERMUTED rounded up, E
entities, U rows with a gradient.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from croppable.kge.ranking_kernels import ABSOLUTE, PRODUCT, SQUARED
from croppable.kge.step_kernels import LANES, TINY, Floats, Ints, Number
from croppable.kge.vector_code import (
    HAS_PERMUTE,
    PERMUTED,
    SQUARE,
    cached,
    part,
    permute,
    prefetch,
    span,
    sum_part,
    turn,
)

__all__ = ["gather_weights", "group_uses", "pool_gradients", "query_gradients", "row_gradients"]

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
AHEAD = 2  # rows that are asked for while one is in work


@part
def _pull(kind: int, gradient: Floats, own: Floats, other: Floats, weight: Floats) -> None:
    """Add weight times the derivative by ``own`` of the terms of two rows; all terms are symmetric."""
    if kind == PRODUCT:
        for i in range(len(gradient)):
            gradient[i] += weight[i] * other[i]
    elif kind == ABSOLUTE:
        for i in range(len(gradient)):
            difference = own[i] - other[i]
            sign = (ONE if difference > 0 else ZERO) - (ONE if difference < 0 else ZERO)
            gradient[i] -= weight[i] * sign
    elif kind == SQUARED:
        for i in range(len(gradient)):
            gradient[i] -= TWO * weight[i] * (own[i] - other[i])
    else:
        for pair in range(len(gradient) // 2):  # a step of two would not be vectorised
            i = 2 * pair
            u, v = own[i] - other[i], own[i + 1] - other[i + 1]
            square = u * u + v * v
            factor = weight[i] / math.sqrt(square) if square >= TINY else ZERO
            gradient[i] -= factor * u
            gradient[i + 1] -= factor * v


@part
def _spread(weights: Floats, firsts: Ints, places: NDArray[np.int32], wide: Floats) -> None:
    """Give every number of a row the weight of its segment.

    Args:
        weights: Of the segments [K'].
        firsts: The first segment of every PERMUTED numbers [V], at most K' - PERMUTED.
        places: Segment of each number, counted from there [V PERMUTED].
        wide: Filled [V PERMUTED].
    """
    for block in range(len(firsts)):
        if HAS_PERMUTE:
            permute(weights, firsts[block], places, PERMUTED * block, wide)
        else:
            for i in range(PERMUTED * block, PERMUTED * block + PERMUTED):
                wide[i] = weights[firsts[block] + places[i]]


@part
def _add(more: Floats, sums: Floats) -> None:
    for n in range(len(sums)):
        sums[n] += more[n]


@cached
def gather_weights(gradients: Floats, own_gradients: Floats, start: int, out: Floats) -> None:
    """Sum for every segment the gradients of the sizes that hold it, in the order of rows, targets first.

    Args:
        gradients: By the totals of negatives [B, K, N]; overwritten.
        own_gradients: By the totals of targets [K, B of all].
        start: Place of the first query among all.
        out: Filled [B, 1 + N, K'].
    """
    sizes, count = gradients.shape[1], gradients.shape[2]
    uses, padded = out.shape[1], out.shape[2]
    offsets, source, target = np.empty(SQUARE, np.int64), gradients.reshape(-1), out.reshape(-1)
    whole, full = count // SQUARE * SQUARE, sizes // SQUARE * SQUARE
    for b in range(len(gradients)):
        total = ZERO
        for k in range(sizes - 1, -1, -1):
            total += own_gradients[k, start + b]
            out[b, 0, k] = total
            if k + 1 < sizes:
                at = (b * sizes + k) * count
                _add(span(gradients, at + count, count), span(gradients, at, count))
        for k in range(0, full, SQUARE):
            for i in range(SQUARE):
                offsets[i] = (b * sizes + k + i) * count
            for n in range(0, whole, SQUARE):
                turn(source, offsets, n, target, (b * uses + n + 1) * padded + k, padded)
        for k in range(sizes):
            for n in range(whole if k < full else 0, count):
                out[b, n + 1, k] = gradients[b, k, n]


@part
def _prefetch_row(rows: Floats, start: int, count: int) -> None:
    for i in range(start, start + count, SQUARE):  # 16 numbers are a cache line
        prefetch(rows, i)


@cached
def query_gradients(
    kind: int,
    queries: Floats,
    table: Floats,
    ids: Ints,
    weights: Floats,
    firsts: Ints,
    places: NDArray[np.int32],
    out: Floats,
) -> None:
    """Add the gradients of queries from the rows that are theirs alone.

    Args:
        kind: As in `own_scores`.
        queries: [B, W].
        table: The entity table [E, W].
        ids: Entity ids [B, A].
        weights: From `gather_weights` [B, A, K'].
        firsts: See `_spread` [V].
        places: See `_spread` [V PERMUTED].
        out: Added to [B, W].
    """
    width, count, padded = queries.shape[1], ids.shape[1], weights.shape[2]
    wide = np.empty(len(places), np.float32)
    all_ids = ids.reshape(-1)
    for b in range(len(queries)):
        for n in range(count):
            ahead = b * count + n + AHEAD
            if ahead < len(all_ids):
                _prefetch_row(table, all_ids[ahead] * width, width)
            _spread(span(weights, (b * count + n) * padded, padded), firsts, places, wide)
            row = span(table, ids[b, n] * width, width)
            _pull(kind, span(out, b * width, width), span(queries, b * width, width), row, wide)


@cached
def group_uses(ids: Ints, starts: Ints, uses: Ints) -> None:
    """Sort the uses of rows by row, keeping their order.

    Args:
        ids: Entity id of each use.
        starts: Filled: entity e has the uses starts[e] to starts[e + 1] [E + 1].
        uses: Filled with places in ``ids``.
    """
    starts[:] = 0
    for i in range(len(ids)):
        starts[ids[i] + 1] += 1
    for e in range(1, len(starts)):
        starts[e] += starts[e - 1]
    cursors = starts.copy()
    for i in range(len(ids)):
        uses[cursors[ids[i]]] = i
        cursors[ids[i]] += 1


@cached
def row_gradients(
    kind: int,
    queries: Floats,
    table: Floats,
    rows: Ints,
    starts: Ints,
    uses: Ints,
    weights: Floats,
    given: Floats,
    firsts: Ints,
    places: NDArray[np.int32],
    out: Floats,
) -> None:
    """Write the gradients of table rows.

    Args:
        kind: As in `own_scores`.
        queries: [B, W].
        table: The entity table [E, W].
        rows: Entity ids [U].
        starts: Row u has the uses starts[u] to starts[u + 1] [U + 1].
        uses: Below B A: place in ``weights``; from there on: place in ``given``, plus B A.
        weights: From `gather_weights` [B, A, K'].
        given: Finished gradients of rows used otherwise [G, W].
        firsts: See `_spread` [V].
        places: See `_spread` [V PERMUTED].
        out: Filled [U, W].
    """
    width, count, padded = queries.shape[1], weights.shape[1], weights.shape[2]
    own_uses = len(weights) * count
    wide = np.empty(len(places), np.float32)
    for u in range(len(rows)):
        gradient, row = span(out, u * width, width), span(table, rows[u] * width, width)
        gradient[:] = 0
        for i in range(starts[u], starts[u + 1]):
            use, ahead = uses[i], uses[min(i + AHEAD, len(uses) - 1)]
            if ahead < own_uses:
                _prefetch_row(weights, ahead * padded, padded)
                _prefetch_row(queries, ahead // count * width, width)
            if use < own_uses:
                _spread(span(weights, use * padded, padded), firsts, places, wide)
                _pull(kind, gradient, row, span(queries, use // count * width, width), wide)
            else:
                _add(span(given, (use - own_uses) * width, width), gradient)


@sum_part
def _pull_lanes(
    kind: int, x: Number, y: Number, c: Floats, c2: Floats, weight: Floats, out: Floats, out2: Floats
) -> tuple[Number, Number]:
    """Add the gradients of LANES candidates by one number; return those of the query's.

    Args:
        kind: As in `own_scores`.
        x: The query's number.
        y: The other of a pair, for MODULUS.
        c: The candidates' numbers [LANES].
        c2: The others of the pairs.
        weight: Of the segment [LANES].
        out: Added to [LANES].
        out2: Of the others of the pairs.
    """
    by_x, by_y = ZERO, ZERO
    if kind == PRODUCT:
        for n in range(LANES):
            by_x += weight[n] * c[n]
            out[n] += weight[n] * x
    elif kind == ABSOLUTE:
        for n in range(LANES):
            difference = x - c[n]
            pull = weight[n] * ((ONE if difference > 0 else ZERO) - (ONE if difference < 0 else ZERO))
            by_x -= pull
            out[n] += pull
    elif kind == SQUARED:
        for n in range(LANES):
            pull = TWO * weight[n] * (x - c[n])
            by_x -= pull
            out[n] += pull
    else:
        for n in range(LANES):
            u, v = x - c[n], y - c2[n]
            square = u * u + v * v
            factor = weight[n] / math.sqrt(square) if square >= TINY else ZERO
            by_x -= factor * u
            by_y -= factor * v
            out[n] += factor * u
            out2[n] += factor * v
    return by_x, by_y


@cached
def pool_gradients(
    kind: int,
    queries: Floats,
    pool: Floats,
    bounds: Ints,
    gradients: Floats,
    out: Floats,
    out_pool: Floats,
) -> None:
    """Add the gradients of queries and of the candidates they share.

    Args:
        kind: As in `own_scores`.
        queries: [B, W].
        pool: Candidate rows, transposed by LANES [ceil(C / LANES), W, LANES].
        bounds: Where segments begin and end in a row [K + 1], from 0.
        gradients: By the totals of the candidates [B, K, C].
        out: Of the queries, added to [B, W].
        out_pool: Of the candidates, added to [ceil(C / LANES), W, LANES].
    """
    step = 2 if kind > SQUARED else 1
    width, sizes, count = queries.shape[1], gradients.shape[1], gradients.shape[2]
    weight = np.empty(LANES, np.float32)
    for index in range(len(pool)):
        start = index * LANES
        lanes = min(LANES, count - start)
        for b in range(len(queries)):
            query, by_query = span(queries, b * width, width), span(out, b * width, width)
            weight[:] = 0
            for k in range(sizes - 1, -1, -1):
                more = span(gradients, (b * sizes + k) * count + start, lanes)
                _add(more, span(weight, 0, lanes))
                for i in range(bounds[k], bounds[k + 1], step):
                    j = i + step - 1
                    at, other = (index * width + i) * LANES, (index * width + j) * LANES
                    by_x, by_y = _pull_lanes(
                        kind, query[i], query[j], span(pool, at, LANES), span(pool, other, LANES),
                        span(weight, 0, LANES), span(out_pool, at, LANES), span(out_pool, other, LANES),
                    )  # fmt: skip
                    by_query[i] += by_x
                    if step == 2:
                        by_query[j] += by_y
