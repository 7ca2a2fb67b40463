"""Measure a model on named triples: any file, any sizes, one pass; and learn what validation triples teach.

This joins reading by name (named.py), ranking (ranking.py) and classification (classify.py); the numbers are
made there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from croppable.kge.classify import (
    Calibration,
    classification_rows,
    fit_calibration,
    negatives,
    score_triples,
)
from croppable.kge.known import KnownTriples
from croppable.kge.metrics import metrics_rows
from croppable.kge.model import KGEModel
from croppable.kge.named import read_triples, triples_of
from croppable.kge.ranking import rank_triples
from croppable.kge.triples import KnowledgeGraph

__all__ = ["at_sizes", "evaluate", "learn"]


def at_sizes(model: KGEModel, sizes: Sequence[int]) -> KGEModel:
    """Return a model with other sizes and the same tables, not copied (but for relations of each size).

    Scale and offset belong to trained sizes and never change a ranking: the result has none.

    Args:
        model: A model.
        sizes: Ascending; the last is the model's own size.
    """
    with torch.device("meta"):
        other = model.like(sizes, calibration="none")
    if other.entity.shape != model.entity.shape:
        raise ValueError(f"sizes must end at the model's own size {model.size}, got {tuple(sizes)}")
    other.entity, other.relation = model.entity, model.relation
    if model.relations == "own" and other.sizes != model.sizes:
        places = [sum(own < size for own in model.sizes) for size in other.sizes]  # as a crop has them
        other.relation = nn.Parameter(model.relation.detach()[places], model.relation.requires_grad)
    return other.train(model.training)


def evaluate(
    model: KGEModel,
    graph: KnowledgeGraph | None = None,
    *,
    split: str = "test",
    triples: str | Path | None = None,
    column_order: str = "hrt",
    classify: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Rank triples against all entities at every size of a model, filtered, in one pass.

    All triples of the graph and the ranked ones are the filter.

    Args:
        model: A model with labels; `at_sizes` gives it other sizes.
        graph: A graph whose names the model knows.
        split: The graph's split to rank: "train", "valid" or "test".
        triples: A file of triples to rank instead of a split.
        column_order: The order of the file's columns, a permutation of "hrt".
        classify: Also measure triple classification on the graph.
        progress: Show a progress bar.

    Returns:
        Rows for metrics.json, overall ones, per side and per relation.

    Raises:
        ValueError: If there is nothing to rank, a name is unknown, or a score is not finite.
    """
    if graph is None and triples is None:
        raise ValueError("there is nothing to rank: give a graph, a file of triples, or both")
    if classify and graph is None:
        raise ValueError("triple classification needs a graph: its valid split gives the thresholds")
    if split not in ("train", "valid", "test"):
        raise ValueError(f"split must be train, valid or test, got {split!r}")
    splits = {} if graph is None else triples_of(model, graph)
    known = dict(splits)
    if triples is not None:
        known["extra"] = read_triples(model, triples, column_order)
    dataset = str(triples) if graph is None else graph.name
    ranked, label = (known[split], split) if triples is None else (known["extra"], Path(triples).name)
    index = _known(model, known)
    ranks = rank_triples(model, ranked, index, progress=progress)
    rows = metrics_rows(ranks, dataset=dataset, split=label, relations=list(model.labels.relation))
    if classify and graph is not None:
        own: Any = {**splits, "relations": tuple(model.labels.relation)}
        rows += classification_rows(model, replace(graph, **own), known=index)
    return rows


def _known(model: KGEModel, splits: dict[str, Tensor]) -> KnownTriples:
    triples = torch.cat([part for name, part in splits.items() if "negatives" not in name])
    return KnownTriples(triples, model.num_entities, model.num_relations)


def learn(model: KGEModel, graph: KnowledgeGraph) -> tuple[KnownTriples, Calibration]:
    """Return what `predict` can use of a graph: its known triples, and probabilities from its valid split.

    Args:
        model: A model with labels; its own size is calibrated.
        graph: A graph whose names the model knows; false triples are its own, else made.

    Raises:
        ValueError: If a name is unknown, or true triples do not score higher than false ones.
    """
    splits = triples_of(model, graph)
    known = _known(model, splits)
    false = splits.get("valid_negatives")
    pair = (splits["valid"], negatives(splits["valid"], known) if false is None else false)
    return known, fit_calibration(*(score_triples(model, triples, (model.size,))[0] for triples in pair))
