"""Scores of every prefix of the dims, in one pass over the full rows where the score allows it.

Shape suffixes: B queries, N candidates of each query, C candidates shared by all, D dims, P parts,
K sizes. The size-by-size function `scores_at` is the specification; `prefix_scores` equals it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from types import ModuleType

import torch
from torch import Tensor

from croppable.compiling import import_gpu_kernels
from croppable.kge.scores import Score, Side

__all__ = ["damped", "gpu_pool_kernels", "prefix_scores", "prefix_sums", "scores_at", "segment_terms"]


def scores_at(
    score: Score, size: int, anchor_BD: Tensor, relation_BD: Tensor, candidates: Tensor, side: Side
) -> Tensor:
    """Score candidates with the first ``size`` dims only: the specification of `prefix_scores`.

    Args:
        score: The score function.
        size: Number of leading dims.
        anchor_BD: Rows of the known entities, ``[B, D(, P)]``.
        relation_BD: Rows of the relations, ``[B, D(, P)]``.
        candidates: Candidate rows, ``[B, N, D(, P)]``, or ``[C, D(, P)]`` shared by all queries.
        side: The side that is asked for.

    Returns:
        ``[B, N]`` or ``[B, C]``.
    """
    anchor, relation = score.prepare(anchor_BD[:, :size]), relation_BD[:, :size]
    shared = candidates.ndim == anchor_BD.ndim
    own = score.prepare(candidates[:, :size] if shared else candidates[:, :, :size])
    query = score.query(anchor, relation, side)
    if shared and score.product:
        return score.finish(query.flatten(1) @ own.flatten(1).T)
    return score.finish(score.partial(query[:, None], own).sum(-1))


def prefix_sums(terms: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum the leading ``d`` terms for every d in ``sizes``.

    Args:
        terms: Terms per dim, ``[..., D]``.
        sizes: Ascending, the last at most D.

    Returns:
        ``[K, ...]``.
    """
    if len(sizes) == 1:
        return terms[..., : sizes[0]].sum(-1)[None]
    block = gcd(*sizes)
    blocks = terms[..., : sizes[-1]].reshape(*terms.shape[:-1], sizes[-1] // block, block)
    sums = blocks.sum(-1).cumsum(-1)
    chosen = [size // block - 1 for size in sizes]
    if chosen != list(range(sums.shape[-1])):
        sums = sums[..., chosen]
    return sums.movedim(-1, 0)


def damped(rows: Tensor, sizes: Sequence[int], reach: float, parts: int) -> Tensor:
    """Return the rows as they are, with less gradient the further a segment is below the last size.

    The gradient of segment j of K is multiplied by reach^(K - j): 1 in the last segment, reach in the one
    before. At 0 a size trains its own segment alone and takes what smaller sizes have learnt as given.

    Args:
        rows: ``[..., d]``, or ``[..., d, parts]`` where parts is more than one.
        sizes: Ascending, the last is d.
        reach: From 0 to 1.
        parts: Reals per dim.
    """
    widths = [b - a for a, b in zip((0, *sizes), sizes, strict=False)]
    factors = [reach ** (len(sizes) - k) for k in range(1, len(sizes) + 1)]
    # A tensor that is made of numbers, or of repetitions that a tensor counts, would wait for the device.
    per_dim = torch.cat([rows.new_full((w,), f) for w, f in zip(widths, factors, strict=True)])
    return torch.lerp(rows.detach(), rows, per_dim if parts == 1 else per_dim[:, None])


def prefix_scores(
    score: Score,
    sizes: Sequence[int],
    anchor_BD: Tensor,
    relation_BD: Tensor,
    candidates: Tensor,
    side: Side,
) -> Tensor:
    """Score candidates at every size; arguments as in `scores_at`.

    Additive scores form each dim's term once. Shared candidates of a product score are one matrix product
    per segment; those of a distance on a CUDA device are summed by a kernel (croppable/kge/pool_triton.py).
    Scores that are not additive run size by size.

    Returns:
        ``[K, B, N]`` or ``[K, B, C]``.
    """
    if not score.additive:
        rows = (anchor_BD, relation_BD, candidates)
        return torch.stack([scores_at(score, size, *rows, side) for size in sizes])
    query = score.query(anchor_BD, relation_BD, side)
    if candidates.ndim == anchor_BD.ndim:
        return score.finish(_shared_totals(score, sizes, query, candidates))
    return score.finish(prefix_sums(score.partial(query[:, None], candidates), sizes))


def segment_terms(score: Score, sizes: Sequence[int], query: Tensor, pool: Tensor) -> Tensor:
    """Sum the terms of every segment for candidates that all queries share, out of autograd's sight.

    Args:
        score: An additive score.
        sizes: Ascending, K of them.
        query: Query rows, ``[B, D(, Q)]``.
        pool: Candidate rows, ``[C, D(, P)]``.

    Returns:
        ``[K, B, C]``; running sums over K are the totals of sizes, before `Score.finish`.
    """
    kernels = gpu_pool_kernels(score, query)
    if kernels is not None:
        found: Tensor = kernels.terms_of_segments(score, sizes, query, pool)
        return found
    terms = query.new_empty(len(sizes), len(query), len(pool))
    parts = query[0, 0].numel()
    with torch.no_grad():
        for out, start, size in zip(terms, (0, *sizes), sizes, strict=False):
            if score.product:  # cut after flattening: a matrix product takes such views as they are
                span = slice(start * parts, size * parts)
                torch.mm(query.flatten(1)[:, span], pool.flatten(1)[:, span].T, out=out)
            else:
                torch.sum(score.partial(query[:, None, start:size], pool[:, start:size]), -1, out=out)
    return terms


def _shared_totals(score: Score, sizes: Sequence[int], query: Tensor, pool: Tensor) -> Tensor:
    """Running sums over segments for candidates shared by all queries, ``[K, B, C]``."""
    kernels = gpu_pool_kernels(score, query)
    if kernels is not None:
        found: Tensor = kernels.segment_sums(score, sizes, query, pool).cumsum(0)
        return found
    totals: list[Tensor] = []
    start = 0
    for size in sizes:
        q, c = query[:, start:size], pool[:, start:size]
        product = score.product
        segment = q.flatten(1) @ c.flatten(1).T if product else score.partial(q[:, None], c).sum(-1)
        totals.append(totals[-1] + segment if totals else segment)
        start = size
    return torch.stack(totals)


def gpu_pool_kernels(score: Score, query: Tensor) -> ModuleType | None:
    """Return the kernels that sum terms of shared candidates, or None where PyTorch does.

    Under ``torch.compile`` the compiler fuses the operations itself.
    """
    if score.product or query.dtype != torch.float32 or torch.compiler.is_compiling():
        return None
    kernels = import_gpu_kernels("croppable.kge.pool_triton", query.device)
    return kernels if kernels is not None and kernels.supports(score) else None
