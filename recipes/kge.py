"""Train a croppable knowledge-graph embedding and measure every size.

python recipes/kge.py --data_dir my_graph --model complex --sizes 10 20 40 80 160 --output_dir runs/mine
accelerate launch recipes/kge.py --preset wn18rr-rotate-med --data_dir wn18rr

Without data it trains on the embedded Unicode graph. The output folder holds the checkpoint (any size loads
with ``croppable.load(folder, size=40)``), metrics.json, training_config.json, history.json and pictures.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from kge_config import PRESETS, Config
from transformers import HfArgumentParser

import croppable
from croppable.allocator import keep_freed_memory
from croppable.kge import sampling
from croppable.kge.known import KnownTriples, relation_categories
from croppable.kge.metrics import metrics_rows, write_metrics
from croppable.kge.model import KGEModel
from croppable.kge.objective import LinkPrediction
from croppable.kge.ranking import rank_triples
from croppable.kge.scores import SCORES
from croppable.kge.triples import KnowledgeGraph, graph_from_hub, read_graph
from croppable.kge.unicode_graph import unicode_graph
from croppable.med import MED
from croppable.report import plot_history, plot_sizes, print_table, size_table
from croppable.training import TrainingError, fit, linear_schedule

STATES = "training_states"
HEADLINE = ("mrr", "hits@1", "hits@3", "hits@10")


@dataclass(frozen=True)
class Task:
    """A graph with what is derived from it once."""

    graph: KnowledgeGraph
    train_known: KnownTriples
    all_known: KnownTriples


def parse_config(arguments: list[str]) -> Config:
    """Read the flags; a preset replaces the defaults."""
    parser = HfArgumentParser(Config, description=__doc__.split("\n")[0])
    chosen = parser.parse_known_args(arguments)[0].preset
    if chosen is not None:
        if chosen not in PRESETS:
            raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {chosen!r}")
        parser.set_defaults(**asdict(PRESETS[chosen]()))
    config = parser.parse_args_into_dataclasses(arguments)[0]
    validate(config)
    return config


def validate(config: Config) -> None:
    """Refuse contradictions before anything is read or written, all of them at once."""
    wrong = []
    if sorted(set(config.sizes)) != config.sizes or min(config.sizes, default=0) < 1:
        wrong.append(f"--sizes must be positive and strictly increasing, got {config.sizes}")
    if config.data_dir and config.dataset_name:
        wrong.append("give --data_dir or --dataset_name, not both")
    if config.filter_negatives and config.negatives != "uniform":
        wrong.append(f"--filter_negatives needs --negatives uniform, got {config.negatives}")
    if config.push_to_hub and not config.hub_model_id:
        wrong.append("--push_to_hub needs --hub_model_id name/model")
    positive = ("num_negatives", "learning_rate", "per_device_train_batch_size", "num_train_epochs")
    wrong += [
        f"--{n} must be positive, got {getattr(config, n)}" for n in positive if getattr(config, n) <= 0
    ]
    output = Path(config.output_dir)
    occupied = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if occupied and not (config.overwrite_output_dir or config.resume_from_checkpoint):
        wrong.append(f"{output} is not empty: pass --overwrite_output_dir, or another --output_dir")
    if (
        config.resume_from_checkpoint not in (None, "latest")
        and not Path(config.resume_from_checkpoint).is_dir()
    ):
        wrong.append(
            f"--resume_from_checkpoint must be 'latest' or a folder, got {config.resume_from_checkpoint}"
        )
    if wrong:
        raise ValueError("; ".join(wrong))


def load_task(config: Config) -> Task:
    """Load the graph that the flags name."""
    if config.data_dir:
        graph = read_graph(config.data_dir, column_order=config.column_order)
    elif config.dataset_name:
        graph = graph_from_hub(
            config.dataset_name, config.dataset_config_name, column_order=config.column_order
        )
    else:
        graph = unicode_graph()
    known = partial(KnownTriples, num_entities=graph.num_entities, num_relations=graph.num_relations)
    return Task(graph, known(graph.train), known(graph.triples))


def build_step(config: Config, task: Task, sizes: tuple[int, ...]) -> LinkPrediction:
    """Make the model, its objective and the training step."""
    model = KGEModel(
        task.graph.num_entities,
        task.graph.num_relations,
        sizes,
        config.model,
        margin=config.margin,
        reciprocal=config.reciprocal,
        calibration=config.calibration,
        init_scale=config.init_scale,
    )
    med = config.objective == "med"
    objective = MED(
        sizes,
        task="multiclass" if config.loss == "softmax" else "binary",
        mutual=config.mutual if med else 0.0,
        mutual_form=config.mutual_form,
        mutual_reduction=config.mutual_reduction,
        teach_down=config.teach_down,
        w1=config.w1 if med else 0.0,
        w2=config.w2 if med else 0.0,
        w3=config.w3 if med else 0.0,
        learnable=config.learnable_weights and med,
        evolution_form=config.evolution_form,
        adversarial=config.adversarial_temperature,
        distill=config.distill if med else 0.0,
        reduction=config.reduction,
    )
    return LinkPrediction(
        model, objective, n3=config.n3, n3_balance=config.n3_balance,
        compiled="loss" if config.compile else "none",
    )  # fmt: skip


def draw_negatives(
    config: Config, task: Task, batch: sampling.Batch, accelerator: Accelerator
) -> torch.Tensor | None:
    """Draw the negatives of one batch: the same for the same (seed, step, rank)."""
    if config.negatives == "all":
        return None
    generator = sampling.step_generator(
        config.seed, batch.step, accelerator.process_index, accelerator.device
    )
    if config.negatives == "shared":
        return sampling.shared_negatives(config.num_negatives, task.graph.num_entities, generator)
    if config.filter_negatives:
        return sampling.filtered_negatives(batch, config.num_negatives, task.train_known, generator)
    return sampling.uniform_negatives(batch, config.num_negatives, task.graph.num_entities, generator)


def training_batches(
    config: Config, task: Task, accelerator: Accelerator, start: int
) -> Iterator[dict[str, Any]]:
    """Yield batches for ever, from the global step ``start`` on."""
    world = accelerator.num_processes
    size = config.per_device_train_batch_size
    train = task.graph.train.to(accelerator.device)
    epoch = start // sampling.steps_per_epoch(len(train), size, world)
    while True:
        for batch in sampling.batches(
            train,
            size,
            config.seed,
            epoch,
            accelerator.process_index,
            world,
            start_step=start,
            mixed=config.reciprocal,
        ):
            yield {
                "anchor": batch.anchor,
                "relation": batch.relation,
                "target": batch.target,
                "negatives": draw_negatives(config, task, batch, accelerator),
                "side": batch.side,
            }
        epoch += 1


def train(
    config: Config, task: Task, accelerator: Accelerator, sizes: tuple[int, ...]
) -> tuple[KGEModel, Any]:
    """Train one model at ``sizes``; return it with the result of the loop."""
    set_seed(config.seed)
    step = build_step(config, task, sizes)
    step.model.labels = None
    parameters = [p for p in step.parameters() if p.requires_grad]
    step.to(accelerator.device)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
    else:
        optimizer = torch.optim.Adagrad(parameters, lr=config.learning_rate)
    epoch_steps = sampling.steps_per_epoch(
        len(task.graph.train), config.per_device_train_batch_size, accelerator.num_processes
    )
    num_steps = config.max_train_steps or config.num_train_epochs * epoch_steps
    linear = config.lr_scheduler_type == "linear"

    def evaluate(_step: int) -> dict[str, float]:
        ranks = rank_triples(step.model, task.graph.valid, task.all_known)
        mrr = ranks.by_ties("realistic").reciprocal().mean((0, 2)).tolist()
        return {"score": sum(mrr) / len(mrr), **{f"score_{s}": m for s, m in zip(sizes, mrr, strict=True)}}

    folder = config.resume_from_checkpoint
    states = Path(folder) if folder and folder != "latest" else Path(config.output_dir, STATES)
    if config.objective == "separate":
        states = states / f"size-{sizes[-1]}"
    result = fit(
        step,
        partial(training_batches, config, task, accelerator),
        accelerator=accelerator,
        optimizer=optimizer,
        num_steps=num_steps,
        scheduler=linear_schedule(optimizer, num_steps) if linear else None,
        clip_norm=config.max_grad_norm,
        evaluate=evaluate,
        evaluate_every=config.eval_epochs * epoch_steps,
        patience=config.early_stopping_patience,
        state_dir=states,
        checkpoint_every=config.checkpointing_steps,
        keep=config.checkpoints_total_limit,
        resume=folder is not None,
        log=partial(_track, accelerator),
        description=f"{config.objective} {'/'.join(map(str, sizes)) if len(sizes) < 8 else len(sizes)}",
    )
    return step.model, result


def _track(accelerator: Accelerator, row: dict[str, Any]) -> None:
    values = {key: value for key, value in row.items() if key != "step"}
    accelerator.log(values, step=row["step"])


def measure(config: Config, task: Task, model: KGEModel) -> list[dict[str, Any]]:
    """Rank the evaluation split at all sizes; rows for metrics.json."""
    graph = task.graph
    triples = graph.test if config.eval_split == "test" else graph.valid
    ranks = rank_triples(model, triples, task.all_known, progress=True)
    return metrics_rows(
        ranks,
        dataset=graph.name,
        split=config.eval_split,
        relations=graph.relations,
        categories=relation_categories(graph.train, graph.num_relations),
        extra={"objective": config.objective, "model": config.model, "seed": config.seed},
    )


def report(config: Config, task: Task, rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
    """Write metrics, config and pictures into the output folder, and print the table."""
    output = Path(config.output_dir)
    overall = [r for r in rows if r["side"] == "both" and r["relation"] is None
               and r["category"] is None and r["ties"] == "realistic"]  # fmt: skip
    table = size_table(overall, HEADLINE)
    parts = SCORES[config.model].entity_parts
    cost = {size: float(4 * parts * size) for size in table}
    write_metrics(output / "metrics.json", rows)
    (output / "training_config.json").write_text(json.dumps(asdict(config), indent=1), encoding="utf-8")
    (output / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
    title = f"{task.graph.name}, {config.model}, {config.objective}, {config.eval_split}"
    plot_sizes(output / "sizes.png", table, ("mrr", "hits@10"), cost=cost,
               cost_label="bytes per entity", title=title)  # fmt: skip
    plot_history(output / "curves.png", history, title=title)
    print_table(title, {size: {**row, "bytes per entity": int(cost[size])} for size, row in table.items()})


def run(config: Config) -> int:
    """Train, measure and write; return the exit status."""
    keep_freed_memory()
    task = load_task(config)
    tracker = None if config.report_to == "none" else config.report_to
    accelerator = Accelerator(mixed_precision=config.mixed_precision, log_with=tracker,
                              project_dir=config.output_dir)  # fmt: skip
    if tracker:
        flat = {
            k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in asdict(config).items()
        }
        accelerator.init_trackers("croppable-kge", config=flat)
    accelerator.print(task.graph.summary())
    accelerator.print(f"{accelerator.num_processes} process(es) on {accelerator.device.type}")
    if accelerator.is_main_process:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    every = [(size,) for size in config.sizes] if config.objective == "separate" else [tuple(config.sizes)]
    rows: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    for sizes in every:
        start = time.perf_counter()
        model, result = train(config, task, accelerator, sizes)
        seconds = time.perf_counter() - start
        if result.stopped == "interrupted":
            accelerator.print(f"interrupted after step {result.steps}; go on with the same command and "
                              f"--resume_from_checkpoint latest")  # fmt: skip
            return 130
        accelerator.print(
            f"{result.steps} steps in {seconds:.0f} s, best validation at step {result.best_step}"
        )
        history += result.history
        if accelerator.is_main_process:
            rows += measure(config, task, model)
            separate = f"size-{sizes[-1]}" if config.objective == "separate" else ""
            croppable.save(model, Path(config.output_dir, separate), labels=task.graph,
                           metrics=rows, overwrite=True)  # fmt: skip
    if accelerator.is_main_process:
        report(config, task, rows, history)
        if config.push_to_hub:
            from croppable.hub import push_to_hub

            push_to_hub(config.output_dir, config.hub_model_id, private=config.hub_private_repo)
    accelerator.end_training()
    return 0


def main() -> int:
    """Run from the command line; an error that the user can mend is one line, not a traceback."""
    try:
        return run(parse_config(sys.argv[1:]))
    except (ValueError, OSError, TrainingError, croppable.CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
