"""Tiny random encoders, a tiny tokenizer and tiny data, all made on the spot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizerFast,
    ElectraConfig,
    PreTrainedModel,
    RobertaConfig,
)

CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (BertConfig, {}),
    "roberta": (RobertaConfig, {"type_vocab_size": 1}),
    "electra": (ElectraConfig, {"embedding_size": 32}),
    "electra-projected": (ElectraConfig, {"embedding_size": 16}),
}
WORDS = ["good", "bad", "film", "plot", "a", "the", "very", "not", "na", "is", "."]


@pytest.fixture
def make_encoder() -> Callable[..., PreTrainedModel]:
    """A stock model of 4 heads of 8, with every parameter random (a fresh one has zero biases)."""

    def make(kind: str = "bert", *, num_labels: int = 3, seed: int = 0, **changes: Any) -> PreTrainedModel:
        config_class, special = CONFIGS[kind]
        settings = {
            "vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
            "num_hidden_layers": 2, "max_position_embeddings": 40, "num_labels": num_labels,
        }  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = config_class(**{**settings, **special, **changes})
            model = AutoModelForSequenceClassification.from_config(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture(params=list(CONFIGS))
def encoder(request: pytest.FixtureRequest, make_encoder: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Every tested architecture in turn."""
    return make_encoder(request.param)


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Three rows of token ids, one of them padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, 4:] = 0
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def tokenizer(tmp_path: Path) -> BertTokenizerFast:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    path = tmp_path / "tiny-vocab.txt"
    path.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return BertTokenizerFast(vocab=str(path), model_max_length=40)
