"""Compiled gradients of the scores in croppable/kge/step_kernels.py, on the CPU.

Every row of the table gathers its own gradient, so that no table has to be zeroed first; what it pulls at
queries goes to sums of their own for every piece of work. The order is fixed, so the same number of threads
gives the same result. The file needs numba (extra "kge").

Shapes: B queries, A rows that only one query uses (its target, then its negatives), W numbers of a row (dims
x parts), K sizes, K' >= max(K, PERMUTED), V = W / PERMUTED rounded up, E entities, U rows with a gradient.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from croppable.kge.pull_code import (
    pull_absolute,
    pull_modulus,
    pull_product,
    pull_squared,
)
from croppable.kge.ranking_kernels import ABSOLUTE, PRODUCT, SQUARED
from croppable.kge.step_kernels import TINY, Floats, Ints, prefetch_row
from croppable.kge.vector_code import PERMUTED, SQUARE, cached, part, span, turn

__all__ = ["Places", "add", "gather_weights", "group_uses", "pull", "row_gradients"]

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
AHEAD = 12  # rows and weights that are asked for while one is in work

Places = NDArray[np.int32]


@part
def pull(
    kind: int, row: Floats, query: Floats, by_row: Floats, by_query: Floats, weights: Floats, firsts: Ints,
    places: Places,
) -> None:  # fmt: skip
    """Add the gradients of a row and a query by each other; arguments as in pull_code.py."""
    whole = len(row) // PERMUTED
    if kind == PRODUCT:
        pull_product(row, query, by_row, by_query, weights, firsts, places, whole)
    elif kind == ABSOLUTE:
        pull_absolute(row, query, by_row, by_query, weights, firsts, places, whole)
    elif kind == SQUARED:
        pull_squared(row, query, by_row, by_query, weights, firsts, places, whole)
    else:
        pull_modulus(row, query, by_row, by_query, weights, firsts, places, whole)
    _pull_rest(kind, row, query, by_row, by_query, weights, firsts, places)


@part
def _pull_rest(
    kind: int, row: Floats, query: Floats, by_row: Floats, by_query: Floats, weights: Floats, firsts: Ints,
    places: Places,
) -> None:  # fmt: skip
    """As `pull`, for the numbers behind the last vector."""
    for i in range(len(row) // PERMUTED * PERMUTED, len(row)):
        weight = weights[firsts[i // PERMUTED] + places[i]]
        difference = query[i] - row[i]
        if kind == PRODUCT:
            by_row[i] += weight * query[i]
            by_query[i] += weight * row[i]
            continue
        if kind == ABSOLUTE:
            difference = (ONE if difference > 0 else ZERO) - (ONE if difference < 0 else ZERO)
        elif kind == SQUARED:
            difference *= TWO
        else:
            other = query[i ^ 1] - row[i ^ 1]
            square = difference * difference + other * other
            difference *= ONE / math.sqrt(square) if square >= TINY else ZERO
        by_row[i] += weight * difference
        by_query[i] -= weight * difference


@part
def add(more: Floats, sums: Floats) -> None:
    """Add numbers to as many sums."""
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
                add(span(gradients, at + count, count), span(gradients, at, count))
        for k in range(0, full, SQUARE):
            for i in range(SQUARE):
                offsets[i] = (b * sizes + k + i) * count
            for n in range(0, whole, SQUARE):
                turn(source, offsets, n, target, (b * uses + n + 1) * padded + k, padded)
        for k in range(sizes):
            for n in range(whole if k < full else 0, count):
                out[b, n + 1, k] = gradients[b, k, n]


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
    firsts: Ints,
    places: Places,
    by_query: Floats,
    out: Floats,
) -> None:
    """Write the gradients of table rows, and add those of the queries that use them.

    Args:
        kind: As in `own_scores`.
        queries: [B, W].
        table: The entity table [E, W].
        rows: Entity ids [U].
        starts: Row u has the uses starts[u] to starts[u + 1] [U + 1].
        uses: Places in ``weights``; B A and above are uses of another kind, left out.
        weights: From `gather_weights` [B, A, K'].
        firsts: The first segment of every PERMUTED numbers [V], at most K' - PERMUTED.
        places: Segment of each number, counted from there [V PERMUTED].
        by_query: Added to [B, W].
        out: Filled [U, W].
    """
    width, count, padded = queries.shape[1], weights.shape[1], weights.shape[2]
    own_uses = len(weights) * count
    for u in range(len(rows)):
        gradient, row = span(out, u * width, width), span(table, rows[u] * width, width)
        gradient[:] = 0
        for i in range(starts[u], starts[u + 1]):
            use, ahead = uses[i], uses[min(i + AHEAD, len(uses) - 1)] * padded
            prefetch_row(weights, ahead, padded)
            if use < own_uses:
                at = use // count * width
                pull(
                    kind, row, span(queries, at, width), gradient, span(by_query, at, width),
                    span(weights, use * padded, padded), firsts, places,
                )  # fmt: skip
