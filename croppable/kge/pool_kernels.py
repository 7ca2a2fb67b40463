"""Compiled gradients where all queries share their candidates, on the CPU.

A lane is a candidate, as in `pool_scores`: the gradients by the scores of a size are summed from the last
size down while they are used, in the order in which they were judged, so that no weights of segments are
written. The file needs numba (extra "kge").

Shapes: B queries, C candidates, W numbers of a row, K sizes, E entities, U rows with a gradient.
"""

from __future__ import annotations

import numpy as np

from croppable.kge.gradient_kernels import Places, add, pull
from croppable.kge.judge_code import weigh_row
from croppable.kge.lanes_code import LANES
from croppable.kge.lanes_pull_code import lanes_absolute, lanes_modulus, lanes_product, lanes_squared
from croppable.kge.loss_kernels import Number
from croppable.kge.ranking_kernels import ABSOLUTE, PRODUCT, SQUARED
from croppable.kge.step_kernels import Floats, Ints, prefetch_row
from croppable.kge.usual_kernels import TOGETHER, constants_of
from croppable.kge.vector_code import cached, part, span

__all__ = ["pool_gradients", "sum_rows", "target_gradients"]

AHEAD = 2  # sizes that sigma is asked for before it is needed
NUMBERS = 32  # of the candidates' rows, which stay in the first cache with their gradients


@part
def _pull_lanes(
    kind: int, weights: Floats, query: Floats, tile: Floats, by_query: Floats, by_tile: Floats, start: int,
    stop: int,
) -> None:  # fmt: skip
    """Add the gradients of a query and LANES candidates by each other; see lanes_pull_code.py."""
    if kind == PRODUCT:
        lanes_product(weights, query, tile, by_query, by_tile, start, stop)
    elif kind == ABSOLUTE:
        lanes_absolute(weights, query, tile, by_query, by_tile, start, stop)
    elif kind == SQUARED:
        lanes_squared(weights, query, tile, by_query, by_tile, start, stop)
    else:
        lanes_modulus(weights, query, tile, by_query, by_tile, start, stop)


@part
def _write_steps(
    sigma: Floats, first: int, number: int, k: int, apart: int, constants: Floats, slopes: Floats,
    nobody: Floats, steps: Floats,
) -> None:  # fmt: skip
    """Write the gradients by the totals of a size.

    Args:
        sigma: Flat.
        first: Where that of the first size begins.
        number: N, of all queries together.
        k: The size.
        apart: How far two sizes are apart.
        constants: From `constants_of`.
        slopes: As in `weigh_usual` [3, K'].
        nobody: Zeros [N].
        steps: Filled [N].
    """
    at = first + k * apart
    prefetch_row(sigma, at - AHEAD * apart, number)  # the processor expects ascending places
    now = span(sigma, at, number)
    before = span(sigma, at - apart, number) if k else span(nobody, 0, number)
    after = span(sigma, at if slopes[2, k] == 0 else at + apart, number)
    weigh_row(before, now, after, number, slopes[0, k], slopes[1, k], slopes[2, k], constants, steps)


@cached
def pool_gradients(
    kind: int, queries: Floats, pool: Floats, values: Floats, usual: bool, w: Number, slopes: Floats,
    bounds: Ints, begin: int, end: int, by_query: Floats, by_pool: Floats,
) -> None:  # fmt: skip
    """Add the gradients of the queries begin..end and of the candidates they share.

    Args:
        kind: As in `own_scores`.
        queries: Without -0 [B, W].
        pool: Candidate rows, transposed by LANES [ceil(C / LANES), W, LANES].
        values: Gradients by totals, from `judge_gradients` [B, K, 1, C]; or sigma where ``usual``, from
            `judge_pool` [ceil(B / TOGETHER), K, TOGETHER, C].
        usual: Whether the gradients are formed here, from sigma.
        w: w2.
        slopes: As in `weigh_usual` [3, K'].
        bounds: Where segments begin and end in a row [K + 1], from 0.
        begin: First query; a multiple of TOGETHER where ``usual``.
        end: One more than the last query.
        by_query: Filled for these queries [B, W].
        by_pool: Added to, in the layout of ``pool``.
    """
    width, (_, sizes, together, count), lanes = queries.shape[1], values.shape, len(pool) * LANES
    number, flat, constants = together * count, values.reshape(-1), constants_of(w)
    nobody, steps = np.zeros(number, np.float32), np.empty(number, np.float32)
    asked, by_asked = np.empty(TOGETHER * width, np.float32), np.empty(TOGETHER * width, np.float32)
    running = np.empty(TOGETHER * lanes, np.float32)
    for first in range(begin, end, TOGETHER):
        last = min(first + TOGETHER, end)
        asked[: (last - first) * width] = span(queries, first * width, (last - first) * width)
        by_asked[:], running[:] = 0, 0
        for k in range(len(bounds) - 2, -1, -1):
            place = first * sizes * count
            if usual:
                some = (last - first) * count
                _write_steps(flat, place, some, k, number, constants, slopes, nobody, steps)
            for i in range(last - first):
                step = span(steps, i * count, count)
                if not usual:
                    step = span(flat, place + (i * sizes + k) * count, count)
                add(step, span(running, i * lanes, count))
            for index in range(len(pool)):
                tile = span(pool, index * width * LANES, width * LANES)
                by_tile = span(by_pool, index * width * LANES, width * LANES)
                for start in range(bounds[k], bounds[k + 1], NUMBERS):
                    stop = min(start + NUMBERS, bounds[k + 1])
                    for i in range(last - first):
                        _pull_lanes(
                            kind, span(running, i * lanes + index * LANES, LANES),
                            span(asked, i * width, width), tile, span(by_asked, i * width, width), by_tile,
                            start, stop,
                        )  # fmt: skip
        span(by_query, first * width, (last - first) * width)[:] = by_asked[: (last - first) * width]


@cached
def target_gradients(
    kind: int, queries: Floats, table: Floats, targets: Ints, weights: Floats, firsts: Ints, places: Places,
    begin: int, end: int, by_query: Floats, out: Floats,
) -> None:  # fmt: skip
    """Write what the queries begin..end pull at their targets' rows, and add what these pull at them.

    Args:
        kind: As in `own_scores`.
        queries: [B, W].
        table: The entity table [E, W].
        targets: Entity ids [B].
        weights: Of segments [B, K'].
        firsts: As in `row_gradients`.
        places: As in `row_gradients`.
        begin: First query.
        end: One more than the last query.
        by_query: Added to [B, W].
        out: Filled for these queries [B, W].
    """
    width, padded = queries.shape[1], weights.shape[1]
    for b in range(begin, end):
        gradient = span(out, b * width, width)
        gradient[:] = 0
        prefetch_row(table, targets[min(b + 2, end - 1)] * width, width)
        pull(
            kind, span(table, targets[b] * width, width), span(queries, b * width, width), gradient,
            span(by_query, b * width, width), span(weights, b * padded, padded), firsts, places,
        )  # fmt: skip


@cached
def sum_rows(
    starts: Ints, uses: Ints, targets: Floats, anchors: Floats, pool: Floats, begin: int, end: int,
    out: Floats,
) -> None:  # fmt: skip
    """Write the sums begin..end of rows, each of which holds some of three lists.

    Args:
        starts: Sum u is of the uses starts[u] to starts[u + 1] [U + 1].
        uses: Places in the three lists one behind the other.
        targets: Rows [B, W].
        anchors: Rows [B, W].
        pool: Rows [C, W].
        begin: First sum.
        end: One more than the last.
        out: Filled from begin to end [U, W].
    """
    width, batch = out.shape[1], len(targets)
    for u in range(begin, end):
        total = span(out, u * width, width)
        if starts[u] == starts[u + 1]:
            total[:] = 0
        for i in range(starts[u], starts[u + 1]):
            use = uses[i]
            if use < batch:
                row = span(targets, use * width, width)
            elif use < 2 * batch:
                row = span(anchors, (use - batch) * width, width)
            else:
                row = span(pool, (use - 2 * batch) * width, width)
            if i == starts[u]:
                total[:] = row
            else:
                add(row, total)
