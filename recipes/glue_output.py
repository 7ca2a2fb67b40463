"""What recipes/glue.py writes, and where."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glue_config import Config
from glue_data import Data

from croppable.core import crop
from croppable.report import plot_history, plot_sizes, print_table, size_table
from croppable.state import StateFolder
from croppable.text.card import text_card
from croppable.text.encoder import save_crops
from croppable.text.export import export_int8, export_onnx
from croppable.text.metrics import GLUE_METRICS

STATES = "training_states"
OUTPUTS = ("metrics.json", "costs.json", "history.json", "training_config.json", "sizes.png", "curves.png")


@dataclass(frozen=True)
class Outcome:
    """What one training gave, and where its models are; costs and folders by size, on the main process."""

    rows: list[dict[str, Any]]
    history: list[dict[str, Any]]
    costs: dict[int, dict[str, Any]]
    folders: dict[int, Path]


def start_output(config: Config) -> None:
    """Make the output folder; a fresh run removes what an earlier one would be taken for."""
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if config.resume_from_checkpoint is None:
        for name in OUTPUTS:
            (output / name).unlink(missing_ok=True)
        for old in (output / STATES, *output.glob("width-*/")):
            if old.exists():
                shutil.rmtree(old)


def states_root(config: Config) -> Path:
    """Where the training states of the whole run are."""
    given = config.resume_from_checkpoint
    return Path(config.output_dir, STATES) if given in (None, "latest") else Path(given)


def state_folder(config: Config, sizes: tuple[int, ...]) -> Path:
    """Where the training states of the model of ``sizes`` are."""
    root = states_root(config)
    return root / f"size-{sizes[-1]}" if len(sizes) == 1 else root


def has_state(config: Config, sizes: tuple[int, ...]) -> bool:
    """Tell whether a resumed run finds a training state of the model of ``sizes``."""
    resumed = config.resume_from_checkpoint is not None
    return resumed and StateFolder(state_folder(config, sizes)).newest() is not None


def write_finished(config: Config, sizes: tuple[int, ...], outcome: Outcome) -> None:
    """Note that the separate training of ``sizes`` is finished, models included; the last thing it does."""
    path = states_root(config) / f"size-{sizes[-1]}.json"
    folders = {size: str(folder) for size, folder in outcome.folders.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    write_json(partial, asdict(outcome) | {"folders": folders})
    partial.replace(path)


def read_finished(config: Config, sizes: tuple[int, ...]) -> Outcome | None:
    """Return what the separate training of ``sizes`` gave, if a resumed run finds it finished."""
    path = states_root(config) / f"size-{sizes[-1]}.json"
    if config.objective != "separate" or config.resume_from_checkpoint is None or not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    costs = {int(size): cost for size, cost in found["costs"].items()}
    folders = {int(size): Path(folder) for size, folder in found["folders"].items()}
    return Outcome(found["rows"], found["history"], costs, folders)


def write_models(
    config: Config, data: Data, model: Any, sizes: tuple[int, ...], *, whole: bool
) -> dict[int, Path]:
    """Write the model and its crops as plain checkpoints, and as ONNX if asked."""
    root = Path(config.output_dir)
    root = root if whole else root / f"width-{model.config.hidden_size}"
    model = model.to("cpu")
    folders = save_crops(model, sizes, root, data.tokenizer, widths=config.save_crops)
    if config.export_onnx:
        for size, folder in folders.items():
            path = export_onnx(crop(model, size), folder / "model.onnx")
            export_int8(path, folder / "model_int8.onnx")
    return dict(folders)


def report(config: Config, data: Data, outcome: Outcome) -> None:
    """Write metrics, costs, config, pictures and card into the output folder, and print the table."""
    output = Path(config.output_dir)
    rows, history, costs = outcome.rows, outcome.history, outcome.costs
    for name, content in (("metrics", rows), ("costs", costs), ("history", history),
                          ("training_config", asdict(config))):  # fmt: skip
        write_json(output / f"{name}.json", content)
    split = next(iter(data.validation))
    metrics = GLUE_METRICS[data.task.metric]
    table = size_table([row for row in rows if row["split"] == split], metrics)
    title = f"{data.task.name}, {config.objective}, {split}"
    plot_sizes(output / "sizes.png", table, metrics, title=title, cost_label="MFLOPs per sequence",
               cost={size: row["MFLOPs"] for size, row in costs.items()})  # fmt: skip
    plot_history(output / "curves.png", history, title=title)
    base = config.model_name_or_path
    card = text_card(
        task=data.task, rows=rows, costs=costs, length=config.max_length, license=config.license,
        folders={size: "" if path == output else path.name for size, path in outcome.folders.items()},
        repo_id=config.hub_model_id or f"name/{output.name}",
        base_model=None if Path(base).exists() else base, separate=config.objective == "separate",
        command=shlex.join(["accelerate", "launch", *_portable(sys.argv)]), picture="sizes.png",
    )  # fmt: skip
    (output / "README.md").write_text(card, encoding="utf-8")
    print_table(title, {size: {**table[size], **costs[size]} for size in table})


def _portable(arguments: list[str]) -> list[str]:
    """Leave out where things lie on this machine: a card is read elsewhere."""
    return [Path(a).name if Path(a).is_absolute() else a for a in arguments]


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people may read."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
