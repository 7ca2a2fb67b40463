"""What recipes/kge.py writes, and where."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kge_config import PER_SIZE, STATES, Config
from kge_data import Task

from croppable.kge.metrics import write_metrics
from croppable.kge.scores import SCORES
from croppable.report import plot_history, plot_sizes, print_table, size_table

HISTORY = "history.json"
OUTPUTS = ("config.json", "metrics.json", "training_config.json", HISTORY, "sizes.png", "curves.png")
HEADLINE = ("mrr", "hits@1", "hits@3", "hits@10")


def state_folder(config: Config, sizes: tuple[int, ...]) -> Path:
    """Where the training states of the model of ``sizes`` are."""
    given = config.resume_from_checkpoint
    root = Path(config.output_dir, STATES) if given in (None, "latest") else Path(given)
    return root / f"size-{sizes[-1]}" if config.objective in PER_SIZE else root


def model_folder(config: Config, sizes: tuple[int, ...]) -> Path:
    """Where the finished model of ``sizes`` is."""
    return Path(config.output_dir, f"size-{sizes[-1]}" if config.objective in PER_SIZE else "")


def start_output(config: Config) -> None:
    """Make the output folder; a fresh run removes what an earlier one would be taken for."""
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if config.resume_from_checkpoint is None:
        for name in OUTPUTS:
            (output / name).unlink(missing_ok=True)
        for old in (output / STATES, *output.glob("size-*/")):
            if old.exists():
                shutil.rmtree(old)


def report(config: Config, task: Task, rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
    """Write metrics, config and pictures into the output folder, and print the table."""
    output = Path(config.output_dir)
    overall = [r for r in rows if r["side"] == "both" and r["relation"] is None
               and r["category"] is None and r["ties"] == "realistic"]  # fmt: skip
    table = size_table(overall, HEADLINE)
    parts = SCORES[config.model].entity_parts
    cost = {size: float(4 * parts * size) for size in table}
    write_metrics(output / "metrics.json", rows)
    write_json(output / HISTORY, history)
    write_json(output / "training_config.json", asdict(config))
    title = f"{task.graph.name}, {config.model}, {config.objective}, {config.eval_split}"
    plot_sizes(output / "sizes.png", table, ("mrr", "hits@10"), cost=cost,
               cost_label="bytes per entity", title=title)  # fmt: skip
    plot_history(output / "curves.png", history, title=title)
    print_table(title, {size: {**row, "bytes per entity": int(cost[size])} for size, row in table.items()})


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people may read."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
