"""The page of recipes/study_kge.py from its JSON files: one section per study that has results."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmark_kge_lines import NAMES
from benchmark_kge_render import Result, budget, cell_text, line_of, metric_table, place, read_results, values
from study_kge_grids import ABLATION, ABLATION_SAMPLED, GAP
from study_kge_measure import RIGHT, epochs_to

from croppable.report import plot_lines

Measured = Mapping[str, Any]
NEAR = 0.99  # of the best validation MRR: converged


def read_measured(folder: Path, kind: str) -> list[Measured]:
    """Return what a study measured, in the order of the lines of its grids."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{kind}*.json"))]
    own = [content for content in found if content.get("study", "").split("-")[0] == kind]
    return sorted(own, key=lambda content: place(content.get("grid", ""), content.get("line", "")))


def plot_curves(
    path: Path, curves: Mapping[str, Sequence[Sequence[float]]], *, xlabel: str, ylabel: str, title: str
) -> None:
    """Draw one curve of (x, y) points per name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Write a table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines] + [""]


def picture(text: str, folder: Path, name: str) -> str:
    """Write the reference to a picture of the folder."""
    return f"![{text}]({folder.name}/{name}.png)\n"


def differences(lines: Mapping[str, Sequence[Result]]) -> list[str]:
    """Write how much MRR every line wins or loses against the first, on the same seeds."""
    (reference, first), *others = lines.items()
    by_seed = {result["seed"]: values([result], "mrr") for result in first}
    sizes = list(values(first, "mrr"))
    rows = []
    for title, results in others:
        gaps: dict[int, list[float]] = defaultdict(list)
        for result in results:
            for size, (value,) in values([result], "mrr").items():
                if size in by_seed.get(result["seed"], {}):
                    gaps[size].append(value - by_seed[result["seed"]][size][0])
        rows.append([title, *(f"{statistics.mean(gaps[s]):+.4f}" if gaps[s] else "" for s in sizes)])
    return table([f"mrr, difference to {reference}", *sizes], rows)


def ablation(folder: Path) -> list[str]:
    """Write both ablations and the learnt weights over time."""
    found, text = read_results(folder), []
    for grid in (ABLATION, ABLATION_SAMPLED):
        by_line = found.get(grid.name, {})
        if not by_line:
            continue
        lines = {line_of(results[0]).title: results for results in by_line.values()}
        text += [f"## {grid.title}\n", *budget(by_line)]
        text += metric_table(lines, "mrr") + differences(lines) + metric_table(lines, "hits@10")
        curves = {title: {s: statistics.mean(v) for s, v in values(results, "mrr").items()}
                  for title, results in lines.items()}  # fmt: skip
        plot_lines(folder / f"{grid.name}.png", curves, ylabel="filtered MRR", title=grid.title)
        text += [picture("MRR against size", folder, grid.name)]
        text += learnt(folder, grid.name, lines)
    return text


def learnt(folder: Path, name: str, lines: Mapping[str, Sequence[Result]]) -> list[str]:
    """Write the learnable weights over time, of the first seed of every line that has them."""
    rows, curves = [], {}
    for title, results in lines.items():
        weights = results[0].get("weights", [])
        if len(weights) < 2:
            continue
        for key in [key for key in weights[0] if key != "step"]:
            points = [(row["step"], row[key]) for row in weights]
            curves[f"{key}, {title}"] = points
            shown = [points[round(part * (len(points) - 1))][1] for part in (0, 0.25, 0.5, 0.75, 1)]
            rows.append([f"{title}: {key}", *(f"{value:.3f}" for value in shown)])
    if not rows:
        return []
    plot_curves(folder / f"{name}-weights.png", curves, xlabel="step", ylabel="weight",
                title="learnable weights over time")  # fmt: skip
    head = ["learnable weights", "first", "1/4", "1/2", "3/4", "last"]
    return [*table(head, rows), picture("weights over steps", folder, f"{name}-weights")]


def gap(folder: Path) -> list[str]:
    """Write the runs with other neighbours, at trained sizes and in between."""
    by_line = read_results(folder).get(GAP.name, {})
    if not by_line:
        return []
    lines = {line_of(results[0]).title: results for results in by_line.values()}
    text = [f"## {GAP.title}\n", *budget(by_line), "At the sizes that a run was trained at:\n"]
    text += metric_table(lines, "mrr", GAP.shown)
    crops: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for measured in read_measured(folder, "crops"):
        for size, value in measured["mrr"].items():
            crops[measured["title"]][int(size)].append(value)
    if crops:
        rows = [[t, *(cell_text(row.get(size, ())) for size in GAP.shown)] for t, row in crops.items()]
        text += ["Cropped at any of these sizes, trained at it or not:\n", *table(["mrr", *GAP.shown], rows)]
        curves = {t: {s: statistics.mean(v) for s, v in row.items()} for t, row in crops.items()}
        plot_lines(folder / "gap.png", curves, ylabel="filtered MRR", title=GAP.title)
        text += [picture("MRR of crops against size", folder, "gap")]
    return text


def shares(counts: Sequence[int]) -> list[str]:
    """Write counts as shares of their sum."""
    return [f"{100 * count / sum(counts):.1f}" for count in counts]


def overlap(folder: Path) -> list[str]:
    """Write which answers are right from which size on."""
    measured = read_measured(folder, "overlap")
    if not measured:
        return []
    text = [
        "## What is learnt at which size\n",
        f"A query is a test triple with one end asked for; it is right where the filtered rank is at most "
        f"{RIGHT}.\n",
    ]
    for one in measured:
        sizes, title = one["sizes"], f"{one['grid']}, {one['title']}, seed {one['seed']}"
        queries = one["all"][0]["queries"]
        text += [f"### {title}\n", f"{queries} queries. Of those that the size of the line has right, the "
                 "share (%) that the size of the column has right too:\n"]  # fmt: skip
        rows = [
            [f"{size} ({right} right)", *("" if v is None else f"{100 * v:.1f}" for v in row)]
            for size, right, row in zip(sizes, one["right"], one["overlap"], strict=True)
        ]
        text += table(["size", *sizes], rows)
        text += ["Share of queries (%) that are right from a size on at all larger ones:\n"]
        head = ["queries", "number", *(f"from {size}" for size in sizes), "not at the largest"]
        groups = [("", one["all"]), ("", one["category"]), ("answer in training: ", one["frequency"])]
        text += table(head, [[prefix + row["group"], row["queries"], *shares(row["right_from"])]
                             for prefix, rows in groups for row in rows])  # fmt: skip
        right = {}
        for row in one["category"]:
            counts = accumulate(row["right_from"][:-1])
            right[row["group"]] = {s: 100 * c / row["queries"] for s, c in zip(sizes, counts, strict=True)}
        name = f"overlap-{one['grid']}-{one['line']}-{one['seed']}"
        plot_lines(folder / f"{name}.png", right, ylabel="% right here and at all larger sizes", title=title)
        text += [picture("share right at a size and all larger ones, by category", folder, name)]
    return text


def classify(folder: Path) -> list[str]:
    """Write triple classification at all sizes."""
    by_graph: dict[str, dict[str, list[Measured]]] = defaultdict(lambda: defaultdict(list))
    for one in read_measured(folder, "classify"):
        by_graph[one["graph"]][one["title"]].append(one)
    text = ["## Triple classification\n", "Accuracy on test, thresholds per relation from validation.\n"]
    for graph, by_title in by_graph.items():
        accuracy: dict[str, dict[int, list[float]]] = {}
        for title, every in by_title.items():
            rows = accuracy.setdefault(title, defaultdict(list))
            for row in (row for one in every for row in one["rows"]):
                rows[row["size"]].append(row["value"])
        sizes = sorted({size for rows in accuracy.values() for size in rows})
        lines = [
            [title, *(cell_text(rows.get(size, ())) for size in sizes)] for title, rows in accuracy.items()
        ]
        text += table([f"{graph}, accuracy", *sizes], lines)
        curves = {t: {s: statistics.mean(v) for s, v in sorted(r.items())} for t, r in accuracy.items()}
        plot_lines(folder / f"classify-{graph}.png", curves, ylabel="accuracy", title=graph)
        text += [picture("accuracy against size", folder, f"classify-{graph}")]
    return text if by_graph else []


def convergence(folder: Path) -> list[str]:
    """Write validation curves."""
    text = [
        "## Convergence\n",
        f"Epochs until a size first reaches {NEAR:.0%} of its best validation MRR, and that MRR.\n",
    ]
    by_grid: dict[str, list[Any]] = defaultdict(list)
    for measured in read_measured(folder, "convergence"):
        for line in measured["lines"]:
            by_grid[line["grid"]].append(line)
    for grid, lines in by_grid.items():
        sizes = sorted({int(size) for line in lines for size in line["curves"]})
        rows = []
        for line in lines:
            cells = [_converged(line["curves"].get(str(size))) for size in sizes]
            rows.append([f"{NAMES.get(line['family'], line['family'])}, seed {line['seed']}", *cells])
        text += table([grid, *sizes], rows)
        curves = {
            f"{line['family']} {size}": line["curves"][str(size)]
            for line in lines
            for size in (sizes[0], sizes[len(sizes) // 2], sizes[-1])
            if line["seed"] == lines[0]["seed"] and line["family"] in ("separate", "nested", "med")
            and str(size) in line["curves"]
        }  # fmt: skip
        plot_curves(folder / f"convergence-{grid}.png", curves, xlabel="epoch", ylabel="validation MRR",
                    title=grid)  # fmt: skip
        text += [picture("validation MRR against epochs", folder, f"convergence-{grid}")]
    return text if by_grid else []


def _converged(curve: Sequence[tuple[float, float]] | None) -> str:
    return f"{epochs_to(curve, NEAR):g} ({max(value for _, value in curve):.4f})" if curve else ""


def complexity(folder: Path) -> list[str]:
    """Write derived costs beside the measured ones."""
    text = []
    for one in read_measured(folder, "complexity"):
        text += [
            "## Time and space\n",
            "E entities, R relations, p floats per dim, D dims, n sizes d_1 < ... < d_n = D, B queries "
            "against N candidates. Parameters: (E + R) p D for all sizes, (E + R) p Σ d_i for separate "
            "models. Additions of a step: B N p Σ d_i for separate training or a loop over sizes, "
            "B N (p D + n) in one pass; scores in memory: B N n. So n sizes in one pass cost "
            "(p D + n) / (p D + 1) of one size, and separate training Σ d_i / D of it.\n",
            f"Derived, and measured on {one['graph']} at {one['full']} dims with evenly spaced sizes "
            f"([training step](training_step.md): {_machine(one['measured_on'])}); one size at full width is "
            "1.\n",
        ]
        rows = [
            [row["score"], row["n"], f"{row['one_pass']:.3f}", f"{row['measured']:.2f}",
             f"{row['loop'] / row['one_pass']:.1f}",
             "" if row["separate_measured"] is None else f"{row['separate_measured']:.1f}",
             f"{row['parameters']:,}", f"{row['parameters_separate']:,}"]
            for row in one["steps"]
        ]  # fmt: skip
        head = ["score", "n", "one pass, derived", "measured", "separate / one pass, derived", "measured",
                "parameters", "of separate models"]  # fmt: skip
        text += table(head, rows)
        text += [f"Memory and time of a step, TransE, 640 dims ([growth](training_growth.md): "
                 f"{_machine(one['memory_on'])}):\n"]  # fmt: skip
        text += table(["n", "ms", "peak GB"], [[row["n"], f"{row['ms']:.1f}", f"{row['peak_gb']:.2f}"]
                                               for row in one["memory"]])  # fmt: skip
    return text


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['threads']} thread(s)"


SECTIONS: tuple[Callable[[Path], list[str]], ...] = (
    ablation, gap, overlap, classify, convergence, complexity,
)  # fmt: skip


def render(folder: Path) -> None:
    """Write the page of a folder of study results beside it."""
    page = folder.with_suffix(".md")
    head = ["# Studies\n", "Written by `python recipes/study_kge.py render` from the files in "
            f"`{folder.name}/`; each section names its settings.\n"]  # fmt: skip
    page.write_text("\n".join(head + [x for section in SECTIONS for x in section(folder)]), encoding="utf-8")
    print(f"wrote {page}")
