"""The GLUE recipe from end to end: every objective, two processes, a kill and a resume."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BertTokenizerFast,
)

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
GOOD, BAD = ("good", "fine", "nice", "great"), ("bad", "poor", "dull", "awful")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "the", "a", "is", *GOOD, *BAD)
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def glue() -> Iterator[ModuleType]:
    sys.path.insert(0, str(RECIPES))
    yield importlib.import_module("glue")
    sys.path.remove(str(RECIPES))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained encoder, and sentences whose label is in one word."""
    root = tmp_path_factory.mktemp("glue")
    vocabulary = root / "words.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=64, num_attention_heads=4, intermediate_size=128,
                        num_hidden_layers=1, max_position_embeddings=32, initializer_range=0.2)  # fmt: skip
    BertModel(config).save_pretrained(root / "model")
    BertTokenizerFast(vocab=str(vocabulary), model_max_length=32).save_pretrained(root / "model")
    lines = [
        f"the film is {'a ' * (i % 3)}{word}\t{int(word in GOOD)}" for i in range(8) for word in GOOD + BAD
    ]
    pairs = [f"{line.rsplit(chr(9), 1)[0]}\tfilm\t{5.0 * int(line[-1])}" for line in lines]
    for name, header, rows in (
        ("sst2", "sentence\tlabel", lines),
        ("stsb", "sentence1\tsentence2\tlabel", pairs),
    ):
        for split in ("train", "validation"):
            path = root / name / f"{split}.tsv"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join([header, *rows]) + "\n")
    return root


def arguments(workspace: Path, output: Path, **flags: Any) -> list[str]:
    settings = {
        "model_name_or_path": workspace / "model", "task_name": "sst2", "data_dir": workspace,
        "output_dir": output, "sizes": [1, 2, 4], "max_length": 16, "per_device_train_batch_size": 8,
        "learning_rate": 0.003, "num_train_epochs": 12, "latency_repeats": 1, "reorder_examples": 16, **flags,
    }  # fmt: skip
    out = []
    for name, value in settings.items():
        if value is not None:
            out += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return out


@pytest.fixture
def run(glue: ModuleType, workspace: Path, tmp_path: Path) -> Run:
    def start(**flags: Any) -> Path:
        output = tmp_path / flags.pop("to", "out")
        assert glue.run(glue.parse_config(arguments(workspace, output, **flags))) == 0
        return output

    return start


def values(output: Path, metric: str = "accuracy") -> dict[int, float]:
    rows = json.loads((output / "metrics.json").read_text())
    return {row["size"]: row["value"] for row in rows if row["metric"] == metric}


def test_med_learns_at_every_size_and_writes_plain_models(run: Run) -> None:
    output = run(num_train_epochs=24)
    assert all(value > 0.9 for value in values(output).values())
    for folder, hidden in (("width-16", 16), ("width-32", 32), (".", 64)):
        model = AutoModelForSequenceClassification.from_pretrained(output / folder)
        assert model.config.hidden_size == hidden
        assert model.config.id2label == {0: "negative", 1: "positive"}
        assert model.config.problem_type == "single_label_classification"
        assert (output / folder / "tokenizer.json").is_file()
    costs = json.loads((output / "costs.json").read_text())
    assert set(costs["1"]) == {"hidden", "parameters", "MB", "MFLOPs", "ms, batch 1", "ms, batch 32"}
    card = (output / "README.md").read_text()
    assert "| 1 | width-16 |" in card
    assert str(output.parent) not in card
    assert (output / "sizes.png").stat().st_size > 1000
    assert (output / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("objective", ["nested", "random", "separate"])
def test_baselines_learn_too(run: Run, objective: str) -> None:
    output = run(objective=objective, num_train_epochs=24 if objective == "random" else 12)
    assert set(values(output)) == {1, 2, 4}
    assert values(output)[4] > 0.9
    assert AutoModelForSequenceClassification.from_pretrained(output / "width-16").config.hidden_size == 16


def test_regression_with_every_loss(run: Run) -> None:
    teacher = run(task_name="stsb", sizes=[4], objective="nested", to="teacher")
    output = run(
        task_name="stsb", distill=1.0, hidden_distill=0.1, teacher_name_or_path=teacher, num_train_epochs=24
    )
    assert values(output, "pearson")[4] > 0.9
    assert set(values(output, "spearmanr")) == {1, 2, 4}
    assert AutoModelForSequenceClassification.from_pretrained(output).config.problem_type == "regression"


def test_one_size_is_plain_fine_tuning_whatever_the_objective(run: Run) -> None:
    plain = run(sizes=[4], objective="separate", to="separate")
    nested = run(sizes=[4], objective="nested", to="nested")
    weights = [AutoModelForSequenceClassification.from_pretrained(o).state_dict() for o in (plain, nested)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_early_stopping_keeps_the_best(run: Run) -> None:
    output = run(num_train_epochs=12, eval_epochs=1, early_stopping_patience=1)
    history = json.loads((output / "history.json").read_text())
    seen = [row["score"] for row in history if "score" in row]
    assert len(seen) < 12
    assert max(seen) == pytest.approx(sum(values(output).values()) / 3)


def test_accumulation_is_a_larger_batch(run: Run) -> None:
    flags = {
        "sizes": [4],
        "objective": "nested",
        "max_train_steps": 4,
        "num_train_epochs": 1,
        "reorder": False,
    }
    whole = run(per_device_train_batch_size=16, to="whole", **flags)
    parts = run(per_device_train_batch_size=8, gradient_accumulation_steps=2, to="parts", **flags)
    steps = [json.loads((o / "history.json").read_text())[-1]["step"] for o in (whole, parts)]
    assert steps == [4, 4]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sizes": [2, 1]}, "--sizes must be positive and strictly increasing"),
        ({"sizes": [1, 8]}, "end at the model's own size 4"),
        ({"max_length": 64}, "max_length must be from 3 to the model's 32 positions"),
        ({"task_name": "rte"}, "no train split of rte in"),
        ({"push_to_hub": True}, "--push_to_hub needs --hub_model_id"),
        ({"objective": "random", "distill": 1.0}, "cannot distill from the largest"),
        ({"early_stopping_patience": 2}, "--early_stopping_patience needs --eval_epochs"),
        (
            {"teacher_name_or_path": "model"},
            "the teacher model is not fine-tuned: it lacks ['classifier.bias'",
        ),
        (
            {"model_name_or_path": "nowhere"},
            "cannot load the model nowhere: --model_name_or_path must be a folder",
        ),
    ],
)
def test_bad_flags_are_one_line(
    glue: ModuleType, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], flags: dict[str, Any], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", ["glue.py", *arguments(workspace, tmp_path / "out", **flags)])
    assert glue.main() == 2
    error = capsys.readouterr().err
    assert message in error


def test_a_model_or_teacher_of_another_task_is_refused(run: Run) -> None:
    classifier = run(sizes=[4], num_train_epochs=1, to="classifier")
    with pytest.raises(
        ValueError, match="classifies into 2, but stsb needs 1: pass --ignore_mismatched_sizes"
    ):
        run(task_name="stsb", model_name_or_path=classifier)
    with pytest.raises(ValueError, match="has 2 outputs, but stsb needs 1"):
        run(task_name="stsb", teacher_name_or_path=classifier)
    run(task_name="stsb", model_name_or_path=classifier, ignore_mismatched_sizes=True, num_train_epochs=1)


def test_an_occupied_folder_is_refused(glue: ModuleType, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty: pass --overwrite_output_dir"):
        glue.parse_config(arguments(workspace, tmp_path))


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_two_processes(workspace: Path, tmp_path: Path) -> None:
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(RECIPES / "glue.py"),
    ]
    flags = arguments(
        workspace, tmp_path / "out", per_device_train_batch_size=4, objective="random", num_train_epochs=24
    )
    done = subprocess.run(
        [sys.executable, *command, *flags], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout
    assert values(tmp_path / "out")[4] > 0.9


@pytest.mark.slow
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(run: Run) -> None:
    whole = run(to="whole", max_train_steps=12)
    run(to="parts", max_train_steps=12, checkpointing_steps=6, num_train_epochs=1)
    newest = sorted((whole.parent / "parts" / "training_states").iterdir())[-1]
    for path in sorted(newest.iterdir()):
        path.unlink()
    newest.rmdir()  # as if killed between step 6 and the end
    parts = run(to="parts", max_train_steps=12, resume_from_checkpoint="latest")
    weights = [AutoModelForSequenceClassification.from_pretrained(o).state_dict() for o in (whole, parts)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_guide_names_flags_that_exist() -> None:
    guide = (RECIPES.parent / "docs" / "bert.md").read_text()
    named = set(re.findall(r"--([a-z]\w+)", guide)) - {"nproc_per_node"}
    sys.path.insert(0, str(RECIPES))
    config = importlib.import_module("glue_config").Config
    sys.path.remove(str(RECIPES))
    assert len(named) > 15
    assert named <= {field.name for field in dataclasses.fields(config)}
