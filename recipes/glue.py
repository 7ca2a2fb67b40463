"""Fine-tune an encoder once at several widths, and take any of them out as a plain model.

accelerate launch recipes/glue.py --model_name_or_path google-bert/bert-base-uncased --task_name mrpc
    --sizes 3 6 9 12 --output_dir runs/mrpc

The output folder is a plain transformers checkpoint with one subfolder per width, metrics.json, a picture
and a model card. --objective nested, separate and random are the baselines; docs/bert.md tells them apart.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from glue_config import Config, validate
from glue_data import Data, load_data, load_model, with_teacher
from transformers import HfArgumentParser

from croppable.allocator import keep_freed_memory
from croppable.core import Nested, crop, validate_sizes
from croppable.med import MED
from croppable.report import plot_history, plot_sizes, print_table, size_table
from croppable.text.batching import batches_per_epoch, training_batches
from croppable.text.card import publish, text_card
from croppable.text.costs import size_costs
from croppable.text.encoder import save_crops
from croppable.text.evaluation import metric_rows, predict, scores
from croppable.text.glue import Task
from croppable.text.metrics import GLUE_METRICS
from croppable.text.objective import FineTuning
from croppable.training import FitResult, TrainingError, fit, linear_schedule

STATES = "training_states"


def parse_config(arguments: list[str]) -> Config:
    """Read the flags."""
    parser = HfArgumentParser(Config, description=__doc__.split("\n")[0])
    config: Config = parser.parse_args_into_dataclasses(arguments)[0]
    validate(config)
    return config


def build_step(config: Config, task: Task, model: Any, sizes: tuple[int, ...]) -> FineTuning:
    """Make the objective and the training step."""
    med = config.objective == "med"
    together = len(sizes) > 1
    objective = MED(
        sizes,
        task="regression" if task.regression else "multiclass",
        mutual=config.mutual if med else 0.0,
        mutual_form="huber" if task.regression else config.mutual_form,
        teach_down=config.teach_down,
        w1=config.w1 if med else 0.0,
        w3=config.w3 if med else 0.0,
        learnable=config.learnable_weights and med,
        distill=config.distill if together else 0.0,
        size_weights=config.size_weights if config.size_weights and together else None,
    )
    objective.w2.requires_grad_(False)  # negatives of link prediction only
    return FineTuning(
        Nested(model, sizes),
        objective,
        schedule="random" if config.objective == "random" else config.schedule,
        teacher=config.teacher_weight if config.teacher_name_or_path else 0.0,
        temperature=config.temperature,
        hidden=config.hidden_distill if together else 0.0,
    )


def build_optimizer(config: Config, step: FineTuning) -> torch.optim.Optimizer:
    """AdamW without decay on biases and LayerNorms, as in BERT."""
    trained = [p for p in step.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def train(
    config: Config, data: Data, model: Any, sizes: tuple[int, ...], accelerator: Accelerator
) -> FitResult:
    """Train ``model`` at ``sizes`` in place."""
    set_seed(config.seed)
    step = build_step(config, data.task, model, sizes).to(accelerator.device)
    optimizer = build_optimizer(config, step)
    world, accumulation = accelerator.num_processes, config.gradient_accumulation_steps
    per_epoch = batches_per_epoch(len(data.train), config.per_device_train_batch_size, world)
    epoch_steps = max(1, per_epoch // accumulation)
    num_steps = config.max_train_steps or config.num_train_epochs * epoch_steps
    counted = next(iter(data.validation.values()))

    def batches(first: int) -> Iterator[dict[str, torch.Tensor]]:
        return training_batches(
            data.train, config.per_device_train_batch_size, seed=config.seed, first=first,
            rank=accelerator.process_index, world=world, device=accelerator.device,
        )  # fmt: skip

    def evaluate(_step: int) -> dict[str, float]:
        outputs = predict(step.nested, counted, batch_size=config.per_device_eval_batch_size,
                          accelerator=accelerator)  # fmt: skip
        values = [s[data.task.headline] for s in scores(outputs, counted.labels, data.task)]
        per_size = {f"score_{size}": value for size, value in zip(sizes, values, strict=True)}
        return {"score": sum(values) / len(values), **per_size}

    folder = config.resume_from_checkpoint
    states = Path(folder) if folder and folder != "latest" else Path(config.output_dir, STATES)
    states = states / f"size-{sizes[-1]}" if config.objective == "separate" else states
    return fit(
        step,
        batches,
        accelerator=accelerator,
        optimizer=optimizer,
        num_steps=num_steps,
        scheduler=linear_schedule(optimizer, num_steps, int(config.warmup_ratio * num_steps)),
        accumulation=accumulation,
        clip_norm=config.max_grad_norm,
        evaluate=evaluate if config.eval_epochs else None,
        evaluate_every=config.eval_epochs * epoch_steps,
        patience=config.early_stopping_patience,
        state_dir=states,
        checkpoint_every=config.checkpointing_steps,
        keep=config.checkpoints_total_limit,
        resume=folder is not None,
        log=partial(_track, accelerator),
        description=f"{data.task.name} {config.objective} {'/'.join(map(str, sizes))}",
    )


def _track(accelerator: Accelerator, row: dict[str, Any]) -> None:
    accelerator.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])


def measure(
    config: Config, data: Data, model: Any, sizes: tuple[int, ...], accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Return the metrics of all sizes on all validation splits, rows for metrics.json."""
    rows = []
    nested = Nested(model, sizes)
    for split, encoded in data.validation.items():
        outputs = predict(nested, encoded, batch_size=config.per_device_eval_batch_size,
                          accelerator=accelerator)  # fmt: skip
        rows += metric_rows(
            scores(outputs, encoded.labels, data.task), sizes, dataset=data.task.name, split=split,
            objective=config.objective, seed=config.seed,
        )  # fmt: skip
    return rows


def report(
    config: Config, data: Data, rows: list[dict[str, Any]], history: list[dict[str, Any]],
    costs: dict[int, dict[str, Any]], folders: dict[int, Path],
) -> None:  # fmt: skip
    """Write metrics, costs, config, pictures and card into the output folder, and print the table."""
    output = Path(config.output_dir)
    for name, content in (("metrics", rows), ("costs", costs), ("history", history),
                          ("training_config", asdict(config))):  # fmt: skip
        (output / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
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
        folders={size: "" if path == output else path.name for size, path in folders.items()},
        repo_id=config.hub_model_id or f"name/{output.name}",
        base_model=None if Path(base).exists() else base,
        command=shlex.join(["accelerate", "launch", *_portable(sys.argv)]), picture="sizes.png",
    )  # fmt: skip
    (output / "README.md").write_text(card, encoding="utf-8")
    print_table(title, {size: {**table[size], **costs[size]} for size in table})


def _portable(arguments: list[str]) -> list[str]:
    """Leave out where things lie on this machine: a card is read elsewhere."""
    return [Path(a).name if Path(a).is_absolute() else a for a in arguments]


def run(config: Config) -> int:
    """Train, measure and write; return the exit status."""
    keep_freed_memory()
    tracker = None if config.report_to == "none" else config.report_to
    accelerator = Accelerator(mixed_precision=config.mixed_precision, log_with=tracker,
                              project_dir=config.output_dir)  # fmt: skip
    accelerator.print(f"{accelerator.num_processes} process(es) on {accelerator.device.type}")
    if tracker:
        accelerator.init_trackers("croppable-glue", config={k: str(v) for k, v in asdict(config).items()})
    data = load_data(config, accelerator)
    set_seed(config.seed)  # the fresh classifier
    full = load_model(config, data, accelerator.device)
    sizes = validate_sizes(config.sizes or default_sizes(full.size), full.size)
    if config.teacher_name_or_path:
        data = with_teacher(config, data, accelerator)
    if accelerator.is_main_process:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    separate = config.objective == "separate"
    rows, history = [], []
    costs: dict[int, dict[str, Any]] = {}
    folders: dict[int, Path] = {}
    for group in [(size,) for size in sizes] if separate else [sizes]:
        model = crop(full, group[-1])
        start = time.perf_counter()
        result = train(config, data, model, group, accelerator)
        if result.stopped == "interrupted":
            accelerator.print(f"interrupted after step {result.steps}; go on with the same command and "
                              f"--resume_from_checkpoint latest")  # fmt: skip
            return 130
        seconds = time.perf_counter() - start
        accelerator.print(f"{result.steps} steps in {seconds:.0f} s, best at step {result.best_step}")
        history += [{**row, "sizes": list(group)} for row in result.history]
        rows += measure(config, data, model, group, accelerator)
        if accelerator.is_main_process:
            costs |= size_costs(model, group, length=config.max_length, repeats=config.latency_repeats,
                                batches=(1, 32) if config.latency_repeats else ())  # fmt: skip
            folders |= write_models(config, data, model, group, whole=group[-1] == full.size)
    if accelerator.is_main_process:
        report(config, data, rows, history, costs, folders)
        if config.push_to_hub and config.hub_model_id:
            publish(config.output_dir, config.hub_model_id, private=config.hub_private_repo)
    accelerator.end_training()
    return 0


def default_sizes(full: int) -> tuple[int, ...]:
    """Return the quarters of the full size."""
    return tuple(sorted({max(1, round(full * q / 4)) for q in (1, 2, 3, 4)}))


def write_models(
    config: Config, data: Data, model: Any, sizes: tuple[int, ...], *, whole: bool
) -> dict[int, Path]:
    """Write the model and its crops as plain checkpoints, and as ONNX if asked."""
    root = Path(config.output_dir)
    root = root if whole else root / f"width-{model.config.hidden_size}"
    model = model.to("cpu")
    folders = save_crops(model, sizes, root, data.tokenizer, widths=config.save_crops)
    if config.export_onnx:
        from croppable.text.export import export_int8, export_onnx

        for size, folder in folders.items():
            path = export_onnx(crop(model, size), folder / "model.onnx")
            export_int8(path, folder / "model_int8.onnx")
    return folders


def main() -> int:
    """Run from the command line; an error that the user can mend is one line, not a traceback."""
    try:
        return run(parse_config(sys.argv[1:]))
    except (ValueError, TypeError, OSError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
