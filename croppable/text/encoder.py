"""A stock Hugging Face encoder as a croppable model, and the way in and out of the standard layout.

The size of an encoder is its number of attention heads. The head size stays, and with it every width of the
config follows in proportion: hidden units, feed-forward neurons and, where a config has them (ELECTRA),
embedding units. Because stock modules build every tensor from their config, a smaller config gives the
same tensors cut to leading corners, and a crop is a stock model: nothing is forked, subclassed or patched.

What this file deliberately does not do: choose what comes first (`croppable.text.reorder`) or train.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from croppable.core import crop, named_tensors, skeleton, validate_sizes

__all__ = [
    "croppable_encoder",
    "load_encoder",
    "resized_config",
    "save_crops",
    "trained_sizes",
    "with_layers",
]

P = TypeVar("P", bound=PreTrainedModel)

# Every width that follows the heads, where a config has it.
WIDTHS = ("hidden_size", "intermediate_size", "embedding_size", "pooler_hidden_size")
REQUIRED = ("hidden_size", "num_attention_heads", "intermediate_size")


def resized_config(config: PreTrainedConfig, heads: int) -> PreTrainedConfig:
    """Return a copy of ``config`` with ``heads`` heads and every width in proportion.

    Args:
        config: A config with ``hidden_size``, ``num_attention_heads`` and ``intermediate_size``; an
            ``embedding_size`` follows too.
        heads: Attention heads of the smaller model.

    Returns:
        A new config. Its ``croppable`` entry, if any, keeps the sizes below ``heads``.

    Raises:
        ValueError: If the head size does not divide the hidden size, or a width is not a whole number at
            that size.
    """
    full = config.num_attention_heads
    if config.hidden_size % full:
        raise ValueError(f"hidden_size {config.hidden_size} is not a multiple of the {full} heads")
    changes = {"num_attention_heads": heads}
    for name in WIDTHS:
        width = getattr(config, name, None)
        if width is None:
            continue
        if width * heads % full:
            raise ValueError(
                f"{name} {width} of {full} heads is no whole number at {heads} heads: "
                f"choose sizes that are multiples of {full // _common(width, full)}"
            )
        changes[name] = width * heads // full
    small = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(small, name, value)
    if getattr(config, "croppable", None):
        kept = [size for size in trained_sizes(config) if size < heads]
        small.croppable = {**config.croppable, "sizes": [*kept, heads]}
    return small


def _common(width: int, heads: int) -> int:
    """Return the number of heads' shares that ``width`` divides into evenly."""
    return max(n for n in range(1, heads + 1) if heads % n == 0 and width % n == 0)


def _resized(model_class: type[P], config: PreTrainedConfig, size: int) -> P:
    # A fork keeps the caller's random numbers; on the meta device nothing is drawn at all.
    with torch.random.fork_rng(devices=[]):
        return _adapted(model_class(resized_config(config, size)))


def _adapted(model: P) -> P:
    # Instance attributes, not a subclass: the type of a crop is literally the stock class.
    model.size = model.config.num_attention_heads
    model.resized = partial(_resized, type(model), model.config)  # type: ignore[assignment]
    return model


def croppable_encoder(model: P) -> P:
    """Return ``model`` as a croppable model: the same object of the same stock class, sharing its weights.

    The returned module is a shallow copy with two more attributes, ``size`` (its heads) and ``resized``;
    the one given stays as it is, and both hold the same parameters.

    Accepted is every encoder for sequence classification whose config has ``hidden_size``,
    ``num_attention_heads`` and ``intermediate_size`` and whose tensors keep one rule: each dimension either
    stays the same at every size or is exactly one of the widths in the config. Fused projections (a
    query-key-value matrix of three times the width) break it, because their corner would be queries only.

    Args:
        model: A stock model, for example ``BertForSequenceClassification``.

    Returns:
        The croppable model.

    Raises:
        TypeError: If it is no encoder for sequence classification, or lacks a width in its config.
        ValueError: If a tensor breaks the rule, or the head size does not divide the hidden size.
    """
    _require_encoder(model)
    adapted = _adapted(copy.copy(model))
    for size in _possible_sizes(model.config)[:-1]:
        _require_corners(adapted, size)
    return adapted


def _require_encoder(model: nn.Module) -> None:
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a Hugging Face model for sequence classification, got {name}")
    config = model.config
    stock = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type)
    if name != stock:
        raise TypeError(
            f"expected a stock model for sequence classification, such as BertForSequenceClassification, "
            f"got {name}: load it with AutoModelForSequenceClassification"
        )
    missing = [key for key in REQUIRED if not isinstance(getattr(config, key, None), int)]
    if missing:
        raise TypeError(f"{name} cannot be cropped: its config has no {', '.join(missing)} (docs/bert.md)")
    decoder = config.is_encoder_decoder or getattr(config, "is_decoder", False)
    if decoder or hasattr(config, "num_key_value_heads"):
        raise TypeError(f"{name} is no encoder but a decoder: only encoders such as BERT can be cropped")


def _possible_sizes(config: PreTrainedConfig) -> list[int]:
    full = config.num_attention_heads
    widths = [getattr(config, name, None) for name in WIDTHS]
    if config.hidden_size % full:
        raise ValueError(f"hidden_size {config.hidden_size} is not a multiple of the {full} heads")
    return [n for n in range(1, full + 1) if all(w is None or w * n % full == 0 for w in widths)]


def _require_corners(model: PreTrainedModel, size: int) -> None:
    small = skeleton(model, size)
    pairs = {getattr(model.config, w, None): getattr(small.config, w, None) for w in WIDTHS}
    full = dict(named_tensors(model))
    for name, tensor in named_tensors(small):
        shape = full[name].shape
        kept = tensor.ndim == len(shape) and all(
            small_n == n or pairs.get(n) == small_n for small_n, n in zip(tensor.shape, shape, strict=True)
        )
        if not kept:
            raise ValueError(
                f"{type(model).__name__} cannot be cropped: '{name}' has shape {tuple(shape)} at "
                f"{model.size} heads and {tuple(tensor.shape)} at {size}, which are not the widths of its "
                f"config; a fused projection, for example, has no meaningful corner (docs/bert.md)"
            )


def with_layers(model: P, layers: Sequence[int]) -> P:
    """Return a plain, shallower copy of ``model`` that keeps only some of its layers.

    Depth is chosen before training: all sizes of one croppable model share it, because every size must
    have the same tensor names. The layers are copied, so the given model is left alone.

    Args:
        model: A stock encoder whose layers lie in one ``encoder.layer`` list (BERT, RoBERTa, ELECTRA).
        layers: Indices of the layers to keep, ascending, for example ``range(0, 12, 2)``.

    Raises:
        ValueError: If the indices are empty, not ascending, or outside the model.
    """
    kept, depth = list(layers), model.config.num_hidden_layers
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= depth:
        raise ValueError(f"layers must be ascending indices from 0 to {depth - 1}, got {kept}")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    with torch.random.fork_rng(devices=[]):
        shallow = type(model)(config)
    nn.Module.to(shallow, device=model.device, dtype=model.dtype)
    shallow.train(model.training)
    marker = ".encoder.layer."
    renamed = {str(old): str(new) for new, old in enumerate(kept)}
    tensors = {}
    for name, tensor in model.state_dict().items():
        head, found, tail = name.partition(marker)
        if found:
            index, _, rest = tail.partition(".")
            if index not in renamed:
                continue
            name = f"{head}{marker}{renamed[index]}.{rest}"
        tensors[name] = tensor
    shallow.load_state_dict(tensors)
    return shallow


def load_encoder(name_or_path: str | Path, size: int | None = None, **kwargs: Any) -> PreTrainedModel:
    """Load a stock checkpoint as a croppable model, whole or cropped.

    Args:
        name_or_path: A folder or a Hub repository in the standard transformers layout.
        size: Heads of the crop to take; the whole model if omitted.
        **kwargs: For ``AutoModelForSequenceClassification.from_pretrained``.

    Raises:
        TypeError: If the checkpoint is no encoder.
        ValueError: If it cannot be cropped, or not to ``size``.
    """
    model = AutoModelForSequenceClassification.from_pretrained(name_or_path, **kwargs)
    adapted: PreTrainedModel = croppable_encoder(model)
    return adapted if size is None else crop(adapted, size)


def trained_sizes(config: PreTrainedConfig) -> tuple[int, ...]:
    """Return the sizes a checkpoint was trained at, from the ``croppable`` entry of its config.

    Raises:
        ValueError: If the entry is not what `save_crops` writes.
    """
    entry = getattr(config, "croppable", None)
    if entry is None:
        return (config.num_attention_heads,)
    sizes = entry.get("sizes") if isinstance(entry, Mapping) else None
    if not isinstance(sizes, list):
        raise ValueError(f"config.json: 'croppable' must be an object with a list 'sizes', got {entry!r}")
    return validate_sizes(sizes, config.num_attention_heads)


def save_crops(
    model: PreTrainedModel,
    sizes: Sequence[int],
    folder: str | Path,
    tokenizer: Any = None,
    *,
    widths: bool = True,
) -> Mapping[int, Path]:
    """Write the full model and, in subfolders ``width-*``, its crops: each a plain transformers checkpoint.

    Args:
        model: A croppable encoder.
        sizes: Ascending sizes it was trained at, the last one its own; they go into ``config.json``.
        folder: Where to write; the root holds the full model.
        tokenizer: Saved beside every model if given.
        widths: Write the subfolders, named by hidden size.

    Returns:
        The folder of each size written.

    Raises:
        ValueError: If the sizes are not ascending up to the model's own.
    """
    sizes = validate_sizes(sizes, model.size)  # type: ignore[arg-type]
    root = Path(folder)
    folders: dict[int, Path] = {}
    for size in sizes if widths else sizes[-1:]:
        small = crop(model, size)
        small.config.croppable = {"sizes": [s for s in sizes if s <= size], "full_size": model.size}
        folders[size] = root if size == model.size else root / f"width-{small.config.hidden_size}"
        small.save_pretrained(folders[size])
        if tokenizer is not None:
            tokenizer.save_pretrained(folders[size])
    return folders
