"""The GLUE recipe from end to end: every objective, two processes, a kill and a resume."""

import dataclasses
import importlib
import itertools
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
from hub_server import TOKEN, Hub
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPTextConfig,
    ElectraConfig,
    GPT2Config,
    RobertaConfig,
    RobertaTokenizerFast,
    T5Config,
)

from croppable.text.export import run_onnx

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
GOOD, BAD = ("good", "fine", "nice", "great"), ("bad", "poor", "dull", "awful")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "the", "a", "is", *GOOD, *BAD)
OF_OTHERS = {"nproc_per_node", "tasks", "seeds", "learning_rates"}  # flags in the guide, not of the recipe
ABSENT = ("onnxscript", "wandb")  # in the eyes of the test of bad flags
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
    AutoModel.from_config(BertConfig(**{**config.to_dict(), "intermediate_size": 130})).save_pretrained(
        root / "odd"
    )
    others = {
        "gpt2": GPT2Config(vocab_size=len(WORDS), n_embd=32, n_head=4, n_layer=1, n_positions=32),
        "t5": T5Config(vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4),
        "clip": CLIPTextConfig(vocab_size=len(WORDS), hidden_size=32, num_attention_heads=4,
                               intermediate_size=64, num_hidden_layers=1, max_position_embeddings=32),
    }  # fmt: skip
    for name, other in others.items():
        other.save_pretrained(root / name)
        AutoModel.from_config(other).save_pretrained(root / name)
    for name in ("odd", *others):
        BertTokenizerFast(vocab=str(vocabulary), model_max_length=32).save_pretrained(root / name)
    (root / "nolabel.tsv").write_text("sentence\nthe film\n")
    (root / "one.tsv").write_text("sentence\tlabel\nthe film\t1\n")
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


def test_accumulation_needs_more_batches_for_a_step(run: Run) -> None:
    flags = {"sizes": [4], "objective": "nested", "num_train_epochs": 1, "reorder": False}
    steps = {}
    for batch, parts in ((16, 1), (8, 2), (8, 1)):
        output = run(per_device_train_batch_size=batch, gradient_accumulation_steps=parts,
                     to=f"{batch}-{parts}", **flags)  # fmt: skip
        steps[batch, parts] = json.loads((output / "history.json").read_text())[-1]["step"]
    assert steps == {(16, 1): 4, (8, 2): 4, (8, 1): 8}  # 64 examples


def test_a_resumed_separate_run_skips_finished_sizes(
    run: Run, glue: ModuleType, workspace: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = {"objective": "separate", "max_train_steps": 6}
    whole = run(to="whole", **flags)
    train, trained = glue.train, []

    def stopped_in_the_largest(config: Any, data: Any, model: Any, part: Any, *rest: Any) -> Any:
        trained.append(part.sizes)
        result = train(config, data, model, part, *rest)
        return result._replace(stopped="interrupted") if trained == [(1,), (2,), (4,)] else result

    monkeypatch.setattr(glue, "train", stopped_in_the_largest)
    parts = whole.parent / "parts"
    assert glue.run(glue.parse_config(arguments(workspace, parts, **flags))) == 130
    assert not (parts / "metrics.json").exists()
    run(to="parts", resume_from_checkpoint="latest", **flags)
    assert trained == [(1,), (2,), (4,), (4,)]
    assert "size 2 is finished already" in capsys.readouterr().out
    for name in ("metrics.json", "history.json"):
        assert json.loads((parts / name).read_text()) == json.loads((whole / name).read_text())
    assert set(json.loads((parts / "costs.json").read_text())) == {"1", "2", "4"}
    card = (parts / "README.md").read_text()
    assert "| 1 | width-16 |" in card
    assert "at 3 widths, each by itself" in card
    run(to="parts", overwrite_output_dir=True, **flags)  # a fresh run takes nothing over
    assert trained[4:] == [(1,), (2,), (4,)]


def test_largest_first_then_all_sizes_from_the_reordered_largest(
    run: Run, glue: ModuleType, monkeypatch: pytest.MonkeyPatch
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
    output = run(max_train_steps=192, largest_first=0.25, distill=1.0)
    (first, _largest, second) = models
    assert (first, second) == (((4,), range(48)), ((1, 2, 4), range(48, 192)))
    history = json.loads((output / "history.json").read_text())
    steps = [(row["step"], row["sizes"]) for row in history]
    assert steps == [(48, [4]), *((step, [1, 2, 4]) for step in (98, 148, 192))]
    assert all(value > 0.9 for value in values(output).values())


@pytest.mark.parametrize("killed_in", [1, 2])
def test_largest_first_resumes_in_either_part(
    run: Run, glue: ModuleType, workspace: Path, monkeypatch: pytest.MonkeyPatch, killed_in: int
) -> None:
    flags = {"max_train_steps": 8, "largest_first": 0.5, "distill": 1.0, "checkpointing_steps": 2}
    whole = run(to="whole", **flags)
    fit, fits = glue.fit, []

    def killed(step: Any, batches: Any, **settings: Any) -> Any:
        def two(first: int) -> Iterator[Any]:
            yield from itertools.islice(batches(first), 2)
            raise KeyboardInterrupt

        fits.append(settings["num_steps"])
        return fit(step, two if len(fits) == killed_in else batches, **settings)

    parts = whole.parent / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(glue, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            glue.run(glue.parse_config(arguments(workspace, parts, **flags)))
    assert fits == [4] * killed_in
    run(to="parts", resume_from_checkpoint="latest", **flags)
    assert json.loads((parts / "history.json").read_text()) == json.loads(
        (whole / "history.json").read_text()
    )
    weights = [AutoModelForSequenceClassification.from_pretrained(o).state_dict() for o in (whole, parts)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_fresh_run_removes_what_an_earlier_one_left(run: Run) -> None:
    output = run(sizes=[1, 4], max_train_steps=2, checkpointing_steps=1)
    (output / "mine.txt").write_text("x")
    run(sizes=[2, 4], max_train_steps=2, overwrite_output_dir=True)
    assert {path.name for path in output.glob("width-*")} == {"width-32"}
    assert not (output / "training_states").exists()
    assert (output / "mine.txt").exists()


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
def test_other_encoders_on_pairs(run: Run, workspace: Path, tmp_path: Path, kind: str) -> None:
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
    output = run(model_name_or_path=folder, task_name="stsb", max_length=32, layers=[1], distill=1.0,
                 hidden_distill=0.1, num_train_epochs=3)  # fmt: skip
    assert set(values(output, "pearson")) == {1, 2, 4}
    small = AutoModelForSequenceClassification.from_pretrained(output / "width-16").eval()
    assert small.config.model_type == kind
    assert small.config.num_hidden_layers == 1
    texts = AutoTokenizer.from_pretrained(output / "width-16")(["the film"], ["good"], return_tensors="pt")
    assert small(**texts).logits.shape == (1, 1)


def test_odd_texts_are_kept_and_counted(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["NA\t1", "\t0", f"{'film ' * 40}\t0", "the film is good\t1"] * 4
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    output = run(task_name="sst2", data_dir=tmp_path, num_train_epochs=1)
    told = capsys.readouterr().out
    assert "16 examples" in told
    assert "4 longer than --max_length 16 were cut" in told
    assert "4 texts are empty" in told
    assert set(values(output)) == {1, 2, 4}


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


def test_distill_alone_is_a_weight_of_one(glue: ModuleType, workspace: Path, tmp_path: Path) -> None:
    given = arguments(workspace, tmp_path / "out", hidden_distill=0.5)
    assert glue.parse_config(given).distill == 0.0
    config = glue.parse_config([*given, "--distill"])
    assert (config.distill, config.hidden_distill) == (1.0, 0.5)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {"objective": "random", "num_train_epochs": 24},
        {"schedule": "pair", "learnable_weights": True, "distill": 1.0, "hidden_distill": 0.1},
        {"gradient_accumulation_steps": 2, "eval_epochs": 1, "early_stopping_patience": 4},
    ],
    ids=str,
)
def test_two_processes(workspace: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(RECIPES / "glue.py"),
    ]
    given = arguments(workspace, tmp_path / "out", per_device_train_batch_size=4, **flags)
    done = subprocess.run(
        [sys.executable, *command, *given], env=environment(), capture_output=True, text=True
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
