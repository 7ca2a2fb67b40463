"""Study what makes the sizes of one run good: each sub-command writes JSON and its section of a page.

python recipes/study_kge.py ablation --data_root ../shared/data/kg
python recipes/study_kge.py overlap
python recipes/study_kge.py render

ablation     ours without each of its mechanisms, the plain nested sum, learnable weights
gap          neighbouring sizes 2, 4 and 8 times apart, and 64 sizes, at the same largest size
overlap      which answers are right from which size on, by relation category and by frequency
classify     triple classification at all sizes
convergence  validation curves against epochs, from the results of recipes/benchmark_kge.py
complexity   time, parameters and memory: derived, and measured by benchmarks/

Trains by recipes/kge.py, one cell after the other as recipes/benchmark_kge.py does; all cells of a study have
the same budget. Results are in docs/results/study/, the page is docs/results/study.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmark_kge import (
    ROOT,
    CellError,
    Runner,
    add_run_flags,
    machine,
    make_runner,
    parse_run_flags,
    run_cells,
    write_result,
)
from benchmark_kge_grids import GRIDS
from benchmark_kge_lines import Cell, Grid
from benchmark_kge_render import headlines, line_of, read_results
from study_kge_grids import ABLATION, ABLATION_SAMPLED, FB13, GAP
from study_kge_measure import (
    classify,
    count_parameters,
    derived_costs,
    epochs_of,
    load_models,
    mrr_by_size,
    overlap,
    rank_models,
)
from study_kge_render import render

from croppable.kge.scores import SCORES
from croppable.kge.triples import KnowledgeGraph, read_graph

RESULTS = ROOT / "docs" / "results" / "study"
BENCHMARKS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Study:
    """What a sub-command works with: its own runner, the one of the benchmark, and the flags."""

    own: Runner
    benchmark: Runner
    options: argparse.Namespace

    def cells(self, grid: Grid) -> list[Cell]:
        """Return the cells of a grid that the flags ask for."""
        options = self.options
        if options.graph:
            grid = replace(grid, graph=options.graph)
        return [
            Cell(grid, some, seed)
            for seed in options.seeds or grid.seeds
            for some in grid.lines
            if options.lines is None or some.name in options.lines
        ]

    def train(self, cells: list[Cell]) -> int:
        """Run cells, and write the page after each of them; return the exit status."""

        def write_page(_: Cell) -> None:
            render(self.own.results)

        return run_cells(self.own, cells, overwrite=self.options.overwrite, finished=write_page)

    def graph(self, cell: Cell) -> KnowledgeGraph:
        """Read the graph of a cell."""
        return read_graph(self.own.data_root / cell.grid.graph)

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a result of the study."""
        write_result(self.own.results / f"{name}.json", {"study": name, "machine": machine(), **content})

    def measured(self, name: str, runner: Runner, cells: list[Cell], measure: Callable[..., Any]) -> int:
        """Measure the models of cells, one file per cell; a measured cell is not measured again."""
        failed = 0
        for cell in cells:
            path = self.own.results / f"{name}-{cell.name}.json"
            if path.exists() and not self.options.overwrite:
                print(f"{path.stem}: kept")
                continue
            print(f"{path.stem}: measuring", flush=True)
            try:
                folders = runner.models(cell)
            except CellError as error:
                failed += 1
                print(f"{cell.name} failed: {error}", file=sys.stderr)
                continue
            content = measure(load_models(folders), self.graph(cell))
            config = json.loads((runner.folder(cell) / "training_config.json").read_text(encoding="utf-8"))
            about = {key: config[key] for key in ("model", "sizes", "objective", "num_train_epochs", "n3")}
            self.write(path.stem, {"kind": name, "grid": cell.grid.name, "line": cell.line.name,
                                   "title": cell.line.title, "graph": cell.grid.graph, "seed": cell.seed,
                                   "config": about, **content})  # fmt: skip
        return 1 if failed else 0


def run_ablation(study: Study) -> int:
    """Train ours without each mechanism, for both kinds of loss."""
    wanted = study.options.grid or [ABLATION.name, ABLATION_SAMPLED.name]
    cells = [c for grid in (ABLATION, ABLATION_SAMPLED) if grid.name in wanted for c in study.cells(grid)]
    return study.train(cells)


def run_gap(study: Study) -> int:
    """Train with other neighbours; also measure each model at sizes that it was not trained at."""
    cells = study.cells(GAP)
    status = study.train(cells)
    done = [cell for cell in cells if study.own.result_path(cell).exists()]

    def crops(models: list[Any], graph: KnowledgeGraph) -> dict[str, Any]:
        sizes = [size for size in GAP.shown if size <= models[-1].size]
        return {"mrr": mrr_by_size(rank_models(models, graph, sizes))}

    return status or study.measured("crops", study.own, done, crops)


def run_overlap(study: Study) -> int:
    """Measure which answers are right from which size on."""
    grid = GRIDS[(study.options.grid or ["codex-s"])[0]]
    study.options.lines = study.options.lines or ["separate", "med"]
    study.options.seeds = study.options.seeds or [grid.seeds[0]]

    def measure(models: list[Any], graph: KnowledgeGraph) -> dict[str, Any]:
        return overlap(rank_models(models, graph), graph)

    return study.measured("overlap", study.benchmark, study.cells(grid), measure)


def run_classify(study: Study) -> int:
    """Measure triple classification on CoDEx-S and FB13, or on a grid of the benchmark."""
    wanted = study.options.grid or ["codex-s", FB13.name]
    study.options.lines = study.options.lines or ["separate", "nested", "med"]
    study.options.seeds = study.options.seeds or [0]

    def measure(models: list[Any], graph: KnowledgeGraph) -> dict[str, Any]:
        return {"rows": classify(models, graph)}

    status = 0
    for name in wanted:
        runner, grid = (study.own, FB13) if name == FB13.name else (study.benchmark, GRIDS[name])
        status |= study.measured("classify", runner, study.cells(grid), measure)
    return status


def run_convergence(study: Study) -> int:
    """Collect the validation curves of benchmark results; of several settings those that were chosen."""
    found = read_results(study.benchmark.results)
    curves: list[dict[str, Any]] = []
    for grid in study.options.grid or list(found):
        for family, results in headlines(found.get(grid, {})).items():
            for result in results:
                chosen = result.get("chosen", {})
                own = {size: curve for size, curve in _curves(found[grid], result, chosen).items() if curve}
                if own:
                    about = {key: result[key] for key in ("seed", "config")}
                    title = line_of(result).title
                    curves.append({"grid": grid, "family": family, "title": title, **about, "curves": own})
    if not curves:
        print(f"no validation curves in {study.benchmark.results}: run recipes/benchmark_kge.py first",
              file=sys.stderr)  # fmt: skip
        return 1
    study.write("convergence", {"lines": curves})
    return 0


def _curves(by_line: Any, result: Any, chosen: dict[int, str]) -> dict[int, list[tuple[float, float]]]:
    """Return the curves of a result, those of a chosen one from the lines that they come from."""
    if not chosen:
        return epochs_of(result)
    every = [(name, one) for name, results in by_line.items() for one in results]
    same_seed = {name: epochs_of(one) for name, one in every if one["seed"] == result["seed"]}
    return {size: same_seed[name].get(size, []) for size, name in chosen.items()}


def run_complexity(study: Study) -> int:
    """Derive costs and set what benchmarks/ has measured beside them."""
    steps = json.loads((BENCHMARKS / "training_step.json").read_text(encoding="utf-8"))
    growth = json.loads((BENCHMARKS / "training_growth.json").read_text(encoding="utf-8"))
    graph = read_graph(study.own.data_root / steps["graph"])
    full, rows = 640, []
    parameters = partial(count_parameters, graph.num_entities, graph.num_relations)
    for name, measured in steps["scores"].items():
        parts = SCORES[name].entity_parts
        for count, key in ((1, "plain"), (8, "8 sizes"), (64, "64 sizes")):
            sizes = [full // count * (i + 1) for i in range(count)]
            rows.append({
                "score": name, "n": count, **derived_costs(sizes, parts), "measured": measured[key]["ratio"],
                "parameters": parameters(sizes, name),
                "parameters_separate": sum(parameters([size], name) for size in sizes),
                "separate_measured": steps["separate"][name]["times"] if count == 64 else None,
            })  # fmt: skip
    memory = [{"n": row["case"]["sizes"], "ms": row["median_ms"], "peak_gb": row["peak_gb"]}
              for row in growth["series"]["sizes, 640 dims"]["rows"]]  # fmt: skip
    study.write("complexity", {"graph": steps["graph"], "full": full, "steps": rows, "memory": memory,
                               "measured_on": steps["machine"], "memory_on": growth["machine"]})  # fmt: skip
    return 0


STUDIES: dict[str, Callable[[Study], int]] = {
    "ablation": run_ablation,
    "gap": run_gap,
    "overlap": run_overlap,
    "classify": run_classify,
    "convergence": run_convergence,
    "complexity": run_complexity,
}


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", choices=(*STUDIES, "render"))
    parser.add_argument("--grid", nargs="+", help="which tables, where a study has several")
    parser.add_argument("--graph", help="folder under the data root, instead of the study's own")
    parser.add_argument("--lines", nargs="+", help="which lines, by name")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder; its page stands beside it")
    add_run_flags(parser)
    options = parse_run_flags(parser, arguments)
    if (options.extra or options.graph) and options.results == RESULTS:
        parser.error("another graph or other flags make other tables: give them another --results")
    study = Study(
        own=make_runner(options, options.results, ROOT / "runs" / "study"),
        benchmark=make_runner(options, options.results.parent / "kge"),
        options=options,
    )
    status = STUDIES[options.study](study) if options.study in STUDIES else 0
    render(options.results)
    return status


if __name__ == "__main__":
    sys.exit(main())
