"""Compare training objectives for link prediction, one run of recipes/kge.py per cell.

python recipes/benchmark_kge.py run --grid codex-s --data_root ../shared/data/kg
python recipes/benchmark_kge.py render

A cell is (graph, score, objective, seed). Its result is one JSON file in docs/results/kge/; a cell whose
file exists is not run again, so a grid can be stopped and gone on with. ``render`` writes docs/results/kge.md
and its pictures from those files. All lines of a table have the same epochs, batches and hyper-parameters;
"separate" has them once per size.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from croppable.report import plot_lines

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "kge"
PAGE = RESULTS.with_suffix(".md")
NAMES = {
    "separate": "separate training",
    "separate-weak": "separate training, N3 / 3",
    "nested": "plain nested sum",
    "med": "MED",
}
METRICS = ("mrr", "hits@1", "hits@3", "hits@10")


@dataclass(frozen=True)
class Cell:
    """One run: a graph, a line of the table, a seed and the flags that make it."""

    grid: str
    graph: str
    line: str
    seed: int
    flags: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the result is kept."""
        return RESULTS / f"{self.grid}-{self.line}-{self.seed}.json"


def lines(grid: str, graph: str, preset: str, seeds: tuple[int, ...], weak_n3: float = 0.0) -> list[Cell]:
    """Make the lines of a table for every seed.

    The best N3 of separate training falls with the size, so separate training may get a second line.
    """
    flags = {line: ("--preset", preset, "--objective", line) for line in ("med", "nested", "separate")}
    if weak_n3:
        flags["separate-weak"] = ("--preset", preset, "--objective", "separate", "--n3", str(weak_n3))
    return [Cell(grid, graph, line, seed, some) for seed in seeds for line, some in flags.items()]


GRIDS = {
    "codex-s": lines("codex-s", "codex-s", "codex-s-complex-med", (0, 1), weak_n3=0.01),
    "wn18rr": lines("wn18rr", "wn18rr", "wn18rr-complex-med", (0,)),
    "fb15k-237": lines("fb15k-237", "fb15k-237", "fb15k-237-complex-med", (0,)),
    "wn18rr-rotate": lines("wn18rr-rotate", "wn18rr", "wn18rr-rotate-med", (0,)),
}


def machine() -> dict[str, Any]:
    """Describe where a result was made."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "gpu": gpu,
            "python": platform.python_version(), "cpu": _cpu_name()}  # fmt: skip


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def run(cell: Cell, data_root: Path, scratch: Path) -> None:
    """Run one cell and keep its result."""
    output = scratch / cell.path.stem
    command = [sys.executable, str(ROOT / "recipes" / "kge.py"), "--data_dir", str(data_root / cell.graph),
               "--seed", str(cell.seed), "--output_dir", str(output), "--overwrite_output_dir",
               *cell.flags]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    rows = json.loads((output / "metrics.json").read_text())
    overall = [
        r for r in rows if r["relation"] is None and r["category"] is None and r["ties"] == "realistic"
    ]
    config = json.loads((output / "training_config.json").read_text())
    for name in ("output_dir", "overwrite_output_dir", "data_dir"):
        config.pop(name)
    result = {"grid": cell.grid, "line": cell.line, "seed": cell.seed, "seconds": round(seconds),
              "machine": machine(), "config": config, "rows": overall}  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    temporary = cell.path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1))
    temporary.replace(cell.path)


def read_results() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return all kept results as ``{grid: {line: [result, ...]}}``."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        found[result["grid"]][result["line"]].append(result)
    return found


def values(results: list[dict[str, Any]], metric: str) -> dict[int, list[float]]:
    """Collect one metric over seeds, by size."""
    out: dict[int, list[float]] = defaultdict(list)
    for result in results:
        for row in result["rows"]:
            if row["metric"] == metric and row["side"] == "both":
                out[row["size"]].append(row["value"])
    return dict(sorted(out.items()))


def _cell_text(numbers: list[float]) -> str:
    spread = f" ± {statistics.stdev(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.4f}{spread}"


def render_grid(grid: str, by_line: dict[str, list[dict[str, Any]]]) -> str:
    """Write one grid's section and its picture."""
    some = by_line["med" if "med" in by_line else next(iter(by_line))][0]
    config = some["config"]
    where = some["machine"]["gpu"] or f"{some['machine']['cpu']}, {some['machine']['threads']} threads"
    text = [
        f"## {some['rows'][0]['dataset']}, {config['model']}\n",
        f"{config['num_train_epochs']} epochs, batches of {config['per_device_train_batch_size']}, "
        f"{config['loss']} over {config['negatives']} entities"
        + (f" ({config['num_negatives']})" if config["negatives"] != "all" else "")
        + f", {config['optimizer']} {config['learning_rate']}, N3 {config['n3']}, "
        f"torch {some['machine']['torch']}, {where}. Filtered {some['rows'][0]['split']} metrics, "
        f"mean ± standard deviation over seeds.\n",
    ]
    for metric in METRICS:
        table = {line: values(results, metric) for line, results in by_line.items()}
        sizes = sorted(next(iter(table.values())))
        text.append(f"| {metric} | seeds | " + " | ".join(map(str, sizes)) + " | minutes |")
        text.append("| --- | ---: |" + " ---: |" * (len(sizes) + 1))
        for line in sorted(table, key=list(NAMES).index):
            minutes = statistics.mean(r["seconds"] for r in by_line[line]) / 60
            cells = " | ".join(_cell_text(table[line][size]) for size in sizes)
            text.append(f"| {NAMES[line]} | {len(by_line[line])} | {cells} | {minutes:.1f} |")
        text.append("")
    curves = {
        NAMES[line]: {size: statistics.mean(v) for size, v in values(results, "mrr").items()}
        for line, results in by_line.items()
    }
    plot_lines(RESULTS / f"{grid}.png", curves, ylabel="filtered MRR", title=text[0].strip("# \n"))
    text.append(f"![MRR against size]({RESULTS.name}/{grid}.png)\n")
    return "\n".join(text)


def render() -> None:
    """Write the page from the kept results."""
    head = (
        "# Link prediction\n\nWritten by `python recipes/benchmark_kge.py render` from the files in "
        "`docs/results/kge/`. Minutes are wall-clock of a shared machine, evaluation included.\n"
    )
    sections = [render_grid(grid, by_line) for grid, by_line in sorted(read_results().items())]
    PAGE.write_text("\n".join([head, *sections]), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("run", "render"))
    parser.add_argument("--grid", nargs="+", choices=tuple(GRIDS), default=list(GRIDS), help="which tables")
    default_data = ROOT.parent / "shared" / "data" / "kg"
    parser.add_argument("--data_root", type=Path, default=default_data, help="holds one folder per graph")
    parser.add_argument("--lines", nargs="+", choices=tuple(NAMES), default=list(NAMES), help="which lines")
    parser.add_argument("--scratch", type=Path, default=ROOT / "runs" / "benchmark", help="where runs write")
    options = parser.parse_args()
    if options.action == "render":
        render()
        return 0
    cells = [cell for grid in options.grid for cell in GRIDS[grid] if cell.line in options.lines]
    for i, cell in enumerate(cells, 1):
        print(f"[{i}/{len(cells)}] {cell.path.stem}: {'kept' if cell.path.exists() else 'running'}")
        if not cell.path.exists():
            run(cell, options.data_root, options.scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
