"""Where the time of a training step goes, before and after the kernels, on one thread.

    python benchmarks/training_profile.py

"Before" is the specification (`compiled="none"`) under torch's profiler, "after" the kernels, each timed by
itself. Both alternate in one process, at one size and at 64, with D = 640, B = 512, N = 64, 14,541 entities,
TransE and Adam. The floor beside a part is the larger of two times: its bytes at the rate of copying memory,
and its vector operations at the rate of the multiply-adds of a matrix product, both measured here. A part
whose data are in the cache can beat the former. Results go to docs/results/training_profile.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from croppable.allocator import keep_freed_memory
from croppable.kge import compiled_batch, compiled_gradients
from croppable.kge.model import KGEModel
from croppable.kge.objective import LinkPrediction
from croppable.med import MED

E, D, B, N = 14_541, 640, 512, 64
SIZES = {"1 size": (D,), "64 sizes": tuple(range(10, D + 1, 10))}
KERNELS = {
    "judge_own": "score and judge the negatives",
    "target_scores": "score the targets",
    "judge_usual": "judge the targets",
    "weigh_usual": "weights of segments",
    "row_gradients": "gradients of table and queries",
}


def rates() -> tuple[float, float]:
    """Return bytes per second copied (read and written), and multiply-adds per second of a matrix product."""
    source, target = torch.randn(2**24), torch.empty(2**24)
    copy = min(_seconds(lambda: target.copy_(source)) for _ in range(10))
    a, b = torch.randn(2048, 1024), torch.randn(1024, 2048)
    product = min(_seconds(lambda: torch.mm(a, b)) for _ in range(5))
    return 2 * source.nbytes / copy, 2048 * 2048 * 1024 / product


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def floors(sizes: int) -> dict[str, tuple[float, float]]:
    """Return the bytes and the vector operations that each part needs at the very least."""
    rows, table, terms, scores = 4 * B * N * D, 4 * E * D, B * N * D, B * N * sizes
    return {
        "judge_own": (rows + 4 * scores, 3 * terms + 38 * scores),
        "weigh_usual": (8 * scores, 16 * scores),
        "row_gradients": (2 * table + 4 * scores, 7 * terms),
        "optimizer": (7 * table, 12 * E * D),
    }


def make(sizes: tuple[int, ...], compiled: Any) -> tuple[LinkPrediction, torch.optim.Optimizer]:
    """Make a step and its optimizer."""
    torch.manual_seed(0)
    model = KGEModel(E, 237, sizes, "transe-l1", margin=9.0)
    off = {"mutual": 0.0, "w1": 0.0, "w2": 0.0, "w3": 0.0} if len(sizes) == 1 else {}
    step = LinkPrediction(model, MED(sizes, **off), compiled=compiled)
    return step, torch.optim.Adam(step.parameters(), lr=1e-3, fused=True)


def run(step: LinkPrediction, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Do a step; return the seconds of all of it and of its optimizer."""
    anchor, target = torch.randint(E, (2, B))
    relation, negatives = torch.randint(237, (B,)), torch.randint(E, (B, N))
    start = time.perf_counter()
    step(anchor, relation, target, negatives)["loss"].backward()
    middle = time.perf_counter()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start, time.perf_counter() - middle


def timed(spent: dict[str, float]) -> None:
    """Let every kernel add its seconds to ``spent``."""

    def wrap(name: str) -> None:
        home = compiled_gradients if name == "row_gradients" else compiled_batch
        kernel = getattr(home, name)

        def with_clock(*arguments: Any) -> None:
            start = time.perf_counter()
            kernel(*arguments)
            spent[name] += time.perf_counter() - start

        setattr(home, name, with_clock)

    for name in KERNELS:
        wrap(name)


def before(sizes: tuple[int, ...], steps: int) -> dict[str, float]:
    """Return the milliseconds of the specification's ten most expensive operations, and of all."""
    step, optimizer = make(sizes, "none")
    for _ in range(2):
        run(step, optimizer)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        seconds = statistics.median(run(step, optimizer)[0] for _ in range(steps))
    events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)[:10]
    parts = {event.key: event.self_cpu_time_total / steps / 1e3 for event in events}
    return {"all": 1e3 * seconds, **parts}


def page(result: dict[str, Any]) -> str:
    """Render the result."""
    lines = [
        "# Where a training step's time goes\n",
        "Made by `python benchmarks/training_profile.py`; numbers in `training_profile.json`. TransE,",
        f"D = {D}, B = {B}, N = {N}, {E:,} entities, Adam, one thread; milliseconds, medians.\n",
        "## With kernels\n",
        "| part | 1 size | floor | 64 sizes | floor |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    names = {**KERNELS, "optimizer": "Adam", "rest": "everything else", "all": "**all**"}
    for key, name in names.items():
        cells = [name]
        for sizes in SIZES:
            part = result["after"][sizes][key]
            cells += [f"{part['ms']:.1f}", f"{part['floor_ms']:.1f}" if "floor_ms" in part else ""]
        lines.append(f"| {' | '.join(cells)} |")
    copy, operations = result["rates"]
    lines += [
        f"\nFloors: bytes at {copy / 1e9:.0f} GB/s (copying), operations at {operations / 1e9:.0f} billion",
        "a second (those of a matrix product), whichever takes longer. What is cached can take less.\n",
    ]
    for sizes in SIZES:
        lines += [f"## Without kernels, {sizes}\n", "| operation | ms |", "| --- | ---: |"]
        lines += [f"| {name} | {ms:.1f} |" for name, ms in result["before"][sizes].items()]
        lines.append("")
    lines.append(f"torch {result['torch']}, numba {result['numba']}.\n")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20, help="measured steps with kernels")
    parser.add_argument("--output", type=Path, default=Path("docs/results/training_profile.json"))
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    rate = rates()
    spent: dict[str, float] = defaultdict(float)
    timed(spent)
    runs = {name: make(sizes, "auto") for name, sizes in SIZES.items()}
    rows: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in SIZES}
    for i in tqdm(range(options.steps + 2), desc="with kernels"):
        for name, (step, optimizer) in runs.items():
            spent.clear()
            total, last = run(step, optimizer)
            parts = {**spent, "optimizer": last, "rest": total - last - sum(spent.values()), "all": total}
            for part, seconds in parts.items():
                if i > 1:
                    rows[name][part].append(1e3 * seconds)
    after: dict[str, Any] = {}
    for name, sizes in SIZES.items():
        after[name] = {part: {"ms": statistics.median(values)} for part, values in rows[name].items()}
        for part, (size, work) in floors(len(sizes)).items():
            after[name][part]["floor_ms"] = 1e3 * max(size / rate[0], work / rate[1])
    result = {
        "rates": rate,
        "after": after,
        "before": {name: before(sizes, 5) for name, sizes in tqdm(SIZES.items(), desc="without")},
        "torch": version("torch"),
        "numba": version("numba"),
    }
    options.output.write_text(json.dumps(result, indent=1), encoding="utf-8")
    options.output.with_suffix(".md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    main()
