"""A training step at 1, 8 and 64 sizes, and PyKEEN's step at one size, in one run.

    python benchmarks/training_step.py --data_dir DATA/kg/fb15k-237

All steps have D = 640, B = 512, N = 64 uniform negatives per triple and Adam, on the graph's own triples.
They alternate; a ratio is the median over rounds of the ratio within a round. "plain" is the same code at one
size with the plain loss; 8 and 64 sizes are trained with MED. The cost of 64 separate runs is the sum of 64
plain steps at widths 10 to 640, all measured in the same run. PyKEEN's TransE takes 64 negatives of each
triple; ours with 64 sizes the same, or a pool of 64 or 256 negatives that all triples share, so that each
sees no fewer. Adagrad is there too: it leaves rows without gradient alone, so that ours need not touch the
whole table. Results go to docs/results/training_step.json and .md.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe
from tqdm import tqdm

from croppable.allocator import keep_freed_memory
from croppable.kge import sampling
from croppable.kge.model import KGEModel
from croppable.kge.objective import LinkPrediction
from croppable.kge.optimizing import make_optimizer
from croppable.kge.triples import KnowledgeGraph, read_graph
from croppable.med import MED

D, B, N = 640, 512, 64
SIZES = {"plain": (D,), "8 sizes": tuple(range(80, D + 1, 80)), "64 sizes": tuple(range(10, D + 1, 10))}
OPTIMIZERS: dict[str, Any] = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}
# Negatives of a pool, and pools of a batch.
POOLS = {
    "64 shared by the batch": (64, 1),
    "64 shared by 128 queries": (64, 4),
    "256 shared by the batch": (256, 1),
}
SCORES = ("transe-l1", "distmult", "complex", "rotate", "simple")


def machine() -> dict[str, Any]:
    """Describe what the times belong to."""
    return {**describe("torch", "numba", "pykeen"), "threads": torch.get_num_threads()}


def our_step(
    graph: KnowledgeGraph,
    score: str,
    sizes: tuple[int, ...],
    *,
    pool: int = 0,
    pools: int = 1,
    optimizer: str = "adam",
) -> Callable[[], float]:
    """Return a function that does one training step and returns its seconds, sampling included.

    Args:
        graph: What is learned.
        score: Name of the score.
        sizes: Ascending.
        pool: Number of negatives that queries share; 0: each triple has N of its own.
        pools: How many such pools the batch has, each for as many queries.
        optimizer: "adam" or "adagrad".
    """
    torch.manual_seed(0)
    model = KGEModel(graph.num_entities, graph.num_relations, sizes, score, margin=9.0)
    off = {"mutual": 0.0, "w1": 0.0, "w2": 0.0, "w3": 0.0} if len(sizes) == 1 else {}
    step = LinkPrediction(model, MED(sizes, **off), compiled="auto")
    touched = 2 * B + (pool * pools or N * B)
    updates = make_optimizer(step, optimizer, 1e-3, touched_rows=touched)
    source = sampling.batches(graph.train, B, seed=0, epoch=0)

    def once() -> float:
        start = time.perf_counter()
        batch = next(source)
        generator = sampling.step_generator(0, batch.step)
        if pool:
            negatives = sampling.shared_negatives(pool, graph.num_entities, generator, pools=pools)
        else:
            negatives = sampling.uniform_negatives(batch, N, graph.num_entities, generator)
        step(batch.anchor, batch.relation, batch.target, negatives, batch.side)["loss"].backward()
        updates.step()
        updates.zero_grad()
        return time.perf_counter() - start

    return once


def pykeen_step(graph: KnowledgeGraph, steps: int, optimizer: str = "adam") -> Callable[[], float]:
    """Return a function that runs ``steps`` of PyKEEN's own TransE loop and returns the seconds of one."""
    from pykeen.losses import SoftplusLoss
    from pykeen.models import TransE
    from pykeen.training import SLCWATrainingLoop
    from pykeen.triples import CoreTriplesFactory

    size = {"num_entities": graph.num_entities, "num_relations": graph.num_relations}
    triples = CoreTriplesFactory(graph.train[: steps * B], **size)
    model = TransE(triples_factory=triples, embedding_dim=D, scoring_fct_norm=1, loss=SoftplusLoss(),
                   random_seed=0)  # fmt: skip
    loop = SLCWATrainingLoop(
        model=model,
        triples_factory=triples,
        optimizer=OPTIMIZERS[optimizer](model.parameters(), lr=1e-3),
        negative_sampler_kwargs={"num_negs_per_pos": N},
    )

    def once() -> float:
        start = time.perf_counter()
        loop.train(triples, num_epochs=1, batch_size=B, use_tqdm=False, use_tqdm_batch=False,
                   only_size_probing=False)  # fmt: skip
        return (time.perf_counter() - start) / steps

    return once


def as_shipped(step: Callable[[], float]) -> Callable[[], float]:
    """Run a step with glibc's own memory settings, which `keep_freed_memory` has changed."""
    libc = ctypes.CDLL(None)

    def once() -> float:
        libc.mallopt(-4, 65536)  # M_MMAP_MAX
        libc.mallopt(-1, 128 * 1024)  # M_TRIM_THRESHOLD
        try:
            return step()
        finally:
            keep_freed_memory()

    return once


def alternate(steps: dict[str, Callable[[], float]], rounds: int, label: str) -> dict[str, list[float]]:
    """Run all steps in turn; the first two rounds warm up and are dropped."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in tqdm(range(rounds + 2), desc=label):
        for name, step in steps.items():
            seconds = step()
            if i > 1:
                times[name].append(seconds)
    return times


def summary(times: dict[str, list[float]], base: str) -> dict[str, Any]:
    """Return medians, quartiles and ratios within rounds to ``base``."""
    return {
        name: {
            "median_ms": 1e3 * statistics.median(own),
            "quartiles_ms": [1e3 * q for q in statistics.quantiles(own, n=4)[::2]],
            "ratio": statistics.median(a / b for a, b in zip(own, times[base], strict=True)),
        }
        for name, own in times.items()
    }


def page(result: dict[str, Any]) -> str:
    """Render the result."""
    lines = [
        "# A training step\n",
        "Made by `python benchmarks/training_step.py`; the numbers behind it are in `training_step.json`.",
        f"D = {D}, B = {B}, N = {N}, Adam, {result['graph']}, {result['rounds']} alternating rounds; medians "
        f"in milliseconds (quartiles), ratios within rounds to the plain step at one size.\n",
        "| score | plain | 8 sizes | ratio | 64 sizes | ratio | 64 separate runs / 64 sizes |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for score, row in result["scores"].items():
        cells = []
        for name in SIZES:
            low, high = row[name]["quartiles_ms"]
            cells.append(f"{row[name]['median_ms']:.1f} ({low:.1f} to {high:.1f})")
            if name != "plain":
                cells.append(f"{row[name]['ratio']:.2f}")
        lines.append(f"| {score} | {' | '.join(cells)} | {result['separate'][score]['times']:.1f} |")
    lines += [
        "\n## TransE (L1) at 64 sizes against PyKEEN at one size, 640\n",
        "Milliseconds a step; how many times as long PyKEEN's step takes, with glibc as shipped, and with",
        "freed memory kept, as our recipes do.\n",
        "| optimizer | our negatives | ours | PyKEEN as shipped | times | freed memory kept | times |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for optimizer, row in result["pykeen"].items():
        shipped, kept = row["as shipped"], row["with freed memory kept"]
        for name in (name for name in row if name not in ("as shipped", "with freed memory kept")):
            ours = row[name]
            lines.append(
                f"| {optimizer} | {name} | {ours['median_ms']:.1f} | {shipped['median_ms']:.0f} | "
                f"{1 / ours['ratio']:.1f} | {kept['median_ms']:.0f} | {kept['ratio'] / ours['ratio']:.1f} |"
            )
    lines += [
        f"\nMachine: {', '.join(f'{key} {value}' for key, value in result['machine'].items())}.\n",
    ]
    return "\n".join(lines)


def separate_cost(graph: KnowledgeGraph, score: str, rounds: int) -> dict[str, float]:
    """Compare 64 plain steps, one at each width, with one step at 64 sizes, width by width in turn."""
    total = 0.0
    together: list[float] = []
    nested = our_step(graph, score, SIZES["64 sizes"])
    for width in tqdm(SIZES["64 sizes"], desc=f"{score}, 64 widths"):
        alone = our_step(graph, score, (width,))
        own, ours = zip(*((alone(), nested()) for _ in range(rounds + 1)), strict=True)
        total += statistics.median(own[1:])
        together += ours[1:]
    return {"separate_ms": 1e3 * total, "together_ms": 1e3 * statistics.median(together),
            "times": total / statistics.median(together)}  # fmt: skip


def against_pykeen(graph: KnowledgeGraph, optimizer: str, rounds: int) -> dict[str, Any]:
    """Compare TransE steps at 64 sizes with PyKEEN's at one size; ratios are to PyKEEN's as shipped."""
    kinds = {"64 of each triple": (0, 1), **POOLS}
    steps = {
        name: several(
            our_step(graph, "transe-l1", SIZES["64 sizes"], pool=pool, pools=pools, optimizer=optimizer)
        )
        for name, (pool, pools) in kinds.items()
    }
    steps["as shipped"] = as_shipped(pykeen_step(graph, 4, optimizer))
    steps["with freed memory kept"] = pykeen_step(graph, 4, optimizer)
    return summary(alternate(steps, rounds, f"against PyKEEN, {optimizer}"), "as shipped")


def several(step: Callable[[], float]) -> Callable[[], float]:
    """Run five steps, as PyKEEN runs several at a time; return the mean seconds of the last four."""
    return lambda: statistics.mean([step() for _ in range(5)][1:])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the graph")
    parser.add_argument("--rounds", type=int, default=20, help="alternating rounds")
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=list(SCORES))
    parser.add_argument("--output", type=Path, default=Path("docs/results/training_step.json"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="pykeen")
    keep_freed_memory()
    graph = read_graph(options.data_dir)
    result: dict[str, Any] = {"machine": machine(), "graph": graph.name, "rounds": options.rounds,
                              "scores": {}, "separate": {}}  # fmt: skip
    for score in options.scores:
        steps = {name: our_step(graph, score, sizes) for name, sizes in SIZES.items()}
        result["scores"][score] = summary(alternate(steps, options.rounds, score), "plain")
        result["separate"][score] = separate_cost(graph, score, 4)
    result["pykeen"] = {optimizer: against_pykeen(graph, optimizer, 7) for optimizer in OPTIMIZERS}
    options.output.write_text(json.dumps(result, indent=1), encoding="utf-8")
    options.output.with_suffix(".md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    main()
