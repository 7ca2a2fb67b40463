"""Fine-tune an encoder once at several widths, and take any of them out as a plain model.

accelerate launch recipes/glue.py --model_name_or_path google-bert/bert-base-uncased --task_name mrpc
    --sizes 3 6 9 12 --output_dir runs/mrpc

The output folder is a plain transformers checkpoint with one subfolder per width, metrics.json, a picture
and a model card. --objective nested, separate and random are the baselines; docs/bert.md tells them apart.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from glue_config import Config, validate
from glue_data import Data, by_importance, load_data, load_model, with_teacher
from glue_output import (
    Outcome,
    has_state,
    read_finished,
    report,
    start_output,
    state_folder,
    write_finished,
    write_models,
)
from transformers import HfArgumentParser

from croppable.allocator import keep_freed_memory
from croppable.core import Nested, crop, validate_sizes
from croppable.med import MED
from croppable.text.batching import batches_per_epoch, training_batches
from croppable.text.card import publish
from croppable.text.costs import size_costs
from croppable.text.encoder import resized_config
from croppable.text.evaluation import metric_rows, predict, scores
from croppable.text.export import ExportError
from croppable.text.glue import Task
from croppable.text.objective import FineTuning
from croppable.training import FitResult, TrainingError, fit, linear_schedule

History = list[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """Consecutive optimizer steps of one training, with a warm-up and a decay of their own."""

    sizes: tuple[int, ...]
    steps: range


def parse_config(arguments: list[str]) -> Config:
    """Read the flags."""
    parser = HfArgumentParser(Config, description=__doc__.split("\n")[0])
    config: Config = parser.parse_args_into_dataclasses(arguments)[0]
    validate(config)
    return config


def build_step(config: Config, task: Task, model: Any, sizes: tuple[int, ...]) -> FineTuning:
    """Make the objective and the training step."""
    together = len(sizes) > 1
    med = config.objective == "med" and together
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


def steps_per_epoch(config: Config, data: Data, accelerator: Accelerator) -> int:
    """Count the optimizer steps of an epoch."""
    batches = batches_per_epoch(
        len(data.train), config.per_device_train_batch_size, accelerator.num_processes
    )
    return max(1, batches // config.gradient_accumulation_steps)


def parts_of(config: Config, sizes: tuple[int, ...], epoch_steps: int) -> list[Part]:
    """Return the parts of a training at ``sizes`` that a resumed run has not behind it."""
    num_steps = config.max_train_steps or config.num_train_epochs * epoch_steps
    alone = int(config.largest_first * num_steps) if len(sizes) > 1 else 0
    parts = [Part(sizes, range(alone, num_steps))]
    if alone and not has_state(config, sizes):
        parts.insert(0, Part(sizes[-1:], range(alone)))
    return parts


def train(
    config: Config, data: Data, model: Any, part: Part, accelerator: Accelerator, history: History
) -> FitResult:
    """Train ``model`` for one part in place; ``history`` is that of the parts before."""
    set_seed(config.seed)
    sizes, num_steps, done = part.sizes, len(part.steps), part.steps.start
    step = build_step(config, data.task, model, sizes).to(accelerator.device)
    optimizer = build_optimizer(config, step)
    accumulation = config.gradient_accumulation_steps
    counted = next(iter(data.validation.values()))

    def batches(first: int) -> Iterator[dict[str, torch.Tensor]]:
        return training_batches(
            data.train, config.per_device_train_batch_size, seed=config.seed,
            first=done * accumulation + first, world=accelerator.num_processes,
            rank=accelerator.process_index, device=accelerator.device,
        )  # fmt: skip

    def evaluate(_step: int) -> dict[str, float]:
        outputs = predict(step.nested, counted, batch_size=config.per_device_eval_batch_size,
                          accelerator=accelerator)  # fmt: skip
        values = [s[data.task.headline] for s in scores(outputs, counted.labels, data.task)]
        per_size = {f"score_{size}": value for size, value in zip(sizes, values, strict=True)}
        return {"score": sum(values) / len(values), **per_size}

    resume = config.resume_from_checkpoint is not None
    if resume and (config.objective == "separate" or done):
        resume = has_state(config, sizes)  # a size or a part that was not yet begun
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
        evaluate_every=config.eval_epochs * steps_per_epoch(config, data, accelerator),
        patience=config.early_stopping_patience,
        state_dir=state_folder(config, sizes),
        checkpoint_every=config.checkpointing_steps,
        keep=config.checkpoints_total_limit,
        resume=resume,
        history=history,
        log=partial(_track, accelerator, done),
        description=f"{data.task.name} {config.objective} {'/'.join(map(str, sizes))}",
    )


def _track(accelerator: Accelerator, done: int, row: dict[str, Any]) -> None:
    accelerator.log({key: value for key, value in row.items() if key != "step"}, step=done + row["step"])


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
    sizes = choose_sizes(config, full)
    if config.teacher_name_or_path:
        data = with_teacher(config, data, accelerator)
    if accelerator.is_main_process:
        start_output(config)
    accelerator.wait_for_everyone()
    whole = Outcome([], [], {}, {})
    for group in [(size,) for size in sizes] if config.objective == "separate" else [sizes]:
        outcome = read_finished(config, group)
        if outcome is not None:
            accelerator.print(f"size {group[-1]} is finished already")
        else:
            outcome = fine_tune(config, data, full, group, accelerator)
        if outcome is None:
            accelerator.print("interrupted; go on with the same command and --resume_from_checkpoint latest")
            accelerator.end_training()
            return 130
        whole = Outcome(whole.rows + outcome.rows, whole.history + outcome.history,
                        whole.costs | outcome.costs, whole.folders | outcome.folders)  # fmt: skip
    if accelerator.is_main_process:
        report(config, data, whole)
        if config.push_to_hub and config.hub_model_id:
            publish(config.output_dir, config.hub_model_id, private=config.hub_private_repo)
    accelerator.end_training()
    return 0


def fine_tune(
    config: Config, data: Data, full: Any, sizes: tuple[int, ...], accelerator: Accelerator
) -> Outcome | None:
    """Train a crop of ``full`` at ``sizes``, measure and write it; None if it was interrupted."""
    model = crop(full, sizes[-1])
    history: History = []
    for part in parts_of(config, sizes, steps_per_epoch(config, data, accelerator)):
        if history:  # all sizes begin from the largest as it is now
            model = by_importance(config, data, model, accelerator.device)
        start, done = time.perf_counter(), part.steps.start
        result = train(config, data, model, part, accelerator, history)
        if result.stopped == "interrupted":
            return None
        best = "" if result.best_step is None else f", best at step {done + result.best_step}"
        accelerator.print(f"{result.steps} steps in {time.perf_counter() - start:.0f} s{best}")
        history = [
            row if "sizes" in row else {**row, "step": done + row["step"], "sizes": list(part.sizes)}
            for row in result.history
        ]
    outcome = Outcome(measure(config, data, model, sizes, accelerator), history, {}, {})
    if accelerator.is_main_process:
        repeats = config.latency_repeats
        costs = size_costs(model, sizes, length=config.max_length, repeats=repeats,
                           batches=(1, 32) if repeats else ())  # fmt: skip
        folders = write_models(config, data, model, sizes, whole=sizes[-1] == full.size)
        outcome = replace(outcome, costs=costs, folders=folders)
        if config.objective == "separate":
            write_finished(config, sizes, outcome)
    return outcome


def choose_sizes(config: Config, model: Any) -> tuple[int, ...]:
    """Return the sizes asked for, or the quarters of the full one, of those that the model can be cut to."""
    full = model.size
    sizes = config.sizes or sorted({max(1, round(full * q / 4)) for q in (1, 2, 3, 4)})
    try:
        for size in validate_sizes(sizes, full):
            resized_config(model.config, size)
    except ValueError as error:
        unit = f"--sizes counts attention heads, here {full} of {model.config.hidden_size // full} units"
        raise ValueError(f"{unit}: {error}") from error
    return tuple(sizes)


def main() -> int:
    """Run from the command line; an error that the user can mend is one line, not a traceback."""
    try:
        return run(parse_config(sys.argv[1:]))
    except KeyboardInterrupt:  # a second Ctrl-C, or one outside of training
        return 130
    except (ValueError, TypeError, OSError, TrainingError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
