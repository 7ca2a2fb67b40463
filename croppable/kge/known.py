"""Known answers: for every query, which entities make a true triple.

A query is an anchor entity, a relation and a side; side "tail" asks for the tails of a head, side "head" for
the heads of a tail. The index is one CSR table per side over the queries that have answers: memory grows
with the triples, never with queries x entities, and every look-up is a binary search for a whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["SIDES", "KnownTriples", "relation_categories"]

SIDES = ("tail", "head")
_LIMIT = 2**63


def validate_triples(triples: Tensor, num_entities: int, num_relations: int) -> Tensor:
    """Return ``triples``.

    Raises:
        ValueError: If they are not a long ``[T, 3]`` tensor with ids in range, or the ids are too many for
            64-bit keys.
    """
    if triples.ndim != 2 or triples.shape[1] != 3 or triples.dtype != torch.long:
        raise ValueError(
            f"triples must be a long tensor [T, 3] of (head, relation, tail) ids, got {triples.dtype} "
            f"{tuple(triples.shape)}"
        )
    if max(num_entities * num_relations, len(triples) * num_entities) >= _LIMIT:
        raise ValueError(
            f"{num_entities} entities with {num_relations} relations and {len(triples)} triples do not fit "
            f"64-bit keys: entities x relations and entities x triples must both stay below 2**63"
        )
    if len(triples):
        low, high = triples.amin(0).tolist(), triples.amax(0).tolist()
        if min(low) < 0 or max(high[0], high[2]) >= num_entities or high[1] >= num_relations:
            raise ValueError(
                f"ids must be 0 to {num_entities - 1} for entities and 0 to {num_relations - 1} for "
                f"relations, got columns from {low} to {high}"
            )
    return triples


def _unique(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct keys, ascending, and each key's place among them."""
    distinct, inverse = keys.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return distinct, inverse


@dataclass(frozen=True, eq=False)
class _Side:
    """One side's table: G queries with answers, T distinct (query, answer) entries.

    A query is keyed ``relation * E + anchor`` and numbered by its place g among the sorted keys; an entry is
    ``g * E + answer``. The number g keeps entries far below 2**63 where a key of all three ids would not fit.
    """

    keys: Tensor  # [G] ascending
    offsets: Tensor  # [G + 1]
    entries: Tensor  # [T] ascending
    num_entities: int

    @classmethod
    def build(cls, anchor: Tensor, relation: Tensor, answer: Tensor, num_entities: int) -> _Side:
        keys, group = _unique(relation * num_entities + anchor)
        entries = _unique(group * num_entities + answer)[0]
        counts = torch.bincount(entries // num_entities, minlength=len(keys))
        offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        return cls(keys, offsets, entries, num_entities)

    def find(self, anchor: Tensor, relation: Tensor) -> tuple[Tensor, Tensor]:
        """Return each query's number and whether it has answers at all (else the number means nothing)."""
        key = relation * self.num_entities + anchor
        if not len(self.keys):
            return torch.zeros_like(key), torch.zeros_like(key, dtype=torch.bool)
        group = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        return group, self.keys[group] == key

    def span(self, anchor: Tensor, relation: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first entry of each query and the number of its entries (0 where it has no answer)."""
        group, found = self.find(anchor, relation)
        start = self.offsets[group]
        if not len(self.keys):
            return start, torch.zeros_like(start)
        return start, (self.offsets[group + 1] - start) * found

    @cached_property
    def gaps(self) -> Tensor:
        """Each entry less its place in its query ``[T]``: ``g * E`` + how many non-answers come before it."""
        place = torch.arange(len(self.entries), device=self.entries.device)
        return self.entries - (place - self.offsets[self.entries // self.num_entities])

    def to(self, device: torch.device) -> _Side:
        return _Side(
            self.keys.to(device), self.offsets.to(device), self.entries.to(device), self.num_entities
        )


class KnownTriples:
    """An index of true triples by query.

    ``known = KnownTriples(graph.triples, graph.num_entities, graph.num_relations)``. Repeated triples count
    once. Queries are three arguments: ``anchor`` [B] long, ``relation`` [B] long (0 to R-1, no inverses), and
    ``side``, "tail" or "head". They must be on the index's device; `to` moves it.

    Memory: at most 24 bytes per triple and side, and 8 more once `unknown` has been used.

    Args:
        triples: ``[T, 3]`` long, columns head, relation, tail.
        num_entities: How many entities there are, E.
        num_relations: How many relations there are, R.

    Raises:
        ValueError: If the triples are malformed, an id is out of range, or the keys do not fit 64 bits.
    """

    def __init__(self, triples: Tensor, num_entities: int, num_relations: int) -> None:
        head, relation, tail = validate_triples(triples, num_entities, num_relations).unbind(1)
        self.num_entities = num_entities
        self.num_relations = num_relations
        self._sides = {
            "tail": _Side.build(head, relation, tail, num_entities),
            "head": _Side.build(tail, relation, head, num_entities),
        }

    def __len__(self) -> int:
        """How many distinct triples there are."""
        return len(self._sides["tail"].entries)

    def _side(self, side: str) -> _Side:
        if side not in self._sides:
            raise ValueError(f"side must be one of {SIDES}, got {side!r}")
        return self._sides[side]

    def to(self, device: torch.device | str) -> KnownTriples:
        """Return this index on another device."""
        moved = object.__new__(KnownTriples)
        moved.num_entities, moved.num_relations = self.num_entities, self.num_relations
        moved._sides = {name: side.to(torch.device(device)) for name, side in self._sides.items()}
        return moved

    def counts(self, anchor: Tensor, relation: Tensor, side: str) -> Tensor:
        """Return how many known answers each query has, ``[B]`` long."""
        return self._side(side).span(anchor, relation)[1]

    def targets(self, anchor: Tensor, relation: Tensor, side: str) -> tuple[Tensor, Tensor]:
        """Return all known answers of each query, flat.

        Returns:
            ``rows`` and ``entities``, both ``[total]`` long: entity ``entities[i]`` answers query
            ``rows[i]``; rows ascending, entities ascending within a row.
        """
        table = self._side(side)
        start, count = table.span(anchor, relation)
        rows = torch.repeat_interleave(count)
        first = count.cumsum(0) - count
        place = start[rows] + torch.arange(len(rows), device=rows.device) - first[rows]
        return rows, table.entries[place] % self.num_entities

    def contains(self, triples: Tensor) -> Tensor:
        """Return which of ``triples`` ``[..., 3]`` (head, relation, tail) are known, bool ``[...]``."""
        table = self._sides["tail"]
        head, relation, tail = triples.unbind(-1)
        if not len(table.keys):
            return torch.zeros_like(head, dtype=torch.bool)
        group, found = table.find(head, relation)
        entry = group * self.num_entities + tail
        place = torch.searchsorted(table.entries, entry).clamp(max=len(table.entries) - 1)
        return found & (table.entries[place] == entry)

    def unknown(self, anchor: Tensor, relation: Tensor, side: str, ranks: Tensor) -> Tensor:
        """Return, by rank, entities that are not known answers: no rejection, no loop.

        The u-th entity (from 0) outside the sorted answers a_0 < a_1 < ... is u plus the number of i with
        a_i - i <= u, for a_i - i is how many non-answers come before a_i.

        Args:
            anchor: ``[B]`` long.
            relation: ``[B]`` long.
            side: "tail" or "head".
            ranks: ``[B, N]`` long, each from 0 to E - 1 - (number of the query's answers).

        Returns:
            Entities ``[B, N]`` long; ascending in the rank.
        """
        table = self._side(side)
        if not len(table.keys):
            return ranks.clone()
        group, found = table.find(anchor, relation)
        wanted = group[:, None] * self.num_entities + ranks
        before = torch.searchsorted(table.gaps, wanted, right=True) - table.offsets[group][:, None]
        return ranks + before * found[:, None]


def relation_categories(train: Tensor, num_relations: int, threshold: float = 1.5) -> list[str]:
    """Return the category of each relation: "1-1", "1-N", "N-1" or "N-N".

    A side is N where it has on average at least ``threshold`` answers: tails per (head, relation) for the
    tail side, heads per (relation, tail) for the head side (Bordes et al. 2013, section 4.2, also for 1.5).

    Args:
        train: ``[T, 3]`` long; repeated triples count once.
        num_relations: How many relations there are, R.
        threshold: Average number of answers from which a side is "N".

    Returns:
        R strings, written head side first; "unseen" for a relation without triples.
    """
    num_entities = int(train[:, ::2].max()) + 1 if len(train) else 1
    known = KnownTriples(train, num_entities, num_relations)

    def average(side: str) -> Tensor:
        table = known._sides[side]
        queries = torch.bincount(table.keys // num_entities, minlength=num_relations)
        answers = torch.bincount(
            table.keys // num_entities, weights=table.offsets.diff().double(), minlength=num_relations
        )
        return answers / queries

    tails_per_head, heads_per_tail = average("tail").tolist(), average("head").tolist()
    return [
        "unseen"
        if tails != tails
        else f"{'N' if heads >= threshold else '1'}-{'N' if tails >= threshold else '1'}"
        for tails, heads in zip(tails_per_head, heads_per_tail, strict=True)
    ]
