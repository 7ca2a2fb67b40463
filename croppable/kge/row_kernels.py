"""Adagrad for the rows that have a gradient, compiled, on the CPU: one pass over gradient, state and table.

The specification is `torch.optim.Adagrad`. The file needs numba (extra "kge"); croppable/kge/optimizing.py
uses it where it can.

Shapes: U rows with a gradient, E entities, W numbers of a row.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from croppable.kge.pieces import cut, on_all_threads
from croppable.kge.step_kernels import Floats, Ints, Number, prefetch_row
from croppable.kge.vector_code import cached, part, span

__all__ = ["update_rows"]

AHEAD = 2  # rows that are asked for while one is in work


@part
def _update_row(gradient: Floats, total: Floats, row: Floats, rate: Number, eps: Number) -> None:
    for i in range(len(row)):
        square = total[i] + gradient[i] * gradient[i]
        total[i] = square
        row[i] -= rate * (gradient[i] / (math.sqrt(square) + eps))


@cached
def _update_rows(
    rows: Ints, gradients: Floats, totals: Floats, table: Floats, rate: Number, eps: Number, begin: int,
    end: int,
) -> None:  # fmt: skip
    width = table.shape[1]
    for u in range(begin, end):
        ahead = rows[min(u + AHEAD, end - 1)] * width
        prefetch_row(table, ahead, width)
        prefetch_row(totals, ahead, width)
        row = span(table, rows[u] * width, width)
        _update_row(span(gradients, u * width, width), span(totals, rows[u] * width, width), row, rate, eps)


def update_rows(
    rows: Tensor, gradients: Tensor, totals: Tensor, table: Tensor, lr: float, eps: float
) -> None:
    """Move rows by Adagrad and add to their sums of squares.

    Args:
        rows: Ids, all different ``[U]``.
        gradients: ``[U, ...]``, float32 and contiguous as all that follow.
        totals: Sums of squares of each number ``[E, ...]``.
        table: ``[E, ...]``.
        lr: Learning rate.
        eps: Keeps the quotient finite.
    """
    gradients, totals, table = (t.detach().flatten(1) for t in (gradients, totals, table))
    ids, by_row, sums, values = (t.numpy() for t in (rows.contiguous(), gradients, totals, table))
    rate, small = np.float32(lr), np.float32(eps)

    def piece(begin: int, end: int) -> None:
        _update_rows(ids, by_row, sums, values, rate, small, begin, end)

    on_all_threads(piece, cut(len(rows), len(rows), table.shape[1]))
