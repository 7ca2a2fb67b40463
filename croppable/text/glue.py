"""The nine GLUE tasks, and labelled texts from local files or from the Hub.

A task says which columns are texts, what the labels mean and which metric counts. Files may be parquet, TSV,
CSV or JSON; everything is checked when it is read, and every refusal says what to pass instead. This file
does not tokenize (croppable/text/batching.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
import torch
from torch import Tensor

__all__ = [
    "TASKS",
    "DataError",
    "Examples",
    "Task",
    "infer_task",
    "load_splits",
    "read_examples",
    "read_table",
]

HUB_DATASET = "nyu-mll/glue"
SUFFIXES = (".parquet", ".tsv", ".csv", ".jsonl", ".json")


class DataError(ValueError):
    """A data file does not hold what the task needs."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a text task consists of.

    Attributes:
        name: Its name, also of its folder and its metric configuration.
        columns: The one or two text columns.
        labels: Names of the classes by code; empty for regression.
        headline: The metric by which models are compared.
        metric: Configuration of `croppable.text.metrics.GlueMetric`.
        validation: Validation splits; the first one counts.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    headline: str = "accuracy"
    metric: str
    validation: tuple[str, ...] = ("validation",)

    @property
    def regression(self) -> bool:
        """Whether the label is a number and not a class."""
        return not self.labels

    @property
    def problem_type(self) -> str:
        """Return the ``problem_type`` of a transformers config."""
        return "regression" if self.regression else "single_label_classification"


_PAIR = ("sentence1", "sentence2")
_RTE = ("entailment", "not_entailment")
_MNLI = ("validation_matched", "validation_mismatched")

# Columns and label codes as in the Hub's dataset.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="cola",
            columns=("sentence",),
            labels=("unacceptable", "acceptable"),
            headline="matthews_correlation",
            metric="cola",
        ),
        Task(name="sst2", columns=("sentence",), labels=("negative", "positive"), metric="sst2"),
        Task(name="mrpc", columns=_PAIR, labels=("not_equivalent", "equivalent"), metric="mrpc"),
        Task(
            name="qqp",
            columns=("question1", "question2"),
            labels=("not_duplicate", "duplicate"),
            metric="qqp",
        ),
        Task(name="stsb", columns=_PAIR, labels=(), headline="pearson", metric="stsb"),
        Task(
            name="mnli",
            columns=("premise", "hypothesis"),
            labels=("entailment", "neutral", "contradiction"),
            metric="mnli",
            validation=_MNLI,
        ),
        Task(name="qnli", columns=("question", "sentence"), labels=_RTE, metric="qnli"),
        Task(name="rte", columns=_PAIR, labels=_RTE, metric="rte"),
        Task(name="wnli", columns=_PAIR, labels=_RTE[::-1], metric="wnli"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Labelled texts of one split.

    Attributes:
        texts: One list of N texts per text column.
        labels: ``[N]``, int64 classes or float32 numbers.
        empty: How many texts are empty; they are kept.
    """

    texts: tuple[list[str], ...]
    labels: Tensor
    empty: int

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, count: int | None) -> Examples:
        """Return the first ``count`` examples, all of them for None."""
        return Examples(
            texts=tuple(column[:count] for column in self.texts),
            labels=self.labels[:count],
            empty=sum(not text.strip() for column in self.texts for text in column[:count]),
        )


def read_table(path: str | Path) -> pa.Table:
    """Read a parquet, TSV, CSV or JSON file; TSV has a header and no quoting, and "NA" is a text.

    Raises:
        DataError: If the file is missing, of another type, or cannot be parsed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} must end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path} is no file")
    try:
        if path.suffix == ".parquet":
            return pa.parquet.read_table(path)
        if path.suffix in (".json", ".jsonl"):
            return _read_json(path)
        return _read_delimited(path)
    except (pa.ArrowException, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _read_json(path: Path) -> pa.Table:
    with path.open("rb") as file:
        is_array = file.read(1) == b"["
    if is_array:
        return pa.Table.from_pylist(json.loads(path.read_text(encoding="utf-8")))
    return pa.json.read_json(path)


def _read_delimited(path: Path) -> pa.Table:
    tabs = path.suffix == ".tsv"
    parse = pa.csv.ParseOptions(
        delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=not tabs
    )
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline().rstrip("\r\n").split("\t" if tabs else ",")
    # A text that looks like a number, a date or a missing value is still a text.
    types = {name.strip('"'): pa.string() for name in header if name.strip('"') not in ("label", "idx")}
    convert = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    return pa.csv.read_csv(path, parse_options=parse, convert_options=convert)


def infer_task(table: pa.Table, name: str = "custom") -> Task:
    """Guess the task of a table: one or two text columns, and a column ``label``.

    Texts are ``sentence1`` and ``sentence2`` if there, else the first one or two string columns. Labels of
    floating-point type mean regression; otherwise the classes are the distinct labels, sorted.

    Raises:
        DataError: If there is no text column or no label column.
    """
    _require_columns(table, ("label",), name)
    strings = [f.name for f in table.schema if _is_text(f.type) and f.name != "label"]
    columns = _PAIR if set(_PAIR) <= set(strings) else tuple(strings[:2])
    if not columns:
        raise DataError(f"{name} has no text column, its columns are {table.column_names}")
    if pa.types.is_floating(table.schema.field("label").type):
        return Task(name=name, columns=columns, labels=(), headline="pearson", metric="stsb")
    labels = tuple(str(v) for v in sorted(table.column("label").drop_null().unique().to_pylist()))
    if len(labels) < 2:
        raise DataError(f"{name} has only the label {labels}: a classifier needs at least two classes")
    return Task(name=name, columns=columns, labels=labels, metric="sst2")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _require_columns(table: pa.Table, columns: tuple[str, ...], where: object) -> None:
    missing = [c for c in columns if c not in table.column_names]
    if missing:
        raise DataError(
            f"{where} has no column {', '.join(map(repr, missing))}: its columns are {table.column_names}"
        )


def read_examples(table: pa.Table, task: Task, where: object = "the data") -> Examples:
    """Take texts and labels out of a table.

    Raises:
        DataError: If a column is missing, a text is null, labels are hidden (-1) or unknown, or the table
            is empty.
    """
    _require_columns(table, (*task.columns, "label"), where)
    if not table.num_rows:
        raise DataError(f"{where} has no rows")
    texts = []
    for column in task.columns:
        values = table.column(column).to_pylist()
        bad = next((i for i, value in enumerate(values) if not isinstance(value, str)), None)
        if bad is not None:
            raise DataError(f"{where}: '{column}' of row {bad} must be a text, got {values[bad]!r}")
        texts.append(values)
    labels = _labels(table.column("label").to_pylist(), task, where)
    empty = sum(not text.strip() for column in texts for text in column)
    return Examples(texts=tuple(texts), labels=labels, empty=empty)


def _labels(values: list[Any], task: Task, where: object) -> Tensor:
    bad = next((i for i, value in enumerate(values) if value is None), None)
    if bad is not None:
        raise DataError(f"{where}: row {bad} has no label")
    if task.regression:
        try:
            numbers = torch.tensor([float(value) for value in values], dtype=torch.float32)
        except ValueError as error:
            raise DataError(f"{where}: labels of {task.name} must be numbers: {error}") from error
        if not numbers.isfinite().all():
            raise DataError(f"{where}: labels of {task.name} must be finite numbers")
        return numbers
    codes: dict[Any, int] = {**{str(i): i for i in range(len(task.labels))}}
    codes |= {name: i for i, name in enumerate(task.labels)}  # names win where labels are numbers
    found = {str(value) for value in values}
    if found == {"-1"}:
        raise DataError(f"{where}: all labels are -1, hidden as in GLUE's test splits: use a labelled split")
    if unknown := found - codes.keys():
        raise DataError(
            f"{where}: unknown labels {sorted(unknown)[:5]}, expected {', '.join(task.labels)} "
            f"or codes 0 to {len(task.labels) - 1}"
        )
    return torch.tensor([codes[str(value)] for value in values])


def load_splits(
    task_name: str | None,
    *,
    train_file: str | Path | None = None,
    validation_file: str | Path | None = None,
    data_dir: str | Path | None = None,
) -> tuple[Task, dict[str, Examples]]:
    """Load the training and validation examples of a task.

    Args:
        task_name: One of `TASKS`; None for a task of one's own, guessed from ``train_file``.
        train_file: Local training file; needs ``validation_file``.
        validation_file: Local validation file.
        data_dir: Folder that holds ``train.*`` and the validation split, or ``<task>/train.*`` and so on.

    Returns:
        The task, and its examples by split: "train" and every name in ``task.validation`` found.

    Raises:
        DataError: If the task is unknown, files are missing or wrong, or train and validation have
            different labels.
        ConnectionError: If the Hub cannot be reached; says what to pass instead.
    """
    if task_name is not None and task_name not in TASKS:
        raise DataError(f"the task must be one of {', '.join(TASKS)}, got {task_name!r}")
    if (train_file is None) != (validation_file is None):
        raise DataError("pass train_file and validation_file together")
    task = TASKS[task_name] if task_name else None
    if train_file is not None and validation_file is not None:
        first = task.validation[0] if task else "validation"
        tables = {"train": read_table(train_file), first: read_table(validation_file)}
        task = task or infer_task(tables["train"], Path(train_file).stem)
    elif task is None:
        raise DataError("pass a task name, or train_file and validation_file for a task of your own")
    elif data_dir is not None:
        tables = _tables_in(Path(data_dir), task)
    else:
        tables = _tables_from_hub(task)
    splits = {name: read_examples(t, task, f"{task.name}/{name}") for name, t in tables.items()}
    _require_same_labels(task, splits)
    return task, splits


def _tables_in(folder: Path, task: Task) -> dict[str, pa.Table]:
    tables = {}
    for split in ("train", *task.validation):
        places = [base / f"{split}{suffix}" for base in (folder / task.name, folder) for suffix in SUFFIXES]
        found = next((place for place in places if place.is_file()), None)
        if found is not None:
            tables[split] = read_table(found)
        elif split in ("train", task.validation[0]):
            raise DataError(f"no {split} split of {task.name} in {folder}: expected {places[0]}")
    return tables


def _tables_from_hub(task: Task) -> dict[str, pa.Table]:
    from datasets import load_dataset

    try:
        loaded = load_dataset(HUB_DATASET, task.name)
    except OSError as error:  # what datasets raises offline is a ConnectionError, an OSError
        raise ConnectionError(
            f"cannot load {HUB_DATASET} ({task.name}) from the Hub: pass --data_dir DIR with "
            f"DIR/{task.name}/train.parquet and {task.validation[0]}.parquet, or --train_file and "
            f"--validation_file ({', '.join(SUFFIXES)})"
        ) from error
    return {split: loaded[split].with_format("arrow")[:] for split in ("train", *task.validation)}


def _require_same_labels(task: Task, splits: Mapping[str, Examples]) -> None:
    if task.regression:
        return
    trained = set(splits["train"].labels.tolist())
    for name, examples in splits.items():
        if unseen := set(examples.labels.tolist()) - trained:
            raise DataError(
                f"the label sets differ: {task.name}/{name} has {[task.labels[i] for i in sorted(unseen)]}, "
                f"which {task.name}/train never shows"
            )
