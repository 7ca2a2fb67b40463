"""Save a croppable model so that any size of it can be read by reading that size's bytes only.

The format is docs/format.md: segment files, their index, a config, labels and metrics; no pickle anywhere.
Any croppable module goes through if its constructor's arguments are attributes of the same name (as in
scikit-learn). Training states are something else (croppable/state.py), and transformers models keep their
own layout.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from croppable.atomic import write_into
from croppable.core import named_tensors, require_croppable, skeleton, validate_sizes
from croppable.labels import Labels
from croppable.manifest import CONFIG, INDEX, LABELS, METRICS, Block, Manifest, TensorSpec, file_of_step
from croppable.reader import CONVENTION, build, distinct, rows_of
from croppable.safe import DTYPES, MEGABYTE, brief
from croppable.segments import write_file

__all__ = ["save"]

# What an overwritten checkpoint leaves behind, README.md aside: that one is written by people too.
OWN_FILES = ("model-*-of-*.safetensors", INDEX, LABELS, METRICS)


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    labels: Labels | Any = None,
    metrics: Sequence[Mapping[str, Any]] | None = None,
    dtype: torch.dtype | None = None,
    sizes: Sequence[int] | None = None,
    cropped_from: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint of which any size can be loaded alone.

    An absent folder appears at once and complete. In an existing one other files are left alone, and
    config.json comes last: a folder without it holds no checkpoint.

    Args:
        model: A croppable module whose constructor's arguments are attributes of the same name.
        folder: Where to write.
        labels: `Labels` or a `KnowledgeGraph`; default ``model.labels`` where the model has them.
        metrics: Rows for metrics.json; each has "size", "dataset", "split", "metric" and "value".
        dtype: How to store floats (such as ``torch.float16``); default as they are. Loading gives the
            model's own dtype back.
        sizes: Where to cut, ascending up to the model's size; default ``model.sizes``, else one piece. Any
            size can be loaded; one between two cuts reads up to the next cut.
        cropped_from: The size of the model that this one was cropped from.
        overwrite: Replace a checkpoint that is there already.

    Returns:
        The folder.

    Raises:
        FileExistsError: If there is a config.json and ``overwrite`` is False.
        TypeError: If the model is not croppable, or an argument of its constructor is no attribute or no
            plain value.
        ValueError: If sizes, labels or dtypes do not fit the model.
    """
    folder = Path(folder)
    if (folder / CONFIG).exists() and not overwrite:
        raise FileExistsError(
            f"'{folder}' holds a config.json already: pass overwrite=True to replace it or choose another"
        )
    cuts = validate_sizes(sizes or getattr(model, "sizes", None) or (_size(model),), _size(model))
    specs = _specs(model, cuts, dtype)
    settings = _settings(model, cuts)
    labels = getattr(model, "labels", None) if labels is None else labels
    with write_into(folder, CONFIG, OWN_FILES) as temporary:
        files, weight_map = _write_tensors(temporary, model, specs, cuts)
        if labels is not None:
            names = Labels.of(labels)
            _check_rows(names, settings)
            files[LABELS] = write_file(temporary / LABELS, names.pieces())
        if metrics is not None:
            rows = ",\n".join(json.dumps(dict(row), allow_nan=False) for row in metrics)
            (temporary / METRICS).write_text(f"[\n{rows}\n]\n", encoding="utf-8")
        kind, library = type(model).__name__, version("croppable")
        manifest = Manifest(kind, settings, cuts, specs, files, weight_map, cropped_from, library)
        for name, content in ((INDEX, manifest.index()), (CONFIG, manifest.config())):
            _write_json(temporary / name, content)
        Manifest.read(temporary)  # what the reader would refuse is never published
    return folder


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one key a line: readable, and still a tenth of what full indentation would take."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    text = f"{{\n{lines}\n}}\n"
    if len(text) > MEGABYTE:
        raise ValueError(
            f"{path.name} would have {len(text)} bytes, at most {MEGABYTE} can be: pass fewer sizes"
        )
    path.write_text(text, encoding="utf-8")


def _size(model: nn.Module) -> int:
    return require_croppable(model).size


def _specs(model: nn.Module, sizes: Sequence[int], dtype: torch.dtype | None) -> tuple[TensorSpec, ...]:
    """Return every distinct tensor with its shape at every size; a tied one under its first name."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating point one such as torch.float16, got {dtype}")
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name, _ in distinct(model)}
    for size in sizes:
        small = dict(named_tensors(skeleton(model, size)))
        for name, own in shapes.items():
            own.append(tuple(small[name].shape))
    specs = []
    for name, tensor in distinct(model):
        stored = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        for one in {tensor.dtype, stored} - set(DTYPES.values()):
            raise ValueError(f"'{name}' is of {one}, which a checkpoint cannot hold: use one of {DTYPES}")
        if any(0 in shape for shape in shapes[name]):
            raise ValueError(f"'{name}' has no elements at some size, got {shapes[name]}: leave it out")
        specs.append(TensorSpec(name, tensor.dtype, stored, tuple(shapes[name])))
    return tuple(specs)


def _settings(model: nn.Module, sizes: Sequence[int]) -> dict[str, Any]:
    """Return the constructor's arguments, once it is known that they build the same model again."""
    kind = type(model)
    parameters = list(inspect.signature(kind).parameters.values())
    missing = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [name for name in missing if not hasattr(model, name)]
    unnamed = [p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if missing or unnamed:
        raise TypeError(
            f"{kind.__name__} has no attributes for its arguments {missing + unnamed}: {CONVENTION}"
        )
    settings = {p.name: getattr(model, p.name) for p in parameters}
    try:
        settings = json.loads(json.dumps(settings, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the arguments of {kind.__name__} must be numbers, strings, lists and dicts to be saved, "
            f"got {brief(settings)} ({error})"
        ) from error
    rebuilt = build(kind, settings, "config.json")
    shapes, again = ({n: t.shape for n, t in named_tensors(m)} for m in (model, rebuilt))
    if shapes != again:
        differing = sorted(n for n in shapes.keys() | again.keys() if shapes.get(n) != again.get(n))
        raise TypeError(
            f"{kind.__name__}(**{brief(settings)}) gives other tensors than the model has: {differing}; "
            f"{CONVENTION}"
        )
    return dict(settings)


def _check_rows(labels: Labels, settings: Mapping[str, Any]) -> None:
    for what, names in (("entity", labels.entity), ("relation", labels.relation)):
        rows = rows_of(settings).get(what, len(names))
        if rows != len(names):
            raise ValueError(
                f"the model has {rows} rows of '{what}' but there are {len(names)} labels for them"
            )


def _write_tensors(
    folder: Path, model: nn.Module, specs: Sequence[TensorSpec], sizes: Sequence[int]
) -> tuple[dict[str, tuple[int, str]], dict[str, str]]:
    tensors = dict(named_tensors(model))
    file_of = file_of_step(sizes)
    contents: list[list[Block]] = [[] for _ in range(file_of[-1] + 1)]
    for spec in specs:
        for block in spec.blocks():
            contents[file_of[block.step]].append(block)
    contents = [blocks for blocks in contents if blocks]
    files: dict[str, tuple[int, str]] = {}
    weight_map: dict[str, str] = {}
    for number, blocks in enumerate(contents, start=1):
        # Wide dtypes first keeps every tensor aligned; then by step, so that a smaller crop is a prefix.
        blocks.sort(key=lambda block: (-block.dtype.itemsize, block.step, block.name))
        name = f"model-{number:05d}-of-{len(contents):05d}.safetensors"
        pieces = {b.name: (tensors[b.tensor][_place(b)], b.dtype) for b in blocks}
        files[name] = write_file(folder / name, pieces)
        weight_map |= dict.fromkeys(pieces, name)
    return files, weight_map


def _place(block: Block) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(block.start, block.shape, strict=True))
