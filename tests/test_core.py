"""The contract: corners, crops, and all sizes at once, by laws and by hand-worked examples."""

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from croppable import Croppable, Nested, corner, crop
from croppable.core import corners, fill, named_tensors, skeleton, stack_outputs, validate_sizes

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


# ------------------------------------------------------------------------------------------- Nested


def test_nested_outputs_and_gradients_are_those_of_the_crops() -> None:
    model, x = perceptron().double(), torch.randn(4, 3, dtype=torch.double)
    outputs = Nested(model, SIZES)(x)
    assert outputs.shape == (3, 4, 2)
    weights = torch.randn_like(outputs)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for size, output, weight in zip(SIZES, outputs, weights, strict=True):
        small = crop(model, size)
        assert torch.equal(output, small(x))
        (small(x) * weight).sum().backward()
        for name, parameter in small.named_parameters():
            corner(expected[name], parameter.shape).add_(parameter.grad)
    (outputs * weights).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_some_sizes_can_be_evaluated_alone() -> None:
    nested, x = Nested(perceptron(), SIZES), torch.randn(4, 3)
    everything = nested(x)
    assert torch.equal(nested.at((2, 5), x), everything[[0, 2]])
    assert torch.equal(nested.each((3,), x)[0], everything[1])


def test_a_tied_embedding_gets_the_gradient_of_both_uses_at_every_size() -> None:
    model, ids = Tied(5).double(), torch.tensor([1, 1, 4])
    Nested(model, SIZES)(ids).square().sum().backward()
    gradient = model.embedding.weight.grad
    expected = torch.zeros_like(model.embedding.weight)
    for size in SIZES:
        small = crop(model, size)
        small(ids).square().sum().backward()
        expected[:, :size] += small.embedding.weight.grad
    assert gradient is not None
    assert gradient.layout == torch.strided
    torch.testing.assert_close(gradient, expected)


def test_the_module_that_is_trained_is_the_callers_own_and_unchanged_in_name() -> None:
    model = perceptron()
    nested = Nested(model, SIZES)
    assert nested.model is model
    assert set(nested.state_dict()) == {f"model.{name}" for name in model.state_dict()}
    assert sum(p.numel() for p in nested.parameters()) == sum(p.numel() for p in model.parameters())


def test_training_mode_reaches_every_size_at_every_call() -> None:
    nested, x = Nested(perceptron().train(), (4, 5)), torch.randn(64, 3)
    torch.manual_seed(0)
    noisy = nested(x)
    nested.eval()
    assert not torch.equal(noisy, nested(x))
    assert torch.equal(nested(x), nested(x))


def test_the_fast_override_is_used_when_there_is_one() -> None:
    class Fast(Perceptron):
        def forward_nested(self, sizes: Sequence[int], x: Tensor, *, sign: int = 1) -> Tensor:
            return torch.full((len(sizes), len(x), 2), 7.0 * sign)

    nested = Nested(Fast(5), SIZES)
    assert torch.equal(nested(torch.ones(4, 3), sign=-1), torch.full((3, 4, 2), -7.0))
    assert nested.at([2], torch.ones(4, 3)).shape == (1, 4, 2)
    assert not torch.equal(nested.each((5,), torch.ones(4, 3))[0], torch.full((4, 2), 7.0))


class Pair(NamedTuple):
    logits: Tensor
    loss: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"logits": y, "more": (y, [y + 1])},
        lambda y: (y, y.sum()),
        lambda y: [y],
        lambda y: Pair(y, y.sum()),
    ],
    ids=["mapping", "tuple", "list", "namedtuple"],
)
def test_structured_outputs_keep_their_structure(wrap: Callable[[Tensor], Any]) -> None:
    class Structured(Perceptron):
        def forward(self, x: Tensor) -> Any:
            return wrap(super().forward(x))

    torch.manual_seed(0)
    model, x = Structured(5).eval(), torch.randn(4, 3)
    nested = Nested(model, SIZES)(x)
    alone = [crop(model, size)(x) for size in SIZES]

    def leaves(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        return [
            leaf for part in (value.values() if isinstance(value, dict) else value) for leaf in leaves(part)
        ]

    assert type(nested) is type(alone[0])
    for i, expected in enumerate(alone):
        assert all(torch.equal(a[i], b) for a, b in zip(leaves(nested), leaves(expected), strict=True))


def test_transformers_outputs_are_stacked() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    parts = [outputs.SequenceClassifierOutput(logits=torch.full((2, 3), float(i))) for i in range(4)]
    stacked = stack_outputs(parts)
    assert type(stacked) is outputs.SequenceClassifierOutput
    assert stacked.logits.shape == (4, 2, 3)


def test_outputs_that_cannot_be_stacked_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same shape at every size to be stacked, got \[\(1,\), \(2,\)\]"):
        stack_outputs([torch.zeros(1), torch.zeros(2)])
    with pytest.raises(TypeError, match="must return tensors, tuples or mappings of them, got <class 'int'>"):
        stack_outputs([1, 2])


# ------------------------------------------------------------------------- with torch's other machinery

TWO_PROCESSES = """
import sys
import torch, torch.distributed as dist
from pathlib import Path
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[3])
from test_core import Perceptron, SIZES
from croppable import Nested

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2] + "/meeting", rank=rank, world_size=2)
torch.manual_seed(rank)  # other weights on each: DDP must start from those of rank 0
nested = DistributedDataParallel(Nested(Perceptron(5).eval(), SIZES))
generator = torch.Generator().manual_seed(1)
x = torch.randn(8, 3, generator=generator)
optimizer = torch.optim.SGD(nested.parameters(), lr=0.1)
for _ in range(3):
    nested(x[rank * 4 : rank * 4 + 4]).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
torch.manual_seed(0)
alone = Nested(Perceptron(5).eval(), SIZES)
optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
for _ in range(3):
    alone(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
for a, b in zip(nested.parameters(), alone.parameters(), strict=True):
    torch.testing.assert_close(a, b)
Path(sys.argv[2], f"done-{rank}").touch()
dist.destroy_process_group()
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    processes = [
        subprocess.Popen([sys.executable, "-c", TWO_PROCESSES, str(rank), str(tmp_path), here])
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-0", "done-1"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own affairs
def test_compiled_nested_equals_eager() -> None:
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        pytest.skip(f"no C++ compiler: {error}")
    x = torch.randn(4, 3)
    gradients = []
    for wrap in (lambda module: module, torch.compile):
        model = perceptron()
        output = wrap(Nested(model, SIZES))(x)
        F.mse_loss(output, torch.zeros_like(output)).backward()
        gradients.append([output.detach(), *(p.grad for p in model.parameters())])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, compiled)
