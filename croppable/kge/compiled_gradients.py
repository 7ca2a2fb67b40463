"""Gradients of a batch on their way from totals to rows, by compiled kernels.

croppable/kge/compiled_batch.py says what the gradients by totals are made of. The file needs numba (extra
"kge").

Shapes: B queries, N negatives of each or C of each of G pools, A rows that only one query uses (its target,
then its negatives), W numbers of a row (dims x parts), K sizes, K' at least K, E entities, U rows with a
gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from croppable.kge.gradient_kernels import group_uses, row_gradients
from croppable.kge.pieces import LEAST, cut, even_cuts, on_all_threads
from croppable.kge.pool_kernels import pool_gradients, sum_rows, target_gradients
from croppable.kge.usual_kernels import TOGETHER

__all__ = [
    "Pools", "Rows", "Steps", "Uses", "add_rows", "cut_blocks", "cut_runs", "group", "sums_of_rows",
    "through_pools", "through_rows",
]  # fmt: skip

HALVES = 2  # pieces of a pool's work for each thread; each has sums of its own


class Rows(NamedTuple):
    """What the kernels know of the rows; see `row_gradients`."""

    kind: int
    queries: NDArray[Any]
    table: NDArray[Any]
    bounds: NDArray[Any]
    firsts: NDArray[Any]
    places: NDArray[Any]


class Pools(NamedTuple):
    """Candidates that queries share.

    Attributes:
        ids: Entity ids ``[G, C]``.
        rows: Their rows, each pool's as in `pool_gradients` ``[G, ceil(C / LANES), W, LANES]``.
        runs: The queries begin..end of each pool; of pools that no query needs there is none.
    """

    ids: NDArray[Any]
    rows: NDArray[Any]
    runs: list[tuple[int, int]]

    def of(self, query: int) -> int:
        """Return the pool of a query."""
        return query // self.runs[0][1]

    def pieces(self, pieces: int, together: int, numbers: int) -> list[tuple[int, int]]:
        """Cut the queries as `cut_blocks` does, pool by pool."""
        each = -(-pieces // len(self.runs))
        return cut_runs(self.runs, lambda queries: cut_blocks(queries, each, together, numbers))


class Steps(NamedTuple):
    """What the gradients by the totals of scores are made of.

    Attributes:
        values: Weights of segments ``[B, A, K']``, or, for a pool, what `pool_gradients` forms them from.
        own: For a pool, weights for targets ``[B, K']``.
        usual: As the following in `pool_gradients`.
        w: See there.
        slopes: See there.
        calibration: Sums over all scores of the gradient, and of the gradient times the score ``[K, 2]``;
            None where they are not asked for.
    """

    values: Tensor
    own: Tensor
    usual: bool
    w: np.float32
    slopes: NDArray[Any]
    calibration: Tensor | None


class Uses(NamedTuple):
    """Uses of rows, sorted by row.

    Attributes:
        touched: Ids of the rows ``[U]``, or None for all.
        rows: The same ``[U]``, or all ids.
        starts: Row u has the uses starts[u] to starts[u + 1] ``[U + 1]``.
        uses: Places in the list of uses.
    """

    touched: Tensor | None
    rows: NDArray[Any]
    starts: NDArray[Any]
    uses: NDArray[Any]


def group(ids: Tensor, entities: int, sparse: bool) -> Uses:
    """Sort uses by row.

    Args:
        ids: Entity id of each use.
        entities: E.
        sparse: Whether to leave out rows without use.
    """
    if sparse:
        order = ids.argsort(stable=True).numpy()
        in_order = ids.numpy()[order]
        starts = np.flatnonzero(np.diff(in_order, prepend=-1, append=-1))
        rows = in_order[starts[:-1]]
        return Uses(torch.from_numpy(rows), rows, starts, order)
    starts, uses = np.empty(entities + 1, np.int64), np.empty(len(ids), np.int64)
    group_uses(ids.numpy(), starts, uses)
    return Uses(None, np.arange(entities), starts, uses)


def cut_runs(
    runs: Sequence[tuple[int, int]], cut_one: Callable[[int], list[tuple[int, int]]]
) -> list[tuple[int, int]]:
    """Cut every run begin..end by itself, by what cuts so many from 0 on."""
    return [(begin + first, begin + last) for begin, end in runs for first, last in cut_one(end - begin)]


def cut_blocks(batch: int, pieces: int, together: int, numbers: int) -> list[tuple[int, int]]:
    """Cut a batch into a number of pieces for each thread.

    Args:
        batch: B.
        pieces: How many for each thread.
        together: Queries that are not cut apart.
        numbers: As in `cut`.
    """
    blocks = -(-batch // together)
    pairs = cut(blocks, -(-blocks // (pieces * torch.get_num_threads())), numbers * together)
    return [(begin * together, min(end * together, batch)) for begin, end in pairs]


def _bounds(uses: Uses, width: int) -> list[int]:
    """Cut rows into pieces, one for each thread that is worth starting."""
    work = (len(uses.rows) + len(uses.uses)) * width
    return even_cuts(uses.starts, max(1, min(torch.get_num_threads(), work // LEAST)))


def through_rows(rows: Rows, steps: Steps, uses: Uses) -> tuple[Tensor, Tensor]:
    """Let every row that only one query uses pull at it, and it at the row.

    Returns:
        Gradients of the grouped rows ``[U, W]`` and of the queries ``[B, W]``.
    """
    out = torch.empty(len(uses.rows), rows.table.shape[1])
    bounds = _bounds(uses, rows.table.shape[1])
    by_queries, values = torch.zeros(len(bounds) - 1, *rows.queries.shape), steps.values.numpy()

    def piece(index: int, _: int) -> None:
        begin, end = bounds[index : index + 2]
        row_gradients(
            rows.kind, rows.queries, rows.table, uses.rows[begin:end], uses.starts[begin : end + 1],
            uses.uses, values, rows.firsts, rows.places, by_queries[index].numpy(), out.numpy()[begin:end],
        )  # fmt: skip

    on_all_threads(piece, [(i, i + 1) for i in range(len(by_queries))])
    by_query = by_queries[0]
    for more in by_queries[1:]:
        by_query.add_(more)
    return out, by_query


def through_pools(
    rows: Rows, steps: Steps, targets: NDArray[Any], pools: Pools
) -> tuple[Tensor, Tensor, Tensor]:
    """Let the queries pull at their targets and at the candidates they share, and these at them.

    Args:
        rows: Of the batch.
        steps: Of the batch.
        targets: Entity ids ``[B]``.
        pools: Of the batch.

    Returns:
        Gradients of the queries ``[B, W]``, of the target of each ``[B, W]`` and of the pools ``[G C, W]``.
    """
    (batch, width), count = rows.queries.shape, steps.values.shape[3]
    by_query, by_target = torch.empty(2, batch, width)
    pieces = pools.pieces(HALVES, TOGETHER, count * width)
    by_pools = torch.zeros(len(pieces), *pools.rows.shape[1:])
    number, values, own = (
        dict(zip(pieces, range(len(pieces)), strict=True)),
        steps.values.numpy(),
        steps.own.numpy(),
    )

    def piece(begin: int, end: int) -> None:
        pool_gradients(
            rows.kind, rows.queries, pools.rows[pools.of(begin)], values, steps.usual, steps.w, steps.slopes,
            rows.bounds, begin, end, by_query.numpy(), by_pools[number[begin, end]].numpy(),
        )  # fmt: skip
        target_gradients(
            rows.kind, rows.queries, rows.table, targets, own, rows.firsts, rows.places, begin, end,
            by_query.numpy(), by_target.numpy(),
        )  # fmt: skip

    on_all_threads(piece, pieces)
    by_rows = torch.zeros(len(pools.rows), *by_pools.shape[1:])
    by_rows.index_add_(0, torch.tensor([pools.of(begin) for begin, _ in pieces]), by_pools)
    return by_query, by_target, by_rows.transpose(2, 3).flatten(1, 2)[:, :count].reshape(-1, width)


def sums_of_rows(uses: Uses, targets: Tensor, anchors: Tensor, pool: Tensor) -> Tensor:
    """Return the sums of the rows of three lists, one behind the other, by what they are grouped by."""
    out, bounds = torch.empty(len(uses.rows), targets.shape[1]), _bounds(uses, targets.shape[1])
    first, second, third = (rows.contiguous().numpy() for rows in (targets, anchors, pool))

    def piece(begin: int, end: int) -> None:
        sum_rows(uses.starts, uses.uses, first, second, third, begin, end, out.numpy())

    on_all_threads(piece, list(itertools.pairwise(bounds)))
    return out


def add_rows(table: Tensor, touched: Tensor | None, ids: Tensor, more: Tensor) -> None:
    """Add rows to a table that holds the touched rows, or all."""
    table.index_add_(0, ids if touched is None else torch.searchsorted(touched, ids), more)
