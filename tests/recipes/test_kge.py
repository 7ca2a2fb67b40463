"""The link prediction recipe as its users run it: outputs, objectives, bad input, signals, two processes."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import croppable
from croppable.core import named_tensors

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "kge.py"
BIN = Path(sys.executable).parent
SIZES = (2, 4, 8)
METRICS = {"mrr", "hits@1", "hits@3", "hits@10", "mean_rank"}
OUTPUTS = {
    "config.json", "model.safetensors.index.json", "labels.safetensors", "metrics.json", "history.json",
    "training_config.json", "sizes.png", "curves.png", "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
}  # fmt: skip
Run = Callable[..., int]
Arguments = Callable[..., list[str]]
Overall = Callable[[Path], dict[tuple[int, str], float]]


def files(output: Path) -> set[str]:
    return {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}


def same_weights(a: Path, b: Path) -> bool:
    names = [path.name for path in a.glob("model-*.safetensors")]
    assert names
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def in_processes(
    count: int, command: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, under torchrun if by several processes, on the CPU whatever the machine has."""
    launch = (
        [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", str(count)]
        if count > 1
        else [sys.executable]
    )
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.run(
        [*launch, *command], env=env, capture_output=True, text=True, timeout=300, check=False
    )


# ------------------------------------------------------------------------------------- one run, as a user


@pytest.fixture(scope="module")
def plain(arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The output folder and the process of a plain run."""
    output = tmp_path_factory.mktemp("plain") / "out"
    return output, in_processes(1, [str(RECIPE), *arguments(output)])


def test_a_run_ends_well_and_says_what_it_did(plain: tuple[Path, Any]) -> None:
    _, process = plain
    assert process.returncode == 0, process.stderr
    for text in ("24 entities, 3 relations, 56 train / 8 valid / 8 test", "1 process(es) on cpu",
                 "32 steps in ", "best validation at step", "bytes per entity"):  # fmt: skip
        assert text in process.stdout
    assert "Warning" not in process.stderr


def test_the_output_folder_is_complete_and_nothing_else(plain: tuple[Path, Any]) -> None:
    output, _ = plain
    assert files(output) == OUTPUTS
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in ("sizes.png", "curves.png"))
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_metrics_have_every_size_and_slice(
    plain: tuple[Path, Any], overall: Overall, graph_folder: Path
) -> None:
    output, process = plain
    table = overall(output)
    assert set(table) == {(size, metric) for size in SIZES for metric in METRICS}
    rows = json.loads((output / "metrics.json").read_text())
    own = {(row["dataset"], row["split"], row["objective"], row["model"], row["seed"]) for row in rows}
    assert own == {(graph_folder.name, "test", "med", "complex", 0)}
    assert {row["side"] for row in rows} == {"both", "head", "tail"}
    assert {row["relation"] for row in rows} == {None, "double", "next", "same_parity"}
    assert {row["ties"] for row in rows} == {"realistic", "optimistic", "pessimistic"}
    for (size, metric), value in table.items():
        assert metric == "mean_rank" or 0 <= value <= 1
        if metric == "mrr":
            assert re.search(rf"│ +{size} │ {value:.4f} │", process.stdout)


def test_any_size_loads_as_the_crop_with_readable_labels(plain: tuple[Path, Any]) -> None:
    output, _ = plain
    model = croppable.load(output)
    assert (model.sizes, model.score, model.reciprocal) == (SIZES, "complex", True)
    for size in (1, 2, 3, 4, 8):
        loaded, cropped = croppable.load(output, size=size), croppable.crop(model, size)
        theirs = dict(named_tensors(cropped))
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in named_tensors(loaded))
    names = croppable.load(output, size=2).labels
    assert names.entity[3] == "n03"
    assert names.relation[0] == "double"
    assert names.entity_text[3] == "number 3"


def test_the_saved_model_has_the_metrics_of_the_table(
    plain: tuple[Path, Any], graph_folder: Path, overall: Overall
) -> None:
    from croppable.kge.known import KnownTriples
    from croppable.kge.metrics import rank_metrics
    from croppable.kge.ranking import rank_triples
    from croppable.kge.triples import read_graph

    graph = read_graph(graph_folder)
    known = KnownTriples(graph.triples, graph.num_entities, graph.num_relations)
    for size in SIZES:
        ranks = rank_triples(croppable.load(plain[0], size=size), graph.test, known, sizes=(size,))
        values = rank_metrics(ranks.by_ties("realistic").transpose(0, 1).flatten(1))
        for metric, value in values.items():
            assert value.item() == pytest.approx(overall(plain[0])[size, metric], abs=1e-6)


def test_history_and_config_tell_the_run(plain: tuple[Path, Any], kge: ModuleType) -> None:
    output, _ = plain
    history = json.loads((output / "history.json").read_text())
    evaluated = [row for row in history if "score" in row]
    assert [row["step"] for row in evaluated] == [16, 32]
    for row in evaluated:
        assert row["score"] == pytest.approx(sum(row[f"score_{size}"] for size in SIZES) / 3)
    assert {"loss", "evolution", "mutual", "n3", "learning_rate"} <= set(history[-2])
    config = json.loads((output / "training_config.json").read_text())
    assert set(config) == {field.name for field in dataclasses.fields(kge.Config)}
    assert (config["sizes"], config["output_dir"], config["seed"]) == ([2, 4, 8], str(output), 0)


def test_accelerate_launch_gives_the_same_as_plain_python(
    plain: tuple[Path, Any], arguments: Arguments, tmp_path: Path
) -> None:
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    process = in_processes(1, [*launch, str(RECIPE), *arguments(tmp_path / "out")])
    assert process.returncode == 0, process.stderr
    assert files(tmp_path / "out") == OUTPUTS
    for name in ("metrics.json", "history.json"):
        assert (tmp_path / "out" / name).read_bytes() == (plain[0] / name).read_bytes()
    assert same_weights(tmp_path / "out", plain[0])


def test_the_seed_decides_everything(plain: tuple[Path, Any], run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "same") == 0
    assert (tmp_path / "same" / "metrics.json").read_bytes() == (plain[0] / "metrics.json").read_bytes()
    assert same_weights(tmp_path / "same", plain[0])
    assert run(tmp_path / "other", seed=1) == 0
    assert not same_weights(tmp_path / "other", plain[0])


# -------------------------------------------------------------------------- objectives, losses, negatives


def test_a_sparse_gradient_trains_the_same_model(run: Run, tmp_path: Path) -> None:
    flags = {"loss": "bce", "negatives": "shared", "num_negatives": 8, "mutual_form": "huber-sigmoid",
             "n3": 0, "compile": "auto", "init_scale": 0.5}  # fmt: skip
    found = []
    for choice in ("on", "off"):
        assert run(tmp_path / choice, sparse_gradient=choice, **flags) == 0
        found.append(croppable.load(tmp_path / choice, size=8).entity)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_a_sparse_gradient_is_refused_where_it_cannot_be(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "a", sparse_gradient="on", optimizer="adam") == 2
    assert "--sparse_gradient on needs --optimizer adagrad" in capsys.readouterr().err
    assert run(tmp_path / "b", sparse_gradient="on", max_grad_norm=1.0) == 2
    assert "no --max_grad_norm" in capsys.readouterr().err


def test_training_learns(run: Run, overall: Overall, tmp_path: Path) -> None:
    assert run(tmp_path / "out", eval_split="valid", num_train_epochs=60, eval_epochs=20, n3=0) == 0
    table = overall(tmp_path / "out")
    assert table[8, "mrr"] > 0.25  # chance is (1 + 1/2 + ... + 1/24) / 24 = 0.16
    losses = [
        row["loss"] for row in json.loads((tmp_path / "out" / "history.json").read_text()) if "loss" in row
    ]
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])  # of single noisy batches


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "nested", "adversarial_temperature": 0.5},
        {"model": "rotate", "loss": "bce", "negatives": "uniform", "optimizer": "adam", "learning_rate": 0.01,
         "margin": 3.0, "reciprocal": False, "calibration": "scale", "lr_scheduler_type": "linear",
         "mutual_form": "huber-sigmoid", "max_grad_norm": 1.0},
        {"model": "transe-l1", "loss": "bce", "negatives": "shared", "num_negatives": 8, "pool_queries": 16,
         "n3": 0, "learnable_weights": True, "evolution_form": "reciprocal", "reduction": "sum",
         "calibration": "affine"},
        {"model": "pairre", "negatives": "uniform", "filter_negatives": True, "distill": 0.5},
        {"model": "simple", "early_stopping_patience": 1, "mixed_precision": "bf16"},
        {"relations": "own", "reach": 0.25, "mutual": 0, "w1": 0, "w3": 0},
        {"model": "rotate", "loss": "bce", "negatives": "uniform", "relations": "own", "n3": 0},
    ],
    ids=["nested", "rotate-uniform-adam", "transe-shared-paper", "pairre-filtered", "simple-bf16",
         "own-reach", "rotate-own"],
)  # fmt: skip
def test_every_kind_of_training_runs_to_its_end(
    run: Run, overall: Overall, tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert run(tmp_path / "out", **settings) == 0
    assert files(tmp_path / "out") >= OUTPUTS
    assert all(math.isfinite(value) for value in overall(tmp_path / "out").values())
    model = croppable.load(tmp_path / "out", size=4)
    assert model.score == settings.get("model", "complex")
    if settings.get("learnable_weights"):
        history = json.loads((tmp_path / "out" / "history.json").read_text())
        assert all({"w1", "w2", "w3"} <= set(row) for row in history if "loss" in row)


def test_separate_training_makes_one_model_per_size(run: Run, overall: Overall, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(output, objective="separate") == 0
    assert set(overall(output)) == {(size, metric) for size in SIZES for metric in METRICS}
    assert not (output / "config.json").exists()
    for size in SIZES:
        assert croppable.load(output / f"size-{size}").sizes == (size,)
        assert set(overall(output / f"size-{size}")) == {(size, metric) for metric in METRICS}
    history = json.loads((output / "history.json").read_text())
    assert [row["step"] for row in history if "score" in row] == [16, 32] * 3


def test_separate_training_equals_training_each_size_alone(
    run: Run, overall: Overall, tmp_path: Path
) -> None:
    assert run(tmp_path / "all", objective="separate") == 0
    assert run(tmp_path / "one", objective="nested", sizes=[4]) == 0
    everything, alone = overall(tmp_path / "all"), overall(tmp_path / "one")
    assert {key: value for key, value in everything.items() if key[0] == 4} == alone


def test_a_tracker_gets_losses_and_scores(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert run(tmp_path / "out", report_to="tensorboard") == 0
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))


# ------------------------------------------------------------------------------------- flags and presets


def test_help_explains_every_flag(run: Run, kge: ModuleType, tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path / "out", help=True) == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(kge.Config):
        assert f"--{field.name}" in text
        assert len(field.metadata["help"]) > 10
        assert " ".join(field.metadata["help"].split())[:30] in text
    assert not (tmp_path / "out").exists()


def test_every_preset_is_complete_and_flags_override_it(kge: ModuleType, tmp_path: Path) -> None:
    from kge_presets import PRESETS

    assert len(PRESETS) >= 10
    for name, preset in PRESETS.items():
        output = str(tmp_path / name)
        config = kge.parse_config(["--preset", name, "--output_dir", output, "--seed", "7"], "")
        assert config == dataclasses.replace(preset(), preset=name, output_dir=output, seed=7)
        if "-transe-" in name or "-rotate-" in name or "-pairre-" in name:
            assert config.margin > 0
        if "paper" in name:
            assert (config.num_negatives, config.learnable_weights, config.lr_scheduler_type) == (
                64,
                True,
                "linear",
            )


def test_a_preset_runs_at_another_scale(run: Run, tmp_path: Path) -> None:
    assert (
        run(tmp_path / "out", preset="wn18rr-rotate-paper", max_train_steps=4, compile="none", n3=None) == 0
    )
    config = json.loads((tmp_path / "out" / "training_config.json").read_text())
    assert (config["model"], config["loss"], config["sizes"], config["compile"]) == (
        "rotate",
        "bce",
        [2, 4, 8],
        "none",
    )


# -------------------------------------------------------------------------------------------- bad input

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
    ({"pool_queries": 64}, "--pool_queries needs --negatives shared and at least 8 queries, got all and 64"),
    ({"negatives": "shared", "pool_queries": 4}, "at least 8 queries, got shared and 4"),
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


# ---------------------------------------------------------------------- overwriting, stopping and going on


def stop_at(kge: ModuleType, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let this process get a SIGTERM while it makes the batch of a step."""
    batches = kge.training_batches

    def interrupted(config: Any, task: Any, accelerator: Any, start: int) -> Iterator[dict[str, Any]]:
        for i, batch in enumerate(batches(config, task, accelerator, start), start + 1):
            if i == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(kge, "training_batches", interrupted)


def test_a_signal_saves_and_says_how_to_go_on_and_resuming_is_exact(
    plain: tuple[Path, Any], run: Run, kge: ModuleType, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(kge, patch, 19)
        assert run(output) == 130
    assert "interrupted after step 19; go on with the same command and --resume_from_checkpoint latest" in (
        capsys.readouterr().out
    )
    assert [path.name for path in (output / "training_states").iterdir()] == ["step-00000019"]
    assert not (output / "config.json").exists()
    assert run(output, resume_from_checkpoint="latest") == 0
    for name in ("metrics.json", "history.json"):
        assert (output / name).read_bytes() == (plain[0] / name).read_bytes()
    assert same_weights(output, plain[0])


def test_states_can_be_resumed_from_a_folder_by_its_name(
    plain: tuple[Path, Any], run: Run, tmp_path: Path
) -> None:
    assert run(tmp_path / "first", checkpointing_steps=10, max_train_steps=20) == 0
    states = tmp_path / "first" / "training_states"
    assert run(tmp_path / "second", resume_from_checkpoint=states) == 0
    assert json.loads((tmp_path / "second" / "history.json").read_text())[-1]["step"] == 32


def test_separate_training_goes_on_with_the_size_where_it_stopped(
    run: Run, kge: ModuleType, overall: Overall, tmp_path: Path, capsys: Any
) -> None:
    assert run(tmp_path / "whole", objective="separate") == 0
    output, sizes_trained = tmp_path / "out", []
    train = kge.train

    def stop_in_size_4(config: Any, task: Any, accelerator: Any, sizes: tuple[int, ...]) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if sizes == (4,):
                stop_at(kge, patch, 7)
            return train(config, task, accelerator, sizes)

    def note(config: Any, task: Any, accelerator: Any, sizes: tuple[int, ...]) -> Any:
        sizes_trained.append(sizes)
        return train(config, task, accelerator, sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kge, "train", stop_in_size_4)
        assert run(output, objective="separate") == 130
    assert (output / "size-2" / "config.json").exists()
    assert not (output / "size-4").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kge, "train", note)
        assert run(output, objective="separate", resume_from_checkpoint="latest") == 0
    assert sizes_trained == [(4,), (8,)]
    assert "size 2 is finished already" in capsys.readouterr().out
    for name in ("metrics.json", "history.json"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for size in SIZES:
        assert same_weights(output / f"size-{size}", tmp_path / "whole" / f"size-{size}")


def test_an_overwritten_folder_keeps_nothing_that_the_new_run_could_be_taken_for(
    run: Run, kge: ModuleType, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "out"
    assert run(output, objective="separate", checkpointing_steps=30) == 0
    assert run(output, overwrite_output_dir=True, checkpointing_steps=30) == 0
    (output / "notes").write_text("mine")
    assert not list(output.glob("size-*"))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(kge, patch, 5)
        assert run(output, overwrite_output_dir=True, objective="separate") == 130
    assert not {"config.json", "metrics.json", "sizes.png"} & files(output)
    states = {str(path.relative_to(output)) for path in (output / "training_states").rglob("step-*")}
    assert states == {"training_states/size-2/step-00000005"}
    assert (output / "notes").read_text() == "mine"


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


@pytest.mark.parametrize(
    "settings", [{"sizes": [2, 4]}, {"optimizer": "adam"}, {"lr_scheduler_type": "linear"}]
)
def test_resuming_with_other_flags_is_one_clear_line(
    run: Run, tmp_path: Path, capsys: Any, settings: dict[str, Any]
) -> None:
    assert run(tmp_path / "out", checkpointing_steps=16) == 0
    capsys.readouterr()
    assert run(tmp_path / "out", resume_from_checkpoint="latest", **settings) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "resume with the flags that it was started with" in error


# ---------------------------------------------------------------------------------------- two processes

BY_RANK = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
folder, stop = sys.argv.pop(1), int(sys.argv.pop(1))
import kge
from safetensors.torch import save_file

train, batches = kge.train, kge.training_batches

def keep_weights(config, task, accelerator, sizes):
    model, result = train(config, task, accelerator, sizes)
    path = f"{folder}/rank-{accelerator.process_index}-of-{accelerator.num_processes}.safetensors"
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
    return model, result

def interrupted(config, task, accelerator, start):
    for i, batch in enumerate(batches(config, task, accelerator, start), start + 1):
        if i == stop and accelerator.process_index == 1:  # the signal reaches one process only
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch

kge.train, kge.training_batches = keep_weights, interrupted
sys.exit(kge.main())
"""


@pytest.fixture
def by_rank(arguments: Arguments, tmp_path: Path) -> Callable[..., Any]:
    """Run the recipe on two processes, each of which keeps its weights in the folder's ranks/."""

    def start(output: Path, stop: int = 0, **settings: Any) -> Any:
        ranks = output.parent / f"{output.name}-ranks"
        ranks.mkdir(exist_ok=True)
        script = tmp_path / "by_rank.py"
        script.write_text(BY_RANK)
        given = arguments(output, per_device_train_batch_size=8, **settings)
        return in_processes(2, [str(script), str(RECIPE.parent), str(ranks), str(stop), *given])

    return start


def assert_equal_ranks(output: Path) -> None:
    paths = sorted(output.parent.glob(f"{output.name}-ranks/*"))
    assert [path.name for path in paths] == [f"rank-{rank}-of-2.safetensors" for rank in (0, 1)]
    first, second = map(load_file, paths)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_share_the_work_and_end_with_equal_weights(
    by_rank: Callable[..., Any], run: Run, tmp_path: Path
) -> None:
    process = by_rank(tmp_path / "out", objective="nested")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("2 process(es) on cpu") == 1
    assert files(tmp_path / "out") == OUTPUTS
    assert_equal_ranks(tmp_path / "out")
    # Two batches of 8 are the one batch of 16: only the order of sums differs. (MED's weights are normalised
    # over the batch of a process, so there the two are not the same objective.)
    assert run(tmp_path / "alone", objective="nested") == 0
    alone, shared = croppable.load(tmp_path / "alone"), croppable.load(tmp_path / "out")
    torch.testing.assert_close(shared.entity, alone.entity, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_two_processes_stop_together_and_resume_exactly(by_rank: Callable[..., Any], tmp_path: Path) -> None:
    settings = {"negatives": "uniform", "num_negatives": 5, "learnable_weights": True, "loss": "bce"}
    assert by_rank(tmp_path / "whole", **settings).returncode == 0
    stopped = by_rank(tmp_path / "out", stop=13, **settings)
    assert stopped.returncode != 0
    assert "interrupted after step 13" in stopped.stdout
    states = tmp_path / "out" / "training_states"
    assert [path.name for path in states.iterdir()] == ["step-00000013"]
    resumed = by_rank(tmp_path / "out", resume_from_checkpoint="latest", **settings)
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_ranks(tmp_path / "out")
    assert same_weights(tmp_path / "out", tmp_path / "whole")
    assert (tmp_path / "out" / "metrics.json").read_bytes() == (
        tmp_path / "whole" / "metrics.json"
    ).read_bytes()
