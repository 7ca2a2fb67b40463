"""Train a croppable knowledge-graph embedding and measure every size.

python recipes/kge.py --data_dir my_graph --model complex --sizes 10 20 40 80 160 --output_dir runs/mine
accelerate launch recipes/kge.py --preset wn18rr-rotate-med --data_dir wn18rr

Without data it trains on the embedded Unicode graph. The output folder holds the checkpoint (any size loads
with ``croppable.load(folder, size=40)``), metrics.json, training_config.json, history.json and pictures.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from kge_baselines import given_model, made_smaller, parameter_groups, training_order, with_teacher
from kge_config import PER_SIZE, Config
from kge_data import Task, load_task
from kge_output import HISTORY, model_folder, report, start_output, state_folder, write_json
from kge_presets import parse_config

import croppable
from croppable.allocator import keep_freed_memory
from croppable.kge import sampling
from croppable.kge.distillation import DistilledLinkPrediction
from croppable.kge.known import relation_categories
from croppable.kge.metrics import metrics_rows
from croppable.kge.model import KGEModel, unit_of
from croppable.kge.objective import LinkPrediction
from croppable.kge.optimizing import make_optimizer
from croppable.kge.ranking import rank_triples
from croppable.kge.scores import SCORES
from croppable.med import MED
from croppable.reader import read_metrics
from croppable.state import StateFolder
from croppable.training import FitResult, TrainingError, fit, linear_schedule

Result = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # rows of metrics.json, history


def unit_size(config: Config) -> float | None:
    """Return the dims whose scale is one at first: of all sizes, so that one alone has its scale there."""
    if config.alone_scale == "one" or config.calibration == "none" or not SCORES[config.model].distance:
        return None
    return unit_of(config.sizes, config.calibration)


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
        relations=config.relations,
        init_scale=config.init_scale,
        unit_size=unit_size(config),
    )
    med = config.objective == "med"
    trunk = config.trunk or sizes[-1]  # branches learn from labels alone
    places = [config.sizes.index(size) for size in sizes]
    weights = [config.size_weights[place] if config.size_weights else 1.0 for place in places]
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
        distill=[med * config.distill * w * (size <= trunk) for size, w in zip(sizes, weights, strict=True)],
        teacher=config.distill_from,
        size_weights=weights,
        reduction=config.reduction,
    )
    n3 = [config.n3_sizes[place] for place in places] if config.n3_sizes else config.n3
    return LinkPrediction(
        model, objective, n3=n3, n3_balance=config.n3_balance, reach=config.reach,
        trunk=config.trunk or None, logq_correction=config.logq_correction, compiled=config.compile,
    )  # fmt: skip


def count_pools(config: Config, queries: int) -> int:
    """Return how many pools so many queries share."""
    return -(-queries // config.pool_queries) if config.pool_queries else 1


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
        pools = count_pools(config, len(batch.target))
        return sampling.shared_negatives(
            config.num_negatives, task.graph.num_entities, generator, pools=pools
        )
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


def build_optimizer(
    config: Config, step: LinkPrediction | DistilledLinkPrediction, processes: int
) -> torch.optim.Optimizer:
    """Make the optimizer; the entity table's gradient is its touched rows where that is possible and faster.

    Raises:
        ValueError: If a sparse gradient is asked for where gradients are exchanged or measured.
    """
    alone = processes == 1 and config.max_grad_norm is None
    if config.sparse_gradient == "on" and not alone:
        raise ValueError("--sparse_gradient on needs a single process and no --max_grad_norm")
    if isinstance(step, LinkPrediction):
        sparse = {"auto": "auto" if alone else False, "on": True, "off": False}[config.sparse_gradient]
        batch, entities = config.per_device_train_batch_size, step.model.num_entities
        candidates = {
            "all": entities,
            "shared": config.num_negatives * count_pools(config, batch),
            "uniform": batch * config.num_negatives,
        }
        touched = 2 * batch + candidates[config.negatives]
        return make_optimizer(
            step, config.optimizer, config.learning_rate, touched_rows=touched, sparse=sparse
        )
    parameters = parameter_groups(config, step)  # a teacher is adjusted at a rate of its own
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
    else:
        optimizer = torch.optim.Adagrad(parameters, lr=config.learning_rate)
    step.student.join_after(optimizer)
    return optimizer


def train(
    config: Config, task: Task, accelerator: Accelerator, sizes: tuple[int, ...]
) -> tuple[KGEModel, FitResult]:
    """Train one model at ``sizes``; return it with the result of the loop."""
    set_seed(config.seed)
    epoch_steps = sampling.steps_per_epoch(
        len(task.graph.train), config.per_device_train_batch_size, accelerator.num_processes
    )
    num_steps = config.max_train_steps or config.num_train_epochs * epoch_steps
    step = with_teacher(config, task, build_step(config, task, sizes), num_steps).to(accelerator.device)
    optimizer = build_optimizer(config, step, accelerator.num_processes)
    linear = config.lr_scheduler_type == "linear"

    def evaluate(_step: int) -> dict[str, float]:
        ranks = rank_triples(step.model, task.graph.valid, task.all_known)
        mrr = ranks.by_ties("realistic").reciprocal().mean((0, 2)).tolist()
        return {"score": sum(mrr) / len(mrr), **{f"score_{s}": m for s, m in zip(sizes, mrr, strict=True)}}

    states = state_folder(config, sizes)
    resume = config.resume_from_checkpoint is not None
    if resume and config.objective in PER_SIZE:
        resume = StateFolder(states).newest() is not None  # a size that was not yet begun
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
        resume=resume,
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


def obtain(config: Config, task: Task, accelerator: Accelerator, sizes: tuple[int, ...]) -> Result | None:
    """Train, measure and save one model, or take it up where it is finished; None if interrupted."""
    folder = model_folder(config, sizes)
    if config.objective in PER_SIZE and config.resume_from_checkpoint and (folder / "config.json").exists():
        accelerator.print(f"size {sizes[-1]} is finished already: {folder}")
        return read_metrics(folder), json.loads((folder / HISTORY).read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    model = given_model(config, task, sizes)
    if model is None:
        start = time.perf_counter()
        model, result = train(config, task, accelerator, sizes)
        seconds = time.perf_counter() - start
        if result.stopped == "interrupted":
            accelerator.print(f"interrupted after step {result.steps}; go on with the same command and "
                              f"--resume_from_checkpoint latest")  # fmt: skip
            return None
        accelerator.print(
            f"{result.steps} steps in {seconds:.0f} s, best validation at step {result.best_step}"
        )
        history = result.history
    if accelerator.is_main_process:
        model = made_smaller(config, task, model)
        rows = measure(config, task, model)
        folder.mkdir(exist_ok=True)
        write_json(folder / HISTORY, history)
        croppable.save(model, folder, labels=task.graph, metrics=rows, overwrite=True)
    accelerator.wait_for_everyone()  # a student on any process loads its teacher from the folder
    return rows, history


def run(config: Config) -> int:
    """Train, measure and write; return the exit status."""
    keep_freed_memory()
    task = load_task(config)
    tracker = None if config.report_to == "none" else config.report_to
    idle = config.objective == "dualde"  # the teacher, in the first stage
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=tracker,
        project_dir=config.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=idle)],
    )
    if tracker:
        flat = {
            k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in asdict(config).items()
        }
        accelerator.init_trackers("croppable-kge", config=flat)
    accelerator.print(task.graph.summary())
    accelerator.print(f"{accelerator.num_processes} process(es) on {accelerator.device.type}")
    if accelerator.is_main_process:
        start_output(config)
    accelerator.wait_for_everyone()
    results: dict[int, Result] = {}
    for sizes in training_order(config):
        result = obtain(config, task, accelerator, sizes)
        if result is None:
            accelerator.end_training()
            return 130
        results[sizes[-1]] = result
    rows, history = ([item for _, parts in sorted(results.items()) for item in parts[i]] for i in (0, 1))
    if accelerator.is_main_process:
        report(config, task, rows, history)
        if config.push_to_hub:
            from croppable.hub import push_to_hub

            push_to_hub(config.output_dir, config.hub_model_id, private=config.hub_private_repo,
                        command=shlex.join(["python", *sys.argv]), data=task.graph.summary())  # fmt: skip
    accelerator.end_training()
    return 0


def main() -> int:
    """Run from the command line; an error that the user can mend is one line, not a traceback."""
    try:
        return run(parse_config(sys.argv[1:], __doc__.split("\n")[0]))
    except KeyboardInterrupt:  # a second Ctrl-C, or one outside of training
        return 130
    except (ValueError, OSError, TrainingError, croppable.CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
