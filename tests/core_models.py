"""Modules of a user, to be cropped and nested."""

from typing import Any, Self

import torch
from torch import Tensor, nn

SIZES = (2, 3, 5)


class Perceptron(nn.Module):
    """A user's module: 3 inputs, hidden units to be cropped, 2 outputs."""

    def __init__(self, size: int, inputs: int = 3) -> None:
        super().__init__()
        self.size, self.inputs = size, inputs
        self.hidden = nn.Linear(inputs, size)
        self.norm = nn.LayerNorm(size)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(size, 2)

    def resized(self, size: int) -> Self:
        return type(self)(size, self.inputs)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.drop(self.norm(self.hidden(x)).relu()))


class Tied(nn.Module):
    """An embedding tied to the output layer, a non-persistent buffer, and a counter."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.embedding = nn.Embedding(7, size)
        self.decoder = nn.Linear(size, 7, bias=False)
        self.decoder.weight = self.embedding.weight
        self.register_buffer("ramp", torch.arange(size, dtype=torch.float), persistent=False)
        self.register_buffer("seen", torch.tensor(0))

    def resized(self, size: int) -> Self:
        return type(self)(size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(self.embedding(ids) + self.ramp)


def perceptron(size: int = 5) -> Perceptron:
    torch.manual_seed(0)
    return Perceptron(size).eval()
