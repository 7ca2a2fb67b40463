"""What the tests of the GLUE recipe share: the flags of a small run, its environment, and its values."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

GOOD, BAD = ("good", "fine", "nice", "great"), ("bad", "poor", "dull", "awful")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "the", "a", "is", *GOOD, *BAD)
Run = Callable[..., Path]


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


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}


def values(output: Path, metric: str = "accuracy") -> dict[int, float]:
    rows = json.loads((output / "metrics.json").read_text())
    return {row["size"]: row["value"] for row in rows if row["metric"] == metric}


def same_weights(a: Path, b: Path) -> bool:
    one, other = (AutoModelForSequenceClassification.from_pretrained(o).state_dict() for o in (a, b))
    assert set(one) == set(other)
    return all(torch.equal(one[name], other[name]) for name in one)
