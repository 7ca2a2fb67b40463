"""A stock encoder keeps the laws of croppable models, and its crops are stock models."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

import croppable
from croppable.checks import CHECKS
from croppable.core import Nested
from croppable.text.encoder import (
    croppable_encoder,
    load_encoder,
    resized_config,
    save_crops,
    trained_sizes,
    with_layers,
)

Make = Callable[..., PreTrainedModel]
Inputs = dict[str, torch.Tensor]
SIZES = (1, 2, 4)
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 1}


@pytest.mark.parametrize("law", CHECKS)
def test_laws(encoder: PreTrainedModel, inputs: Inputs, law: str) -> None:
    CHECKS[law](copy.deepcopy(croppable_encoder(encoder)), inputs, SIZES)


@pytest.mark.parametrize(
    "config", [AlbertConfig(**SMALL, embedding_size=16), DebertaV2Config(**SMALL)], ids=["albert", "deberta"]
)
def test_the_rule_admits_other_encoders(config: PreTrainedConfig, inputs: Inputs) -> None:
    model = croppable_encoder(AutoModelForSequenceClassification.from_config(config).eval())
    nested = Nested(model, SIZES)(**inputs).logits
    for i, size in enumerate(SIZES):
        torch.testing.assert_close(croppable.crop(model, size)(**inputs).logits, nested[i])


def test_a_crop_has_exactly_the_stock_type_and_the_given_model_is_left_alone(make_encoder: Make) -> None:
    model = make_encoder("bert")
    adapted = croppable_encoder(model)
    small = croppable.crop(adapted, 2)
    assert type(small) is type(adapted) is BertForSequenceClassification
    assert (small.config.hidden_size, small.config.intermediate_size) == (16, 32)
    assert not hasattr(model, "size")
    assert adapted.classifier.weight is model.classifier.weight


def test_a_copy_is_croppable_on_its_own(make_encoder: Make) -> None:
    model = croppable_encoder(make_encoder("bert"))
    twin = copy.deepcopy(model)
    twin.config.hidden_dropout_prob = 0.5
    assert croppable.crop(twin, 2).config.hidden_dropout_prob == 0.5
    assert croppable.crop(model, 2).config.hidden_dropout_prob == 0.1


def test_widths_are_in_proportion() -> None:
    config = BertConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072)
    small = resized_config(config, 3)
    assert (small.hidden_size, small.num_attention_heads, small.intermediate_size) == (192, 3, 768)
    assert config.hidden_size == 768


def test_a_size_that_gives_no_whole_width_is_refused_with_the_sizes_that_do() -> None:
    config = BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=66)
    with pytest.raises(ValueError, match="intermediate_size 66 of 4 heads is no whole number at 1 heads: "
                                         "choose sizes that are multiples of 2"):  # fmt: skip
        resized_config(config, 1)
    assert resized_config(config, 2).intermediate_size == 33


def test_a_hidden_size_that_the_heads_do_not_divide_is_refused() -> None:
    config = BertConfig(hidden_size=34, num_attention_heads=4)
    with pytest.raises(ValueError, match="hidden_size 34 is not a multiple of the 4 heads"):
        resized_config(config, 2)


def test_a_size_above_the_models_is_refused(make_encoder: Make) -> None:
    with pytest.raises(ValueError, match="between 1 and the model's own 4, got 6"):
        croppable.crop(croppable_encoder(make_encoder("bert")), 6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(n_embd=32, n_head=4, n_layer=1), "its config has no intermediate_size"),
        (
            DistilBertConfig(dim=32, n_heads=4, n_layers=1, hidden_dim=64),
            "its config has no intermediate_size",
        ),
        (BartConfig(d_model=32, encoder_layers=1, decoder_layers=1), "its config has no intermediate_size"),
        (LlamaConfig(**SMALL), "no encoder but a decoder"),
        (BertConfig(**SMALL, is_decoder=True), "no encoder but a decoder"),
    ],
    ids=["gpt2", "distilbert", "bart", "llama", "bert-decoder"],
)
def test_models_that_cannot_be_cropped_are_refused(config: PreTrainedConfig, message: str) -> None:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(TypeError, match=message):
        croppable_encoder(model)


def test_a_fused_projection_is_refused() -> None:
    model = AutoModelForSequenceClassification.from_config(
        ModernBertConfig(**SMALL, vocab_size=60, pad_token_id=0)
    )
    with pytest.raises(ValueError, match=r"Wqkv.weight' has shape \(96, 32\) at 4 heads and \(24, 8\) at 1"):
        croppable_encoder(model)


def test_other_modules_are_refused() -> None:
    with pytest.raises(
        TypeError, match="expected a Hugging Face model for sequence classification, got Linear"
    ):
        croppable_encoder(nn.Linear(2, 2))  # type: ignore[type-var]
    with pytest.raises(TypeError, match="got BertModel: load it with AutoModelForSequenceClassification"):
        croppable_encoder(BertModel(BertConfig(**SMALL)))


def test_saved_crops_load_where_croppable_cannot_be_imported(
    encoder: PreTrainedModel, inputs: Inputs, tmp_path: Path
) -> None:
    model = croppable_encoder(encoder)
    model.config.id2label = {0: "yes", 1: "no", 2: "maybe"}
    model.config.problem_type = "single_label_classification"
    folders = save_crops(model, SIZES, tmp_path)
    assert [str(f.relative_to(tmp_path)) for f in folders.values()] == ["width-8", "width-16", "."]
    nested = Nested(model, SIZES)(**inputs).logits.detach()
    save_file(inputs, tmp_path / "inputs.safetensors")
    script = f"""
import sys, json
sys.modules["croppable"] = None  # importing it fails
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
inputs = load_file({str(tmp_path / "inputs.safetensors")!r})
for folder in {[str(folder) for folder in folders.values()]}:
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    info = {{key: sorted(map(str, value)) for key, value in info.items() if key.endswith("keys")}}
    print(json.dumps([info, model.eval()(**inputs).logits.tolist(), model.config.id2label[2],
                      model.config.problem_type, model.config.architectures]))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    for i, line in enumerate(out.splitlines()):
        info, logits, label, problem, architectures = json.loads(line)
        assert not any(info.values()), info
        assert torch.equal(torch.tensor(logits), nested[i])
        assert (label, problem) == ("maybe", "single_label_classification")
        assert architectures == [type(encoder).__name__]


def test_a_saved_crop_is_no_larger_than_a_stock_model_of_its_config(
    make_encoder: Make, tmp_path: Path
) -> None:
    folders = save_crops(croppable_encoder(make_encoder("bert")), SIZES, tmp_path / "crops")
    for size, folder in folders.items():
        stock = BertForSequenceClassification(BertConfig.from_pretrained(folder))
        stock.save_pretrained(tmp_path / f"stock-{size}")
        ours, theirs = (
            (f / "model.safetensors").stat().st_size for f in (folder, tmp_path / f"stock-{size}")
        )
        assert ours <= 1.01 * theirs


def test_sizes_survive_saving_loading_and_cropping(make_encoder: Make, tmp_path: Path) -> None:
    model = croppable_encoder(make_encoder("bert"))
    save_crops(model, SIZES, tmp_path)
    loaded = load_encoder(tmp_path)
    assert trained_sizes(loaded.config) == SIZES
    assert trained_sizes(load_encoder(tmp_path / "width-16").config) == (1, 2)
    small = load_encoder(tmp_path, size=2)
    assert trained_sizes(small.config) == (1, 2)
    assert torch.equal(small.classifier.weight, model.classifier.weight[:, :16])


def test_dtype_travels_along(make_encoder: Make, tmp_path: Path) -> None:
    save_crops(croppable_encoder(make_encoder("bert").to(torch.bfloat16)), SIZES, tmp_path)
    assert load_encoder(tmp_path / "width-8").dtype == torch.bfloat16


def test_a_strange_croppable_entry_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be an object with a list 'sizes', got \{'sizes': 'all'\}"):
        trained_sizes(BertConfig(croppable={"sizes": "all"}))
    with pytest.raises(ValueError, match=r"end at the model's own size 12, got \(3, 24\)"):
        trained_sizes(BertConfig(croppable={"sizes": [3, 24]}))


def test_fewer_layers_is_the_model_without_the_others(encoder: PreTrainedModel, inputs: Inputs) -> None:
    shallow = with_layers(encoder, [1])
    assert type(shallow) is type(encoder)
    assert shallow.config.num_hidden_layers == 1
    expected = copy.deepcopy(encoder)
    base = getattr(expected, expected.base_model_prefix)
    base.encoder.layer = nn.ModuleList([base.encoder.layer[1]])
    torch.testing.assert_close(shallow(**inputs).logits, expected(**inputs).logits)
    assert encoder.config.num_hidden_layers == 2
    croppable.crop(croppable_encoder(shallow), 2)


@pytest.mark.parametrize("layers", [[], [1, 0], [0, 2], [-1], [0, 0]])
def test_wrong_layers_are_refused(make_encoder: Make, layers: list[int]) -> None:
    with pytest.raises(ValueError, match="layers must be ascending indices from 0 to 1"):
        with_layers(make_encoder("bert"), layers)
