"""Filtered evaluation: croppable at all sizes against PyKEEN at one size, in one run.

    python benchmarks/evaluation.py --data_dir DATA/kg/fb15k-237
    python benchmarks/evaluation.py --data_dir DATA/kg/fb15k-237 --device cuda --output_dir docs/results/gpu

Both rank the test split on both sides against all entities, filtered by all splits. The runs alternate, and
medians over the repeats are compared. PyKEEN ranks a stated slice of the test triples and its time is
multiplied up to the whole split (its work per triple is constant); we rank the whole split. The floor is the
time that the arithmetic alone would take at the rate of a large matrix product measured on the same machine.
Results go to docs/results/evaluation.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import Tensor

from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.ranking import rank_triples
from croppable.kge.triples import KnowledgeGraph, read_graph

# Operations per number of a row at the very least: a multiply-add, or a subtraction and an addition.
OPERATIONS = {"distmult": 1, "complex": 1, "transe-l1": 2}
COUNTING = 4  # per candidate, target and size: two comparisons and two additions


def seconds(work: Callable[[], object]) -> float:
    """Return how long ``work`` takes, what it leaves to a GPU included."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def machine(device: str) -> dict[str, Any]:
    """Describe what the times belong to."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    return {
        **gpu,
        **describe("torch", "numba", "pykeen"),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def product_rate(device: str) -> float:
    """Return multiply-adds per second of a large float32 matrix product, the best of five."""
    a, b = torch.randn(4096, 1024, device=device), torch.randn(1024, 4096, device=device)
    return 4096 * 1024 * 4096 / min(seconds(lambda: a @ b) for _ in range(5))


def floor(model: KGEModel, graph: KnowledgeGraph, rate: float) -> float:
    """Return the seconds that the operations of all sizes take at ``rate``, equal queries scored once."""
    queries = sum(len(graph.test[:, columns].unique(dim=0)) for columns in ([0, 1], [2, 1]))
    numbers = model.entity[0].numel()
    scoring = queries * numbers * OPERATIONS[model.score]
    counting = 2 * len(graph.test) * len(model.sizes) * COUNTING
    return (scoring + counting) * graph.num_entities / rate


def pykeen_evaluation(model: KGEModel, graph: KnowledgeGraph, batch_size: int) -> Callable[[Tensor], object]:
    """Return PyKEEN's evaluation of the model's own full size as a function of the triples."""
    from pykeen.evaluation import RankBasedEvaluator
    from pykeen.models import ERModel
    from pykeen.nn import Embedding
    from pykeen.nn.init import PretrainedInitializer
    from pykeen.nn.modules import ComplExInteraction, DistMultInteraction, TransEInteraction
    from pykeen.triples import CoreTriplesFactory

    interactions: dict[str, Callable[[], Any]] = {
        "distmult": DistMultInteraction,
        "complex": ComplExInteraction,
        "transe-l1": lambda: TransEInteraction(p=1),
    }

    def table(rows: Tensor) -> dict[str, Any]:
        dtype = torch.cfloat if rows.ndim == 3 else torch.float
        initializer = PretrainedInitializer(rows.detach().cpu())
        return {"shape": rows.shape[1:2], "dtype": dtype, "initializer": initializer}

    peer = ERModel(
        triples_factory=CoreTriplesFactory(graph.train, graph.num_entities, graph.num_relations),
        interaction=interactions[model.score](),
        entity_representations=Embedding,
        entity_representations_kwargs=table(model.entity),
        relation_representations=Embedding,
        relation_representations_kwargs=table(model.relation),
        random_seed=0,
    ).to(model.entity.device)
    others = [graph.train, graph.valid, graph.test]

    def evaluate(triples: Tensor) -> object:
        return RankBasedEvaluator(filtered=True).evaluate(
            peer, triples, batch_size=batch_size, additional_filter_triples=others, use_tqdm=False
        )

    return evaluate


def measure(score: str, graph: KnowledgeGraph, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time both on one score function and return a row of the table."""
    torch.manual_seed(0)
    model = KGEModel(graph.num_entities, graph.num_relations, arguments.sizes, score, init_scale=0.5)
    model = model.to(arguments.device)
    known = KnownTriples(graph.triples, graph.num_entities, graph.num_relations)
    peer = pykeen_evaluation(model, graph, arguments.peer_batch_size)
    chosen = torch.randperm(len(graph.test))[: arguments.peer_triples]
    some = graph.test[chosen]
    rank_triples(model, graph.test[:64], known)  # compiles, or reads the compiled code
    peer(some[:32])
    ours, theirs, rates = [], [], []
    for repeat in range(arguments.repeats):
        rates.append(product_rate(arguments.device))
        ours.append(seconds(lambda: rank_triples(model, graph.test, known)))
        theirs.append(seconds(lambda: peer(some)) * len(graph.test) / len(some))
        print(f"{score} run {repeat}: ours {ours[-1]:.1f} s, PyKEEN {theirs[-1]:.0f} s for the whole split")
    least = floor(model, graph, statistics.median(rates))
    return {
        "score": score,
        "dims": model.size,
        "sizes": len(model.sizes),
        "test_triples": len(graph.test),
        "entities": graph.num_entities,
        "ours_seconds": statistics.median(ours),
        "ours_all": ours,
        "pykeen_one_size_seconds": statistics.median(theirs),
        "pykeen_all": theirs,
        "pykeen_measured_triples": len(some),
        "times_faster": statistics.median(theirs) / statistics.median(ours),
        "multiply_adds_per_second": statistics.median(rates),
        "floor_seconds": least,
        "times_floor": statistics.median(ours) / least,
    }


def page(result: dict[str, Any]) -> str:
    """Render the result as a page."""
    lines = [
        "# Filtered evaluation",
        "",
        "Made by `python benchmarks/evaluation.py`; the numbers behind it are in `evaluation.json`.",
        f"Dataset {result['dataset']}, test split, both sides, all entities. Medians of {result['repeats']} "
        "alternating runs. PyKEEN ranks at one size, on a random slice of the triples, multiplied up.",
        "",
        "| score | dims | sizes | ours, all sizes (s) | range | PyKEEN, one size (s) | measured on "
        "| times faster | floor (s) | ours / floor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['score']} | {row['dims']} | {row['sizes']} | {row['ours_seconds']:.1f} "
        f"| {min(row['ours_all']):.1f} to {max(row['ours_all']):.1f} | {row['pykeen_one_size_seconds']:.0f} "
        f"| {row['pykeen_measured_triples']} of {row['test_triples']} | {row['times_faster']:.0f} "
        f"| {row['floor_seconds']:.1f} | {row['times_floor']:.2f} |"
        for row in result["rows"]
    ]
    about = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    lines += [
        "",
        f"Machine: {about}. The floor counts one operation per number of a row for products, two for "
        f"absolute differences, and {COUNTING} per candidate, target and size for counting, all at the rate "
        "of a large matrix product measured between the runs; queries that several triples share count once.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--scores", nargs="+", choices=list(OPERATIONS), default=["distmult", "transe-l1"])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(range(10, 641, 10)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer_triples", type=int, default=512)
    parser.add_argument("--peer_batch_size", type=int, default=16)
    parser.add_argument("--device", default="cpu", help="where both rank: cpu, cuda, cuda:1")
    parser.add_argument("--output_dir", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    graph = read_graph(arguments.data_dir)
    print(graph.summary())
    about = machine(arguments.device)
    result: dict[str, Any] = {"dataset": graph.name, "repeats": arguments.repeats, "machine": about}
    result["rows"] = [measure(score, graph, arguments) for score in arguments.scores]
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.output_dir / "evaluation.md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
