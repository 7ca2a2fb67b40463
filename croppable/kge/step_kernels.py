"""Compiled scores of a batch's candidates at every size, on the CPU.

Rows are read where they lie in the entity table: nothing of shape [B, N, D] is ever written. The rows of 64
candidates are transposed square by square, so that one instruction works on 16 candidates and a size costs
one store. Gradients are in croppable/kge/gradient_kernels.py; the specification of both is
croppable/kge/prefixes.py with autograd. The file needs numba (extra "kge"); croppable/kge/compiled_step.py
prepares the arrays.

Shapes: B queries, N negatives of each, C negatives shared by all, W numbers of a row (dims x parts), K
sizes, E entities.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from croppable.kge.lanes_code import (
    LANES,
    add_absolute,
    add_modulus,
    add_product,
    add_squared,
    score_absolute,
    score_modulus,
    score_product,
)
from croppable.kge.ranking_kernels import ABSOLUTE, PRODUCT, SQUARED
from croppable.kge.vector_code import SQUARE, cached, part, prefetch, span, turn

__all__ = ["LANES", "MASKED", "TINY", "own_scores", "pool_scores", "prefetch_row", "target_scores"]

MASKED = np.float32(-1e4)  # score of a candidate that does not count; sigma is then below every number
CHUNK = 640  # numbers of a row in one tile: 64 rows of them fit in the second cache
AHEAD = 2  # rows that are asked for while one is in work
TINY = np.float32(1e-24)  # as in scores.py
ZERO = np.float32(0)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Number = Any  # float32 inside the compiled code


@part
def prefetch_row(rows: Floats, start: int, count: int) -> None:
    """Ask for ``count`` numbers from the place ``start`` on."""
    for i in range(start, start + count, SQUARE):  # 16 numbers are a cache line
        prefetch(rows, i)


@part
def _add_lanes(
    kind: int, sums: Floats, query: Floats, tile: Floats, start: int, stop: int, first: int
) -> None:
    """Add the numbers start..stop of a query to the totals of LANES candidates; see lanes_code.py."""
    if kind == PRODUCT:
        add_product(sums, query, tile, start, stop, first)
    elif kind == ABSOLUTE:
        add_absolute(sums, query, tile, start, stop, first)
    elif kind == SQUARED:
        add_squared(sums, query, tile, start, stop, first)
    else:
        add_modulus(sums, query, tile, start, stop, first)


@part
def _terms(kind: int, query: Floats, row: Floats, out: Floats) -> None:
    """Write the terms of one query and one candidate; that of a modulus in the first place of its pair."""
    if kind == PRODUCT:
        for i in range(len(query)):
            out[i] = query[i] * row[i]
    elif kind == ABSOLUTE:
        for i in range(len(query)):
            out[i] = -abs(query[i] - row[i])
    elif kind == SQUARED:
        for i in range(len(query)):
            out[i] = -(query[i] - row[i]) * (query[i] - row[i])
    else:
        for pair in range(len(query) // 2):  # a step of two would not be vectorised
            i = 2 * pair
            u, v = query[i] - row[i], query[i + 1] - row[i + 1]
            square = u * u + v * v
            out[i] = -math.sqrt(TINY if square < TINY else square)
            out[i + 1] = 0


@part
def _finish(kind: int, sums: Floats, scale: Number, shift: Number, out: Floats) -> None:
    """Write the calibrated scores of totals; the same as `Score.finish` and `KGEModel.calibrate`."""
    if kind == SQUARED:
        for n in range(len(out)):
            out[n] = shift - scale * math.sqrt(-sums[n] if -sums[n] > TINY else TINY)
    else:
        for n in range(len(out)):
            out[n] = shift + scale * sums[n]


@part
def _sum_tile(
    kind: int,
    sums: Floats,
    query: Floats,
    tile: Floats,
    first: int,
    end: int,
    bounds: Ints,
    calibration: Floats,
    k: int,
    out: Floats,
    place: int,
    apart: int,
    count: int,
) -> int:
    """Add the numbers first..end of a tile; write ``count`` scores of each size k that is complete.

    They go to out[place + k apart:], flat.

    Returns:
        The size in work.
    """
    sizes, at = len(bounds) - 1, first
    if count == LANES and kind != SQUARED:
        scored = (first, end, bounds, calibration, k, out, place, apart, sizes)
        if kind == PRODUCT:
            score_product(sums, query, tile, *scored)
        elif kind == ABSOLUTE:
            score_absolute(sums, query, tile, *scored)
        else:
            score_modulus(sums, query, tile, *scored)
        while k < sizes and bounds[k + 1] <= end:
            k += 1
        at = end
    while at < end:
        stop = min(bounds[k + 1], end)
        _add_lanes(kind, sums, query, tile, at, stop, first)
        at = stop
        if at == bounds[k + 1]:
            target = span(out, place + k * apart, count)
            _finish(kind, sums, calibration[0, k], calibration[1, k], target)
            k += 1
    return k


@part
def _place(out: Floats, b: int, start: int) -> Number:
    """Return where the scores of a query at the first size begin."""
    _, sizes, together, count = out.shape
    block = b // together
    return (block * sizes * together + b - block * together) * count + start


@part
def _turn_rows(table: Floats, offsets: Ints, first: int, end: int, tile: Floats) -> None:
    """Copy the numbers first..end of LANES rows into the tile, transposed.

    Args:
        table: Rows of numbers.
        offsets: Where the rows begin, and where the next SQUARE rows will [LANES + SQUARE].
        first: First number.
        end: One more than the last.
        tile: Filled [end - first, LANES].
    """
    flat, target = table.reshape(-1), tile.reshape(-1)
    whole = first + (end - first) // SQUARE * SQUARE
    for block in range(0, LANES, SQUARE):
        rows, ahead = span(offsets, block, SQUARE), span(offsets, block + SQUARE, SQUARE)
        for column in range(first, whole, SQUARE):
            for i in range(SQUARE):
                prefetch(flat, ahead[i] + column)
            turn(flat, rows, column, target, (column - first) * LANES + block, LANES)
    for column in range(whole, end):
        for n in range(LANES):
            tile[column - first, n] = flat[offsets[n] + column]


@cached
def own_scores(
    kind: int,
    queries: Floats,
    table: Floats,
    negatives: Ints,
    bounds: Ints,
    calibration: Floats,
    begin: int,
    end: int,
    out: Floats,
) -> None:
    """Score the own candidates of the queries begin..end at every size.

    Args:
        kind: PRODUCT, ABSOLUTE, SQUARED or MODULUS.
        queries: [B, W].
        table: The entity table [E, W].
        negatives: Entity ids [B, N].
        bounds: Where segments begin and end in a row [K + 1], from 0.
        calibration: Factor and offset of each size [2, K].
        begin: First query.
        end: One more than the last query.
        out: Filled with the scores, those of T queries together at every size
            [ceil((end - begin) / T), K, T, N].
    """
    width, count = queries.shape[1], negatives.shape[1]
    tile = np.empty((min(CHUNK, width), LANES), np.float32)
    sums, offsets = np.empty(LANES, np.float32), np.empty(LANES + SQUARE, np.int64)
    flat, apart = out.reshape(-1), out.shape[2] * count
    for b in range(begin, end):
        for start in range(0, count, LANES):
            for n in range(LANES):  # places behind the last candidate repeat it
                offsets[n] = negatives[b, min(start + n, count - 1)] * width
            more = start + LANES < count
            for n in range(SQUARE):
                row, place = (b, start + LANES + n) if more else (min(b + 1, len(queries) - 1), n)
                offsets[LANES + n] = negatives[row, min(place, count - 1)] * width
            query = span(queries, b * width, width)
            sums[:] = 0
            k, place, some = 0, _place(out, b - begin, start), min(LANES, count - start)
            for first in range(0, width, CHUNK):
                last = min(first + CHUNK, width)
                _turn_rows(table, offsets, first, last, tile)
                k = _sum_tile(
                    kind, sums, query, tile, first, last, bounds, calibration, k, flat, place, apart, some
                )


@cached
def pool_scores(
    kind: int,
    queries: Floats,
    pool: Floats,
    columns: Ints,
    targets: Ints,
    bounds: Ints,
    calibration: Floats,
    begin: int,
    end: int,
    out: Floats,
) -> None:
    """Score candidates that all queries share for the queries begin..end; the target itself never counts.

    Args:
        kind: PRODUCT, ABSOLUTE, SQUARED or MODULUS.
        queries: [B, W].
        pool: Candidate rows, transposed by LANES [ceil(C / LANES), W, LANES].
        columns: Entity ids of the candidates [C].
        targets: Entity ids [B].
        bounds: Where segments begin and end in a row [K + 1], from 0.
        calibration: Factor and offset of each size [2, K].
        begin: First query.
        end: One more than the last query.
        out: Filled as by `own_scores` [ceil((end - begin) / T), K, T, C]; `MASKED` where a candidate is the
            target.
    """
    width, count = queries.shape[1], len(columns)
    sums, flat, apart = np.empty(LANES, np.float32), out.reshape(-1), out.shape[2] * count
    for index in range(len(pool)):
        start, stop = index * LANES, min((index + 1) * LANES, count)
        tile = span(pool, index * width * LANES, width * LANES)
        for b in range(begin, end):
            query = span(queries, b * width, width)
            sums[:] = 0
            place = _place(out, b - begin, start)
            _sum_tile(
                kind, sums, query, tile, 0, width, bounds, calibration, 0, flat, place, apart, stop - start
            )
            for n in range(stop - start):
                if columns[start + n] == targets[b]:
                    for k in range(len(bounds) - 1):
                        flat[place + k * apart + n] = MASKED


@cached
def target_scores(
    kind: int,
    queries: Floats,
    table: Floats,
    targets: Ints,
    bounds: Ints,
    calibration: Floats,
    begin: int,
    end: int,
    out: Floats,
) -> None:
    """Score the targets of the queries begin..end at every size.

    Args:
        kind: PRODUCT, ABSOLUTE, SQUARED or MODULUS.
        queries: [B, W].
        table: The entity table [E, W].
        targets: Entity ids [B].
        bounds: Where segments begin and end in a row [K + 1], from 0.
        calibration: Factor and offset of each size [2, K].
        begin: First query.
        end: One more than the last query.
        out: Filled with the scores [K, B].
    """
    width = queries.shape[1]
    terms, tile = np.empty((LANES, width), np.float32), np.empty((width, LANES), np.float32)
    sums, offsets = np.empty(LANES, np.float32), np.arange(LANES + SQUARE) * width
    for start in range(begin, end, LANES):
        stop = min(start + LANES, end)
        for b in range(start, stop):
            prefetch_row(table, targets[min(b + AHEAD, end - 1)] * width, width)
            query, row = span(queries, b * width, width), span(table, targets[b] * width, width)
            _terms(kind, query, row, span(terms, (b - start) * width, width))
        _turn_rows(terms, offsets, 0, width, tile)
        sums[:] = 0
        for k in range(len(bounds) - 1):
            for i in range(bounds[k], bounds[k + 1]):
                row = span(tile, i * LANES, LANES)
                for n in range(LANES):
                    sums[n] += row[n]
            _finish(kind, sums, calibration[0, k], calibration[1, k], out[k, start:stop])
