"""Put what matters first: an importance permutation of an encoder that leaves its outputs unchanged.

A pretrained residual stream has no "most important first", so a leading corner of it is an arbitrary choice.
Here one permutation of the hidden channels, shared by embeddings, layers and head, and free permutations of
the attention heads and feed-forward neurons of each layer move what the loss depends on most to the front.
Importance is first order: gradient times activation (Michel et al., arXiv 1905.10650; DynaBERT, arXiv
2004.04037, which scored on the development set: score on training examples only).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["importance", "permuted", "reordered"]

P = TypeVar("P", bound=PreTrainedModel)

_LAYER = r"\w+\.encoder\.layer\.(\d+)\."
# Each dimension of each tensor by its group; "" stays. The layout that BERT, RoBERTa and ELECTRA share.
_AXES: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(rf"(?:{pattern})\.(?:weight|bias)"), axes)
    for pattern, axes in (
        (r"\w+\.embeddings\.\w+_embeddings", ("", "embedding")),
        (r"\w+\.embeddings\.LayerNorm", ("embedding",)),
        (r"\w+\.embeddings_project", ("hidden", "embedding")),
        (_LAYER + r"attention\.self\.(?:query|key|value)", ("heads.{}", "hidden")),
        (_LAYER + r"attention\.output\.dense", ("hidden", "heads.{}")),
        (_LAYER + r"(?:attention\.)?output\.LayerNorm", ("hidden",)),
        (_LAYER + r"intermediate\.dense", ("neurons.{}", "hidden")),
        (_LAYER + r"output\.dense", ("hidden", "neurons.{}")),
        (r"\w+\.pooler\.dense|classifier\.dense", ("pooled", "hidden")),
        (r"classifier|classifier\.out_proj", ("", "pooled")),
    )
)
# Where a group's activations are seen: the output of a module, or its input.
_SITES: tuple[tuple[re.Pattern[str], str, bool], ...] = tuple(
    (re.compile(pattern), group, is_input)
    for pattern, group, is_input in (
        (r"\w+\.embeddings\.LayerNorm", "embedding", False),
        (r"\w+\.embeddings_project", "hidden", False),
        (_LAYER + r"(?:attention\.)?output\.LayerNorm", "hidden", False),
        (_LAYER + r"attention\.output\.dense", "heads.{}", True),
        (_LAYER + r"output\.dense", "neurons.{}", True),
        (r"classifier|classifier\.out_proj", "pooled", True),
    )
)


class _Seen(NamedTuple):
    group: str
    activation: Tensor


def _groups(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """Return the group of every dimension of every parameter.

    Raises:
        ValueError: If a parameter does not belong to the layout of BERT, RoBERTa and ELECTRA.
    """
    found: dict[str, tuple[str, ...]] = {}
    unknown = []
    for name, parameter in model.named_parameters():
        for pattern, axes in _AXES:
            if match := pattern.fullmatch(name):
                named = [_alias(model, axis.format(*match.groups())) for axis in axes]
                # A bias has the group of the rows, the only dimension it has.
                found[name] = tuple(named[: parameter.ndim])
                break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{type(model).__name__} cannot be reordered: {unknown[:3]} are not in the layout of BERT, "
            f"RoBERTa or ELECTRA; it can still be cropped without (--reorder false)"
        )
    return found


def _alias(model: PreTrainedModel, group: str) -> str:
    """Without a projection the embedding channels are the hidden channels."""
    projected = any("embeddings_project" in name for name, _ in model.named_modules())
    return "hidden" if group == "embedding" and not projected else group


@contextmanager
def _watch(model: PreTrainedModel) -> Iterator[list[_Seen]]:
    """Collect the activations of every group during a forward."""
    seen: list[_Seen] = []
    handles = []
    # RoBERTa's "classifier" is a whole head, BERT's a single layer: only single layers are watched.
    single = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.LayerNorm)]
    for name, module in single:
        for pattern, group, is_input in _SITES:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            key = _alias(model, group.format(*match.groups()))
            if is_input:
                handles.append(
                    module.register_forward_pre_hook(lambda _m, args, k=key: seen.append(_Seen(k, args[0])))
                )
            else:
                handles.append(
                    module.register_forward_hook(lambda _m, _a, out, k=key: seen.append(_Seen(k, out)))
                )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def importance(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Score every channel, head and neuron by how much the loss depends on it.

    The score of unit c is the sum over examples and places of |sum over tokens of activation_c *
    d loss / d activation_c|, the first-order change of the loss when c is set to zero.

    Args:
        model: An encoder of the BERT layout; it is left as it was, gradients and mode included.
        batches: Batches of training examples for its forward, labels included.

    Returns:
        Scores by group: "hidden" ``[hidden]``, with ELECTRA's projection "embedding", per layer
        "heads.0" ``[heads]`` and "neurons.0" ``[ffn]``, and "pooled" of the classification head.

    Raises:
        ValueError: If the layout is unknown, or there are no batches or labels.
    """
    _groups(model)
    modes = {module: module.training for module in model.modules()}
    scores: dict[str, Tensor] = {}
    model.train(False)
    try:
        for batch in batches:
            if batch.get("labels") is None:
                raise ValueError("importance needs labelled training examples: a batch has no 'labels'")
            _add_scores(scores, model, batch)
    finally:
        for module, training in modes.items():
            module.training = training
    if not scores:
        raise ValueError("importance needs at least one batch of training examples, got none")
    return scores


def _add_scores(scores: dict[str, Tensor], model: PreTrainedModel, batch: Mapping[str, Any]) -> None:
    with _watch(model) as seen, torch.enable_grad():
        loss = model(**batch).loss
    gradients = torch.autograd.grad(loss * len(batch["labels"]), [s.activation for s in seen])
    for (group, activation), gradient in zip(seen, gradients, strict=True):
        product = (activation * gradient).detach().float()
        if group.startswith("heads"):
            product = product.reshape(*product.shape[:-1], model.config.num_attention_heads, -1).sum(-1)
        if product.ndim > 2:  # [B, T, C]: the tokens of one example act together
            product = product.sum(1)
        scores[group] = scores.get(group, 0) + product.abs().sum(0)


def permuted(model: P, orders: Mapping[str, Tensor]) -> P:
    """Return a copy of ``model`` with its units in another order and the same outputs.

    Args:
        model: An encoder of the BERT layout; it is left as it was.
        orders: For every group of `importance` (missing groups stay) which unit comes first, second, ...

    Raises:
        ValueError: If the layout is unknown or an order is no permutation of its group.
    """
    groups = _groups(model)
    heads = model.config.num_attention_heads
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            for axis, group in enumerate(groups[name]):
                if group not in orders:
                    continue
                order = orders[group].to(parameter.device)
                if group.startswith("heads"):
                    width = parameter.shape[axis] // heads
                    order = (order[:, None] * width + torch.arange(width, device=order.device)).flatten()
                if not torch.equal(order.sort().values, torch.arange(len(order), device=order.device)) or (
                    len(order) != parameter.shape[axis]
                ):
                    raise ValueError(f"the order of '{group}' is no permutation of its units: {order}")
                parameter.copy_(parameter.index_select(axis, order))
    return moved


def reordered(model: P, batches: Iterable[Mapping[str, Any]]) -> P:
    """Return a copy of ``model`` with the most important units first, its outputs unchanged.

    Args:
        model: An encoder of the BERT layout.
        batches: Batches of training examples, labels included; some hundred examples are enough.

    Raises:
        ValueError: As `importance`.
    """
    scores = importance(model, batches)
    return permuted(model, {group: score.argsort(descending=True) for group, score in scores.items()})
