"""All sizes at once equal their crops, alone and with torch's other machinery."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from core_models import SIZES, Perceptron, Tied, perceptron
from torch import Tensor
from torch.nn import functional as F

from croppable import Nested, corner, crop
from croppable.core import stack_outputs


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
from core_models import Perceptron, SIZES
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
