"""Files of triples by name, as ids of a given model: its labels decide, not the file's own order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from croppable.kge.files import read_columns
from croppable.kge.model import KGEModel
from croppable.kge.triples import KnowledgeGraph
from croppable.labels import Labels, StringTable, closest

__all__ = ["read_triples", "triples_of"]


def _labels(model: KGEModel) -> Labels:
    if model.labels is None:
        raise ValueError("the model has no labels, so names mean nothing to it: save it with labels=")
    labels: Labels = model.labels
    return labels


def _place(table: StringTable, names: list[str], kind: str, where: object) -> Tensor:
    """Return the ids of names; all unknown ones are reported together."""
    places = {name: place for place, name in enumerate(table)}
    ids = [places.get(name, -1) for name in names]
    unknown = [name for name, place in zip(names, ids, strict=True) if place < 0]
    if unknown:
        near = closest(unknown[0], table, 1)
        hint = f"; the closest to the first is {near[0]!r}" if near else ""
        raise ValueError(
            f"{len(unknown)} {kind} names in {where} are unknown to the model: "
            f"{', '.join(map(repr, unknown[:3]))}{hint}. Use triples of the graph it was trained on"
        )
    return torch.tensor(ids, dtype=torch.long)


def triples_of(model: KGEModel, graph: KnowledgeGraph) -> dict[str, Tensor]:
    """Return the splits of a graph in the ids of a model.

    Args:
        model: A model with labels.
        graph: A graph whose names the model knows.

    Returns:
        "train", "valid", "test" and, where the graph has them, "valid_negatives" and "test_negatives".

    Raises:
        ValueError: If the model has no labels or lacks names.
    """
    labels = _labels(model)
    entity = _place(labels.entity, list(graph.entities), "entity", graph.name)
    relation = _place(labels.relation, list(graph.relations), "relation", graph.name)
    names = ("train", "valid", "test", "valid_negatives", "test_negatives")
    splits = {name: getattr(graph, name) for name in names}
    return {
        name: torch.stack([entity[triples[:, 0]], relation[triples[:, 1]], entity[triples[:, 2]]], 1)
        for name, triples in splits.items()
        if triples is not None
    }


def read_triples(model: KGEModel, path: str | Path, column_order: str = "hrt") -> Tensor:
    """Read one file of triples by name as ids of a model, long ``[T, 3]``.

    Args:
        model: A model with labels.
        path: As `croppable.kge.files.read_columns` takes it.
        column_order: A permutation of "hrt".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is malformed, there is none, or names are unknown to the model.
    """
    labels, path = _labels(model), Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}' of triples")
    table: Any = read_columns(path, column_order)
    if not table.num_rows:
        raise ValueError(f"'{path}' has no triples: expected three columns of names")
    tables = {"head": labels.entity, "relation": labels.relation, "tail": labels.entity}
    columns = [_place(names, table[column].to_pylist(), column, path) for column, names in tables.items()]
    return torch.stack(columns, 1)
