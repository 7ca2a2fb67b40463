"""Results for people: a table on the terminal and pictures, from the rows of metrics.json.

Knows rows {size, metric, value, ...} and nothing of the task behind them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["plot_history", "plot_lines", "plot_sizes", "print_table", "size_table"]

Row = Mapping[str, Any]


def size_table(rows: Sequence[Row], metrics: Sequence[str]) -> dict[int, dict[str, float]]:
    """Arrange rows as ``{size: {metric: value}}``, sizes ascending.

    Raises:
        ValueError: If two rows claim the same size and metric: filter the rows first.
    """
    table: dict[int, dict[str, float]] = {size: {} for size in sorted({row["size"] for row in rows})}
    for row in rows:
        if row["metric"] not in metrics:
            continue
        if row["metric"] in table[row["size"]]:
            raise ValueError(
                f"two rows for {row['metric']} at size {row['size']}: pass one slice of the metrics"
            )
        table[row["size"]][row["metric"]] = row["value"]
    return table


def print_table(
    title: str, table: Mapping[int, Mapping[str, Any]], *, columns: Sequence[str] | None = None
) -> None:
    """Print one line per size to the terminal."""
    from rich.console import Console
    from rich.table import Table

    names = list(columns) if columns else list(dict.fromkeys(k for row in table.values() for k in row))
    out = Table(title=title, title_justify="left")
    out.add_column("size", justify="right")
    for name in names:
        out.add_column(name, justify="right")
    for size, row in table.items():
        out.add_row(str(size), *(_cell(row.get(name)) for name in names))
    Console().print(out)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _axes(width: float = 7.0) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot nothing global is touched, a notebook's backend say

    figure = Figure(figsize=(width, 4.2), layout="constrained")
    return figure, figure.subplots()


def _size_axis(axes: Any, sizes: Sequence[int]) -> None:
    axes.set(xlabel="size", xscale="log")
    axes.set_xticks(sizes if len(sizes) <= 12 else _doubling(sizes))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _doubling(sizes: Sequence[int]) -> list[int]:
    """Return sizes that at least double from one to the next, the last among them."""
    chosen = [sizes[-1]]
    for size in reversed(sizes):
        if 2 * size <= chosen[-1]:
            chosen.append(size)
    return chosen[::-1]


def plot_sizes(
    path: Path,
    table: Mapping[int, Mapping[str, Any]],
    metrics: Sequence[str],
    *,
    cost: Mapping[int, float] | None = None,
    cost_label: str = "",
    title: str = "",
) -> None:
    """Draw metrics against size, and on a second axis what a size costs."""
    figure, axes = _axes()
    sizes = list(table)
    for metric in metrics:
        axes.plot(sizes, [table[size][metric] for size in sizes], marker="o", label=metric)
    axes.set_title(title)
    _size_axis(axes, sizes)
    if cost:
        other = axes.twinx()
        other.plot(sizes, [cost[size] for size in sizes], color="grey", linestyle=":", label=cost_label)
        other.set(ylabel=cost_label, yscale="log")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def plot_lines(path: Path, lines: Mapping[str, Mapping[int, float]], *, ylabel: str, title: str = "") -> None:
    """Draw one curve per name over sizes."""
    figure, axes = _axes()
    for name, values in lines.items():
        axes.plot(list(values), list(values.values()), marker="o", label=name)
    axes.set(ylabel=ylabel, title=title)
    _size_axis(axes, sorted({size for values in lines.values() for size in values}))
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_history(path: Path, history: Sequence[Row], *, title: str = "") -> None:
    """Draw the loss over steps and, where there were evaluations, their scores on a second axis.

    A history may hold several runs one after the other: a curve begins anew where the steps do.
    """
    figure, axes = _axes()
    axes.plot(*_curve(history, "loss"), label="loss")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    scores = list(dict.fromkeys(key for row in history for key in row if key.startswith("score_")))
    scores = scores or ["score"] if any("score" in row for row in history) else []
    if scores:
        other = axes.twinx()
        for key in _thinned(scores):
            other.plot(*_curve(history, key), marker=".", linestyle="--", label=key)
        other.set(ylabel="validation score")
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)


def _curve(history: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Return steps and values of the rows that have ``key``, with a gap between runs."""
    steps: list[float] = []
    values: list[float] = []
    for row in history:
        if key in row:
            if steps and row["step"] <= steps[-1]:
                steps.append(math.nan)
                values.append(math.nan)
            steps.append(row["step"])
            values.append(row[key])
    return steps, values


def _thinned(items: Sequence[Any], most: int = 8) -> list[Any]:
    """Return at most ``most`` of the items, evenly spread, the last one among them."""
    every = -(-len(items) // most)
    return list(items[::-1][:: max(1, every)][::-1])
