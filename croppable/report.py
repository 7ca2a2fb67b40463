"""Results for people: a table on the terminal and pictures, from the rows of metrics.json.

Knows rows {size, metric, value, ...} and nothing of the task behind them.
"""

from __future__ import annotations

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
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(width, 4.2), layout="constrained")


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
    axes.set(xlabel="size", xscale="log", title=title)
    axes.set_xticks(sizes if len(sizes) <= 12 else sizes[:: len(sizes) // 8])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if cost:
        other = axes.twinx()
        other.plot(sizes, [cost[size] for size in sizes], color="grey", linestyle=":", label=cost_label)
        other.set(ylabel=cost_label, yscale="log")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
    _close(figure)


def plot_lines(path: Path, lines: Mapping[str, Mapping[int, float]], *, ylabel: str, title: str = "") -> None:
    """Draw one curve per name over sizes."""
    figure, axes = _axes()
    for name, values in lines.items():
        axes.plot(list(values), list(values.values()), marker="o", label=name)
    sizes = sorted({size for values in lines.values() for size in values})
    axes.set(xlabel="size", ylabel=ylabel, xscale="log", title=title)
    axes.set_xticks(sizes if len(sizes) <= 12 else sizes[:: len(sizes) // 8])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    _close(figure)


def plot_history(path: Path, history: Sequence[Row], *, title: str = "") -> None:
    """Draw the loss over steps and, where there were evaluations, their score on a second axis."""
    figure, axes = _axes()
    losses = [row for row in history if "loss" in row]
    scores = [row for row in history if "score" in row]
    axes.plot([row["step"] for row in losses], [row["loss"] for row in losses], label="loss")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    if scores:
        other = axes.twinx()
        sizes = [key for key in scores[0] if isinstance(key, str) and key.startswith("score_")]
        for key in sizes or ["score"]:
            steps = [row["step"] for row in scores]
            other.plot(steps, [row[key] for row in scores], marker=".", linestyle="--", label=key)
        other.set(ylabel="validation score")
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)
    _close(figure)


def _close(figure: Any) -> None:
    from matplotlib import pyplot as plt

    plt.close(figure)
