"""Outputs and metrics of a text model at all its sizes, on one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from croppable.core import Nested
from croppable.text.batching import Encoded, collate, ordered_batches
from croppable.text.glue import Task
from croppable.text.metrics import GlueMetric

__all__ = ["metric_rows", "predict", "scores"]


@torch.no_grad()
def predict(nested: Nested, encoded: Encoded, *, batch_size: int = 64, accelerator: Any = None) -> Tensor:
    """Return the outputs of every example at every size, in the order of the examples.

    Args:
        nested: The model at its sizes; evaluated in eval mode and put back as it was.
        encoded: The examples.
        batch_size: Rows at once.
        accelerator: Shares the batches among its processes; every process gets all outputs.

    Returns:
        ``[K, N, C]``, float32, on the CPU.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    device = next(nested.parameters()).device
    outputs: Tensor | None = None
    training = nested.training
    nested.train(False)
    for rows in ordered_batches(encoded, batch_size)[rank::world]:
        batch = collate(encoded, rows, device)
        batch.pop("labels")
        batch.pop("teacher", None)
        logits_KBC = nested(**batch).logits.float()
        if outputs is None:
            shape = (logits_KBC.shape[0], len(encoded), logits_KBC.shape[-1])
            outputs = torch.zeros(shape, device=device)
        outputs[:, torch.tensor(rows, device=device)] = logits_KBC
    nested.train(training)
    if outputs is None:  # fewer batches than processes
        classes = nested.model.config.num_labels  # type: ignore[union-attr]
        outputs = torch.zeros((len(nested.sizes), len(encoded), int(classes)), device=device)  # type: ignore[arg-type]
    if world > 1:
        outputs = accelerator.reduce(outputs, reduction="sum")
    return outputs.cpu()


def scores(outputs_KNC: Tensor, labels: Tensor, task: Task) -> list[dict[str, float]]:
    """Return the task's metrics, one dict per size."""
    metric = GlueMetric(task.metric)
    guesses_KN = outputs_KNC.squeeze(-1) if task.regression else outputs_KNC.argmax(-1)
    return [metric.compute(predictions=g.tolist(), references=labels.tolist()) for g in guesses_KN]


def metric_rows(
    per_size: Sequence[dict[str, float]], sizes: Sequence[int], *, dataset: str, split: str, **extra: Any
) -> list[dict[str, Any]]:
    """Return rows ``{size, dataset, split, metric, value, ...}`` for metrics.json."""
    return [
        {"size": size, "dataset": dataset, "split": split, "metric": name, "value": value, **extra}
        for size, values in zip(sizes, per_size, strict=True)
        for name, value in values.items()
    ]
