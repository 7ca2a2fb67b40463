"""The contract, and the four things written once on top of it.

A croppable model is any ``nn.Module`` with an integer ``size`` and a method ``resized(size)`` that builds
the same kind of module at another size. Its smaller versions are leading corners of its tensors
(docs/layout.md); everything else here follows from that one law. This file deliberately knows nothing of
losses, training, files, graphs or text, and no module in it remembers a "current size".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Croppable", "Nested", "corner", "crop", "skeleton", "validate_sizes"]

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class Croppable(Protocol):
    """What a module needs in order to be cropped.

    ``size`` counts whatever the model is cropped on (embedding dims, attention heads, hidden units).
    """

    @property
    def size(self) -> int:
        """The integer this model is cropped on."""

    def resized(self, size: int) -> Self:
        """Build a fresh module of the same kind at ``size``; its weights are irrelevant."""


def validate_sizes(sizes: Sequence[int], full: int) -> tuple[int, ...]:
    """Return ``sizes`` as a tuple of ints, ascending and ending at the full size.

    Args:
        sizes: Candidate sizes.
        full: The model's own size.

    Raises:
        ValueError: If the sizes are empty, not positive integers, not strictly increasing, or do not end
            at ``full``.
    """
    given = tuple(sizes)
    integers = all(isinstance(s, int) and not isinstance(s, bool) for s in given)
    ascending = integers and all(a < b for a, b in pairwise(given))
    if not (given and ascending and given[0] >= 1 and given[-1] == full):
        raise ValueError(
            f"sizes must be positive integers, strictly increasing, and end at the model's own size "
            f"{full}, got {given}"
        )
    return given


def corner(tensor: Tensor, shape: Sequence[int], name: str = "tensor") -> Tensor:
    """Return the leading corner ``tensor[:n0, :n1, ...]`` as a view.

    Args:
        tensor: The full tensor.
        shape: The wanted shape, no longer in any dimension than the tensor's.
        name: What to call the tensor in an error.

    Raises:
        ValueError: If the shapes differ in rank or ``shape`` does not fit inside the tensor.
    """
    wanted = tuple(shape)
    fits = len(wanted) == tensor.ndim and all(n <= f for n, f in zip(wanted, tensor.shape, strict=True))
    if not fits:
        raise ValueError(
            f"'{name}' has shape {wanted} in the smaller model but {tuple(tensor.shape)} in the full one: "
            f"a cropped tensor must fit inside the full one (docs/layout.md)"
        )
    return tensor[tuple(slice(n) for n in wanted)]


class _Corners(torch.autograd.Function):
    """Several corners of one tensor whose gradients are gathered in one buffer.

    Autograd's own slices give a full-sized, mostly zero gradient each and add all of them up; for four
    widths of a BERT that is a tenth of the step. The values are the same.
    """

    @staticmethod
    def forward(tensor: Tensor, name: str, *shapes: Sequence[int]) -> tuple[Tensor, ...]:
        return tuple(corner(tensor, shape, name) for shape in shapes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.shape, ctx.unused = inputs[0].shape, (None,) * (len(inputs) - 1)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        parts = [grad for grad in reversed(grads) if grad is not None]  # the largest size is last
        first = parts[0]
        if first.shape == ctx.shape and not first.is_sparse:
            # A clone unless it is alone, because an incoming gradient may belong to others as well.
            total = first.clone() if len(parts) > 1 else first
            parts = parts[1:]
        else:
            total = torch.zeros(ctx.shape, dtype=first.dtype, device=first.device)
        for part in parts:
            target = corner(total, part.shape)
            if part.is_sparse:  # from an embedding: only the rows of the batch
                target.index_put_(tuple(part._indices()), part._values(), accumulate=True)
            else:
                target.add_(part)
        return total, *ctx.unused


def corners(tensor: Tensor, shapes: Sequence[Sequence[int]], name: str = "tensor") -> tuple[Tensor, ...]:
    """Return several leading corners of one tensor, ascending, as views that share one gradient buffer.

    Raises:
        ValueError: As `corner`.
    """
    if not (tensor.requires_grad and torch.is_grad_enabled()):
        return tuple(corner(tensor, shape, name) for shape in shapes)
    gathered: tuple[Tensor, ...] = _Corners.apply(tensor, name, *shapes)  # type: ignore[no-untyped-call]
    return gathered


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer by name, tied and non-persistent ones included."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def require_croppable(model: nn.Module) -> Croppable:
    """Return ``model`` as a `Croppable`.

    Raises:
        TypeError: If it lacks ``size`` or ``resized``.
    """
    if isinstance(model, Croppable):
        return model
    raise TypeError(
        f"{type(model).__name__} is not croppable: it needs an integer attribute 'size' and a method "
        f"'resized(size)' (docs/your-own-module.md)"
    )


def skeleton(model: M, size: int) -> M:
    """Build ``model.resized(size)`` on the meta device: shapes only, no memory, no random numbers.

    Raises:
        TypeError: If the model does not keep the contract.
        ValueError: If ``size`` is not a positive integer up to the model's own, or the resized model has
            another size or other tensor names.
    """
    full_size = require_croppable(model).size
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= full_size:
        raise ValueError(f"size must be an integer between 1 and the model's own {full_size}, got {size!r}")
    with torch.device("meta"):
        small: M = model.resized(size)  # type: ignore[operator]
    if small.size != size:
        raise ValueError(f"resized({size}) returned a model of size {small.size}: it must return size {size}")
    names, full_names = dict(named_tensors(small)).keys(), dict(named_tensors(model)).keys()
    if names != full_names:
        raise ValueError(
            f"resized({size}) has other tensors than the full model: {sorted(names ^ full_names)}; "
            f"every size must have the same names (docs/layout.md)"
        )
    return small


def copy_mode(source: nn.Module, target: nn.Module) -> None:
    """Give every submodule of ``target`` the train/eval mode of its namesake in ``source``."""
    modes = {name: module.training for name, module in source.named_modules(remove_duplicate=False)}
    for name, module in target.named_modules(remove_duplicate=False):
        module.training = modes.get(name, source.training)


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, value)


def fill(small: M, full: Mapping[str, Tensor]) -> M:
    """Give every tensor of the meta module ``small`` a copy of its corner in ``full``; ties are kept.

    Args:
        small: A module from `skeleton`.
        full: Tensors by name; each is cut to the shape that ``small`` has under that name.

    Returns:
        ``small`` itself, now with memory of its own.
    """
    done: dict[int, Tensor] = {}
    for name, empty in list(named_tensors(small)):
        if id(empty) not in done:
            source = full[name]
            copy = corner(source.detach(), empty.shape, name).clone(memory_format=torch.contiguous_format)
            if isinstance(empty, nn.Parameter):
                copy = nn.Parameter(copy, requires_grad=source.requires_grad)
            done[id(empty)] = copy
        _assign(small, name, done[id(empty)])
    return small


def crop(model: M, size: int) -> M:
    """Take the model of ``size`` out of ``model``: an independent module with weights of its own.

    Args:
        model: A croppable module; it is left untouched.
        size: The wanted size, ``1 <= size <= model.size``.

    Returns:
        A module of the same kind, mode, dtype and device, every tensor the leading corner of the full one.

    Raises:
        TypeError: If the model is not croppable.
        ValueError: If the size does not fit or the model breaks the leading-corner law.
    """
    small = fill(skeleton(model, size), dict(named_tensors(model)))
    copy_mode(model, small)
    return small


def stack_outputs(outputs: Sequence[Any]) -> Any:
    """Stack equally structured outputs (tensors, tuples or mappings of tensors) on a new leading axis K."""
    first = outputs[0]
    if isinstance(first, Tensor):
        if any(o.shape != first.shape for o in outputs):
            shapes = [tuple(o.shape) for o in outputs]
            raise ValueError(f"outputs must have the same shape at every size to be stacked, got {shapes}")
        return torch.stack(tuple(outputs))
    if isinstance(first, Mapping):
        return type(first)(**{key: stack_outputs([o[key] for o in outputs]) for key in first})
    if isinstance(first, tuple | list):
        stacked = [stack_outputs(parts) for parts in zip(*outputs, strict=True)]
        return type(first)(*stacked) if hasattr(first, "_fields") else type(first)(stacked)  # named or plain
    raise TypeError(f"a croppable model must return tensors, tuples or mappings of them, got {type(first)}")


def _gather_sparsely(small: nn.Module, sparse: bool) -> None:
    """Let a skeleton's embeddings hand `_Corners` the gradients of the batch's rows only."""
    for module in small.modules():
        if isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq:
            module.sparse = sparse


class Nested(nn.Module):
    """All sizes of one model, evaluated together: the module you train.

    ``Nested(model, sizes)(x)[i]`` equals ``crop(model, sizes[i])(x)``. By default each size runs a
    meta-device skeleton on views of the full weights, so "what you train" is "what you crop" by
    construction. A model may offer ``forward_nested(sizes, *args, **kwargs)`` that returns the same
    ``[K, ...]`` faster; the default loop is its test oracle.

    Args:
        model: A croppable module; it is used, not copied.
        sizes: Strictly increasing, the last one the model's own size.

    Raises:
        TypeError: If the model is not croppable.
        ValueError: If the sizes are not ascending up to the model's own.
    """

    def __init__(self, model: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = validate_sizes(sizes, require_croppable(model).size)
        self.model = model
        # A dict is no submodule: the skeletons hold no weights and must stay out of the state dict.
        self._skeletons = {size: skeleton(model, size) for size in self.sizes}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output at every size, stacked ``[K, ...]``, sizes ascending."""
        return self.at(self.sizes, *args, **kwargs)

    def at(self, sizes: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        """Return the outputs at some of the sizes only, stacked ``[len(sizes), ...]``."""
        fast = getattr(self.model, "forward_nested", None)
        if fast is not None:
            return fast(tuple(sizes), *args, **kwargs)
        return stack_outputs(self.each(sizes, *args, **kwargs))

    def each(self, sizes: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]:
        """Return the outputs at ``sizes`` by the default loop, unstacked (their shapes may differ)."""
        unknown = [size for size in sizes if size not in self._skeletons]
        if unknown:
            raise ValueError(f"size must be one of {self.sizes}, got {unknown[0]}")
        models = [self._skeletons[size] for size in sizes]
        for small in models:
            copy_mode(self.model, small)
            _gather_sparsely(small, not torch.compiler.is_compiling())
        views = self._views(models)
        return [functional_call(m, view, args, kwargs) for m, view in zip(models, views, strict=True)]

    def _views(self, models: Sequence[nn.Module]) -> list[dict[str, Tensor]]:
        full = dict(named_tensors(self.model))
        # Each tied tensor once: functional_call ties the other names to it.
        own = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in models]
        views: list[dict[str, Tensor]] = [{} for _ in models]
        for name in own[0] if own else ():
            parts = corners(full[name], [tensors[name].shape for tensors in own], name)
            for view, part in zip(views, parts, strict=True):
                view[name] = part
        return views
