"""The link prediction recipe as its users run it: outputs, objectives, flags and presets."""

import dataclasses
import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from recipes_helpers import OUTPUTS, RECIPE, SIZES, Arguments, Overall, Run, files, in_processes, same_weights

import croppable
from croppable.core import named_tensors

METRICS = {"mrr", "hits@1", "hits@3", "hits@10", "mean_rank"}


# ------------------------------------------------------------------------------------- one run, as a user


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
        {"relations": "own", "trunk": 4, "mutual": 0, "w1": 0, "distill": 1, "distill_from": "ensemble",
         "size_weights": [0.5, 1, 2]},
    ],
    ids=["nested", "rotate-uniform-adam", "transe-shared-paper", "pairre-filtered", "simple-bf16",
         "own-reach", "rotate-own", "trunk"],
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


def test_a_size_trained_alone_has_the_scale_it_has_among_the_others(run: Run, tmp_path: Path) -> None:
    flags = {"model": "transe-l1", "calibration": "fixed", "margin": 3.0, "n3": 0, "max_train_steps": 1}
    assert run(tmp_path / "all", objective="separate", **flags) == 0
    assert run(tmp_path / "one", objective="nested", **flags) == 0
    scales = croppable.load(tmp_path / "one").log_scale
    alone = [croppable.load(tmp_path / "all" / f"size-{size}").log_scale for size in SIZES]
    torch.testing.assert_close(torch.cat(alone), scales)
    assert run(tmp_path / "plain", objective="separate", alone_scale="one", **flags) == 0
    assert croppable.load(tmp_path / "plain" / "size-2").log_scale.item() == pytest.approx(0)


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
