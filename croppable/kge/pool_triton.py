"""Candidates that all queries share, scored on a GPU where no matrix product does it: distances of all sizes.

Forward, a program holds the sums of one segment for 16 queries and 64 candidates; backward, the gradients of
one segment for 64 rows. Neither has a ``[B, C, D]`` tensor in memory, which PyTorch's own operations fill and
read several times. Gradients are sums in a fixed order, without atomic additions, so they repeat bit for bit.

The specification is `segment_terms` (croppable/kge/prefixes.py) and its gradient by autograd.

Shapes: B queries, C candidates of the pool, D dims, P parts, W = D x P numbers of a row, K sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from croppable.kge.scores import SCORES, Score
from croppable.kge.triton_code import KINDS, OPTIONS, add_numbers, columns, jit, number_bounds, on_device_of

__all__ = [
    "check",
    "pull_rows",
    "segment_sums",
    "sum_segments",
    "supports",
    "terms_of_segments",
    "through_terms",
]

QUERIES, CANDIDATES = 16, 64  # of a program that sums: one warp, 32 sums in each of its threads
ROWS, WIDEST = 64, 32  # rows of a program that pulls, and dims at most


def supports(score: Score) -> bool:
    """Whether the kernels sum the terms of a score: a distance, for products are a matter of BLAS."""
    return KINDS.get(type(score), "product") != "product"


def segment_sums(score: Score, sizes: Sequence[int], query: Tensor, pool: Tensor) -> Tensor:
    """Sum the terms of every segment; differentiable once, by query and pool.

    Args:
        score: A score that `supports` accepts.
        sizes: Ascending, K of them.
        query: Query rows, ``[B, D(, P)]`` float32.
        pool: Candidate rows, ``[C, D(, P)]`` float32.

    Returns:
        ``[K, B, C]``; running sums over K are the totals of sizes, before `Score.finish`.
    """
    sums: Tensor = _SegmentSums.apply(query, pool, score, tuple(sizes))  # type: ignore[no-untyped-call]
    return sums


class _SegmentSums(torch.autograd.Function):
    """`segment_sums` as a node of autograd."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, pool: Tensor, score: Score, sizes: tuple[int, ...]) -> Tensor:
        """Sum."""
        ctx.save_for_backward(query, pool)
        ctx.score, ctx.sizes = score, sizes
        return terms_of_segments(score, sizes, query, pool)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_terms: Tensor) -> tuple[Tensor | None, ...]:
        """Pull the gradients by terms back to both rows, as far as they are wanted."""
        query, pool = ctx.saved_tensors
        by_query, by_pool = through_terms(
            ctx.score, ctx.sizes, query, pool, by_terms, ctx.needs_input_grad[:2]
        )
        return by_query, by_pool, None, None


def terms_of_segments(score: Score, sizes: Sequence[int], query: Tensor, pool: Tensor) -> Tensor:
    """Return `segment_sums` out of autograd's sight."""
    sizes, kind = tuple(sizes), KINDS[type(score)]
    bounds = number_bounds(sizes, score.entity_parts, query.device)
    queries = columns(query.detach().flatten(1), QUERIES)
    candidates = columns(pool.detach().flatten(1), CANDIDATES)
    padded, chunk = queries.shape[1], candidates.shape[1]
    terms = queries.new_empty(len(sizes), padded, chunk)
    with on_device_of(query):
        sum_segments[chunk // CANDIDATES, padded // QUERIES, len(sizes)](
            queries, candidates, bounds, terms, padded, chunk, kind, QUERIES, CANDIDATES, num_warps=1,
            **OPTIONS,
        )  # fmt: skip
    return terms[:, : len(query), : len(pool)].contiguous()


def through_terms(
    score: Score,
    sizes: Sequence[int],
    query: Tensor,
    pool: Tensor,
    by_terms: Tensor,
    wanted: Sequence[bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """Turn gradients by the terms of segments ``[K, B, C]`` into those by queries and pool.

    Terms are even functions of the difference, so that one kernel does both, with the roles exchanged.
    """
    pull_to_query, pull_to_pool = wanted
    by_query = _pull(score, sizes, query, pool, by_terms.transpose(1, 2)) if pull_to_query else None
    by_pool = _pull(score, sizes, pool, query, by_terms) if pull_to_pool else None
    return by_query, by_pool


def _pull(score: Score, sizes: Sequence[int], rows: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient by rows ``[N, D(, P)]``, given others ``[M, D(, P)]`` and weights ``[K, M, N]``."""
    sizes, parts = tuple(sizes), score.entity_parts
    bounds = number_bounds(sizes, parts, rows.device)
    own, against = (x.detach().flatten(1).contiguous() for x in (rows, others))
    gradient = torch.zeros_like(own)
    widest = max(b - a for a, b in zip((0, *sizes), sizes, strict=False))
    dims = min(WIDEST, triton.next_power_of_2(widest))
    grid = (triton.cdiv(len(own), ROWS), len(sizes), triton.cdiv(widest, dims))
    with on_device_of(rows):
        pull_rows[grid](
            own, against, weights.contiguous(), bounds, gradient, len(own), len(against), own.shape[1],
            against.shape[1], KINDS[type(score)], parts, ROWS, dims, num_warps=4, **OPTIONS,
        )  # fmt: skip
    return gradient.view(rows.shape)


@jit
def sum_segments(
    queries: tl.tensor,
    candidates: tl.tensor,
    bounds: tl.tensor,
    terms: tl.tensor,
    padded: tl.tensor,
    chunk: tl.tensor,
    kind: tl.constexpr,
    tile: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Sum the terms of one segment for a tile of queries and candidates.

    Args:
        queries: Query rows by number [W, padded].
        candidates: Candidate rows by number [W, chunk].
        bounds: Where segments begin and end in a row [K + 1], from 0.
        terms: Filled with the sums [K, padded, chunk].
        padded: B, padded.
        chunk: C, padded.
        kind: A value of `KINDS`.
        tile: Queries of a program.
        width: Candidates of a program.
    """
    c = (tl.program_id(0) * width + tl.arange(0, width))[None, :]
    b = (tl.program_id(1) * tile + tl.arange(0, tile))[:, None]
    k = tl.program_id(2)
    begin, end = tl.load(bounds + k), tl.load(bounds + k + 1)
    total = tl.zeros((tile, width), tl.float32)
    total = add_numbers(total, queries, b, candidates, c, begin, end, padded, chunk, kind)
    tl.store(terms + (tl.cast(k, tl.int64) * padded + b) * chunk + c, total)


@jit
def pull_rows(
    rows: tl.tensor,
    others: tl.tensor,
    weights: tl.tensor,
    bounds: tl.tensor,
    gradient: tl.tensor,
    num_rows: tl.tensor,
    num_others: tl.tensor,
    row_stride: tl.tensor,
    other_stride: tl.tensor,
    kind: tl.constexpr,
    parts: tl.constexpr,
    tile: tl.constexpr,
    dims: tl.constexpr,
) -> None:
    """Sum the gradients of some rows in some dims of one segment: weights times derivatives, over all others.

    Args:
        rows: [N, row_stride].
        others: [M, other_stride].
        weights: Gradients by terms [K, M, N].
        bounds: Where segments begin and end in a row [K + 1], from 0.
        gradient: Filled where segments are [N, row_stride].
        num_rows: N.
        num_others: M.
        row_stride: Numbers of a row.
        other_stride: Numbers of another row.
        kind: "absolute", "squared" or "modulus".
        parts: P.
        tile: Rows of a program.
        dims: Dims of a program.
    """
    n = tl.program_id(0) * tile + tl.arange(0, tile)
    k = tl.program_id(1)
    first = tl.load(bounds + k) + tl.program_id(2) * dims * parts
    number = first + tl.arange(0, dims) * parts
    inside, exists = number < tl.load(bounds + k + 1), n < num_rows
    whole = exists[:, None] & inside[None, :]
    place = tl.cast(n, tl.int64)[:, None] * row_stride + number[None, :]
    a = tl.load(rows + place, mask=whole, other=0.0)
    by_a = tl.zeros((tile, dims), tl.float32)
    if kind == "modulus":
        b = tl.load(rows + place + 1, mask=whole, other=0.0)
        by_b = tl.zeros((tile, dims), tl.float32)
    for m in range(num_others):
        other = others + tl.cast(m, tl.int64) * other_stride + number
        weight = weights + (tl.cast(k, tl.int64) * num_others + m) * num_rows + n
        w = tl.load(weight, mask=exists, other=0.0)[:, None]
        x = a - tl.load(other, mask=inside, other=0.0)[None, :]
        if kind == "absolute":
            by_a -= tl.where(x > 0, w, tl.where(x < 0, -w, 0.0))
        elif kind == "squared":
            by_a = tl.fma(-2 * w, x, by_a)
        else:
            y = b - tl.load(other + 1, mask=inside, other=0.0)[None, :]
            square = tl.fma(x, x, y * y)
            # below TINY (scores.py) the modulus is held, and has no gradient
            slope = tl.where(square >= 1e-24, -w * tl.rsqrt(tl.maximum(square, 1e-24)), 0.0)
            by_a = tl.fma(slope, x, by_a)
            by_b = tl.fma(slope, y, by_b)
    tl.store(gradient + place, by_a, mask=whole)
    if kind == "modulus":
        tl.store(gradient + place + 1, by_b, mask=whole)


def check(device: torch.device) -> None:
    """Sum and pull a tiny case by the kernels and by PyTorch on the CPU.

    Raises:
        RuntimeError: If they differ.
        Exception: Whatever triton raises where it cannot compile or launch.
    """
    sizes = (1, 3)
    random = torch.Generator().manual_seed(0)
    for score in SCORES.values():
        if not supports(score):
            continue
        shape = (sizes[-1], 2) if score.entity_parts == 2 else (sizes[-1],)
        rows = [torch.randint(-3, 4, (n, *shape), generator=random).float() for n in (3, 10)]
        plain, moved = ([x.to(d).requires_grad_() for x in rows] for d in (torch.device("cpu"), device))
        terms = score.partial(plain[0][:, None], plain[1])
        expected = torch.stack([terms[..., :1].sum(-1), terms[..., 1:].sum(-1)])
        found = segment_sums(score, sizes, moved[0], moved[1])
        weights = torch.randint(-3, 4, expected.shape, generator=random).float()
        by_plain = torch.autograd.grad(expected, plain, weights)
        by_moved = torch.autograd.grad(found, moved, weights.to(device))
        pairs = zip((found, *by_moved), (expected, *by_plain), strict=True)
        if not all(torch.allclose(a.cpu(), b, rtol=1e-5, atol=1e-5) for a, b in pairs):
            raise RuntimeError(f"{score.name}: the kernels' sums or gradients are not those of PyTorch")
