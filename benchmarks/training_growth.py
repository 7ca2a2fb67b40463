"""Time and peak memory of a training step as entities, dims and sizes grow.

    python benchmarks/training_growth.py

Every case runs in a process of its own, whose peak memory the operating system counts; what the process has
before it builds the model is taken off. Triples are random, so nothing depends on data. Exponents are slopes
of log time over log size between the ends of each series. Results go to docs/results/training_growth.json
and .md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from croppable.allocator import keep_freed_memory
from croppable.kge.model import KGEModel
from croppable.kge.objective import LinkPrediction
from croppable.kge.optimizing import make_optimizer
from croppable.med import MED


@dataclass(frozen=True)
class Case:
    """One setting.

    Attributes:
        entities: Rows of the entity table.
        dims: Full size.
        sizes: How many sizes, evenly spaced.
        negatives: "own" for each query, "shared" by the batch, or "all" entities.
        count: Number of negatives, but for "all".
        batch: Queries.
        score: Score function.
        optimizer: "adam" or "adagrad".
        compiled: As in `LinkPrediction`.
    """

    entities: int = 14_541
    dims: int = 640
    sizes: int = 64
    negatives: str = "own"
    count: int = 64
    batch: int = 512
    score: str = "transe-l1"
    optimizer: str = "adam"
    compiled: str = "auto"


SHARED = Case(negatives="shared", count=256, batch=1024, optimizer="adagrad")
SERIES: dict[str, list[Case]] = {
    "entities, 256 shared negatives, Adagrad": [
        replace(SHARED, entities=e) for e in (10_000, 100_000, 1_000_000)
    ],
    "entities, 64 own negatives, Adam": [Case(entities=e) for e in (10_000, 40_000, 160_000)],
    "dims, 64 sizes": [Case(dims=d) for d in (128, 320, 640, 1280)],
    "sizes, 640 dims": [Case(sizes=k) for k in (1, 8, 64, 640)],
    "without kernels: sizes, 640 dims": [Case(sizes=k, compiled="none") for k in (1, 8, 64)],
    "softmax over all entities: sizes": [
        Case(sizes=k, negatives="all", score="complex", dims=128, batch=256) for k in (1, 4, 16)
    ],
    "softmax over all entities without tiles: sizes": [
        Case(sizes=k, negatives="all", score="complex", dims=128, batch=256, compiled="none")
        for k in (1, 4, 16)
    ],
}


def peak() -> int:
    """Return the most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(case: Case, steps: int) -> dict[str, float]:
    """Run some steps in this process; the first two warm up."""
    keep_freed_memory()
    torch.manual_seed(0)
    before = peak()
    sizes = tuple(case.dims * (k + 1) // case.sizes for k in range(case.sizes))
    model = KGEModel(case.entities, 200, sizes, case.score, margin=9.0)
    task: dict[str, Any] = {"task": "multiclass", "mutual_form": "kl"} if case.negatives == "all" else {}
    step = LinkPrediction(model, MED(sizes, **task), compiled=case.compiled)  # type: ignore[arg-type]
    touched = case.batch * (2 + case.count) if case.negatives == "own" else 2 * case.batch + case.count
    optimizer = make_optimizer(
        step, case.optimizer, 1e-3, touched_rows=case.entities if case.negatives == "all" else touched
    )
    times = []
    for _ in range(steps + 2):
        anchor, target = torch.randint(case.entities, (2, case.batch))
        shape = {"own": (case.batch, case.count), "shared": (case.count,)}.get(case.negatives)
        negatives = None if shape is None else torch.randint(case.entities, shape)
        start = time.perf_counter()
        step(anchor, torch.randint(200, (case.batch,)), target, negatives)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    middle = statistics.quantiles(times[2:], n=4)
    return {"median_ms": 1e3 * middle[1], "quartiles_ms": [1e3 * q for q in middle[::2]],
            "peak_gb": (peak() - before) / 1e9, "table_gb": model.entity.nbytes / 1e9,
            "sparse": float(step.sparse)}  # fmt: skip


def in_process(case: Case, steps: int) -> dict[str, float]:
    """Measure a case in a process of its own."""
    command = [sys.executable, __file__, "--steps", str(steps), "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def grown(cases: list[Case]) -> str:
    """Return the name of what grows in a series."""
    first, last = asdict(cases[0]), asdict(cases[-1])
    return next(name for name in first if first[name] != last[name])


def exponent(cases: list[Case], rows: list[dict[str, float]]) -> float:
    """Return the slope of log time over log size."""
    name = grown(cases)
    ratio = asdict(cases[-1])[name] / asdict(cases[0])[name]
    return math.log(rows[-1]["median_ms"] / rows[0]["median_ms"]) / math.log(ratio)


def page(result: dict[str, Any]) -> str:
    """Render the result."""
    lines = [
        "# How a training step grows\n",
        "Made by `python benchmarks/training_growth.py`; the numbers are in `training_growth.json`. MED",
        "losses; the step is forward, backward and optimizer. Memory is the peak of the whole process, less",
        "what it had before the model was built: tables, gradients, optimizer state and all temporaries.\n",
    ]
    for title, series in result["series"].items():
        lines += [
            f"## {title[0].upper() + title[1:]}\n",
            f"| {series['grown']} | ms (quartiles) | peak GB | table GB |",
            "| ---: | ---: | ---: | ---: |",
        ]
        for row in series["rows"]:
            low, high = row["quartiles_ms"]
            lines.append(
                f"| {row['case'][series['grown']]:,} | {row['median_ms']:.1f} ({low:.1f} to {high:.1f}) | "
                f"{row['peak_gb']:.2f} | {row['table_gb']:.2f} |"
            )
        lines.append(f"\nTime grows with the power {series['exponent']:.2f}.\n")
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return "\n".join([*lines, f"Machine: {machine}.\n"])


def main() -> None:
    """Measure all series, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=8, help="measured steps of a case")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("docs/results/training_growth.json"))
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(Case(**json.loads(options.case)), options.steps)))
        return
    packages = {name: version(name) for name in ("torch", "numba")}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
               "threads": torch.get_num_threads(), **packages}  # fmt: skip
    result: dict[str, Any] = {"machine": machine, "series": {}}
    for title, cases in SERIES.items():
        rows = [in_process(case, options.steps) for case in tqdm(cases, desc=title)]
        result["series"][title] = {
            "grown": grown(cases),
            "exponent": exponent(cases, rows),
            "rows": [{"case": asdict(case), **row} for case, row in zip(cases, rows, strict=True)],
        }
    options.output.write_text(json.dumps(result, indent=1), encoding="utf-8")
    options.output.with_suffix(".md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    main()
