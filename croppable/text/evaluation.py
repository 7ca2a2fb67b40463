"""Outputs and metrics of a text model at all its sizes, on one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from croppable.text.batching import Encoded, collate, ordered_batches
from croppable.text.glue import Task
from croppable.text.metrics import GlueMetric

__all__ = ["metric_rows", "predict", "scores"]


@torch.no_grad()
def predict(model: nn.Module, encoded: Encoded, *, batch_size: int = 64, accelerator: Any = None) -> Tensor:
    """Return the outputs of every example, in the order of the examples.

    Args:
        model: A `Nested`, or any single model; evaluated in eval mode and put back as it was.
        encoded: The examples.
        batch_size: Rows at once.
        accelerator: Shares the batches among its processes; every process gets all outputs.

    Returns:
        ``[K, N, C]``, float32, on the CPU; K = 1 for a single model.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    device = next(model.parameters()).device
    batches = ordered_batches(encoded, batch_size)
    outputs: Tensor | None = None
    training = model.training
    model.train(False)
    # A process with no batch of its own still runs one, to know the shape.
    for rows in batches[rank::world] or batches[:1]:
        batch = collate(encoded, rows, device)
        inputs = {name: batch[name] for name in (*encoded.features, "attention_mask")}
        logits = model(**inputs).logits.float()
        logits_KBC = logits if logits.ndim == 3 else logits[None]
        if outputs is None:
            outputs = logits_KBC.new_zeros(logits_KBC.shape[0], len(encoded), logits_KBC.shape[-1])
        if rank < len(batches):
            outputs[:, torch.tensor(rows, device=device)] = logits_KBC
    model.train(training)
    assert outputs is not None  # there is at least one batch
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
