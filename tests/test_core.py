"""The contract: corners and crops, by laws and by hand-worked examples."""

import copy
import re
from collections.abc import Callable, Sequence
from typing import Self

import pytest
import torch
from core_models import SIZES, Perceptron, Tied, perceptron
from torch import Tensor, nn

from croppable import Croppable, Nested, corner, crop
from croppable.core import corners, fill, named_tensors, skeleton, validate_sizes

# ------------------------------------------------------------------------------------------ corner


def test_a_corner_is_the_leading_slice_and_a_view() -> None:
    tensor = torch.arange(12).reshape(3, 4)
    small = corner(tensor, (2, 3))
    assert small.tolist() == [[0, 1, 2], [4, 5, 6]]
    small[0, 0] = 99
    assert tensor[0, 0] == 99
    assert corner(torch.tensor(5.0), ()) == 5.0


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (3,), (3, 4, 1)])
def test_a_corner_that_does_not_fit_is_named(shape: tuple[int, ...]) -> None:
    message = f"'table' has shape {shape} in the smaller model but (3, 4) in the full one"
    with pytest.raises(ValueError, match=re.escape(message)):
        corner(torch.zeros(3, 4), shape, "table")


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2), (1,), (2,)], ids=str)
def test_corners_share_one_gradient_that_equals_slicing(order: Sequence[int]) -> None:
    shapes = [(2, 1), (2, 3), (3, 4)]
    chosen = [shapes[i] for i in order]
    gradients = []
    for take in (lambda t: corners(t, chosen), lambda t: [corner(t, shape) for shape in chosen]):
        tensor = torch.arange(12.0).reshape(3, 4).requires_grad_()
        sum((part**2).sum() for part in take(tensor)).backward()
        gradients.append(tensor.grad)
    assert torch.equal(*gradients)


def test_corners_leave_an_incoming_gradient_alone() -> None:
    tensor = torch.ones(2, 2, requires_grad=True)
    small, full = corners(tensor, [(1, 1), (2, 2)])
    kept: list[Tensor] = []
    full.register_hook(kept.append)
    (small.sum() + full.sum()).backward()
    assert torch.equal(kept[0], torch.ones(2, 2))
    assert tensor.grad is not None
    assert tensor.grad.tolist() == [[2, 1], [1, 1]]


# --------------------------------------------------------------------------------------------- crop


def test_a_crop_is_worked_by_hand() -> None:
    model = Perceptron(5)
    small = crop(model, 2)
    assert torch.equal(small.hidden.weight, model.hidden.weight[:2])
    assert torch.equal(small.norm.bias, model.norm.bias[:2])
    assert torch.equal(small.out.weight, model.out.weight[:, :2])
    assert torch.equal(small.out.bias, model.out.bias)
    assert (small.size, small.inputs, type(small)) == (2, 3, Perceptron)
    assert all(parameter.is_contiguous() for parameter in small.parameters())


@pytest.mark.parametrize("size", range(1, 6))
def test_the_laws_of_crop(size: int) -> None:
    model, x = perceptron(), torch.randn(4, 3)
    small = crop(model, size)
    assert all(
        torch.equal(t, corner(dict(named_tensors(model))[n], t.shape)) for n, t in named_tensors(small)
    )
    twice = crop(crop(model, 5), size)
    assert torch.equal(twice(x), small(x))
    assert torch.equal(crop(model, 5)(x), model(x))


def test_a_crop_has_weights_of_its_own() -> None:
    model = perceptron()
    before = copy.deepcopy(model.state_dict())
    small = crop(model, 3)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.fill_(7)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.is_leaf for parameter in small.parameters())


def test_ties_and_buffers_survive_a_crop() -> None:
    model = Tied(5)
    model.seen.fill_(3)
    small = crop(model, 2)
    assert small.decoder.weight is small.embedding.weight
    assert small.ramp.tolist() == [0, 1]
    assert small.seen == 3
    assert "ramp" not in small.state_dict()
    assert "seen" in small.state_dict()
    ids = torch.tensor([0, 6])
    assert torch.equal(small(ids), Nested(model, SIZES)(ids)[0])


def test_dtype_mode_and_requires_grad_are_kept() -> None:
    model = perceptron().to(torch.bfloat16).train()
    model.drop.eval()
    model.out.bias.requires_grad_(False)
    small = crop(model, 2)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert (small.training, small.norm.training, small.drop.training) == (True, True, False)
    assert not small.out.bias.requires_grad
    assert small.out.weight.requires_grad


def test_a_model_on_the_meta_device_crops_on_it() -> None:
    with torch.device("meta"):
        model = Perceptron(5)
    assert crop(model, 2).hidden.weight.is_meta


def test_cropping_draws_no_random_numbers() -> None:
    model = Perceptron(5)
    state = torch.get_rng_state()
    crop(model, 3)
    Nested(model, SIZES)
    assert torch.equal(state, torch.get_rng_state())


def test_a_skeleton_takes_no_memory_and_fill_gives_it_a_copy() -> None:
    model = Perceptron(5)
    empty = skeleton(model, 2)
    assert all(tensor.is_meta for _, tensor in named_tensors(empty))
    full = dict(named_tensors(model))
    filled = fill(empty, full)
    assert filled is empty
    assert torch.equal(filled.out.weight, model.out.weight[:, :2])
    assert filled.out.weight.data_ptr() != model.out.weight.data_ptr()


# ------------------------------------------------------------------------------------ what is refused


class Sizeless(nn.Linear):
    """No size, no resized."""


class WrongSize(Perceptron):
    def resized(self, size: int) -> Self:
        return type(self)(size + 1)


class OtherNames(Perceptron):
    def resized(self, size: int) -> Self:
        small = type(self)(size)
        small.extra = nn.Linear(1, 1, bias=False)
        return small


class Shrinking(Perceptron):
    """Its input layer grows as the model shrinks."""

    def resized(self, size: int) -> Self:
        return type(self)(size, self.inputs + self.size - size)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: crop(Sizeless(2, 2), 1), TypeError, "Sizeless is not croppable: it needs an integer"),
        (lambda: Nested(Sizeless(2, 2), (1,)), TypeError, "Sizeless is not croppable"),
        (lambda: crop(WrongSize(5), 2), ValueError, "resized(2) returned a model of size 3: it must return"),
        (lambda: crop(OtherNames(5), 2), ValueError, "other tensors than the full model: ['extra.weight']"),
        (lambda: crop(Shrinking(5), 2), ValueError, "'hidden.weight' has shape (2, 6) in the smaller model"),
        *[
            (lambda s=s: crop(Perceptron(5), s), ValueError, f"between 1 and the model's own 5, got {s!r}")
            for s in (0, -1, 6, 2.0, "2", True, None)
        ],
        *[
            (lambda s=s: Nested(Perceptron(5), s), ValueError, f"at the model's own size 5, got {s}")
            for s in ((), (2,), (5, 2), (2, 2, 5), (0, 5), (2.0, 5), (True, 5), (2, 5, 6))
        ],
    ],
)  # fmt: skip
def test_refusals_say_what_was_expected(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_sizes_come_back_as_a_tuple() -> None:
    assert validate_sizes([1, 4], 4) == (1, 4)


def test_only_evaluated_sizes_can_be_asked_for() -> None:
    nested = Nested(perceptron(), SIZES)
    with pytest.raises(ValueError, match=re.escape("size must be one of (2, 3, 5), got 4")):
        nested.at((4,), torch.randn(2, 3))


def test_the_contract_is_a_protocol() -> None:
    assert isinstance(Perceptron(5), Croppable)
    assert not isinstance(Sizeless(2, 2), Croppable)
