"""An exported crop computes what the crop computes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from croppable.core import crop
from croppable.text import export
from croppable.text.encoder import croppable_encoder
from croppable.text.export import ExportError, export_int8, export_onnx

pytest.importorskip("onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra-projected"])
def test_onnx_and_int8(kind: str, make_encoder: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = crop(croppable_encoder(make_encoder(kind).train()), 2)
    path = export_onnx(model, tmp_path / "model.onnx")
    assert model.training
    model.eval()
    ids = torch.randint(5, 60, (5, 11))
    inputs = {
        "input_ids": ids,
        "attention_mask": (torch.arange(11) < torch.tensor([[11], [3], [5], [7], [9]])).long(),
    }
    given = {**inputs, "token_type_ids": torch.zeros_like(ids)} if kind != "roberta" else inputs
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    assert np.abs(export.run_onnx(path, given) - expected).max() < 1e-4
    small = export_int8(path, tmp_path / "int8.onnx")
    assert np.abs(export.run_onnx(small, given) - expected).max() < 0.3 * np.abs(expected).max()


def test_a_wrong_file_is_refused(
    make_encoder: Callable[..., PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(export, "run_onnx", lambda _path, inputs: np.zeros((len(inputs["input_ids"]), 3)))
    with pytest.raises(ExportError, match="gives logits that differ by"):
        export_onnx(make_encoder("bert"), tmp_path / "model.onnx")
