"""The compiled ranking kernel for additive scores on the CPU: accumulate, compare, count, tile by tile.

The running sums of 4 queries against 512 candidates stay in the first cache: each segment of dims is added to
them, each size's targets are compared with them, and only counts leave. The filter costs nothing per size:
known answers and targets start as NaN, which no sum repairs and no comparison counts.

Every score is one chain of IEEE operations in a fixed order, without fast-math. A target's own total, summed
alone by `target_totals`, therefore is bit for bit what `count_wins` holds for an equal candidate.

The file needs numba (extra "kge"); croppable/kge/ranking_compiled.py prepares the arrays.

Shapes: U queries, W numbers of a row (dims x parts), N targets, K sizes, M tiles.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["ABSOLUTE", "GROUP", "MODULUS", "PRODUCT", "SQUARED", "TILE", "count_wins", "target_totals"]

TILE = 512  # candidates; 256 to 2048 were measured within a tenth of each other
GROUP = 4  # queries that share each candidate number loaded; the loops below spell them out
TINY = np.float32(1e-24)  # as in scores.py, where it keeps the gradient of a zero modulus finite

PRODUCT, ABSOLUTE, SQUARED, MODULUS = range(4)  # the steps, by which the dims of a score are summed

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Number = Any  # float32 or int32 inside the compiled code
Step = Callable[[Number, Number, Number, Number, Number], Number]
_log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])


def _part(function: F) -> F:
    """Compile as a part of the functions below."""
    return cast("F", njit(nogil=True)(function))


def _cached(function: F) -> F:
    """Compile on the first call and keep the result, in the user's cache where this folder is read-only."""
    try:
        return cast("F", njit(nogil=True, cache=True)(function))
    except RuntimeError as error:  # there is no folder that numba may write to
        _log.info("compiled in every process anew; set NUMBA_CACHE_DIR to keep the result (%s)", error)
        return _part(function)


def _fma_code(_context: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x * y + z, rounded once."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(x, y, z), generate


_fma = cast("Callable[[Number, Number, Number], Number]", intrinsic(_fma_code))


# Steps: add two numbers of a candidate row c to the running total, given those of the query row q.


@_part
def _product(total: Number, q0: Number, c0: Number, q1: Number, c1: Number) -> Number:
    return _fma(q1, c1, _fma(q0, c0, total))


@_part
def _absolute(total: Number, q0: Number, c0: Number, q1: Number, c1: Number) -> Number:
    return total - abs(q0 - c0) - abs(q1 - c1)


@_part
def _squared(total: Number, q0: Number, c0: Number, q1: Number, c1: Number) -> Number:
    x, y = q0 - c0, q1 - c1
    return _fma(-y, y, _fma(-x, x, total))


@_part
def _modulus(total: Number, q0: Number, c0: Number, q1: Number, c1: Number) -> Number:
    x, y = q0 - c0, q1 - c1
    square = x * x + y * y
    return total - math.sqrt(TINY if square < TINY else square)


def _over_tile(step: Step) -> Callable[[Floats, Floats, Floats, int, int], None]:
    """Return the loop that adds numbers start..stop of queries and a tile [W, TILE] to sums [GROUP, TILE].

    Numbers that the inner loop shares are read into names first: the compiler then holds them in registers.
    """

    @_part
    def add(sums: Floats, queries: Floats, tile: Floats, start: int, stop: int) -> None:
        a, b, c, d = sums[0], sums[1], sums[2], sums[3]
        for i in range(start, stop - 1, 2):
            x, y = tile[i], tile[i + 1]
            a0, a1, b0, b1 = queries[0, i], queries[0, i + 1], queries[1, i], queries[1, i + 1]
            c0, c1, d0, d1 = queries[2, i], queries[2, i + 1], queries[3, i], queries[3, i + 1]
            for n in range(TILE):
                a[n] = step(a[n], a0, x[n], a1, y[n])
                b[n] = step(b[n], b0, x[n], b1, y[n])
                c[n] = step(c[n], c0, x[n], c1, y[n])
                d[n] = step(d[n], d0, x[n], d1, y[n])
        if (stop - start) % 2:  # a zero beside the last number adds nothing
            i = stop - 1
            x, zero = tile[i], np.float32(0)
            a0, b0, c0, d0 = queries[0, i], queries[1, i], queries[2, i], queries[3, i]
            for n in range(TILE):
                a[n] = step(a[n], a0, x[n], zero, zero)
                b[n] = step(b[n], b0, x[n], zero, zero)
                c[n] = step(c[n], c0, x[n], zero, zero)
                d[n] = step(d[n], d0, x[n], zero, zero)

    return add


def _over_row(step: Step) -> Callable[[Number, Floats, Floats, int, int], Number]:
    """Return the same chain of operations for one query row and one candidate row."""

    @_part
    def add(total: Number, query: Floats, row: Floats, start: int, stop: int) -> Number:
        for i in range(start, stop - 1, 2):
            total = step(total, query[i], row[i], query[i + 1], row[i + 1])
        if (stop - start) % 2:
            zero = np.float32(0)
            total = step(total, query[stop - 1], row[stop - 1], zero, zero)
        return total

    return add


_tile_product, _row_product = _over_tile(_product), _over_row(_product)
_tile_absolute, _row_absolute = _over_tile(_absolute), _over_row(_absolute)
_tile_squared, _row_squared = _over_tile(_squared), _over_row(_squared)
_tile_modulus, _row_modulus = _over_tile(_modulus), _over_row(_modulus)


@_part
def _add_segment(kind: int, sums: Floats, queries: Floats, tile: Floats, start: int, stop: int) -> None:
    if kind == PRODUCT:
        _tile_product(sums, queries, tile, start, stop)
    elif kind == ABSOLUTE:
        _tile_absolute(sums, queries, tile, start, stop)
    elif kind == SQUARED:
        _tile_squared(sums, queries, tile, start, stop)
    else:
        _tile_modulus(sums, queries, tile, start, stop)


@_part
def _compare(sums: Floats, own: Number) -> tuple[Number, Number]:
    """Return how many of the sums [TILE] beat a target's own and how many equal it."""
    greater, equal = np.int32(0), np.int32(0)
    for n in range(TILE):
        greater += sums[n] > own
        equal += sums[n] == own
    return greater, equal


@_part
def _count_broken(sums: Floats) -> Number:
    """Return how many of the sums [TILE] are infinite or NaN."""
    broken = np.int32(0)
    for n in range(TILE):
        broken += not abs(sums[n]) < np.inf
    return broken


@_part
def _reset(sums: Floats, first: int, end: int, excluded: Ints, cursor: int, stop: int) -> tuple[int, int]:
    """Start the sums [TILE] of one query against the candidates from ``first`` on.

    Everything is 0 but the places from ``end`` on, where there is no candidate, and the excluded ones: those
    are NaN.

    Returns:
        The number of NaNs and where in ``excluded`` the next tile goes on.
    """
    sums[:] = 0
    sums[end - first :] = np.nan
    masked = max(0, TILE - (end - first))
    while cursor < stop and excluded[cursor] < first + TILE:
        sums[excluded[cursor] - first] = np.nan
        masked += 1
        cursor += 1
    return masked, cursor


@_cached
def target_totals(
    kind: int, queries: Floats, entities: Floats, bounds: Ints, owner: Ints, targets: Ints, totals: Floats
) -> None:
    """Sum every target's terms up to each size: its score before `Score.finish`.

    Args:
        kind: PRODUCT, ABSOLUTE, SQUARED or MODULUS.
        queries: Query rows [U, W].
        entities: The whole entity table [E, W].
        bounds: Where segments begin and end in a row [K + 1], from 0.
        owner: Query of each target [N].
        targets: Entity ids [N].
        totals: Filled with the results [N, K].
    """
    for n in range(len(targets)):
        query, row = queries[owner[n]], entities[targets[n]]
        total: Number = np.float32(0)
        for k in range(len(bounds) - 1):
            if kind == PRODUCT:
                total = _row_product(total, query, row, bounds[k], bounds[k + 1])
            elif kind == ABSOLUTE:
                total = _row_absolute(total, query, row, bounds[k], bounds[k + 1])
            elif kind == SQUARED:
                total = _row_squared(total, query, row, bounds[k], bounds[k + 1])
            else:
                total = _row_modulus(total, query, row, bounds[k], bounds[k + 1])
            totals[n, k] = total


@_cached
def count_wins(
    kind: int,
    queries: Floats,
    tiles: Floats,
    first: int,
    end: int,
    bounds: Ints,
    totals: Floats,
    spans: Ints,
    excluded: Ints,
    cursors: Ints,
    stops: Ints,
    greater: Ints,
    equal: Ints,
    broken: NDArray[np.bool_],
) -> None:
    """Count the candidates of some tiles that beat or equal each target, at every size.

    Args:
        kind: PRODUCT, ABSOLUTE, SQUARED or MODULUS.
        queries: Query rows [U, W]; U is a multiple of `GROUP`.
        tiles: Candidate rows, transposed tile by tile [M, W, TILE]; what lies behind ``end`` must be finite.
        first: Entity id of the first candidate.
        end: One more than the last entity id in the tiles.
        bounds: Where segments begin and end in a row [K + 1], from 0.
        totals: Every target's own totals [N, K], grouped by query.
        spans: Query u owns the targets spans[u] to spans[u + 1] [U + 1].
        excluded: Entity ids that do not count, ascending and distinct for each query.
        cursors: Where in ``excluded`` each query's next ids begin [U]; moved on.
        stops: Where they end [U].
        greater: Counts [N, K], added to.
        equal: Counts [N, K], added to.
        broken: Set for every query with a score that is not finite [U].
    """
    sums = np.empty((GROUP, TILE), np.float32)
    masked = np.empty(GROUP, np.int64)
    sizes = len(bounds) - 1
    for m in range(len(tiles)):
        begin = first + m * TILE
        for u in range(0, len(queries), GROUP):
            for i in range(GROUP):
                masked[i], cursors[u + i] = _reset(
                    sums[i], begin, min(end, begin + TILE), excluded, cursors[u + i], stops[u + i]
                )
            for k in range(sizes):
                _add_segment(kind, sums, queries[u : u + GROUP], tiles[m], bounds[k], bounds[k + 1])
                for i in range(GROUP):
                    for n in range(spans[u + i], spans[u + i + 1]):
                        won, tied = _compare(sums[i], totals[n, k])
                        greater[n, k] += won
                        equal[n, k] += tied
            for i in range(GROUP):  # what is not finite stays so: the last size shows it
                broken[u + i] |= _count_broken(sums[i]) != masked[i]
