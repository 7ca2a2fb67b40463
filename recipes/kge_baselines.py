"""What recipes/kge.py does for its baselines: who teaches whom, in which order, and what is made smaller.

The methods are croppable/kge/baselines.py and croppable/kge/distillation.py.
"""

from __future__ import annotations

from typing import Any

import torch
from kge_config import DISTILLED, EXTRACTED, PER_SIZE, TAUGHT, Config
from kge_data import Task
from kge_output import model_folder
from torch import nn

import croppable
from croppable.kge import baselines, sampling
from croppable.kge.distillation import DistilledLinkPrediction
from croppable.kge.model import KGEModel
from croppable.kge.objective import LinkPrediction

LOSS_TRIPLES = 1000  # training triples on which ext-l measures the dims
# DualDE's authors divide the learning rate by ten when the second half begins; here the teacher's.
TEACHER_RATE = 0.1


def training_order(config: Config) -> list[tuple[int, ...]]:
    """Return the sizes of each model to train, teachers before their students."""
    if config.objective in EXTRACTED:
        return [(config.sizes[-1],)]
    if config.objective in PER_SIZE:
        alone = [(size,) for size in config.sizes]
        return alone[::-1] if config.objective in DISTILLED else alone
    return [tuple(config.sizes)]


def given_model(config: Config, task: Task, sizes: tuple[int, ...]) -> KGEModel | None:
    """Return the model of these sizes if nothing is to be trained: the teacher."""
    teacher = task.teacher
    if teacher is None or config.objective in TAUGHT:
        return None
    if config.objective in DISTILLED and teacher.size != sizes[-1]:
        return None
    return baselines.extract(teacher, (teacher.size,))


def teacher_of(config: Config, task: Task, size: int) -> KGEModel | None:
    """Return the model that teaches the one of ``size``: the next larger one for ta, else the largest.

    A nested run has the teacher that it is given, for all of its sizes.
    """
    if config.objective not in DISTILLED:
        return task.teacher if config.objective in TAUGHT else None
    larger = [s for s in config.sizes if s > size]
    if config.objective != "ta" and task.teacher is not None:
        return task.teacher
    if not larger:
        return task.teacher
    chosen = larger[0] if config.objective == "ta" else larger[-1]
    model: KGEModel = croppable.load(model_folder(config, (chosen,)))
    return model


def with_teacher(
    config: Config, task: Task, student: LinkPrediction, num_steps: int
) -> LinkPrediction | DistilledLinkPrediction:
    """Add the teacher to a training step, where the objective has one for this size."""
    teacher = teacher_of(config, task, student.model.size)
    if teacher is None:
        return student
    return DistilledLinkPrediction(
        student,
        teacher,
        "dualde" if config.objective == "dualde" else "bkd",
        weight=config.distill_weight,
        temperature=config.distill_temperature,
        learnable=config.learnable_weights,
        frozen_steps=num_steps // 2,
    )


def parameter_groups(config: Config, step: nn.Module) -> list[dict[str, Any]]:
    """Return what is trained, for an optimizer: a teacher is adjusted more slowly."""
    teacher = step.teacher.parameters() if isinstance(step, DistilledLinkPrediction) else ()
    adjusted = [p for p in teacher if p.requires_grad]
    theirs = {id(p) for p in adjusted}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in step.parameters() if p.requires_grad and id(p) not in theirs]}
    ]
    if adjusted:
        groups.append({"params": adjusted, "lr": TEACHER_RATE * config.learning_rate})
    return groups


def made_smaller(config: Config, task: Task, model: KGEModel) -> KGEModel:
    """Return the model of all sizes that the objective makes of one of the largest size."""
    if config.objective not in EXTRACTED:
        return model
    if config.objective == "ext-v":
        model = baselines.reordered(model, baselines.magnitude(model))
    elif config.objective == "ext-l":
        train = task.graph.train
        chosen = torch.randperm(len(train), generator=sampling.step_generator(config.seed, 0))[:LOSS_TRIPLES]
        binary = config.loss == "bce"
        model = baselines.reordered(
            model,
            baselines.loss_contribution(model, train[chosen], task="binary" if binary else "multiclass"),
        )
    elif config.objective == "pca":
        model = baselines.rotated(model, anyway=config.rotate_anyway)
    return baselines.extract(model, config.sizes)
