"""What the Triton kernels share: the chain of operations that adds a row up, and the layout of rows.

Rows are stored by number, ``[W, N]``, so that neighbouring threads read neighbouring rows. A total is one
chain of IEEE operations in the order of the numbers, every fused one spelled out and fusion by the compiler
off. Wherever a pair of rows is added up, by which kernel and at which place of a tile, the total is then the
same bit for bit. ``tl.dot`` promises no order of its sums, and takes 16 numbers at least where a segment may
have one.

The file needs triton, which comes with torch's CUDA builds on Linux. TRITON_INTERPRET=1, set before triton is
imported, runs the kernels in Python on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from croppable.kge.scores import ComplEx, DistMult, RotatE, Score, SimplE, TransEL1, TransEL2

__all__ = ["KINDS", "OPTIONS", "add_numbers", "columns", "jit", "number_bounds", "on_device_of"]

# How the numbers of a row are added up. A score that is not here, to the very class, has no kernel.
KINDS: dict[type[Score], str] = {
    DistMult: "product",
    ComplEx: "product",
    SimplE: "product",
    TransEL1: "absolute",
    TransEL2: "squared",
    RotatE: "modulus",
}
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}  # of every launch: see above


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function for the GPU when it is first launched."""
    return triton.jit(function)


@jit
def add_numbers(
    total: tl.tensor,
    queries: tl.tensor,
    query: tl.tensor,
    candidates: tl.tensor,
    candidate: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    query_stride: tl.tensor,
    candidate_stride: tl.tensor,
    kind: tl.constexpr,
) -> tl.tensor:
    """Add the terms of the numbers begin..end to totals.

    Args:
        total: Totals so far, of any shape that the places broadcast to.
        queries: Query rows by number, ``[W, query_stride]``.
        query: Places of queries.
        candidates: Candidate rows by number, ``[W, candidate_stride]``.
        candidate: Places of candidates.
        begin: First number.
        end: One more than the last number.
        query_stride: Distance of a row's numbers.
        candidate_stride: Distance of a row's numbers.
        kind: A value of `KINDS`.
    """
    if kind == "modulus":
        for i in range(begin, end, 2):
            q = queries + tl.cast(i, tl.int64) * query_stride
            c = candidates + tl.cast(i, tl.int64) * candidate_stride
            x = tl.load(q + query) - tl.load(c + candidate)
            y = tl.load(q + query_stride + query) - tl.load(c + candidate_stride + candidate)
            square = tl.fma(x, x, y * y)
            # TINY of scores.py; tl.maximum would take it for a NaN as well
            total -= tl.sqrt_rn(tl.where(square < 1e-24, 1e-24, square))
    else:
        for i in range(begin, end):
            q = tl.load(queries + tl.cast(i, tl.int64) * query_stride + query)
            c = tl.load(candidates + tl.cast(i, tl.int64) * candidate_stride + candidate)
            if kind == "product":
                total = tl.fma(q, c, total)
            elif kind == "absolute":
                total -= tl.abs(q - c)
            else:
                total = tl.fma(c - q, q - c, total)
    return total


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Have kernels launched on the GPU of a tensor; on the CPU this does nothing."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


def columns(rows: Tensor, multiple: int) -> Tensor:
    """Store rows ``[N, W]`` by number, ``[W, N']``: zeros fill up to a multiple, so that tiles are whole."""
    count, width = rows.shape
    stored = rows.new_zeros(width, -(-count // multiple) * multiple)
    stored[:, :count] = rows.T
    return stored


def number_bounds(sizes: tuple[int, ...], parts: int, device: torch.device) -> Tensor:
    """Return where segments begin and end among the numbers of a row, ``[K + 1]`` int32, from 0."""
    return torch.tensor([0, *sizes], dtype=torch.int32, device=device) * parts
