"""The GLUE recipe from end to end: every objective, encoders, odd texts, publishing, and its guide."""

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from glue_runs import WORDS, Run, arguments, environment, same_weights, values
from hub_server import TOKEN, Hub
from recipes_helpers import RECIPES
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ElectraConfig,
    RobertaConfig,
    RobertaTokenizerFast,
)

from croppable.text.export import run_onnx

pytest_plugins = ["glue_fixtures"]

OF_OTHERS = {"nproc_per_node", "tasks", "seeds", "learning_rates"}  # flags in the guide, not of the recipe


def test_med_learns_at_every_size_and_writes_plain_models(run_glue: Run) -> None:
    output = run_glue(num_train_epochs=24)
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
def test_baselines_learn_too(run_glue: Run, objective: str) -> None:
    output = run_glue(objective=objective, num_train_epochs=24 if objective == "random" else 12)
    assert set(values(output)) == {1, 2, 4}
    assert values(output)[4] > 0.9
    assert AutoModelForSequenceClassification.from_pretrained(output / "width-16").config.hidden_size == 16


def test_regression_with_every_loss(run_glue: Run) -> None:
    teacher = run_glue(task_name="stsb", sizes=[4], objective="nested", to="teacher")
    output = run_glue(
        task_name="stsb", distill=1.0, hidden_distill=0.1, teacher_name_or_path=teacher, num_train_epochs=24
    )
    assert values(output, "pearson")[4] > 0.9
    assert set(values(output, "spearmanr")) == {1, 2, 4}
    assert AutoModelForSequenceClassification.from_pretrained(output).config.problem_type == "regression"


def test_one_size_is_plain_fine_tuning_whatever_the_objective(run_glue: Run) -> None:
    plain = run_glue(sizes=[4], objective="separate", to="separate")
    nested = run_glue(sizes=[4], objective="nested", to="nested")
    assert same_weights(plain, nested)


def test_early_stopping_keeps_the_best(run_glue: Run) -> None:
    output = run_glue(num_train_epochs=12, eval_epochs=1, early_stopping_patience=1)
    history = json.loads((output / "history.json").read_text())
    seen = [row["score"] for row in history if "score" in row]
    assert len(seen) < 12
    assert max(seen) == pytest.approx(sum(values(output).values()) / 3)


def test_accumulation_needs_more_batches_for_a_step(run_glue: Run) -> None:
    flags = {"sizes": [4], "objective": "nested", "num_train_epochs": 1, "reorder": False}
    steps = {}
    for batch, parts in ((16, 1), (8, 2), (8, 1)):
        output = run_glue(per_device_train_batch_size=batch, gradient_accumulation_steps=parts,
                     to=f"{batch}-{parts}", **flags)  # fmt: skip
        steps[batch, parts] = json.loads((output / "history.json").read_text())[-1]["step"]
    assert steps == {(16, 1): 4, (8, 2): 4, (8, 1): 8}  # 64 examples


def test_largest_first_then_all_sizes_from_the_reordered_largest(
    run_glue: Run, glue: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, by_importance, train = [], glue.by_importance, glue.train

    def watched(config: Any, data: Any, model: Any, device: Any) -> Any:
        models.append(model)
        return by_importance(config, data, model, device)

    def trained(config: Any, data: Any, model: Any, part: Any, *rest: Any) -> Any:
        models.append((part.sizes, part.steps))
        return train(config, data, model, part, *rest)

    monkeypatch.setattr(glue, "by_importance", watched)
    monkeypatch.setattr(glue, "train", trained)
    output = run_glue(max_train_steps=64, largest_first=0.5, distill=1.0, latency_repeats=0)
    (first, _largest, second) = models
    assert (first, second) == (((4,), range(32)), ((1, 2, 4), range(32, 64)))
    history = json.loads((output / "history.json").read_text())
    steps = [(row["step"], row["sizes"]) for row in history]
    assert steps == [(32, [4]), (64, [1, 2, 4])]
    assert values(output)[4] > 0.9


def byte_tokenizer(folder: Path) -> Any:
    """A tokenizer as RoBERTa's: byte-level, and without token types."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([" ".join(WORDS)], vocab_size=300,
                                special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])  # fmt: skip
    trained.save_model(str(folder))
    return RobertaTokenizerFast(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=32
    )


@pytest.mark.parametrize("kind", ["roberta", "electra"])
def test_other_encoders_on_pairs(run_glue: Run, workspace: Path, tmp_path: Path, kind: str) -> None:
    shape = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2,
             "initializer_range": 0.2}  # fmt: skip
    folder = tmp_path / kind
    folder.mkdir()
    if kind == "roberta":
        tokenizer = byte_tokenizer(folder)
        config: Any = RobertaConfig(**shape, vocab_size=len(tokenizer), max_position_embeddings=34,
                                    type_vocab_size=1, pad_token_id=1)  # fmt: skip
    else:
        tokenizer = AutoTokenizer.from_pretrained(workspace / "model")
        config = ElectraConfig(**shape, vocab_size=len(WORDS), embedding_size=32, max_position_embeddings=32)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    output = run_glue(model_name_or_path=folder, task_name="stsb", max_length=32, layers=[1], distill=1.0,
                 hidden_distill=0.1, num_train_epochs=3)  # fmt: skip
    assert set(values(output, "pearson")) == {1, 2, 4}
    small = AutoModelForSequenceClassification.from_pretrained(output / "width-16").eval()
    assert small.config.model_type == kind
    assert small.config.num_hidden_layers == 1
    texts = AutoTokenizer.from_pretrained(output / "width-16")(["the film"], ["good"], return_tensors="pt")
    assert small(**texts).logits.shape == (1, 1)


def test_odd_texts_are_kept_and_counted(
    run_glue: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["NA\t1", "\t0", f"{'film ' * 40}\t0", "the film is good\t1"] * 4
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    output = run_glue(task_name="sst2", data_dir=tmp_path, num_train_epochs=1)
    told = capsys.readouterr().out
    assert "16 examples" in told
    assert "4 longer than --max_length 16 were cut" in told
    assert "4 texts are empty" in told
    assert set(values(output)) == {1, 2, 4}


def test_distill_alone_is_a_weight_of_one(glue: ModuleType, workspace: Path, tmp_path: Path) -> None:
    given = arguments(workspace, tmp_path / "out", hidden_distill=0.5)
    assert glue.parse_config(given).distill == 0.0
    config = glue.parse_config([*given, "--distill"])
    assert (config.distill, config.hidden_distill) == (1.0, 0.5)


LOAD_AND_ANSWER = """
import json, sys
sys.modules["croppable"] = None  # importing it fails
from transformers import AutoModelForSequenceClassification, AutoTokenizer
where = {"pretrained_model_name_or_path": "me/tiny", "subfolder": "width-16"}
model, info = AutoModelForSequenceClassification.from_pretrained(**where, output_loading_info=True)
texts = AutoTokenizer.from_pretrained(**where)(["the film is good"], return_tensors="pt")
wrong = [key for name, keys in info.items() if name.endswith("keys") for key in keys]
print(json.dumps([wrong, model(**texts).logits.tolist()]))
"""


@pytest.mark.slow
def test_push_and_export(workspace: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = arguments(workspace, output, hub_model_id="me/tiny", num_train_epochs=2, sizes=[1, 4])
    with Hub() as hub:
        online = {
            **{key: value for key, value in environment().items() if not key.startswith("HF_")},
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost",
        }  # fmt: skip
        command = [sys.executable, str(RECIPES / "glue.py"), *flags, "--push_to_hub", "--export_onnx"]
        done = subprocess.run(command, env=online, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        loaded = subprocess.run(
            [sys.executable, "-c", LOAD_AND_ANSWER], env=online, capture_output=True, text=True
        )
        assert loaded.returncode == 0, loaded.stderr
        repository = hub.repositories["me/tiny"]
        files = repository.trees[repository.branches["main"]]
    assert set(files) >= {"README.md", "metrics.json", "width-16/model_int8.onnx", "width-16/tokenizer.json"}
    assert 'subfolder="width-16"' in files["README.md"].decode()
    wrong, logits = json.loads(loaded.stdout)
    assert wrong == []
    tokens = AutoTokenizer.from_pretrained(output)(["the film is good"], return_tensors="pt")
    served = run_onnx(output / "width-16" / "model.onnx", dict(tokens))
    torch.testing.assert_close(torch.tensor(served), torch.tensor(logits), atol=1e-4, rtol=0)


def test_the_guide_names_flags_that_exist() -> None:
    guide = (RECIPES.parent / "docs" / "bert.md").read_text()
    named = set(re.findall(r"--([a-z]\w+)", guide)) - OF_OTHERS
    sys.path.insert(0, str(RECIPES))
    config = importlib.import_module("glue_config").Config
    sys.path.remove(str(RECIPES))
    assert len(named) > 15
    assert named <= {field.name for field in dataclasses.fields(config)}
