"""Serving forms of a crop: ONNX, and ONNX with int8 weights (extra ``onnx``).

A crop is a stock model, so everything that serves stock models serves it too; these two are checked here
because the exporter has failed silently before: the file is run on another shape and compared.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["ExportError", "export_int8", "export_onnx"]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE = 1e-4  # float32 sums in another order; 7e-7 was seen


class ExportError(RuntimeError):
    """The exported file does not compute what the model computes."""


class _Logits(nn.Module):
    """The model with positional inputs and one output."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def _example(model: PreTrainedModel, names: tuple[str, ...], batch: int, length: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0  # a padded row
    kinds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return tuple(kinds[name] for name in names)


def export_onnx(model: PreTrainedModel, path: str | Path) -> Path:
    """Write a crop as ONNX with free batch and length, and check it on a second shape.

    Args:
        model: A plain encoder on the CPU, for example a crop.
        path: The file to write.

    Returns:
        The file.

    Raises:
        ExportError: If onnxruntime computes other logits than the model.
    """
    path = Path(path)
    names = INPUTS if getattr(model.config, "type_vocab_size", 0) > 1 else INPUTS[:2]
    wrapped = _Logits(model, names)
    training = model.training
    wrapped.train(False)
    axes = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("length", max=model.config.max_position_embeddings),
    }
    try:
        with warnings.catch_warnings():  # the exporter warns of its own internals
            warnings.simplefilter("ignore")
            torch.onnx.export(
                wrapped,
                _example(model, names, 2, 9),
                str(path),
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=(tuple(axes for _ in names),),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        difference = _difference(wrapped, path, _example(model, names, 3, 17))
    finally:
        model.train(training)
    if not difference <= TOLERANCE:
        raise ExportError(f"{path} gives logits that differ by {difference:.2e} from the model's")
    return path


def _difference(model: _Logits, path: Path, inputs: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        expected = model(*inputs).numpy()
    return float(np.abs(run_onnx(path, dict(zip(model.names, inputs, strict=True))) - expected).max())


def run_onnx(path: str | Path, inputs: dict[str, Tensor]) -> Any:
    """Return the logits that onnxruntime computes on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]


def export_int8(onnx_path: str | Path, path: str | Path) -> Path:
    """Quantize an ONNX file to int8 weights; activations are quantized when it runs ("dynamic").

    Returns:
        The file written.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(onnx_path), str(path), weight_type=QuantType.QInt8)
    return Path(path)
