"""From ranks to rows: MRR, Hits@k and mean rank per size, side, relation and relation category.

``metrics.json`` is a list of flat rows, so that any table tool reads it. This file never ranks anything
(croppable/kge/ranking.py does).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from croppable.kge.known import SIDES
from croppable.kge.ranking import TIES, Ranks

__all__ = ["METRICS", "mean_mrr", "metrics_rows", "rank_metrics", "write_metrics"]


def _hits(ranks: Tensor, k: int) -> Tensor:
    return (ranks <= k).double()


# What each metric is the mean of (Bordes et al., NIPS 2013, section 4.2; MRR: the mean reciprocal rank).
METRICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mrr": torch.reciprocal,
    "hits@1": partial(_hits, k=1),
    "hits@3": partial(_hits, k=3),
    "hits@10": partial(_hits, k=10),
    "mean_rank": torch.Tensor.double,
}
Row = dict[str, Any]


def rank_metrics(ranks: Tensor) -> dict[str, Tensor]:
    """Return every metric of float ranks ``[..., N]``, the mean over the last axis, as ``[...]``."""
    return {name: value(ranks).mean(-1) for name, value in METRICS.items()}


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

    Raises:
        ValueError: If there are fewer names or categories than relations in the triples.
    """
    common: Row = {"dataset": dataset, "split": split, "num_entities": ranks.num_entities}
    common |= {"entity_set": "all", "unseen_entities": "kept", **(extra or {})}
    relation_T = ranks.triples[:, 1]
    for what, names in (("relations", relations), ("categories", categories)):
        if names is not None and len(names) <= int(relation_T.max()):
            raise ValueError(
                f"{what} must have an entry for every relation id up to {int(relation_T.max())}, "
                f"got {len(names)} of them"
            )
    rows: list[Row] = []
    for ties in TIES:
        labels = [{"relation": None, "category": None, "ties": ties}]
        rows += _rows(ranks, ranks.by_ties(ties), torch.zeros_like(relation_T), labels, common)
    realistic_SKT = ranks.by_ties("realistic")
    if categories is not None:
        kinds = sorted(set(categories))
        group_R = torch.tensor([kinds.index(category) for category in categories])
        labels = [{"relation": None, "category": kind, "ties": "realistic"} for kind in kinds]
        rows += _rows(ranks, realistic_SKT, group_R[relation_T], labels, common)
    if relations is not None:
        own = categories if categories is not None else [None] * len(relations)
        labels = [
            {"relation": name, "category": category, "ties": "realistic"}
            for name, category in zip(relations, own, strict=True)
        ]
        rows += _rows(ranks, realistic_SKT, relation_T, labels, common, sides=("both",))
    return rows


def _rows(
    ranks: Ranks,
    ranks_SKT: Tensor,
    group_T: Tensor,
    labels: Sequence[Row],
    common: Row,
    sides: Sequence[str] = ("both", *SIDES),
) -> list[Row]:
    """Return the rows of every group of triples that has any; ``labels`` are the groups' own columns."""
    count_G = torch.bincount(group_T, minlength=len(labels))
    columns: dict[tuple[str, str], list[list[float]]] = {}
    for metric, value in METRICS.items():
        value_SKT = value(ranks_SKT)
        sum_SKG = value_SKT.new_zeros(*value_SKT.shape[:2], len(labels)).index_add(2, group_T, value_SKT)
        mean_SKG = sum_SKG / count_G  # a group without triples gives NaN and no row
        for side in sides:
            chosen_KG = mean_SKG.mean(0) if side == "both" else mean_SKG[SIDES.index(side)]
            columns[metric, side] = chosen_KG.tolist()
    return [
        {"size": size, "metric": metric, "value": value_KG[k][g], "side": side, **label, **common}
        | {"num_triples": count}
        for g, (label, count) in enumerate(zip(labels, count_G.tolist(), strict=True))
        if count
        for (metric, side), value_KG in columns.items()
        for k, size in enumerate(ranks.sizes)
    ]


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
