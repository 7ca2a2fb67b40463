"""Labelled texts from files: every format reads alike, and bad data is named."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from croppable.text.glue import TASKS, DataError, Task, infer_task, load_splits, read_examples, read_table

ROWS = [
    {"sentence": "NA", "label": 1, "idx": 0},
    {"sentence": "a \"quoted' film", "label": 0, "idx": 1},
    {"sentence": "3.5", "label": 1, "idx": 2},
    {"sentence": "", "label": 0, "idx": 3},
]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".tsv":
        lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".tsv", ".csv", ".json", ".jsonl"])
def test_every_format_reads_alike(tmp_path: Path, suffix: str) -> None:
    examples = read_examples(read_table(write(tmp_path / f"train{suffix}")), TASKS["sst2"])
    assert examples.texts == ([str(row["sentence"]) for row in ROWS],)
    assert examples.labels.tolist() == [1, 0, 1, 0]
    assert examples.empty == 1


def test_benchmark_data(data_dir: Path) -> None:
    for name, rows in {"cola": 8551, "mrpc": 3668, "rte": 2490, "stsb": 5749}.items():
        task, splits = load_splits(name, data_dir=data_dir / "glue")
        assert len(splits["train"]) == rows
        assert set(splits) == {"train", "validation"}
        assert len(splits["train"].texts) == len(task.columns)
    assert splits["train"].labels.dtype == torch.float32
    assert splits["train"].labels.max() == 5


def test_label_names_and_codes_mean_the_same() -> None:
    named = pa.table({"sentence": ["x", "y"], "label": ["positive", "negative"]})
    assert read_examples(named, TASKS["sst2"]).labels.tolist() == [1, 0]


def test_mnli_reads_both_validation_splits(tmp_path: Path) -> None:
    rows = [{"premise": "a", "hypothesis": "b", "label": i} for i in range(3)]
    for split in ("train", "validation_matched", "validation_mismatched"):
        write(tmp_path / "mnli" / f"{split}.parquet", rows)
    _task, splits = load_splits("mnli", data_dir=tmp_path)
    assert list(splits) == ["train", "validation_matched", "validation_mismatched"]
    (tmp_path / "mnli" / "validation_mismatched.parquet").unlink()
    assert list(load_splits("mnli", data_dir=tmp_path)[1]) == ["train", "validation_matched"]


def test_a_task_of_ones_own_is_guessed(tmp_path: Path) -> None:
    train = write(tmp_path / "mine.jsonl", [{"text": "x", "label": "b"}, {"text": "y", "label": "a"}])
    task, splits = load_splits(None, train_file=train, validation_file=train)
    assert task == Task(name="mine", columns=("text",), labels=("a", "b"), metric="sst2")
    assert splits["validation"].labels.tolist() == [1, 0]
    scores = infer_task(pa.table({"sentence1": ["x"], "sentence2": ["y"], "id": ["z"], "label": [0.5]}))
    assert scores.columns == ("sentence1", "sentence2")
    assert scores.regression


@pytest.mark.parametrize(
    ("table", "task", "message"),
    [
        ({"sentence": ["x"]}, "sst2", r"has no column 'label': its columns are \['sentence'\]"),
        ({"text": ["x"], "label": [0]}, "sst2", r"has no column 'sentence': its columns are"),
        ({"sentence": ["x", None], "label": [0, 1]}, "sst2", "'sentence' of row 1 must be a text, got None"),
        ({"sentence": ["x"], "label": [-1]}, "sst2", "all labels are -1, hidden as in GLUE's test splits"),
        ({"sentence": ["x"], "label": [2]}, "sst2", r"unknown labels \['2'\], expected negative, positive"),
        ({"sentence": ["x", "y"], "label": [0, None]}, "sst2", "row 1 has no label"),
        ({"sentence": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "sst2", "has no rows"),
        (
            {"sentence1": ["x"], "sentence2": ["y"], "label": ["high"]},
            "stsb",
            "labels of stsb must be numbers",
        ),
        ({"sentence1": ["x"], "sentence2": ["y"], "label": [float("nan")]}, "stsb", "must be finite numbers"),
    ],
)
def test_bad_tables_are_refused(table: dict[str, Any], task: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_examples(pa.table(table), TASKS[task])


def test_label_sets_that_differ_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [{"sentence": "x", "label": 1}])
    validation = write(tmp_path / "validation.jsonl", [{"sentence": "x", "label": 0}])
    with pytest.raises(
        DataError, match=r"label sets differ: sst2/validation has \['negative'\], which sst2/train never"
    ):
        load_splits("sst2", train_file=train, validation_file=validation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task_name": "ax"}, "the task must be one of cola, .*, got 'ax'"),
        ({"task_name": None}, "pass a task name, or train_file and validation_file"),
        ({"task_name": "rte", "train_file": "x.tsv"}, "train_file and validation_file together"),
        (
            {"task_name": "rte", "data_dir": "nowhere"},
            "no train split of rte in nowhere: expected nowhere/rte/train.parquet",
        ),
    ],
)
def test_missing_data_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_splits(**arguments)


@pytest.mark.parametrize("task", ["mrpc", "mnli", "stsb"])
def test_a_task_by_name_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    """What load_dataset gives: features with class names, a test split with hidden labels."""
    import datasets

    names = TASKS[task].labels
    kind = datasets.ClassLabel(names=names) if names else datasets.Value("float32")
    texts = {column: datasets.Value("string") for column in TASKS[task].columns}
    rows = {column: ["NA", "b", ""] for column in texts} | {"label": [0, 1, 1], "idx": [0, 1, 2]}
    features = datasets.Features({**texts, "label": kind, "idx": datasets.Value("int32")})
    split = datasets.Dataset.from_dict(rows, features=features)
    hidden = datasets.Dataset.from_dict({**rows, "label": [-1] * 3}, features=features)
    asked = []

    def load(*arguments: str) -> Any:
        asked.append(arguments)
        return datasets.DatasetDict({"train": split, **dict.fromkeys(TASKS[task].validation, split)}
                                    | {"test": hidden})  # fmt: skip

    monkeypatch.setattr(datasets, "load_dataset", load)
    _task, splits = load_splits(task)
    assert asked == [("nyu-mll/glue", task)]
    assert list(splits) == ["train", *TASKS[task].validation]
    assert splits["train"].labels.tolist() == [0, 1, 1]
    assert splits["train"].texts[0] == ["NA", "b", ""]


def test_offline_without_files_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_args: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        ConnectionError, match=r"--data_dir DIR with DIR/mrpc/train.parquet .* or --train_file"
    ):
        load_splits("mrpc")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must end in \.parquet, \.tsv"):
        read_table(tmp_path / "train.xlsx")
    with pytest.raises(DataError, match=r"train.tsv is no file"):
        read_table(tmp_path / "train.tsv")
    (tmp_path / "bad.tsv").write_text("sentence\tlabel\nx\t0\ty\n")
    with pytest.raises(DataError, match=r"bad.tsv cannot be read: .*[Ee]xpected 2 columns, got 3"):
        read_table(tmp_path / "bad.tsv")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"bad.parquet cannot be read"):
        read_table(tmp_path / "bad.parquet")
    (tmp_path / "bad.json").write_text("[{")
    with pytest.raises(DataError, match=r"bad.json cannot be read"):
        read_table(tmp_path / "bad.json")


def test_one_class_is_no_classification() -> None:
    with pytest.raises(DataError, match="needs at least two classes"):
        infer_task(pa.table({"sentence": ["x"], "label": [1]}))


def test_head_counts_its_own_empty_texts() -> None:
    examples = read_examples(pa.Table.from_pylist(ROWS), TASKS["sst2"])
    assert (len(examples.head(2)), examples.head(2).empty, len(examples.head(None))) == (2, 0, 4)
