"""The link prediction recipe on bad input: one clear line, and nothing left behind or touched."""

import re
from pathlib import Path
from typing import Any

import pytest
from recipes_helpers import RECIPE, Arguments, Run, files, in_processes, same_weights

import croppable

TRIPLE = "a\tlikes\tb\n"


def graph(folder: Path, **splits: str) -> Path:
    folder.mkdir()
    for name, content in {"train": TRIPLE, "valid": TRIPLE, "test": TRIPLE, **splits}.items():
        (folder / f"{name}.tsv").write_text(content)
    return folder


BAD_FLAGS = [
    ({"sizes": [8, 4]}, "--sizes must be positive and strictly increasing, got [8, 4]"),
    ({"sizes": [4, 4]}, "--sizes must be positive and strictly increasing, got [4, 4]"),
    ({"sizes": [0, 4]}, "--sizes must be positive and strictly increasing, got [0, 4]"),
    ({"sizes": ["a"]}, "argument --sizes: invalid int value: 'a'"),
    ({"column_order": "hrx"}, "--column_order must be a permutation of the letters h, r, t"),
    ({"data_dir": "nowhere"}, "nowhere is not a folder: expected one with train, valid and test files"),
    ({"dataset_name": "x/y"}, "give --data_dir or --dataset_name, not both"),
    ({"preset": "wn18"}, "--preset must be one of unicode-complex-med, "),
    ({"model": "conve"}, "argument --model: invalid choice: 'conve'"),
    ({"unknown": 3}, "--unknown"),
    ({"negatives": "shared", "filter_negatives": True}, "--filter_negatives needs --negatives uniform, got"),
    ({"logq_correction": True}, "--loss softmax and --negatives uniform or shared, got softmax and all"),
    ({"pool_queries": 64}, "--pool_queries needs --negatives shared and at least 8 queries, got all and 64"),
    ({"negatives": "shared", "pool_queries": 4}, "at least 8 queries, got shared and 4"),
    ({"sizes": [2, 4], "n3_sizes": [0.1]}, "--n3_sizes must have one weight for each of [2, 4], got [0.1]"),
    ({"size_weights": [1, 2]}, "--size_weights must have one weight for each of [2, 4, 8], got [1.0, 2.0]"),
    ({"trunk": 3, "relations": "own"}, "--trunk must be one of the sizes but the last, with --relations own"),
    ({"trunk": 4, "model": "rotate"}, "med or nested: got 4 of [2, 4, 8], shared, rotate, med"),
    ({"push_to_hub": True}, "--push_to_hub needs --hub_model_id name/model"),
    ({"push_to_hub": True, "hub_model_id": "a/b", "objective": "separate"}, "--push_to_hub publishes one"),
    ({"learning_rate": 0}, "--learning_rate must be positive, got 0.0"),
    ({"max_grad_norm": -1}, "--max_grad_norm must be positive, got -1.0; leave it out not to clip"),
    ({"num_train_epochs": 0}, "--num_train_epochs must be at least 1, got 0"),
    ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size must be at least 1, got 0"),
    ({"checkpointing_steps": -1}, "--checkpointing_steps must be at least 0, got -1"),
    ({"checkpoints_total_limit": 1}, "--checkpoints_total_limit must be at least 2, got 1"),
    ({"resume_from_checkpoint": "latest"}, "--resume_from_checkpoint latest: "),
    ({"resume_from_checkpoint": "nowhere"}, "nowhere holds no training states; start without it"),
    ({"resume_from_checkpoint": "latest", "objective": "separate"}, "--resume_from_checkpoint latest: "),
]  # fmt: skip


def one_line(text: str) -> str:
    """The error, which must be the only line besides argparse's usage."""
    lines = [line for line in text.splitlines() if not line.startswith("usage: ")]
    assert len(lines) == 1, text
    assert "error: " in lines[0]
    return lines[0]


@pytest.mark.parametrize(("settings", "message"), BAD_FLAGS, ids=[str(s) for s, _ in BAD_FLAGS])
def test_bad_flags_give_one_clear_line_and_leave_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], message: str
) -> None:
    assert run(tmp_path / "out", **settings) == 2
    assert message in one_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_all_contradictions_are_told_at_once(run: Run, tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path / "out", sizes=[4, 2], push_to_hub=True, column_order="hhh", num_negatives=0) == 2
    error = one_line(capsys.readouterr().err)
    assert all(f"--{name}" in error for name in ("sizes", "push_to_hub", "column_order", "num_negatives"))


def test_a_sparse_gradient_is_refused_where_it_cannot_be(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "a", sparse_gradient="on", optimizer="adam") == 2
    assert "--sparse_gradient on needs --optimizer adagrad" in capsys.readouterr().err
    assert run(tmp_path / "b", sparse_gradient="on", max_grad_norm=1.0) == 2
    assert "no --max_grad_norm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": TRIPLE + "Berlin\tcapital_of\n"},
            "train.tsv line 2: expected 3 tab-separated fields, got 2",
        ),
        ({"valid": ""}, "these splits have no triples: valid"),
        ({"test": "a\t\tb\n"}, "test.tsv line 1: the relation is empty"),
    ],
)
def test_bad_files_give_one_clear_line_and_leave_nothing(
    run: Run, tmp_path: Path, capsys: Any, splits: dict[str, str], message: str
) -> None:
    folder = graph(tmp_path / "graph", **splits)
    assert run(tmp_path / "out", data_dir=folder) == 2
    assert message in one_line(capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_a_missing_split_is_named(run: Run, tmp_path: Path, capsys: Any) -> None:
    folder = graph(tmp_path / "graph")
    (folder / "test.tsv").unlink()
    assert run(tmp_path / "out", data_dir=folder) == 2
    assert "graph has no test file" in one_line(capsys.readouterr().err)


def test_a_dataset_that_cannot_be_fetched_is_one_line_of_a_process(
    arguments: Arguments, tmp_path: Path
) -> None:
    command = [str(RECIPE), *arguments(tmp_path / "out", data_dir=None, dataset_name="nobody/nothing")]
    process = in_processes(1, command, {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")})
    assert process.returncode == 2
    assert "'nobody/nothing'" in one_line(process.stderr)
    assert "--data_dir" in process.stderr
    assert not (tmp_path / "out").exists()


def test_what_only_the_test_split_has_is_kept_counted_and_said(run: Run, tmp_path: Path, capsys: Any) -> None:
    folder = graph(tmp_path / "graph", train="a\tlikes\tb\nb\tlikes\ta\n", test="a\thates\tc\n")
    assert run(tmp_path / "out", data_dir=folder, num_train_epochs=1) == 0
    assert "not in train but kept: 1 entities, 1 relations" in capsys.readouterr().out
    assert croppable.load(tmp_path / "out").num_entities == 3


def test_a_folder_that_holds_something_is_left_alone(run: Run, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    assert run(tmp_path / "out") == 2
    assert "out is not empty: pass --overwrite_output_dir" in one_line(capsys.readouterr().err)
    assert files(tmp_path / "out") == {"notes"}
    (tmp_path / "file").write_text("mine")
    assert run(tmp_path / "file", overwrite_output_dir=True) == 2
    assert "file is a file: name a folder" in one_line(capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "mine"


def test_bad_input_does_not_touch_the_folder_that_was_to_be_overwritten(
    run: Run, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "out"
    assert run(output) == 0
    before = {name: (output / name).read_bytes() for name in files(output)}
    folder = graph(tmp_path / "graph", train="a\tb\n")
    assert run(output, data_dir=folder, overwrite_output_dir=True) == 2
    assert run(output, sizes=[3, 1], overwrite_output_dir=True) == 2
    assert {name: (output / name).read_bytes() for name in files(output)} == before


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_state(
    run: Run, tmp_path: Path, capsys: Any
) -> None:
    settings = {"model": "distmult", "learning_rate": 1e25, "checkpointing_steps": 1, "n3": 0}
    assert run(tmp_path / "out", **settings) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    found = re.search(
        r"error: the loss became not finite at step (\d+): the last good state is (\S+); ", error
    )
    assert found, error
    assert Path(found[2]).name == f"step-{int(found[1]) - 1:08d}"
    assert Path(found[2]).is_dir()
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.slow
def test_without_a_compiler_it_says_so_once_and_goes_on(arguments: Arguments, tmp_path: Path) -> None:
    command = [str(RECIPE), *arguments(tmp_path / "out", compile="loss")]
    process = in_processes(1, command, {"CXX": str(tmp_path / "no-compiler")})
    assert process.returncode == 0, process.stderr
    assert (process.stdout + process.stderr).count("no C++ compiler found") == 1
    eager = in_processes(1, [str(RECIPE), *arguments(tmp_path / "eager", compile="none")])
    assert eager.returncode == 0, eager.stderr
    assert same_weights(tmp_path / "out", tmp_path / "eager")
