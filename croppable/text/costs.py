"""What each size costs: parameters, bytes, FLOPs of a sequence, and measured latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from croppable.core import crop, skeleton

__all__ = ["flops_per_sequence", "latencies", "size_costs"]


def _inputs(batch: int, length: int) -> dict[str, Tensor]:
    # Token id 5 is an ordinary token in every vocabulary: padding and special ids are lower.
    return {
        "input_ids": torch.full((batch, length), 5),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
    }


@torch.no_grad()
def flops_per_sequence(model: PreTrainedModel, length: int) -> int:
    """Count the FLOPs of the matrix products in the forward of one sequence of ``length`` tokens."""
    # Counted on shapes alone, so even a large model costs nothing to count.
    small = skeleton(model, model.size)  # type: ignore[arg-type]
    small.train(False)
    small.set_attn_implementation("eager")  # fused kernels are not counted on every device
    with FlopCounterMode(display=False) as counter:
        small(input_ids=torch.zeros(1, length, dtype=torch.long, device="meta"))
    return int(counter.get_total_flops())


@torch.no_grad()
def latencies(
    models: Mapping[int, PreTrainedModel], *, batch: int, length: int, repeats: int = 10
) -> dict[int, float]:
    """Measure the median forward of each model in milliseconds, in turns so that noise hits all alike."""
    device = next(iter(models.values())).device
    inputs = {name: tensor.to(device) for name, tensor in _inputs(batch, length).items()}
    times: dict[int, list[float]] = {size: [] for size in models}
    for round_ in range(repeats + 1):
        for size, model in models.items():
            start = time.perf_counter()
            model(**inputs).logits.sum().item()  # reading a number waits for the device
            if round_:  # the first round warms up
                times[size].append(time.perf_counter() - start)
    return {size: 1000 * statistics.median(values) for size, values in times.items()}


def size_costs(
    model: PreTrainedModel,
    sizes: Sequence[int],
    *,
    length: int = 128,
    batches: Sequence[int] = (1, 32),
    repeats: int = 10,
) -> dict[int, dict[str, Any]]:
    """Return what each crop costs.

    Args:
        model: A croppable encoder; its crops are measured on its device.
        sizes: Sizes to measure.
        length: Tokens per sequence.
        batches: Batch sizes whose latency is measured.
        repeats: Timed forwards per latency.

    Returns:
        Per size: "hidden", "parameters", "MB" of the stored tensors, "MFLOPs" of one sequence, and
        "ms, batch B" for every batch size.
    """
    crops = {size: crop(model, size) for size in sizes}
    for small in crops.values():
        small.train(False)
    table: dict[int, dict[str, Any]] = {}
    for size, small in crops.items():
        stored = small.state_dict().values()
        table[size] = {
            "hidden": small.config.hidden_size,
            "parameters": sum(p.numel() for p in small.parameters()),
            "MB": sum(t.numel() * t.element_size() for t in stored) / 1e6,
            "MFLOPs": flops_per_sequence(small, length) / 1e6,
        }
    for batch in batches:
        for size, value in latencies(crops, batch=batch, length=length, repeats=repeats).items():
            table[size][f"ms, batch {batch}"] = value
    return table
