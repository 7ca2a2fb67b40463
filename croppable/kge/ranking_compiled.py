"""Counting by the compiled kernel: group triples by query, cut the table into tiles, count on all cores.

Queries that several triples share (same anchor, relation and side) are scored once. The specification is the
reference in croppable/kge/ranking.py: equal counts, but for scores that differ by rounding alone.

Shapes: T triples, U distinct queries, W numbers of a row (dims x parts), K sizes, N targets of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.ranking_kernels import (
    ABSOLUTE,
    GROUP,
    MODULUS,
    PRODUCT,
    SQUARED,
    TILE,
    count_wins,
    target_totals,
)
from croppable.kge.scores import ComplEx, DistMult, RotatE, Score, Side, SimplE, TransEL1, TransEL2

__all__ = ["count_compiled", "supports"]

# A score that is not here, to the very class, is ranked by the reference.
STEPS: dict[type[Score], int] = {
    DistMult: PRODUCT,
    ComplEx: PRODUCT,
    SimplE: PRODUCT,
    TransEL1: ABSOLUTE,
    TransEL2: SQUARED,
    RotatE: MODULUS,
}
_SLICES = 4  # pieces of work per thread, so that no thread waits long for another


def supports(model: object) -> bool:
    """Whether the kernel ranks what the model scores: float32 on the CPU, a score it has a step for."""
    if not isinstance(model, KGEModel) or type(model.function) not in STEPS:
        return False
    return model.ranks_by_rows and model.entity.device.type == "cpu" and model.entity.dtype == torch.float32


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
        triples: [T, 3] (head, relation, tail).
        side: The side that is asked for.
        sizes: Ascending, K of them.
        known: All true triples.
        batch_size: Distinct queries held at once; default 2048.
        candidate_chunk: Candidates held at once, besides the table.
        advance: Called with the number of triples done.

    Returns:
        Counts [K, T] of entities that beat and that equal the target, and which triples met a score that
        is not finite [T].
    """
    batch_size = batch_size or 2048
    anchor, target = (triples[:, 0], triples[:, 2]) if side == "tail" else (triples[:, 2], triples[:, 0])
    keys, owner, uses = (anchor * model.num_relations + triples[:, 1]).unique(  # type: ignore[no-untyped-call]
        return_inverse=True, return_counts=True
    )
    order, spans = owner.argsort(stable=True), F.pad(uses.cumsum(0), (1, 0))
    greater = torch.empty(len(triples), len(sizes), dtype=torch.int64)
    equal, broken = torch.empty_like(greater), torch.empty(len(triples), dtype=torch.bool)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(keys), batch_size):
            queries = keys[start : start + batch_size]
            asked = spans[start : start + len(queries) + 1]
            members = order[asked[0] : asked[-1]]
            batch = _Batch(
                model,
                sizes,
                side,
                anchor=queries // model.num_relations,
                relation=queries % model.num_relations,
                spans=asked - asked[0],
                targets=target[members],
                known=known,
            )
            for first in range(0, model.num_entities, candidate_chunk):
                batch.count(pool, threads, first, min(first + candidate_chunk, model.num_entities))
            greater[members], equal[members] = batch.greater, batch.equal
            broken[members] = batch.broken[batch.owner] | ~batch.totals.isfinite().all(1)
            advance(len(members))
    return greater.T, equal.T, broken


class _Batch:
    """Some distinct queries with their targets, and the counts so far."""

    def __init__(
        self,
        model: KGEModel,
        sizes: Sequence[int],
        side: Side,
        known: KnownTriples,
        *,
        anchor: Tensor,
        relation: Tensor,
        spans: Tensor,
        targets: Tensor,
    ) -> None:
        """Look the queries up, sum their targets' scores and list what does not count.

        Args:
            model: The model.
            sizes: Ascending, K of them.
            side: The side that is asked for.
            known: All true triples.
            anchor: Known entities [U].
            relation: Relations [U].
            spans: Query u owns targets[spans[u] : spans[u + 1]] [U + 1].
            targets: Entity ids [N].
        """
        form: Side = "tail" if model.reciprocal else side
        anchor_rows, relation_rows, _ = model.lookup(anchor, relation, anchor[:0], side, size=sizes[-1])
        queries = model.function.query(anchor_rows, relation_rows, form).flatten(1)
        padding = -len(queries) % GROUP
        self.step = STEPS[type(model.function)]
        self.queries = F.pad(queries, (0, 0, 0, padding)).contiguous()
        self.entities = model.entity.detach().flatten(1).contiguous()
        self.bounds = torch.tensor([0, *sizes]) * model.function.entity_parts
        self.spans = torch.cat([spans, spans[-1:].expand(padding)])
        self.owner = torch.repeat_interleave(spans.diff())
        self.totals = torch.empty(len(targets), len(sizes))
        arrays = (self.queries, self.entities, self.bounds, self.owner, targets, self.totals)
        target_totals(self.step, *(array.numpy() for array in arrays))
        rows, answers = known.targets(anchor, relation, side)
        pairs = torch.cat([rows, self.owner]) * model.num_entities + torch.cat([answers, targets])
        pairs = pairs.unique()  # type: ignore[no-untyped-call]
        counts = torch.bincount(pairs // model.num_entities, minlength=len(self.queries))
        self.excluded, self.stops = pairs % model.num_entities, counts.cumsum(0)
        self.cursors = self.stops - counts
        self.greater = torch.zeros(len(targets), len(sizes), dtype=torch.int64)
        self.equal = torch.zeros_like(self.greater)
        self.broken = torch.zeros(len(self.queries), dtype=torch.bool)

    def count(self, pool: ThreadPoolExecutor, threads: int, first: int, end: int) -> None:
        """Count the entities first..end against all targets; the chunks of a batch must come in order."""
        rows = self.entities[first:end, : self.queries.shape[1]]
        rows = F.pad(rows, (0, 0, 0, -len(rows) % TILE))
        tiles = rows.view(-1, TILE, rows.shape[1]).transpose(1, 2).contiguous().numpy()
        bounds, totals, spans = self.bounds.numpy(), self.totals.numpy(), self.spans.numpy()
        excluded, greater, equal = self.excluded.numpy(), self.greater.numpy(), self.equal.numpy()
        per_query = [a.numpy() for a in (self.queries, self.cursors, self.stops, self.broken)]

        def piece(start: int) -> None:
            stop = start + width
            queries, cursors, stops, broken = (a[start:stop] for a in per_query)
            count_wins(
                self.step, queries, tiles, first, end, bounds, totals, spans[start : stop + 1], excluded,
                cursors, stops, greater, equal, broken,
            )  # fmt: skip

        groups = len(self.queries) // GROUP
        width = -(-groups // (threads * _SLICES)) * GROUP
        for _ in pool.map(piece, range(0, len(self.queries), width)):
            pass
