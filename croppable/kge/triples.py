"""Knowledge graphs: triples of ids, with the names behind the ids.

Ids are places in the sorted list of names (by code point), so they depend neither on the order of the lines
nor on the file format. Entities and relations that occur only outside train are kept and counted: dropping
them would flatter the results. Nothing here samples, ranks or trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from croppable.kge.files import (
    SLOTS,
    find_file,
    pick_columns,
    read_columns,
    read_labels,
    validate_column_order,
)
from croppable.kge.known import KnownTriples

__all__ = ["KnowledgeGraph", "graph_from_hub", "graph_from_triples", "read_graph"]

# The names by which a split is known, the first one ours.
SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "dev"),
    "test": ("test",),
    "valid_negatives": ("valid_negatives", "validation_negatives", "dev_negatives"),
    "test_negatives": ("test_negatives",),
}
REQUIRED = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Triples in three splits, all as ids.

    Attributes:
        name: What results call this graph.
        entities: Entity names; the id is the place.
        relations: Relation names; the id is the place.
        train: ``[T, 3]`` long, columns head, relation, tail. Repeated triples are kept as they came.
        valid: As ``train``.
        test: As ``train``.
        entity_labels: One text for people per entity, or None; the name where no label is known.
        relation_labels: The same per relation.
        valid_negatives: False triples for triple classification, as ``train``, or None.
        test_negatives: As ``valid_negatives``.
    """

    name: str
    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor
    entity_labels: tuple[str, ...] | None = None
    relation_labels: tuple[str, ...] | None = None
    valid_negatives: Tensor | None = None
    test_negatives: Tensor | None = None

    @property
    def num_entities(self) -> int:
        """How many entities there are."""
        return len(self.entities)

    @property
    def num_relations(self) -> int:
        """How many relations there are, inverses not counted."""
        return len(self.relations)

    @cached_property
    def triples(self) -> Tensor:
        """All true triples ``[T, 3]``: train, valid and test, one after the other."""
        return torch.cat((self.train, self.valid, self.test))

    @cached_property
    def unseen_entities(self) -> Tensor:
        """Ids of the entities that train does not have, ascending."""
        return _absent(self.train[:, ::2], self.num_entities)

    @cached_property
    def unseen_relations(self) -> Tensor:
        """Ids of the relations that train does not have, ascending."""
        return _absent(self.train[:, 1], self.num_relations)

    @cached_property
    def _repeats(self) -> tuple[int, int]:
        known = KnownTriples(self.train, self.num_entities, self.num_relations)
        held_out = torch.cat((self.valid, self.test))
        return len(self.train) - len(known), int(known.contains(held_out).sum())

    @property
    def duplicates(self) -> int:
        """How many lines of train repeat an earlier one."""
        return self._repeats[0]

    @property
    def leaked(self) -> int:
        """How many lines of valid and test are in train too."""
        return self._repeats[1]

    def summary(self) -> str:
        """Return one line with the counts and whatever is unusual about the graph."""
        line = (
            f"{self.name}: {self.num_entities:,} entities, {self.num_relations:,} relations, "
            f"{len(self.train):,} train / {len(self.valid):,} valid / {len(self.test):,} test triples"
        )
        if len(self.unseen_entities) or len(self.unseen_relations):
            line += (
                f"; not in train but kept: {len(self.unseen_entities):,} entities, "
                f"{len(self.unseen_relations):,} relations"
            )
        if self.duplicates:
            line += f"; {self.duplicates:,} repeated lines in train"
        if self.leaked:
            line += f"; {self.leaked:,} valid or test triples are in train too"
        return line


def _absent(ids: Tensor, count: int) -> Tensor:
    seen = torch.zeros(count, dtype=torch.bool)
    seen[ids.reshape(-1)] = True
    return (~seen).nonzero()[:, 0]


def _require_triples(sizes: Mapping[str, int], where: Mapping[str, object]) -> None:
    """Refuse empty splits, all at once."""
    empty = [f"{split} ({where[split]})" for split, size in sizes.items() if size == 0]
    if empty:
        raise ValueError(
            f"these splits have no triples: {', '.join(empty)}; every split must have at least one"
        )


def _aligned(names: Sequence[str], labels: Mapping[str, str] | None) -> tuple[str, ...] | None:
    return None if labels is None else tuple(labels.get(name, name) for name in names)


def graph_from_triples(
    train: Iterable[Sequence[str]],
    valid: Iterable[Sequence[str]],
    test: Iterable[Sequence[str]],
    *,
    name: str = "triples",
    entity_labels: Mapping[str, str] | None = None,
    relation_labels: Mapping[str, str] | None = None,
    valid_negatives: Iterable[Sequence[str]] | None = None,
    test_negatives: Iterable[Sequence[str]] | None = None,
) -> KnowledgeGraph:
    """Build a graph from (head, relation, tail) names.

    Args:
        train: Triples of names.
        valid: Triples of names.
        test: Triples of names.
        name: What results call this graph.
        entity_labels: Texts for people by entity name; what is missing falls back to the name.
        relation_labels: The same by relation name.
        valid_negatives: False triples for triple classification.
        test_negatives: The same for test.

    Raises:
        ValueError: If a triple does not have three non-empty names, or a split is empty.
    """
    given = {"train": train, "valid": valid, "test": test}
    given |= {
        split: negatives
        for split, negatives in (("valid_negatives", valid_negatives), ("test_negatives", test_negatives))
        if negatives is not None
    }
    rows = {split: [tuple(triple) for triple in triples] for split, triples in given.items()}
    for split, triples in rows.items():
        for place, triple in enumerate(triples):
            if len(triple) != 3 or not all(isinstance(field, str) and field for field in triple):
                raise ValueError(
                    f"no triple in {split} at place {place}: expected three non-empty strings "
                    f"(head, relation, tail), got {triple!r}"
                )
    _require_triples(
        {split: len(triples) for split, triples in rows.items()}, dict.fromkeys(rows, "as given")
    )
    everything = [triple for triples in rows.values() for triple in triples]
    entities = tuple(sorted({t[0] for t in everything} | {t[2] for t in everything}))
    relations = tuple(sorted({t[1] for t in everything}))
    entity, relation = ({n: i for i, n in enumerate(names)} for names in (entities, relations))
    splits = {
        split: torch.tensor([(entity[h], relation[r], entity[t]) for h, r, t in triples])
        for split, triples in rows.items()
    }
    return KnowledgeGraph(
        name,
        entities,
        relations,
        **splits,
        entity_labels=_aligned(entities, entity_labels),
        relation_labels=_aligned(relations, relation_labels),
    )


def _graph_from_tables(
    name: str,
    tables: Mapping[str, Any],
    entity_labels: Mapping[str, str] | None = None,
    relation_labels: Mapping[str, str] | None = None,
) -> KnowledgeGraph:
    """Index pyarrow tables of names in bulk; the same ids as `graph_from_triples`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def sorted_names(columns: Sequence[str]) -> Any:
        chunks = [chunk for table in tables.values() for column in columns for chunk in table[column].chunks]
        # The order of bytes in UTF-8 is the order of code points, as Python sorts.
        names = pc.unique(pa.chunked_array(chunks, pa.string()))
        return names.take(pc.sort_indices(names))

    entities, relations = sorted_names(("head", "tail")), sorted_names(("relation",))
    vocabulary = {"head": entities, "relation": relations, "tail": entities}

    def ids(table: Any) -> Tensor:
        columns = torch.empty(table.num_rows, 3, dtype=torch.long)
        for place, slot in enumerate(SLOTS.values()):
            found = pc.index_in(table[slot], value_set=vocabulary[slot])
            columns[:, place] = torch.from_numpy(found.to_numpy().copy())
        return columns

    entity_names, relation_names = tuple(entities.to_pylist()), tuple(relations.to_pylist())
    return KnowledgeGraph(
        name,
        entity_names,
        relation_names,
        **{split: ids(table) for split, table in tables.items()},
        entity_labels=_aligned(entity_names, entity_labels),
        relation_labels=_aligned(relation_names, relation_labels),
    )


def read_graph(folder: str | Path, *, column_order: str = "hrt", name: str | None = None) -> KnowledgeGraph:
    """Read a graph from a folder.

    The folder has one file per split, train, valid (or validation, dev) and test, as ``.tsv``, ``.txt``,
    ``.csv`` or ``.parquet``, each optionally ``.gz``; optionally valid_negatives and test_negatives in the
    same format; and optionally entity_labels and relation_labels (also called ``..._partial``) as ``.tsv``:
    id, label, and any further columns. How a file is cut into fields: `croppable.kge.files.read_columns`.

    Args:
        folder: Where the files are.
        column_order: The order of the columns: h for head, r for relation, t for tail.
        name: What results call this graph; the folder's name by default.

    Returns:
        The graph; ids are places in the sorted names.

    Raises:
        FileNotFoundError: If the folder or a split is missing; says what was found.
        ValueError: If the column order is unknown, a line is malformed, a split is empty, or two files claim
            the same split.
    """
    validate_column_order(column_order)
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: expected one with train, valid and test files")
    paths = {split: path for split, stems in SPLITS.items() if (path := find_file(folder, stems)) is not None}
    missing = [split for split in REQUIRED if split not in paths]
    if missing:
        found = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)} file: expected train, valid and test, each as .tsv, "
            f".txt, .csv or .parquet, optionally .gz; found {found}"
        )
    tables = {split: read_columns(path, column_order) for split, path in paths.items()}
    _require_triples({split: table.num_rows for split, table in tables.items()}, paths)
    labels = {
        kind: find_file(folder, (f"{kind}_labels", f"{kind}_labels_partial"))
        for kind in ("entity", "relation")
    }
    texts = {kind: None if path is None else read_labels(path) for kind, path in labels.items()}
    return _graph_from_tables(name or folder.resolve().name, tables, texts["entity"], texts["relation"])


def graph_from_hub(
    dataset_name: str,
    config: str | None = None,
    *,
    column_order: str = "hrt",
    revision: str | None = None,
    name: str | None = None,
) -> KnowledgeGraph:
    """Load a graph from the Hugging Face Hub by the name of its dataset.

    Each split has columns named head, relation and tail (or h, r, t; or subject, predicate, object), just
    three columns, or one text column cut at its tabs.

    Args:
        dataset_name: As ``datasets.load_dataset`` takes it.
        config: The dataset's configuration, where it has several.
        column_order: The order of the columns where they are not named.
        revision: A commit, tag or branch to pin.
        name: What results call this graph; the last part of ``dataset_name`` by default.

    Raises:
        FileNotFoundError: If the dataset or a split is missing.
        ConnectionError: If the Hub cannot be reached; says what to pass instead.
        ValueError: If the columns hold no triples or a split is empty.
    """
    import datasets

    validate_column_order(column_order)
    instead = "or pass a local folder with train, valid and test files (read_graph, --data_dir)"
    try:
        loaded = datasets.load_dataset(dataset_name, config, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"no dataset {dataset_name!r} on the Hub or in this folder ({error}): check its name, {instead}"
        ) from error
    except (ConnectionError, OSError) as error:
        raise ConnectionError(
            f"dataset {dataset_name!r} cannot be fetched from the Hub ({error}): check the connection, "
            f"{instead}"
        ) from error
    tables = {
        split: pick_columns(
            loaded[alias].with_format("arrow")[:], column_order, f"{dataset_name} split {alias}"
        )
        for split, aliases in SPLITS.items()
        for alias in aliases
        if alias in loaded
    }
    missing = [split for split in REQUIRED if split not in tables]
    if missing:
        raise FileNotFoundError(
            f"dataset {dataset_name!r} has no {' and no '.join(missing)} split: found {sorted(loaded)}; "
            f"rename one, {instead}"
        )
    _require_triples({split: t.num_rows for split, t in tables.items()}, dict.fromkeys(tables, dataset_name))
    return _graph_from_tables(name or dataset_name.rsplit("/", 1)[-1], tables)
