"""A module of nine numbers for the training loop's tests, with batches, scores, and a signal among them."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from croppable.training import FitResult

STEPS = 12


class Step(nn.Module):
    """Linear regression with noise from the global generator, so that a resume must restore that too."""

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.noise = noise

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        noise = self.noise * (torch.randn_like(x) + random.random()) if self.training else 0.0
        loss = (self.linear(x + noise) - y).square().mean()
        return {"loss": loss, "half": loss / 2}


Train = Callable[..., tuple[Step, FitResult]]


def rows(first: int, count: int, size: int = 4) -> Iterator[dict[str, Tensor]]:
    """The micro-batches from ``first`` on: what they hold depends on their number alone."""
    for number in range(first, count):
        x = torch.randn(size, 3, generator=torch.Generator().manual_seed(number))
        yield {"x": x, "y": x[:, :2] * 2}


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def states(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


class Scores:
    """An evaluation with a score for each step asked for."""

    def __init__(self, *values: float) -> None:
        self.values, self.steps = list(values), []

    def __call__(self, step: int) -> dict[str, float]:
        self.steps.append(step)
        return {"score": self.values[len(self.steps) - 1]}


def stop_at(
    number: int, what: signal.Signals = signal.SIGTERM
) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    """Batches during whose ``number``-th this process gets a signal."""

    def batches(first: int) -> Iterator[dict[str, Tensor]]:
        for i, row in enumerate(rows(first, 10**6), first + 1):
            if i == number:
                os.kill(os.getpid(), what)
            yield row

    return batches
