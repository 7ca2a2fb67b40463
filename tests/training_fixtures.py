"""Fixtures of the training loop's tests, a pytest plugin: a training of training_steps' module."""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from training_steps import STEPS, Step, rows

from croppable.training import FitResult, fit, linear_schedule


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def train(accelerator: Accelerator) -> Callable[..., tuple[Step, FitResult]]:
    """Train a fresh module with Adam under a linear schedule, from the same seed each time."""

    def run(
        batches: Callable[[int], Iterator[Mapping[str, Tensor]]] = lambda first: rows(first, 10**6),
        *,
        steps: int = STEPS,
        optimizer: Any = torch.optim.Adam,
        lr: float = 0.05,
        scheduled: bool = True,
        module: Step | None = None,
        **options: Any,
    ) -> tuple[Step, FitResult]:
        torch.manual_seed(0)
        random.seed(0)
        module = Step() if module is None else module
        own = optimizer(module.parameters(), lr=lr)
        schedule = linear_schedule(own, steps) if scheduled else None
        result = fit(
            module, batches, accelerator=accelerator, optimizer=own, num_steps=steps, scheduler=schedule,
            **options,
        )  # fmt: skip
        return module, result

    return run
