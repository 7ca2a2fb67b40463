"""Tables and curves from the results of recipes/benchmark_kge.py; trains nothing and reads nothing else.

A result is the content of one file: the config of a run, its test rows, and its validations. Where a
family of lines differs in settings only, a further line shows what validation chooses: for runs per size the
best run of every size, for nested runs the one run that is best on the mean over sizes. Test values choose
nothing.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark_kge_grids import GRIDS
from benchmark_kge_lines import CUTS, NAMES, PER_SIZE, Line
from kge_config import Config
from study_kge_grids import STUDY_GRIDS

from croppable.report import plot_lines

KNOWN = {**GRIDS, **STUDY_GRIDS}
METRICS = ("mrr", "hits@1", "hits@3", "hits@10")
# Not settings of a line: what it is, or where and how it ran.
NOT_SETTINGS = {"objective", "seed", "preset", "teacher", "compile", "eval_split"}
COST = ("num_train_epochs", "per_device_train_batch_size", "loss", "negatives", "num_negatives", "optimizer",
        "learning_rate", "lr_scheduler_type", "early_stopping_patience", "n3")  # fmt: skip
DEFAULTS = asdict(Config())
Result = Mapping[str, Any]


def read_results(folder: Path) -> dict[str, dict[str, list[Result]]]:
    """Return all kept results as ``{grid: {line: [result, ...]}}``, in the order of the grids."""
    found: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "rows" not in result or "config" not in result:  # of recipes/study_kge.py: no cell
            continue
        found[result["grid"]][result["line"]].append(result)
    order = [*(name for name in KNOWN if name in found), *(name for name in found if name not in KNOWN)]
    return {name: dict(sorted(found[name].items(), key=lambda x: place(name, x[0]))) for name in order}


def place(grid: str, name: str) -> int:
    """Return which line of its grid a name is; lines that are none any more come last."""
    names = [line.name for line in KNOWN[grid].lines] if grid in KNOWN else []
    return names.index(name) if name in names else len(names)


def line_of(result: Result) -> Line:
    """Return the line of a result; one that no grid has any more is described by its config."""
    grid = KNOWN.get(result["grid"])
    known = grid.line(result["line"]) if grid else None
    if known:
        return known
    objective = result["config"]["objective"]
    title = NAMES[objective] + ("" if result["line"] == objective else f" ({result['line']})")
    return Line(name=result["line"], title=title, flags=(), family=objective)


def values(results: Sequence[Result], metric: str) -> dict[int, list[float]]:
    """Collect one test metric over seeds, by size."""
    out: dict[int, list[float]] = defaultdict(list)
    for result in results:
        for row in result["rows"]:
            if row["metric"] == metric and row["side"] == "both":
                out[row["size"]].append(row["value"])
    return dict(sorted(out.items()))


def validation(result: Result) -> dict[int, float]:
    """Return the validation MRR of the weights that were kept, by size; empty where none is known.

    A run keeps the weights of its best mean over sizes. Runs per size follow each other in one list.
    """
    rows = result.get("validations", [])
    sizes = {int(key.removeprefix("score_")) for row in rows for key in row if key.startswith("score_")}
    best = {}
    for size in sorted(sizes):
        key = f"score_{size}"
        best[size] = max((row for row in rows if key in row), key=lambda row: row["score"])[key]
    return best


def choose(results: Sequence[Result], *, per_size: bool) -> dict[str, Any] | None:
    """Choose between runs of one seed by validation; return a result with the chosen test rows.

    Args:
        results: Of one family and seed, with different settings.
        per_size: Choose every size for itself; else one run for all sizes, by the mean of its sizes.

    Returns:
        A result with "chosen", {size: line}, and the seconds of all runs; None if fewer than two of them
        know their validation.
    """
    scores = {result["line"]: validation(result) for result in results}
    by_line = {result["line"]: result for result in results if scores[result["line"]]}
    if len(by_line) < 2:
        return None
    sizes = sorted(set.intersection(*(set(scores[line]) for line in by_line)))
    if per_size:
        chosen = {size: max(by_line, key=lambda line: scores[line][size]) for size in sizes}
    else:
        best = max(by_line, key=lambda line: statistics.mean(scores[line][size] for size in sizes))
        chosen = dict.fromkeys(sizes, best)
    first = next(iter(by_line))  # has the sizes that nobody validated: those of a model that all start from
    rows = [row for line, result in by_line.items() for row in result["rows"]
            if chosen.get(row["size"], first) == line]  # fmt: skip
    seconds = sum(result["seconds"] for result in by_line.values())
    return {**results[0], "line": "best", "rows": rows, "seconds": seconds, "chosen": chosen}


def derived(by_line: Mapping[str, Sequence[Result]]) -> dict[str, list[Result]]:
    """Return the chosen results of every family of several lines, ``{family: [one per seed]}``."""
    families: dict[str, dict[int, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for results in by_line.values():
        for result in results:
            families[line_of(result).family][result["seed"]].append(result)
    out: dict[str, list[Result]] = {}
    for family, by_seed in families.items():
        picks = (choose(results, per_size=family in PER_SIZE) for results in by_seed.values())
        if found := [pick for pick in picks if pick]:
            out[family] = found
    return out


def table_lines(by_line: Mapping[str, Sequence[Result]]) -> dict[str, Sequence[Result]]:
    """Return what a table shows as ``{title: results}``; a chosen line stands behind its family."""
    chosen, out = derived(by_line), {}
    families = [line_of(results[0]).family for results in by_line.values()]
    for i, results in enumerate(by_line.values()):
        out[line_of(results[0]).title] = results
        if families[i] in chosen and families[i] not in families[i + 1 :]:
            how = "per size" if families[i] in PER_SIZE else "one run"
            out[f"**{NAMES.get(families[i], families[i])}, best on validation, {how}**"] = chosen[families[i]]
    return out


def headlines(by_line: Mapping[str, Sequence[Result]]) -> dict[str, Sequence[Result]]:
    """Return ``{family: results}``: what validation chose, else the line that has the family's name."""
    chosen, out = derived(by_line), {}
    for results in by_line.values():
        family = line_of(results[0]).family
        if family not in out or line_of(results[0]).name == family:
            out[family] = chosen.get(family, results)
    return out


def cell_text(numbers: Sequence[float]) -> str:
    """Write mean and standard deviation over seeds."""
    if not numbers:
        return ""
    spread = f" ± {statistics.stdev(numbers):.4f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.4f}{spread}"


def metric_table(lines: Mapping[str, Sequence[Result]], metric: str, shown: Sequence[int] = ()) -> list[str]:
    """Write one table: a line per title, a column per size."""
    table = {title: values(results, metric) for title, results in lines.items()}
    sizes = list(shown) or sorted({size for row in table.values() for size in row})
    out = [f"| {metric} | seeds | " + " | ".join(map(str, sizes)) + " | minutes |",
           "| --- | ---: |" + " ---: |" * (len(sizes) + 1)]  # fmt: skip
    for title, results in lines.items():
        minutes = statistics.mean(r["seconds"] for r in results) / 60
        cells = " | ".join(cell_text(table[title].get(size, ())) for size in sizes)
        out.append(f"| {title} | {len(results)} | {cells} | {minutes:.1f} |")
    return [*out, ""]


def budget(by_line: Mapping[str, Sequence[Result]]) -> list[str]:
    """Write what all lines share, and the settings in which a line differs from the first."""
    configs = {line_of(results[0]).title: results[0]["config"] for results in by_line.values()}
    first_title, first = next(iter(configs.items()))
    machines = sorted({_machine(result["machine"]) for results in by_line.values() for result in results})
    data = next(iter(by_line.values()))[0]["rows"][0]
    text = [
        f"Filtered {data['split']} metrics on {data['dataset']}, realistic ties; mean ± standard deviation "
        f"over seeds; {'; '.join(machines)}. All lines are as the first but for what is listed.",
        "",
        f"- {first_title}: {_settings(first, shared_settings(first))}",
    ]
    for title, config in list(configs.items())[1:]:
        if config.get("teacher"):
            text.append(f"- {title}: starts from {config['teacher']}")
        if config["objective"] in CUTS:
            continue
        before = DEFAULTS | first  # a result may be older than a setting
        settings = [key for key in config if key in before and key not in NOT_SETTINGS]
        if different := [key for key in settings if config[key] != before[key]]:
            text.append(f"- {title}: {_settings(config, different)}")
    return [*text, ""]


def shared_settings(config: Mapping[str, Any]) -> list[str]:
    """Return what a table says of its first line: of the two kinds of N3, the one that counts."""
    other = "n3" if config.get("n3_sizes") else "n3_sizes"
    return [key for key in (*COST, "n3_sizes") if key in config and key != other]


def _settings(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {_short(config[key])}" for key in keys)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"{value[0]} to {value[-1]} ({len(value)})"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _machine(machine: Mapping[str, Any]) -> str:
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} thread(s)"
    return f"torch {machine['torch']}, {where}"


def validation_table(lines: Mapping[str, Sequence[Result]], shown: Sequence[int] = ()) -> list[str]:
    """Write the validation MRR of the weights that every line kept: what choices are made by."""
    name = "validation mrr"
    known = {
        title: [{**result, "rows": [{"size": size, "metric": name, "side": "both", "value": score}
                                    for size, score in validation(result).items()]} for result in results]
        for title, results in lines.items()
        if all(validation(result) and "chosen" not in result for result in results)
    }  # fmt: skip
    return metric_table(known, name, shown) if known else []


def chosen_text(lines: Mapping[str, Sequence[Result]]) -> list[str]:
    """Write which settings validation chose."""
    out = []
    for title, results in lines.items():
        for result in results:
            if "chosen" in result:
                picks = ", ".join(f"{size}: {line}" for size, line in result["chosen"].items())
                out.append(f"- {title.strip('*')}, seed {result['seed']}: {picks}")
    return ["Chosen on validation:\n", *out, ""] if out else []


def heading(grid: str) -> tuple[str, tuple[int, ...]]:
    """Return the title of a grid and the sizes that its tables show; all sizes if empty."""
    known = KNOWN.get(grid)
    return (known.title, known.shown) if known else (grid, ())


def render_grid(grid: str, by_line: Mapping[str, Sequence[Result]], folder: Path) -> str:
    """Write one grid's section."""
    title, shown = heading(grid)
    lines = table_lines(by_line)
    text = [f"## {title}\n", *budget(by_line)]
    for metric in METRICS:
        text += metric_table(lines, metric, shown)
    text += validation_table(lines, shown) + chosen_text(lines)
    return "\n".join([*text, f"![MRR against size]({folder.name}/{grid}.png)\n"])


def draw(grid: str, by_line: Mapping[str, Sequence[Result]], folder: Path) -> None:
    """Draw one grid's picture into a folder: a curve per family."""
    curves = {
        NAMES.get(family, family): {size: statistics.mean(v) for size, v in values(results, "mrr").items()}
        for family, results in headlines(by_line).items()
    }
    plot_lines(folder / f"{grid}.png", curves, ylabel="filtered MRR", title=heading(grid)[0])


def render(found: Mapping[str, Mapping[str, Sequence[Result]]], folder: Path) -> None:
    """Write the page of a folder of results beside it."""
    page = folder.with_suffix(".md")
    head = (
        "# Link prediction\n\nWritten by `python recipes/benchmark_kge.py render` from the files in "
        f"`{folder.name}/`. Minutes are wall-clock of a shared machine, evaluation included: without the "
        "training of the full model for lines that start from one, and of all candidates for lines that "
        "validation chose.\n"
    )
    sections = [render_grid(grid, by_line, folder) for grid, by_line in found.items()]
    page.write_text("\n".join([head, *sections]), encoding="utf-8")
    print(f"wrote {page}")
