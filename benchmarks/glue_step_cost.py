"""What a step of several widths costs against a step of the largest alone, and a crop against a stock model.

python benchmarks/glue_step_cost.py --model_name_or_path PATH --output docs/results/glue/step_cost.json

Everything is measured in one run, in turns, and the best times are compared, as noise only ever adds. The
baseline of the step is the stock model without this library. FLOPs are counted on the forwards; a backward
costs twice a forward at every width, so their ratio is that of the steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from croppable.allocator import keep_freed_memory
from croppable.core import Nested, crop
from croppable.med import MED
from croppable.text.costs import flops_per_sequence
from croppable.text.encoder import croppable_encoder
from croppable.text.objective import FineTuning


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def paired(actions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time all actions in turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for round_ in range(rounds + 1):
        for name, action in actions.items():
            seconds = timed(action)
            if round_:
                times[name].append(seconds)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Return the best time over the best time of another: noise only ever adds."""
    return min(times[name]) / min(times[base])


def step_costs(model: PreTrainedModel, sizes: tuple[int, ...], args: argparse.Namespace) -> dict[str, Any]:
    """Measure full training steps: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, args.length)
    inputs = {
        "input_ids": torch.randint(1000, model.config.vocab_size, shape, generator=generator),
        "attention_mask": torch.ones(shape, dtype=torch.long),
    }
    labels = torch.randint(2, (args.batch,), generator=generator)
    off = {"mutual": 0.0, "w1": 0.0, "w3": 0.0}
    plain = FineTuning(Nested(model, sizes), MED(sizes, task="multiclass", **off), schedule="all")
    med = FineTuning(Nested(model, sizes), MED(sizes, task="multiclass", mutual_form="kl"), schedule="all")

    def step(loss: Callable[[], torch.Tensor]) -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    times = paired(
        {
            "largest alone": lambda: step(lambda: F.cross_entropy(model(**inputs).logits, labels)),
            "nested sum": lambda: step(lambda: plain(labels=labels, **inputs)["loss"]),
            "med": lambda: step(lambda: med(labels=labels, **inputs)["loss"]),
        },
        args.rounds,
    )
    flops = [flops_per_sequence(crop(model, size), args.length) for size in sizes]
    flop_ratio = sum(flops) / flops[-1]
    measured = {name: ratio(times, name, "largest alone") for name in ("nested sum", "med")}
    return {
        "seconds": {name: min(values) for name, values in times.items()},
        "flop_ratio": flop_ratio,
        "step_ratio": measured,
        "step_over_flops": {name: value / flop_ratio for name, value in measured.items()},
    }


@torch.no_grad()
def crop_costs(model: PreTrainedModel, sizes: tuple[int, ...], args: argparse.Namespace) -> dict[int, Any]:
    """Compare the forward and the file of each crop with a stock model built from the same config."""
    rows: dict[int, Any] = {}
    ids = torch.randint(1000, model.config.vocab_size, (args.batch, args.length))
    for size in sizes:
        small = crop(model, size)
        stock = type(small)(small.config)
        for module in (small, stock):
            module.train(False)
        times = paired({"crop": lambda m=small: m(ids), "stock": lambda m=stock: m(ids)}, 3 * args.rounds)
        with tempfile.TemporaryDirectory() as folder:
            bytes_ = {}
            for name, module in (("crop", small), ("stock", stock)):
                module.save_pretrained(Path(folder, name))
                bytes_[name] = Path(folder, name, "model.safetensors").stat().st_size
        rows[size] = {
            "ms": 1000 * min(times["crop"]),
            "forward_over_stock": ratio(times, "crop", "stock"),
            "bytes": bytes_["crop"],
            "bytes_over_stock": bytes_["crop"] / bytes_["stock"],
        }
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 6, 9, 12])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--length", type=int, default=24, help="the mean of GLUE's single sentences is below 20"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = croppable_encoder(
        AutoModelForSequenceClassification.from_pretrained(args.model_name_or_path, dtype=torch.float32)
    )
    model.train()
    sizes = tuple(args.sizes)
    result = {
        "settings": {**{k: v for k, v in vars(args).items() if k not in ("output", "model_name_or_path")},
                     "hidden": model.config.hidden_size, "layers": model.config.num_hidden_layers,
                     "torch": torch.__version__},
        "step": step_costs(model, sizes, args),
        "crops": crop_costs(model, sizes, args),
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
