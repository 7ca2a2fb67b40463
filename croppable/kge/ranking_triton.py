"""Filtered ranking on a GPU: accumulate, compare, count, all sizes while a tile's totals are in registers.

A program holds the running totals of 64 queries against 128 candidates. Each segment of dims is added to
them, each size's targets are compared with them, and only counts leave: no scores are ever in memory. Known
answers and targets start as NaN, by their ids, which no sum repairs and no comparison counts.

The specification is the reference in croppable/kge/ranking.py: equal counts, but for scores that differ by
rounding alone. A target's own total is summed by the same chain of operations (triton_code.py).

Shapes: T triples, U queries of a batch, one per triple, W numbers of a row (dims x parts), K sizes,
E entities, C candidates of a chunk. Queries and candidates are padded to whole tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton.language as tl
from torch import Tensor

from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.prefixes import prefix_scores
from croppable.kge.scores import SCORES, Side
from croppable.kge.triton_code import KINDS, OPTIONS, add_numbers, columns, jit, number_bounds, on_device_of

__all__ = ["check", "count_compiled", "count_rows", "count_wins", "supports", "target_totals"]

QUERIES, CANDIDATES = 64, 128  # of a tile: 32 totals in each of 256 threads
WARPS = 8


def supports(model: object) -> bool:
    """Whether the kernels rank what the model scores: float32, a score that they add up."""
    if not isinstance(model, KGEModel) or type(model.function) not in KINDS:
        return False
    return model.ranks_by_rows and model.entity.dtype == torch.float32


def count_compiled(
    model: KGEModel,
    triples: Tensor,
    side: Side,
    sizes: Sequence[int],
    known: KnownTriples,
    batch_size: int | None,
    candidate_chunk: int,
    advance: Callable[[int], object],
) -> tuple[Tensor, Tensor, Tensor]:
    """Count for every triple the unknown entities that beat or equal its target, at every size.

    Args:
        model: A model that `supports` accepts.
        triples: [T, 3] (head, relation, tail), on the CPU.
        side: The side that is asked for.
        sizes: Ascending, K of them.
        known: All true triples, on the CPU.
        batch_size: Triples held at once; default 2048.
        candidate_chunk: Candidates held at once, besides the table.
        advance: Called with the number of triples done.

    Returns:
        Counts [K, T] of entities that beat and that equal the target, and which triples met a score that
        is not finite [T]; all on the CPU.
    """
    batch_size = batch_size or 2048
    device, form = model.entity.device, model.form(side)
    kind = KINDS[type(model.function)]
    bounds = number_bounds(tuple(sizes), model.function.entity_parts, device)
    counts: list[tuple[Tensor, ...]] = []
    for start in range(0, len(triples), batch_size):
        heads, relation, tails = triples[start : start + batch_size].unbind(1)
        anchor, target = (heads, tails) if side == "tail" else (tails, heads)
        rows, answers = known.targets(anchor, relation, side)
        excluded = torch.stack([torch.cat([rows, torch.arange(len(target))]), torch.cat([answers, target])])
        asked = (anchor.to(device), relation.to(device))
        anchor_rows, relation_rows, _ = model.lookup(*asked, asked[0][:0], side, size=sizes[-1])
        queries = model.function.query(anchor_rows, relation_rows, form).flatten(1)
        entities = model.entity.detach().flatten(1)
        found = count_rows(kind, bounds, queries, entities, target.to(device), excluded, candidate_chunk)
        counts.append(tuple(each.cpu() for each in found))
        advance(len(target))
    greater_KT, equal_KT, broken_T = (torch.cat(each, -1) for each in zip(*counts, strict=True))
    return greater_KT, equal_KT, broken_T


def count_rows(
    kind: str,
    bounds: Tensor,
    queries: Tensor,
    entities: Tensor,
    targets: Tensor,
    excluded: Tensor,
    candidate_chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Count for every query the entities that beat or equal its target, by the kernels.

    Args:
        kind: A value of `KINDS`.
        bounds: Where segments begin and end in a row [K + 1], from 0.
        queries: Query rows [U, W].
        entities: The whole entity table [E, W or more].
        targets: Entity ids [U].
        excluded: Pairs of a query's place and an entity id that does not count [2, N], on the CPU; each
            query's target is among them.
        candidate_chunk: Candidates held at once.

    Returns:
        Counts [K, U] of entities that beat and that equal the target, int64, and which queries met a score
        that is not finite [U].
    """
    count, width = queries.shape
    sizes, device = len(bounds) - 1, queries.device
    asked = columns(queries, QUERIES)
    padded = asked.shape[1]
    own = asked.new_empty(sizes, padded)
    greater, equal = torch.zeros(2, sizes, padded, dtype=torch.int32, device=device)
    finite, masked = torch.zeros(2, padded, dtype=torch.int32, device=device)
    in_order = excluded[:, excluded[1].argsort()]
    with on_device_of(queries):
        answers = columns(entities[targets, :width], QUERIES)
        target_totals[padded // QUERIES,](
            asked, answers, bounds, own, padded, sizes, kind, QUERIES, num_warps=2, **OPTIONS
        )
        for first in range(0, len(entities), candidate_chunk):
            candidates = columns(entities[first : first + candidate_chunk, :width], CANDIDATES)
            end = min(first + candidate_chunk, len(entities))
            chunk = candidates.shape[1]
            mask = torch.zeros(padded, chunk, dtype=torch.int8, device=device)
            mask[:, end - first :] = 1  # there is no candidate
            start, stop = torch.searchsorted(in_order[1], torch.tensor([first, end])).tolist()
            places, ids = in_order[:, start:stop].to(device)
            mask[places, ids - first] = 1
            count_wins[chunk // CANDIDATES, padded // QUERIES](
                asked, candidates, bounds, own, mask, greater, equal, finite, padded, chunk, sizes, kind,
                QUERIES, CANDIDATES, num_warps=WARPS, **OPTIONS,
            )  # fmt: skip
            masked += chunk - mask.sum(1, dtype=torch.int32)
    # What is not finite stays so: the last size shows it.
    broken = (finite != masked) | ~own.isfinite().all(0)
    return greater[:, :count].long(), equal[:, :count].long(), broken[:count]


@jit
def target_totals(
    queries: tl.tensor,
    answers: tl.tensor,
    bounds: tl.tensor,
    own: tl.tensor,
    padded: tl.tensor,
    sizes: tl.tensor,
    kind: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Sum every target's terms up to each size: its score before `Score.finish`.

    Args:
        queries: Query rows by number [W, padded].
        answers: The targets' rows by number [W, padded].
        bounds: Where segments begin and end in a row [K + 1], from 0.
        own: Filled with the totals [K, padded].
        padded: U, padded.
        sizes: K.
        kind: A value of `KINDS`.
        tile: Queries of a program.
    """
    u = tl.program_id(0) * tile + tl.arange(0, tile)
    total = tl.zeros((tile,), tl.float32)
    for k in range(sizes):
        begin, end = tl.load(bounds + k), tl.load(bounds + k + 1)
        total = add_numbers(total, queries, u, answers, u, begin, end, padded, padded, kind)
        tl.store(own + k * padded + u, total)


@jit
def count_wins(
    queries: tl.tensor,
    candidates: tl.tensor,
    bounds: tl.tensor,
    own: tl.tensor,
    mask: tl.tensor,
    greater: tl.tensor,
    equal: tl.tensor,
    finite: tl.tensor,
    padded: tl.tensor,
    chunk: tl.tensor,
    sizes: tl.tensor,
    kind: tl.constexpr,
    tile: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Count the candidates of a tile that beat or equal each query's target, at every size.

    Args:
        queries: Query rows by number [W, padded].
        candidates: Candidate rows by number [W, chunk].
        bounds: Where segments begin and end in a row [K + 1], from 0.
        own: Every target's own totals [K, padded].
        mask: 1 where a candidate does not count [padded, chunk], int8. Its loads, 16 at a time, set how a
            tile is spread over threads: candidates then are read four at a time.
        greater: Counts [K, padded], int32, added to.
        equal: The same.
        finite: Number of candidates with a finite score at the last size [padded], int32, added to.
        padded: U, padded.
        chunk: C, padded.
        sizes: K.
        kind: A value of `KINDS`.
        tile: Queries of a program.
        width: Candidates of a program, less than 2**15.
    """
    u = tl.program_id(1) * tile + tl.arange(0, tile)
    c = tl.program_id(0) * width + tl.arange(0, width)
    ignored = tl.load(mask + tl.cast(u, tl.int64)[:, None] * chunk + c[None, :])
    total = tl.where(ignored != 0, float("nan"), 0.0)
    for k in range(sizes):
        begin, end = tl.load(bounds + k), tl.load(bounds + k + 1)
        total = add_numbers(
            total, queries, u[:, None], candidates, c[None, :], begin, end, padded, chunk, kind
        )
        target = tl.load(own + k * padded + u)[:, None]
        # One sum over the tile for both counts: 16 bits each.
        both = tl.sum((total > target).to(tl.int32) + ((total == target).to(tl.int32) << 16), 1)
        tl.atomic_add(greater + k * padded + u, both & 0xFFFF, sem="relaxed")
        tl.atomic_add(equal + k * padded + u, both >> 16, sem="relaxed")
    ordinary = (tl.abs(total) < float("inf")).to(tl.int32)
    tl.atomic_add(finite + u, tl.sum(ordinary, 1), sem="relaxed")


def check(device: torch.device) -> None:
    """Count a tiny case whose sums are exact by the kernels and by PyTorch on the CPU.

    Raises:
        RuntimeError: If they differ.
        Exception: Whatever triton raises where it cannot compile or launch.
    """
    sizes, count, num_entities = (1, 3), 3, 150
    random = torch.Generator().manual_seed(0)
    targets = torch.arange(count) + 7
    excluded = torch.stack([torch.arange(count), targets])
    for score in SCORES.values():
        kind = KINDS.get(type(score))
        if kind is None:
            continue
        entities, anchor = (
            torch.randint(-3, 4, (n, sizes[-1]), generator=random).float() for n in (num_entities, count)
        )
        relation = torch.zeros_like(anchor) if score.distance else torch.ones_like(anchor)
        if score.entity_parts == 2:  # differences are multiples of (3, 4): their moduli are integers
            entities, anchor = (torch.stack([3 * x, 4 * x], -1) for x in (entities, anchor))
        if score.relation_parts == 2:
            relation = torch.stack([relation, relation], -1)
        scores = prefix_scores(score, sizes, anchor, relation, entities, "tail")
        own = scores[:, torch.arange(count), targets][..., None]
        expected = ((scores > own).sum(-1), (scores == own).sum(-1) - 1)
        query = score.query(anchor, relation, "tail").flatten(1)
        bounds = number_bounds(sizes, score.entity_parts, device)
        on_device = (bounds, query.to(device), entities.flatten(1).to(device), targets.to(device))
        *found, broken = count_rows(kind, *on_device, excluded, 100)
        if broken.any() or not all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True)):
            raise RuntimeError(f"{score.name}: the kernel's counts are not those of PyTorch")
