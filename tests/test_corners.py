"""Gathered gradients of several corners are the sum of the slices' own gradients."""

import pytest
import torch
from torch import nn

from croppable.core import Nested, corner, corners, crop


class Tagger(nn.Module):
    """An embedding and a linear layer: a sparse and a dense gradient, and a shared bias of fixed shape."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.table = nn.Embedding(11, size, padding_idx=0)
        self.out = nn.Linear(size, 3)

    def resized(self, size: int) -> "Tagger":
        return Tagger(size)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(ids))


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("sizes", [(2, 4, 6), (6,)])
def test_nested_gradient_is_the_sum_of_the_crops_gradients(sizes: tuple[int, ...]) -> None:
    model = Tagger(6)
    ids = torch.tensor([[1, 2, 2, 0], [5, 1, 10, 0]])
    weights = torch.randn(len(sizes), 2, 4, 3)
    got = gradients(model, (Nested(model, sizes)(ids) * weights).sum())
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for weight, size in zip(weights, sizes, strict=True):
        small = crop(model, size)
        for name, grad in gradients(small, (small(ids) * weight).sum()).items():
            corner(expected[name], grad.shape).add_(grad)
    for name, grad in got.items():
        assert not grad.is_sparse
        torch.testing.assert_close(grad, expected[name])
    assert got["table.weight"][0].eq(0).all()  # padding_idx


def test_only_some_sizes_used_gives_their_gradients_only() -> None:
    weight = torch.randn(4, 3, requires_grad=True)
    small, large = corners(weight, [(2, 2), (4, 3)])
    (grad,) = torch.autograd.grad((small * 2).sum(), weight)
    assert grad.sum() == 8
    assert grad[:2, :2].eq(2).all()
    (grad,) = torch.autograd.grad((large * 3).sum(), weight)
    assert grad.eq(3).all()


def test_incoming_gradients_are_left_alone() -> None:
    weight, other = (torch.zeros(3, requires_grad=True) for _ in range(2))
    small, large = corners(weight, [(1,), (3,)])
    total = (large + other).sum() + 5 * small.sum()  # the sum hands one gradient to both addends
    grads = torch.autograd.grad(total, (weight, other))
    assert grads[0].tolist() == [6, 1, 1]
    assert grads[1].tolist() == [1, 1, 1]


def test_without_gradients_corners_are_plain_slices() -> None:
    weight = torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        (view,) = corners(weight, [(2, 2)])
    assert view.data_ptr() == weight.data_ptr()
    assert view.shape == (2, 2)


def test_a_corner_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'w' has shape \(5,\) in the smaller model but \(4,\)"):
        corners(torch.zeros(4, requires_grad=True), [(5,)], "w")
