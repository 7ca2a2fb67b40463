"""Fixtures of the GLUE recipe's tests, a pytest plugin: the recipe, a workspace, and a run in it."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from glue_runs import BAD, GOOD, WORDS, Run, arguments
from recipes_helpers import RECIPES
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPTextConfig,
    GPT2Config,
    T5Config,
)


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


@pytest.fixture
def run_glue(glue: ModuleType, workspace: Path, tmp_path: Path) -> Run:
    def start(**flags: Any) -> Path:
        output = tmp_path / flags.pop("to", "out")
        assert glue.run(glue.parse_config(arguments(workspace, output, **flags))) == 0
        return output

    return start
