"""The laws that every croppable model keeps, as named checks.

`check_croppable` runs them all and reports all failures together; `CHECKS` gives them by name, for use as
test ids. In the spirit of scikit-learn's ``check_estimator``: hold your own module to it in one line.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from croppable.core import (
    Nested,
    crop,
    named_tensors,
    require_croppable,
    skeleton,
    stack_outputs,
    validate_sizes,
)

__all__ = ["CHECKS", "CroppableError", "check_croppable"]

Inputs = tuple[Any, ...] | Mapping[str, Any]
RTOL, ATOL = 1e-4, 1e-5  # float32 sums in another order


class CroppableError(AssertionError):
    """A module breaks at least one law of croppable models."""


def check_croppable(model: nn.Module, inputs: Inputs, sizes: Sequence[int]) -> None:
    """Hold ``model`` to every law of croppable models.

    Args:
        model: The module; it is left as it was.
        inputs: Arguments of its forward, a tuple of positional or a dict of keyword ones. Tensors share
            the batch axis 0, at least 2 rows.
        sizes: Sizes to check, ascending, the last one the model's own.

    Raises:
        CroppableError: With one line per broken law; where the contract itself is broken, with that alone.
    """
    failures = []
    for name, check in CHECKS.items():
        try:
            with torch.random.fork_rng(devices=[]):
                check(copy.deepcopy(model), inputs, tuple(sizes))
        except CroppableError as error:
            failures.append(f"{name}: {error}")
        except Exception as error:  # whatever a foreign module raises is what the report is for
            failures.append(f"{name}: {type(error).__name__}: {error}")
        if failures and name == contract.__name__:
            break  # no other law can be tested without it
    if failures:
        raise CroppableError(
            f"{type(model).__name__} breaks {len(failures)} of {len(CHECKS)} laws (docs/layout.md):\n  "
            + "\n  ".join(failures)
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CroppableError(message)


def _call(module: Callable[..., Any], inputs: Inputs) -> Any:
    return module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)


def _leaves(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output
    return [leaf for part in parts for leaf in _leaves(part)]


def _close(a: Any, b: Any) -> bool:
    pairs = zip(_leaves(a), _leaves(b), strict=True)
    return all(x.shape == y.shape and torch.allclose(x, y, RTOL, ATOL, equal_nan=True) for x, y in pairs)


def _map(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    def apply(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) else value

    if isinstance(inputs, Mapping):
        return {key: apply(value) for key, value in inputs.items()}
    return tuple(apply(value) for value in inputs)


def _batch_size(inputs: Inputs) -> int:
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    rows = [int(value.shape[0]) for value in values if isinstance(value, Tensor) and value.ndim]
    _require(bool(rows), "the inputs hold no tensor with a batch axis")
    return rows[0]


def _same_tensors(a: nn.Module, b: nn.Module) -> list[str]:
    theirs = dict(named_tensors(b))
    return [name for name, tensor in named_tensors(a) if not torch.equal(tensor, theirs[name])]


def contract(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """An integer size, a method resized that gives the same kind, sizes that end at the model's own."""
    for size in validate_sizes(sizes, require_croppable(model).size):
        kind = type(skeleton(model, size))
        _require(
            kind is type(model), f"resized({size}) must give a {type(model).__name__}, got {kind.__name__}"
        )


def leading_corner(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """At every size the names agree and each tensor is the leading corner of the full one."""
    full = dict(named_tensors(model))
    for size in sizes:
        for name, tensor in named_tensors(crop(model, size)):
            expected = full[name][tuple(slice(n) for n in tensor.shape)]
            _require(torch.equal(tensor, expected), f"'{name}' at size {size} is not the leading corner")


def crop_at_own_size(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """crop(m, m.size) == m."""
    same = crop(model, sizes[-1])
    _require(not _same_tensors(model, same), f"crop at the full size {sizes[-1]} changes tensors")
    outputs = _call(model.eval(), inputs), _call(same.eval(), inputs)
    _require(_close(*outputs), "crop at the full size gives other outputs")


def crops_compose(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """crop(crop(m, b), a) == crop(m, a)."""
    for a, b in pairwise(sizes):
        twice, once = crop(crop(model, b), a).eval(), crop(model, a).eval()
        changed = _same_tensors(twice, once)
        _require(not changed, f"cropping to {b} and then to {a} differs from cropping to {a} in {changed}")
        _require(_close(_call(twice, inputs), _call(once, inputs)), f"outputs at {a} depend on a crop at {b}")


def nested_equals_crops(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """Nested(m, S)(x)[i] == crop(m, S[i])(x)."""
    nested = _leaves(_call(Nested(model, sizes).eval(), inputs))
    for i, size in enumerate(sizes):
        alone = _leaves(_call(crop(model, size).eval(), inputs))
        _require(
            _close([leaf[i] for leaf in nested], alone), f"nested output at size {size} is not the crop's"
        )


def fast_path_equals_loop(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """forward_nested, where there is one, has the values and gradients of the default loop."""
    if not hasattr(model, "forward_nested"):
        return
    model = model.double().eval()
    inputs = _map(inputs, lambda x: x.double() if x.is_floating_point() else x)
    nested = Nested(model, sizes)
    loop = _leaves(stack_outputs(_call(partial(nested.each, sizes), inputs)))
    fast = _leaves(_call(nested, inputs))
    _require(_close(fast, loop), "forward_nested has other values than the default loop")
    learnt = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = [_gradients(leaves, list(learnt.values())) for leaves in (fast, loop)]
    for name, a, b in zip(learnt, *gradients, strict=True):
        same = (a is None) == (b is None) and (a is None or _close(a, b))
        _require(same, f"forward_nested has another gradient than the default loop for '{name}'")


def _gradients(leaves: list[Tensor], parameters: list[nn.Parameter]) -> Sequence[Tensor | None]:
    """The gradients of a sum of the outputs in which every element has another weight."""
    total = torch.zeros((), dtype=torch.double, requires_grad=True)  # a gradient even where no output has one
    for leaf in leaves:
        if leaf.is_floating_point():
            weights = torch.linspace(-1, 1, leaf.numel(), dtype=leaf.dtype).reshape(leaf.shape)
            total = total + (leaf * weights.to(leaf.device)).sum().cpu()
    return torch.autograd.grad(total, parameters, allow_unused=True) if parameters else ()


def outside_is_unused(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """Coordinates outside the corner replaced by NaN change nothing."""
    for size in sizes[:-1]:
        spoilt = copy.deepcopy(model)
        shapes = {name: tensor.shape for name, tensor in named_tensors(skeleton(model, size))}
        with torch.no_grad():
            for name, tensor in named_tensors(spoilt):
                inside = tensor[tuple(slice(n) for n in shapes[name])].clone()
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)
                    tensor[tuple(slice(n) for n in shapes[name])] = inside
        evaluated = [Nested(m, sizes).eval() for m in (model, spoilt)]
        clean, seen = (_call(partial(nested.at, (size,)), inputs) for nested in evaluated)
        _require(_close(clean, seen), f"the output at size {size} depends on coordinates outside its corner")


def crop_is_independent(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """Editing a crop leaves the parent alone."""
    before = {name: tensor.clone() for name, tensor in named_tensors(model)}
    with torch.no_grad():
        for tensor in dict(named_tensors(crop(model, sizes[0]))).values():
            tensor.zero_() if tensor.any() else tensor.fill_(1)
    changed = [name for name, tensor in named_tensors(model) if not torch.equal(tensor, before[name])]
    _require(not changed, f"editing a crop changed the parent's {changed}")


def resized_has_no_side_effects(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """Resized touches neither the parent nor the global random state."""
    before = {name: tensor.clone() for name, tensor in named_tensors(model)}
    modes = [module.training for module in model.modules()]
    state, python_state = torch.get_rng_state(), random.getstate()
    built = [skeleton(model, size) for size in sizes]
    _require(model not in built, "resized returned the parent itself: it must build a fresh module")
    untouched = torch.equal(state, torch.get_rng_state()) and python_state == random.getstate()
    _require(untouched, "resized drew from the global random state")
    changed = [name for name, tensor in named_tensors(model) if not torch.equal(tensor, before[name])]
    _require(not changed, f"resized changed the parent's {changed}")
    _require(modes == [m.training for m in model.modules()], "resized changed the parent's train/eval mode")


def parameters_grow(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """The number of parameters grows strictly with size."""
    counts = [sum(p.numel() for p in skeleton(model, size).parameters()) for size in sizes]
    growing = all(a < b for a, b in pairwise(counts))
    _require(growing, f"parameters must grow with the sizes {sizes}, got {counts}")


def rows_are_independent(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """In eval mode the output of a batch row does not depend on the other rows."""
    batch = _batch_size(inputs)
    _require(batch >= 2, f"the inputs need a batch of at least 2 rows, got {batch}")
    nested = Nested(model, sizes).eval()
    whole = _leaves(_call(nested, inputs))
    for row in range(batch):
        one = _map(inputs, lambda x, r=row: x[r : r + 1] if x.ndim and x.shape[0] == batch else x)  # type: ignore[misc]
        alone = _leaves(_call(nested, one))
        same = _close([leaf[:, row : row + 1] for leaf in whole], alone)
        _require(same, f"the output of batch row {row} depends on the other rows")


def mode_reaches_every_size(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """Train and eval mode, also of single submodules, reach every size."""
    nested = Nested(model, sizes)
    for training in (True, False):
        nested.train(training)
        frozen = list(model.modules())[-1]
        frozen.train(not training)
        expected = {name: module.training for name, module in model.named_modules()}
        _call(partial(nested.each, sizes), inputs)
        for size in sizes:
            for small in (crop(model, size), nested._skeletons[size]):
                seen = {name: module.training for name, module in small.named_modules()}
                _require(seen == expected, f"train/eval mode does not reach size {size}")


def save_and_load_equal_crop(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """A crop's state dict, saved and loaded into a freshly built model of its size, is the crop."""
    from safetensors.torch import load_model, save_model

    for size in sizes:
        small = crop(model, size).eval()
        with tempfile.TemporaryDirectory() as folder:
            save_model(small, str(Path(folder, "crop.safetensors")))
            fresh = model.resized(size)  # type: ignore[operator]
            load_model(fresh, str(Path(folder, "crop.safetensors")))
        same = _close(_call(small, inputs), _call(fresh.eval(), inputs))
        _require(same, f"saving and loading at size {size} does not give the crop")


def no_running_statistics(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """No buffer is moved by a forward in train mode: statistics of one size are wrong at another."""
    tracking = [n for n, m in model.named_modules() if isinstance(m, _NormBase) and m.track_running_stats]
    _require(
        not tracking,
        f"{tracking} keep running statistics, which one size would spoil for the others: use LayerNorm, "
        f"GroupNorm, or track_running_stats=False",
    )
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    _call(model.train(), inputs)
    moved = [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]
    _require(not moved, f"a forward in train mode changed the buffers {moved}")


def no_plain_tensors(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...]) -> None:
    """Every tensor is a parameter or a buffer, so that a crop can find it."""
    found = [
        f"{name}.{attribute}".lstrip(".")
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if attribute not in ("_parameters", "_buffers") and _holds_tensor(value)
    ]
    _require(not found, f"{found} are plain tensor attributes: register them as parameters or buffers")


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensor, value)))


CHECKS: dict[str, Callable[[nn.Module, Inputs, tuple[int, ...]], None]] = {
    check.__name__: check
    for check in (
        contract,
        leading_corner,
        crop_at_own_size,
        crops_compose,
        nested_equals_crops,
        fast_path_equals_loop,
        outside_is_unused,
        crop_is_independent,
        resized_has_no_side_effects,
        parameters_grow,
        rows_are_independent,
        mode_reaches_every_size,
        save_and_load_equal_crop,
        no_running_statistics,
        no_plain_tensors,
    )
}
