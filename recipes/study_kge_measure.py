"""What recipes/study_kge.py measures on finished models: pure functions of ranks, models and results.

Shape legend: K sizes, Q queries (both sides of every test triple), T triples, S the two sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import croppable
from croppable.kge.classify import classification_rows
from croppable.kge.evaluate import at_sizes
from croppable.kge.known import KnownTriples, relation_categories
from croppable.kge.model import KGEModel
from croppable.kge.ranking import Ranks, rank_triples
from croppable.kge.triples import KnowledgeGraph

RIGHT = 10  # an answer of at most this rank is right
# Training triples of the answer, the last of each bucket; the last bucket has no end.
FREQUENCIES = (3, 10, 30, 100)


def load_models(folders: Sequence[Path]) -> list[KGEModel]:
    """Load the models of a run, one or one per size, smallest first."""
    models: list[KGEModel] = [croppable.load(folder) for folder in folders]
    return sorted(models, key=lambda model: model.size)


def known_triples(graph: KnowledgeGraph) -> KnownTriples:
    """Index all triples of a graph: the filter."""
    return KnownTriples(graph.triples, graph.num_entities, graph.num_relations)


def rank_models(models: Sequence[KGEModel], graph: KnowledgeGraph, sizes: Sequence[int] = ()) -> Ranks:
    """Rank the test split by models that follow each other in size, each at its own sizes.

    Args:
        models: One model of all sizes, or one per size.
        graph: Their graph.
        sizes: For a single model: rank at these sizes, trained or not.
    """
    known = known_triples(graph)
    if sizes:
        (model,) = models
        models = [at_sizes(model, [*sizes] if sizes[-1] == model.size else [*sizes, model.size])]
    parts = [rank_triples(model, graph.test, known, sizes=sizes or None) for model in models]
    return Ranks(
        sizes=tuple(size for part in parts for size in part.sizes),
        triples=parts[0].triples,
        num_entities=parts[0].num_entities,
        optimistic_SKT=torch.cat([part.optimistic_SKT for part in parts], 1),
        pessimistic_SKT=torch.cat([part.pessimistic_SKT for part in parts], 1),
    )


def mrr_by_size(ranks: Ranks) -> dict[int, float]:
    """Return the MRR of every size, realistic ties, both sides."""
    mrr = ranks.by_ties("realistic").reciprocal().mean((0, 2)).tolist()
    return dict(zip(ranks.sizes, mrr, strict=True))


def right_answers(ranks_SKT: Tensor, k: int = RIGHT) -> Tensor:
    """Return which queries every size answers right, bool ``[K, Q]``, first one side, then the other."""
    return (ranks_SKT <= k).transpose(0, 1).flatten(1)


def overlap_matrix(right_KQ: Tensor) -> list[list[float | None]]:
    """Return, at [i][j], the share of the right answers of size i that size j has right as well.

    A size without right answers has None throughout.
    """
    right = right_KQ.double()
    both = right @ right.T
    return [
        [None if not own else value / own for value in row]
        for row, own in zip(both.tolist(), both.diagonal().tolist(), strict=True)
    ]


def right_from(right_KQ: Tensor) -> Tensor:
    """Return the index of the smallest size from which on all are right, ``[Q]``; K where the last is not."""
    still_right = right_KQ.flip(0).long().cumprod(0).sum(0)  # how many of the largest sizes in a row
    return len(right_KQ) - still_right


def frequency_names() -> list[str]:
    """Name the buckets of `frequency_groups`."""
    starts = (0, *(last + 1 for last in FREQUENCIES))
    return [f"{a} to {b}" for a, b in zip(starts, FREQUENCIES, strict=False)] + [f"{starts[-1]} or more"]


def frequency_groups(train: Tensor, answers_Q: Tensor, num_entities: int) -> Tensor:
    """Return the bucket of every answer by the number of its training triples, ``[Q]``."""
    counts = torch.bincount(train[:, ::2].flatten(), minlength=num_entities)
    return torch.bucketize(counts[answers_Q], torch.tensor(FREQUENCIES))


def count_by_group(
    first_Q: Tensor, group_Q: Tensor, names: Sequence[str], num_sizes: int
) -> list[dict[str, Any]]:
    """Count the queries of every group by the size from which on they are right.

    Returns:
        One row per group that has any: "group", "queries", and "right_from", K + 1 counts, the last for those
        that the largest size does not answer right.
    """
    table = torch.zeros(len(names), num_sizes + 1, dtype=torch.long)
    table.index_put_((group_Q, first_Q), torch.ones_like(first_Q), accumulate=True)
    return [
        {"group": name, "queries": sum(counts), "right_from": counts}
        for name, counts in zip(names, table.tolist(), strict=True)
        if sum(counts)
    ]


def overlap(ranks: Ranks, graph: KnowledgeGraph) -> dict[str, Any]:
    """Measure which queries are answered right at which sizes; a query is a test triple with a side."""
    right_KQ = right_answers(ranks.by_ties("realistic"))
    first_Q = right_from(right_KQ)
    heads, relations, tails = ranks.triples.unbind(1)
    categories = relation_categories(graph.train, graph.num_relations)
    kinds = sorted(set(categories))
    kind_R = torch.tensor([kinds.index(category) for category in categories])
    answers_Q = torch.cat([tails, heads])  # the sides in the order of Ranks: tail, head
    frequency_Q = frequency_groups(graph.train, answers_Q, graph.num_entities)
    count = len(ranks.sizes)
    return {
        "sizes": list(ranks.sizes),
        "right": right_KQ.sum(1).tolist(),
        "overlap": overlap_matrix(right_KQ),
        "all": count_by_group(first_Q, torch.zeros_like(first_Q), ["all"], count),
        "category": count_by_group(first_Q, kind_R[relations].repeat(2), kinds, count),
        "frequency": count_by_group(first_Q, frequency_Q, frequency_names(), count),
    }


def classify(models: Sequence[KGEModel], graph: KnowledgeGraph) -> list[dict[str, Any]]:
    """Measure triple classification at every size; overall rows of `classification_rows`."""
    known = known_triples(graph)
    rows = [row for model in models for row in classification_rows(model, graph, known=known)]
    return [row for row in rows if row["relation"] is None]


def epochs_of(result: Mapping[str, Any]) -> dict[int, list[tuple[float, float]]]:
    """Return the validation curve of a result, ``{size: [(epoch, MRR), ...]}``."""
    rows, every = result.get("validations", []), result["config"]["eval_epochs"]
    curves: dict[int, list[tuple[float, float]]] = {}
    if rows and every:
        first = rows[0]["step"]
        for row in rows:
            for key, value in row.items():
                if key.startswith("score_"):
                    size = int(key.removeprefix("score_"))
                    curves.setdefault(size, []).append((row["step"] / first * every, value))
    return dict(sorted(curves.items()))


def epochs_to(curve: Sequence[tuple[float, float]], share: float) -> float:
    """Return the first epoch at which a curve has reached a share of its best value."""
    best = max(value for _, value in curve)
    return next(epoch for epoch, value in curve if value >= share * best)


def derived_costs(sizes: Sequence[int], floats_per_dim: int) -> dict[str, float]:
    """Return what theory says of n nested sizes, in units of one model at the full size.

    A score at size d sums d dims of p floats. One pass over all sizes sums p D of them once and adds the n
    running sums; a loop over sizes, like separate training, sums p (d_1 + ... + d_n).

    Returns:
        "loop": operations of a loop over sizes, and parameters of separate models, over those of one model;
        "one_pass": operations of the one pass over those of one model.
    """
    full = floats_per_dim * sizes[-1]
    return {"loop": sum(sizes) / sizes[-1], "one_pass": (full + len(sizes)) / (full + 1)}


def count_parameters(num_entities: int, num_relations: int, sizes: Sequence[int], score: str) -> int:
    """Count the parameters of a model of all sizes, those of the tables."""
    with torch.device("meta"):
        model = KGEModel(num_entities, num_relations, tuple(sizes), score)
    return model.entity.numel() + model.relation.numel()
