"""The laws as checks: good modules pass all, and each check catches the module that breaks just its law."""

import copy
import random
import re
from collections.abc import Sequence
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from croppable.checks import CHECKS, CroppableError, check_croppable
from croppable.core import named_tensors

SIZES = (2, 3, 5)


class Good(nn.Module):
    """Three inputs, hidden units to be cropped, two outputs."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.hidden = nn.Linear(3, size)
        self.norm = nn.LayerNorm(size)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(size, 2)

    def resized(self, size: int) -> Self:
        return type(self)(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.norm(self.hidden(x)).relu()))


class GoodFast(nn.Module):
    """Running sums over hidden units: all sizes in one pass."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.randn(3, size))

    def resized(self, size: int) -> Self:
        return type(self)(size)

    def forward(self, x: Tensor) -> Any:
        return self.forward_nested((self.size,), x)[0]

    def forward_nested(self, sizes: Sequence[int], x: Tensor) -> Any:
        return (x @ self.weight).cumsum(-1)[:, [size - 1 for size in sizes]].T


# ----------------------------------------------------------------- one broken module for every check


class OtherKind(Good):
    """resized gives a module of another class."""

    def resized(self, size: int) -> Any:
        return Good(size)


class TiedWhenSmall(nn.Module):
    """Two tensors that are one in every smaller model."""

    def __init__(self, size: int, tied: bool = False) -> None:
        super().__init__()
        self.size = size
        self.first = nn.Parameter(torch.randn(3, size))
        self.second = self.first if tied else nn.Parameter(torch.randn(3, size))

    def resized(self, size: int) -> Self:
        return type(self)(size, tied=size < self.size)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first.sum(1, keepdim=True)


class ForgetsOption(Good):
    """An option of the model does not reach what resized builds."""

    def __init__(self, size: int, factor: float = 1.0) -> None:
        super().__init__(size)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * super().forward(x)


class RemembersOrigin(Good):
    """What a crop computes depends on which model it was cropped from."""

    origin = 0

    def resized(self, size: int) -> Self:
        small = type(self)(size)
        small.origin = self.origin if size == self.size else self.origin + 1
        return small

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.origin)


class LooksAtMemory(Good):
    """Computes otherwise on a view than on a tensor with memory of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + float(self.out.weight.is_contiguous())


class DetachedFast(GoodFast):
    """The fast path has the right values and no gradient for the inner sizes."""

    def forward_nested(self, sizes: Sequence[int], x: Tensor) -> Tensor:
        full = super().forward_nested(sizes, x)
        return torch.cat([full[:-1].detach(), full[-1:]])


class Masks(GoodFast):
    """The fast path multiplies what lies outside by zero instead of leaving it out."""

    def forward_nested(self, sizes: Sequence[int], x: Tensor) -> Tensor:
        inside = torch.arange(self.size) < torch.tensor(sizes)[:, None]
        return ((x @ self.weight) * inside[:, None]).sum(-1)


class SharesHead(Good):
    """resized hands out the parent's own output bias module."""

    def __init__(self, size: int, shared: nn.Module | None = None) -> None:
        super().__init__(size)
        self.shift = nn.Linear(2, 2) if shared is None else shared

    def resized(self, size: int) -> Self:
        return type(self)(size, self.shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.shift(super().forward(x))


class DrawsNumbers(Good):
    """resized draws from Python's random numbers."""

    def resized(self, size: int) -> Self:
        random.random()
        return type(self)(size)


class InPairs(Good):
    """Sizes 2 and 3 have the same tensors."""

    def __init__(self, size: int) -> None:
        super().__init__(2 * (size // 2))
        self.size = size


class CentresTheBatch(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class DropsWhenSmall(Good):
    """The smaller models have a submodule that the full one lacks."""

    def __init__(self, size: int, extra: bool = False) -> None:
        super().__init__(size)
        self.extra = nn.Dropout(0.5) if extra else None

    def resized(self, size: int) -> Self:
        return type(self)(size, extra=size < self.size)


class HiddenState(Good):
    """A buffer that matters and is not in the state dict."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("shift", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift


class Normalised(Good):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.norm = nn.BatchNorm1d(size)


class Counts(Good):
    """Every forward in train mode moves a buffer."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().forward(x)


class PlainTensor(Good):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.unit = torch.ones(1)


class TensorInAList(Good):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.units = {"all": [torch.ones(1)]}


def hidden_state() -> nn.Module:
    model = HiddenState(5)
    model.shift.fill_(0.5)
    return model


BROKEN = [
    ("contract", lambda: OtherKind(5), "resized(2) must give a OtherKind, got Good"),
    ("contract", lambda: nn.Linear(3, 2), "TypeError: Linear is not croppable: it needs an integer"),
    ("contract", lambda: Good(6), "strictly increasing, and end at the model's own size 6, got (2, 3, 5)"),
    ("leading_corner", lambda: TiedWhenSmall(5), "'second' at size 2 is not the leading corner"),
    ("crop_at_own_size", lambda: ForgetsOption(5, 2.0), "crop at the full size gives other outputs"),
    ("crops_compose", lambda: RemembersOrigin(5), "outputs at 2 depend on a crop at 3"),
    ("nested_equals_crops", lambda: LooksAtMemory(5), "nested output at size 2 is not the crop's"),
    ("fast_path_equals_loop", lambda: DetachedFast(5), "another gradient than the default loop for 'weight'"),
    ("outside_is_unused", lambda: Masks(5), "at size 2 depends on coordinates outside its corner"),
    ("crop_is_independent", lambda: SharesHead(5), "editing a crop changed the parent's ['shift.weight',"),
    ("resized_has_no_side_effects", lambda: DrawsNumbers(5), "resized drew from the global random state"),
    ("parameters_grow", lambda: InPairs(5), "parameters must grow with the sizes (2, 3, 5), got ["),
    ("rows_are_independent", lambda: CentresTheBatch(5), "output of batch row 0 depends on the other rows"),
    ("mode_reaches_every_size", lambda: DropsWhenSmall(5), "train/eval mode does not reach size 2"),
    ("save_and_load_equal_crop", hidden_state, "saving and loading at size 2 does not give the crop"),
    ("no_running_statistics", lambda: Normalised(5), "['norm'] keep running statistics"),
    ("no_running_statistics", lambda: Counts(5), "a forward in train mode changed the buffers ['calls']"),
    ("no_plain_tensors", lambda: PlainTensor(5), "['unit'] are plain tensor attributes: register them"),
    ("no_plain_tensors", lambda: TensorInAList(5), "['units'] are plain tensor attributes"),
]  # fmt: skip


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 3)


def broken_laws(model: nn.Module, inputs: Any) -> dict[str, str]:
    with pytest.raises(CroppableError) as caught:
        check_croppable(model, inputs, SIZES)
    lines = str(caught.value).splitlines()
    assert re.search(rf"breaks {len(lines) - 1} of {len(CHECKS)} laws", lines[0])
    return dict(line.strip().split(": ", 1) for line in lines[1:])


@pytest.mark.parametrize(
    ("law", "build", "message"), BROKEN, ids=[f"{i}-{b[0]}" for i, b in enumerate(BROKEN)]
)
def test_each_check_alone_catches_its_broken_module(law: str, build: Any, message: str, x: Tensor) -> None:
    broken = broken_laws(build(), (x,))
    assert list(broken) == [law], broken
    assert message in broken[law]


def test_there_is_a_broken_module_for_every_check() -> None:
    assert {law for law, _, _ in BROKEN} == set(CHECKS)


@pytest.mark.parametrize("law", CHECKS)
@pytest.mark.parametrize("kind", [Good, GoodFast])
def test_good_modules_pass_each_check(law: str, kind: type[nn.Module], x: Tensor) -> None:
    torch.manual_seed(0)
    CHECKS[law](kind(5), (x,), SIZES)


class Structured(Good):
    """Keyword arguments in, a mapping out; something in the batch is no tensor."""

    def forward(self, x: Tensor, scale: float, *, shift: Tensor) -> Any:
        y = super().forward(x) * scale + shift[:, None]
        return {"scores": y, "parts": (y, y.argmax(-1))}


class StructuredFast(GoodFast):
    def forward(self, x: Tensor) -> Any:
        return {"sum": super().forward_nested((self.size,), x)[0]}

    def forward_nested(self, sizes: Sequence[int], x: Tensor) -> Any:
        return {"sum": super().forward_nested(sizes, x)}


def test_structured_inputs_and_outputs_pass(x: Tensor) -> None:
    check_croppable(Structured(5), {"x": x, "scale": 2.0, "shift": torch.randn(4)}, SIZES)
    check_croppable(StructuredFast(5), (x,), SIZES)


def test_a_frozen_model_passes(x: Tensor) -> None:
    check_croppable(GoodFast(5).requires_grad_(False), (x,), SIZES)
    check_croppable(Good(5).requires_grad_(False), (x,), SIZES)


def test_several_failures_are_reported_together(x: Tensor) -> None:
    class Bad(CentresTheBatch, PlainTensor):
        pass

    assert list(broken_laws(Bad(5), (x,))) == ["rows_are_independent", "no_plain_tensors"]


class Raises(Good):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("what the module itself said")


def test_what_the_module_raises_is_part_of_the_report(x: Tensor) -> None:
    assert "KeyError: 'what the module itself said'" in broken_laws(Raises(5), (x,))["nested_equals_crops"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [((torch.randn(1, 3),), "at least 2 rows, got 1"), (({"x": 1},), "hold no tensor with a batch axis")],
)
def test_unfit_inputs_are_named(inputs: Any, message: str) -> None:
    assert message in broken_laws(Good(5), inputs)["rows_are_independent"]


def test_the_callers_model_and_random_state_are_left_alone(x: Tensor) -> None:
    model = Good(5).train()
    before, states = copy.deepcopy(model.state_dict()), (torch.get_rng_state(), random.getstate())
    check_croppable(model, (x,), SIZES)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in named_tensors(model))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
