"""The GLUE recipe on bad input: flags, files, models and folders are refused in one line."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from glue_runs import Run, arguments

pytest_plugins = ["glue_fixtures"]

ABSENT = ("onnxscript", "wandb")  # in the eyes of the test of bad flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sizes": [2, 1]}, "--sizes must be positive and strictly increasing"),
        ({"sizes": [1, 8]}, "end at the model's own size 4"),
        ({"sizes": [16, 32, 64]}, "--sizes counts attention heads, here 4 of 16 units: "),
        ({"model_name_or_path": "odd"}, "intermediate_size 130 of 4 heads is no whole number at 1 heads"),
        (
            {"model_name_or_path": "gpt2"},
            "GPT2ForSequenceClassification cannot be cropped: its config has no",
        ),
        ({"model_name_or_path": "t5"}, "'t5' is no encoder such as BERT: its config has no max_position"),
        (
            {"model_name_or_path": "clip"},
            "clip is no encoder: 'clip_text_model' models cannot classify texts",
        ),
        ({"model_name_or_path": "sst2"}, "cannot load the model sst2: --model_name_or_path must be a folder"),
        ({"train_file": "nolabel.tsv", "validation_file": "nolabel.tsv"}, "has no column 'label'"),
        ({"train_file": "one.tsv", "validation_file": "sst2/train.tsv"}, "the label sets differ: sst2/valid"),
        ({"data_dir": None}, "cannot load nyu-mll/glue (sst2) from the Hub: pass --data_dir DIR with"),
        ({"layers": [0, 5]}, "layers must be ascending indices from 0 to 0, got [0, 5]"),
        ({"size_weights": [1, 2]}, "size_weights must have one value per size"),
        ({"max_eval_samples": 0, "warmup_ratio": 3}, "--max_eval_samples must be positive, got 0; --warmup"),
        ({"eval_epochs": -1}, "--eval_epochs must not be negative, got -1"),
        ({"checkpoints_total_limit": 1}, "--checkpoints_total_limit must be at least 2, got 1"),
        ({"resume_from_checkpoint": "latest"}, "no complete training state in"),
        ({"report_to": "wandb", "export_onnx": True}, "needed for these flags: onnxscript, wandb"),
        ({"max_length": 64}, "max_length must be from 3 to the model's 32 positions"),
        ({"task_name": "rte"}, "no train split of rte in"),
        ({"push_to_hub": True}, "--push_to_hub needs --hub_model_id"),
        ({"objective": "random", "distill": 1.0}, "cannot distill from the largest"),
        ({"largest_first": 1}, "--largest_first must be from 0 to below 1, got 1.0"),
        ({"largest_first": 0.5, "objective": "separate"}, "there is no --largest_first"),
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
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("glue_config.find_spec", lambda name: None if name in ABSENT else name)
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", ["glue.py", *arguments(workspace, tmp_path / "out", **flags)])
    assert glue.main() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_model_or_teacher_of_another_task_is_refused(run_glue: Run) -> None:
    classifier = run_glue(sizes=[4], num_train_epochs=1, to="classifier")
    with pytest.raises(
        ValueError, match="classifies into 2, but stsb needs 1: pass --ignore_mismatched_sizes"
    ):
        run_glue(task_name="stsb", model_name_or_path=classifier)
    with pytest.raises(ValueError, match="has 2 outputs, but stsb needs 1"):
        run_glue(task_name="stsb", teacher_name_or_path=classifier)
    run_glue(
        task_name="stsb", model_name_or_path=classifier, ignore_mismatched_sizes=True, num_train_epochs=1
    )


def test_an_occupied_folder_is_refused(glue: ModuleType, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty: pass --overwrite_output_dir"):
        glue.parse_config(arguments(workspace, tmp_path))
