"""The report of benchmarks/glue_quality.py: its lines, its cells, and docs/results/glue.md made of them.

Every number is computed from the cells; differences between lines pair the runs of one seed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from croppable.report import plot_lines

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "glue"
SIZES = (3, 6, 9, 12)
HEADLINE = {"cola": "matthews_correlation", "stsb": "pearson"}
# What a model gets that has learnt nothing: the share of the most frequent label in the validation split.
CHANCE = {"cola": 0.0, "sst2": 50.9, "mrpc": 68.4, "rte": 52.7, "stsb": 0.0}


class Line(NamedTuple):
    """A line of the tables: how the report calls it, the recipe's flags, its share of steps, its sizes."""

    name: str
    flags: str
    times: int = 1
    sizes: tuple[int, ...] = SIZES


# Weak ties are the recipe's defaults, written out: mutual learning of weight 1 left the smallest size near
# chance on held-out SST-2 examples. In-place distillation helped every smaller size on SST-2 and cost the
# largest, which therefore weighs more (docs/bert.md).
TIES = "--objective med --mutual 0.1 --w3 0"
TOGETHER = f"{TIES} --distill 1 --size_weights 1 1 1 3"
MED = f"{TOGETHER} --largest_first 0.5"

# "separate" holds plain fine-tuning of the full model as its largest size; "full" is the same run alone, for
# a learning rate of its own.
LINES: dict[str, Line] = {
    "full": Line("plain fine-tuning of the full model", "--objective separate", sizes=SIZES[-1:]),
    "separate": Line("separate fine-tuning", "--objective separate"),
    "random": Line("random sub-networks (BERT-HAT)", "--objective random"),
    "random-long": Line("BERT-HAT, four times the steps", "--objective random", times=4),
    "nested": Line("plain nested sum", "--objective nested"),
    "nested-weighted": Line("plain nested sum, weights as MED", "--objective nested --size_weights 1 1 1 3"),
    "sandwich": Line("sandwich + in-place distillation", "--objective nested --distill 1"),
    "sandwich-later": Line("sandwich, largest first", "--objective nested --distill 1 --largest_first 0.5"),
    "med": Line("MED", MED),
    "med-smallest": Line("MED, the smallest size weighed 2", f"{MED} --size_weights 2 1 1 1"),
    "med-together": Line("MED, all sizes from the start", TOGETHER),
    "med-distill": Line("MED, sizes alike", f"{TIES} --size_weights 1 1 1 1 --distill 1"),
    "med-small-first": Line(
        "MED, small sizes weighted up, no distillation", f"{TIES} --size_weights 8 4 2 1"
    ),
    "med-no-mutual": Line("MED without mutual learning", f"{MED} --mutual 0"),
    "med-no-evolution": Line("MED without evolutionary improvement", f"{MED} --w1 0"),
    "med-no-distill": Line("MED without in-place distillation", f"{MED} --distill 0"),
    "med-dynamic": Line("MED, ties and weights as in the paper", "--objective med --mutual 1 --w3 1"),
    "med-hidden": Line("MED + hidden-state distillation", f"{MED} --hidden_distill 1"),
}
NEEDED = ("separate", "random", "med")  # without these a task takes no part in the means
GAIN, GAP = 16.0, 0.5  # what the method promises: percent above BERT-HAT, points below plain fine-tuning

Cell = dict[str, Any]
# (task, line, size) -> seed -> headline metric in percent
Table = dict[tuple[str, str, int], dict[int, float]]


def cell_path(task: str, line: str, seed: int) -> Path:
    """Return the file of a cell."""
    return RESULTS / f"{task}.{line}.seed{seed}.json"


def load(folder: Path) -> list[Cell]:
    """Read all cells of a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.seed*.json"))]


def require_equal_budgets(cells: Sequence[Cell]) -> None:
    """Refuse to compare lines of a task that did not see the same examples in the same number of steps.

    Raises:
        SystemExit: If they differ; names the cells.
    """
    seen: dict[str, dict[tuple[int, ...], list[str]]] = {}
    for cell in cells:
        line = cell["line"]
        budget = (cell["steps"] // LINES[line].times, cell["batch"], cell["examples"])
        seen.setdefault(cell["task"], {}).setdefault(budget, []).append(f"{line}.seed{cell['seed']}")
    for task, budgets in seen.items():
        if len(budgets) > 1:
            told = "; ".join(f"{', '.join(names)}: {budget}" for budget, names in budgets.items())
            raise SystemExit(f"cells of {task} differ in (steps, batch, training examples): {told}")


def headline(cell: Cell) -> dict[int, float]:
    """Return the metric that counts, in percent, by size."""
    metric = HEADLINE.get(cell["task"], "accuracy")
    return {row["size"]: 100 * row["value"] for row in cell["rows"] if row["metric"] == metric}


def collect(cells: Iterable[Cell]) -> Table:
    """Arrange the headline metrics."""
    table: Table = {}
    for cell in cells:
        for size, value in headline(cell).items():
            table.setdefault((cell["task"], cell["line"], size), {})[cell["seed"]] = value
    return table


def shown(values: Iterable[float], sign: str = "") -> str:
    """Write mean and standard deviation."""
    numbers = list(values)
    if not numbers:
        return ""
    mean = f"{statistics.mean(numbers):{sign}.1f}"
    return f"{mean} ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else mean


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, its first column to the left."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def over(table: Table, tasks: Sequence[str], line: str, sizes: Sequence[int]) -> dict[int, float]:
    """Return the mean over tasks and sizes by seed, of the seeds that every one of them has."""
    seeds = set.intersection(*(set(table.get((t, line, s), {})) for t in tasks for s in sizes))
    return {
        seed: statistics.mean(table[t, line, s][seed] for t in tasks for s in sizes) for seed in sorted(seeds)
    }


def plain(table: Table, tasks: Sequence[str]) -> dict[int, float]:
    """Return plain fine-tuning of the full model, with a learning rate of its own where there is one."""
    return over(table, tasks, "full", SIZES[-1:]) or over(table, tasks, "separate", SIZES[-1:])


def minus(values: dict[int, float], others: dict[int, float]) -> list[float]:
    """Return the differences of the seeds that both have."""
    return [values[seed] - others[seed] for seed in values if seed in others]


def relative(values: dict[int, float], others: dict[int, float]) -> list[float]:
    """Return by how many percent the values are above the others, seed by seed; above 0 it has no answer."""
    return [100 * (values[seed] / others[seed] - 1) for seed in values if others.get(seed)]


def task_tables(cells: Sequence[Cell], table: Table, task: str) -> str:
    """Return one task: a row per line and a column per size; then the differences to separate."""
    own = [cell for cell in cells if cell["task"] == task]
    values, gaps = [], []
    for line, (name, *_) in LINES.items():
        runs = [cell for cell in own if cell["line"] == line]
        if not runs:
            continue
        per_size = [table.get((task, line, size), {}) for size in SIZES]
        rates = sorted({cell["learning_rate"] for cell in runs})
        steps = sorted({f"{cell['steps']:,}" for cell in runs})
        minutes = statistics.mean(cell["seconds"] / 60 for cell in runs)
        values.append([name, str(len(runs)), *map(shown, (v.values() for v in per_size)),
                       ", ".join(rates), ", ".join(steps), f"{minutes:.1f}"])  # fmt: skip
        if line not in ("full", "separate"):
            base = [table.get((task, "separate", size), {}) for size in SIZES[:-1]]
            differences = [minus(v, b) for v, b in zip(per_size[:-1], base, strict=True)]
            largest = minus(per_size[-1], plain(table, [task]))
            gaps.append([name, *(shown(d, "+") for d in (*differences, largest))])
    heads = [f"{size} heads" for size in SIZES]
    metric = HEADLINE.get(task, "accuracy").replace("_", " ")
    text = markdown([metric, "seeds", *heads, "learning rate", "steps", "minutes"], values)
    against = markdown(["difference to separate fine-tuning", *heads[:-1], f"{heads[-1]}, to plain"], gaps)
    examples, batch = own[0]["examples"], own[0]["batch"]
    about = (
        f"{examples:,} training examples, batches of {batch}. The most frequent answer alone scores "
        f"{CHANCE[task]}. Flags of the first run: `{own[0]['flags']}`"
    )
    return f"## {task}\n\n{about}\n\n{text}\n\n{against}"


def summary(table: Table, tasks: Sequence[str], lines: Sequence[str]) -> str:
    """Return the means over tasks, a row per line that has all of them."""
    base, full = over(table, tasks, "random", SIZES[:-1]), plain(table, tasks)
    separate = over(table, tasks, "separate", SIZES[:-1])
    rows = []
    for line in lines:
        small, large = over(table, tasks, line, SIZES[:-1]), over(table, tasks, line, SIZES[-1:])
        if small:
            rows.append([LINES[line].name, str(len(small)), shown(small.values()),
                         shown(relative(small, base), "+"), shown(minus(small, separate), "+"),
                         shown(large.values()), shown(minus(large, full), "+")])  # fmt: skip
    header = ["mean over tasks", "seeds", "smaller sizes", "% above BERT-HAT", "to separate",
              "largest size", "to plain"]  # fmt: skip
    return markdown(header, rows)


def claims(table: Table, tasks: Sequence[str]) -> str:
    """Hold the results against what the method promises, with the numbers, met or not."""
    rows = []
    for task in tasks:
        gap = statistics.mean(minus(over(table, [task], "med", SIZES[-1:]), plain(table, [task])))
        rows.append(
            [f"{task}: largest size within {GAP} of plain fine-tuning", f"{gap:+.1f}", yes(gap >= -GAP)]
        )
        gaps = {
            s: statistics.mean(minus(table[task, "med", s], table[task, "separate", s])) for s in SIZES[:-1]
        }
        text = ", ".join(f"{size}: {value:+.1f}" for size, value in gaps.items())
        rows.append([f"{task}: smaller sizes above separate fine-tuning", text, yes(min(gaps.values()) > 0)])
    med = over(table, tasks, "med", SIZES[:-1])
    for line in ("random", "random-long"):
        base = over(table, tasks, line, SIZES[:-1])
        if gains := relative(med, base):
            gain = statistics.mean(gains)
            text = f"{shown(med.values())} against {shown(base.values())}: {gain:+.1f} %"
            claim = f"mean over tasks and smaller sizes {GAIN:.0f} % above {LINES[line].name}"
            rows.append([claim, text, yes(gain >= GAIN)])
    return markdown(["claim for MED", "measured", "met"], rows)


def yes(condition: bool) -> str:
    """Write a truth value."""
    return "yes" if condition else "no"


def about(cells: Sequence[Cell]) -> str:
    """Say what was run and where."""
    models = ", ".join(sorted({cell["model"] for cell in cells}))
    machines = sorted(
        {"{cpu}, {threads} of {cores} threads, torch {torch}".format(**cell["machine"]) for cell in cells}
    )
    seeds = ", ".join(map(str, sorted({cell["seed"] for cell in cells})))
    return (
        "Written by `python benchmarks/glue_quality.py render` from the files in `docs/results/glue/`. "
        f"Encoder: {models}, its units reordered by importance, at {', '.join(map(str, SIZES))} heads. "
        f"Machine: {'; '.join(machines)}; minutes are wall-clock, loading and evaluation included. Seeds: "
        f"{seeds}. Validation split, weights of the last step. All lines of a task take the same number of "
        "steps; separate fine-tuning takes them for each size, and a step of random sub-networks runs one "
        "size only, a quarter of the sizes of the others, as does MED in the first half of its steps (the "
        "largest). CoLA is Matthews correlation, STS-B Pearson, the others accuracy, all times 100; ± is "
        "the standard deviation over seeds, and differences are taken seed by seed."
    )


def tuning(folder: Path) -> str:
    """Say how learning rates were chosen, with the numbers."""
    cells = load(folder)
    chosen = (
        f"MED runs with `{MED}`: its weights were set after the lines without MED and those with other "
        "weights had been measured on SST-2, and the largest goes first since that was better on MRPC; these "
        "are therefore no independent checks of them. The other lines have nothing to choose but the "
        "learning rate."
    )
    if not cells:
        return f"{chosen} All lines have the learning rate of their task in the budget."
    rates = sorted({cell["learning_rate"] for cell in cells}, key=float)
    rows = []
    for task, line in dict.fromkeys((cell["task"], cell["line"]) for cell in cells):
        tried: dict[str, list[float]] = {rate: [] for rate in rates}
        for cell in cells:
            if (cell["task"], cell["line"]) == (task, line):
                tried[cell["learning_rate"]].append(statistics.mean(headline(cell).values()))
        rows.append([task, LINES[line].name, *(shown(tried[rate]) for rate in rates)])
    return (
        f"{chosen} Learning rates of these tasks and lines were chosen by the mean over sizes on every "
        "fifth training example, held out for this (`glue_quality.py tune`); the others have the "
        "rate of their task in the budget."
        "\n\n"
        f"{markdown(['task', 'line', *rates], rows)}"
    )


def step_cost(path: Path) -> str:
    """Return what benchmarks/glue_step_cost.py measured."""
    found = json.loads(path.read_text(encoding="utf-8"))
    settings, step = found["settings"], found["step"]
    crops = [
        [f"{size} heads", f"{row['ms']:.1f}", f"{row['forward_over_stock']:.3f}", f"{row['bytes'] / 1e6:.1f}",
         f"{row['bytes_over_stock']:.3f}"]
        for size, row in found["crops"].items()
    ]  # fmt: skip
    return (
        f"## Cost\n\nA training step of MED at {', '.join(map(str, settings['sizes']))} heads took "
        f"{step['step_ratio']['med']:.2f} times the step of the largest alone in stock transformers; the "
        f"FLOPs of these models together are {step['flop_ratio']:.2f} times its own, so the step costs "
        f"{step['step_over_flops']['med']:.2f} times its FLOPs. Crops against a stock model of the same "
        f"config, forward and file, batches of {settings['batch']} with {settings['length']} tokens, "
        f"{settings['threads']} thread, best of {settings['rounds']} rounds in turns "
        f"(`python benchmarks/glue_step_cost.py`):\n\n"
        f"{markdown(['crop', 'forward, ms', 'of stock', 'file, MB', 'of stock'], crops)}"
    )


def picture(table: Table, tasks: Sequence[str], path: Path) -> None:
    """Draw the mean over tasks of every line over sizes."""
    curves: dict[str, dict[int, float]] = {}
    for line in ("separate", "random", "random-long", "nested", "sandwich", "med"):
        per_size = {size: over(table, tasks, line, [size]).values() for size in SIZES}
        if all(per_size.values()):
            curves[LINES[line].name] = {size: statistics.mean(values) for size, values in per_size.items()}
    plot_lines(path, curves, ylabel="mean over tasks", title=f"GLUE: {', '.join(tasks)}")


def render(output: Path, folder: Path = RESULTS) -> Path:
    """Write the report and its picture from the cells; return the report's file."""
    cells = load(folder)
    if not cells:
        raise SystemExit(f"no results in {folder}: run the grid first")
    require_equal_budgets(cells)
    table = collect(cells)
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    complete = [t for t in tasks if all(set(table.get((t, n, s), {})) for n in NEEDED for s in SIZES)]
    parts = ["# GLUE: one fine-tuning, four widths", about(cells)]
    if complete:
        image = output.with_suffix(".png")
        picture(table, complete, image)
        parts += [claims(table, complete), f"## Over {', '.join(complete)}",
                  summary(table, complete, [n for n in LINES if n != "full"]),
                  f"![Mean over tasks by size]({image.name})"]  # fmt: skip
        # Parts of MED are switched off on some tasks only: compare them on those.
        for line in LINES:
            own = [t for t in complete if (t, line, SIZES[0]) in table]
            if line.startswith("med-") and own and own != complete:
                parts.append(f"{LINES[line].name}, over {', '.join(own)}:\n\n"
                             f"{summary(table, own, ['random', 'med', line])}")  # fmt: skip
    parts += [task_tables(cells, table, task) for task in tasks]
    if (folder / "step_cost.json").exists():
        parts.append(step_cost(folder / "step_cost.json"))
    parts += ["## How settings were chosen", tuning(folder / "tune")]
    output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return output
