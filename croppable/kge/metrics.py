"""From ranks to rows: MRR, Hits@k and mean rank per size, side, relation and relation category.

``metrics.json`` is a list of flat rows, so that any table tool reads it. This file never ranks anything
(croppable/kge/ranking.py does).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from croppable.kge.known import SIDES
from croppable.kge.ranking import Ranks

__all__ = ["METRICS", "mean_mrr", "metrics_rows", "read_metrics", "write_metrics"]

METRICS = ("mrr", "hits@1", "hits@3", "hits@10", "mean_rank")
_TIES = ("realistic", "optimistic", "pessimistic")

Row = dict[str, Any]


def rank_metrics(ranks: Tensor) -> dict[str, Tensor]:
    """Return every metric of `METRICS` over the last axis of float ranks [..., N] -> [...].

    MRR = mean(1 / rank); Hits@k = share of ranks <= k (Bordes et al., 2013). The last axis must not be empty.
    """
    hits = {f"hits@{k}": (ranks <= k).double().mean(-1) for k in (1, 3, 10)}
    return {"mrr": ranks.reciprocal().mean(-1), **hits, "mean_rank": ranks.mean(-1)}


def mean_mrr(ranks: Ranks) -> float:
    """Return the realistic MRR over both sides, averaged over all sizes: what early stopping watches."""
    return ranks.by_ties("realistic").reciprocal().mean().item()


def metrics_rows(
    ranks: Ranks,
    *,
    dataset: str,
    split: str,
    relations: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Return the metrics as flat rows, one value each.

    The headline rows have side "both", relation and category null and ties "realistic". Beside them: the
    other two tie policies, the two sides alone, and, when names are given, every relation (both sides
    together) and every relation category (each side and both), with realistic ties.

    Args:
        ranks: What `rank_triples` returned.
        dataset: Name for the column "dataset".
        split: Name for the column "split", such as "test".
        relations: Relation names by id; rows per relation are left out without them.
        categories: Category of each relation by id ("1-1", "1-N", "N-1", "N-N"); no such rows without them.
        extra: Further columns that every row shall have.

    Returns:
        Rows with the keys size, dataset, split, metric, value, side, relation, category, ties, num_triples,
        num_entities, entity_set ("all": every entity is a candidate) and unseen_entities ("kept": triples
        with entities that training never saw are ranked like any other).
    """
    common: Row = {
        "dataset": dataset,
        "split": split,
        "num_entities": ranks.num_entities,
        "entity_set": "all",
    }
    common |= {"unseen_entities": "kept", **(extra or {})}
    everything = torch.ones(len(ranks.triples), dtype=torch.bool)
    both, sides = (SIDES,), (SIDES, *((side,) for side in SIDES))
    rows: list[Row] = []
    for ties in _TIES:
        overall = {**common, "relation": None, "category": None, "ties": ties}
        rows += _rows(ranks.sizes, ranks.by_ties(ties), everything, sides, overall)
    realistic_SKT = ranks.by_ties("realistic")
    common["ties"] = "realistic"
    relation_ids = ranks.triples[:, 1]
    for category in sorted(set(categories or ())):
        members = torch.tensor([i for i, c in enumerate(categories or ()) if c == category])
        chosen = torch.isin(relation_ids, members)
        sliced = {**common, "relation": None, "category": category}
        rows += _rows(ranks.sizes, realistic_SKT, chosen, sides, sliced)
    for i, name in enumerate(relations or ()):
        own = categories[i] if categories is not None else None
        where = {**common, "relation": name, "category": own}
        rows += _rows(ranks.sizes, realistic_SKT, relation_ids == i, both, where)
    return rows


def _rows(
    sizes: Sequence[int], ranks_SKT: Tensor, chosen: Tensor, sides: Sequence[Sequence[str]], common: Row
) -> list[Row]:
    """Return the rows of the chosen triples [T]; none if there are none."""
    count = int(chosen.sum())
    if count == 0:
        return []
    chosen_SKT = ranks_SKT[:, :, chosen]
    rows: list[Row] = []
    for names in sides:
        picked_SKT = chosen_SKT[[SIDES.index(name) for name in names]]
        values = rank_metrics(picked_SKT.transpose(0, 1).flatten(1))
        label = "both" if len(names) > 1 else names[0]
        rows += [
            {
                "size": size,
                "metric": metric,
                "value": value,
                "side": label,
                "num_triples": count,
                **common,
            }
            for metric, value_K in values.items()
            for size, value in zip(sizes, value_K.tolist(), strict=True)
        ]
    return rows


def write_metrics(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows as a JSON list, one row a line; a reader sees the old file or the new one, never a part.

    Raises:
        ValueError: If a value is not finite.
    """
    path = Path(path)
    text = "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_metrics(path: str | Path) -> list[Row]:
    """Read the rows that `write_metrics` wrote.

    Raises:
        ValueError: If the file does not hold a JSON list of objects.
    """
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a JSON list of rows as write_metrics writes them")
    return rows
