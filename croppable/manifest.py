"""What a checkpoint says about itself: format version 1 (docs/format.md), written, read and checked.

Every tensor is cut at the sizes. Step 0 is the corner of the smallest size; step i is what the corner of
size i has beyond the corner of size i - 1, as one rectangular block per axis that grew::

    shapes (2, 3) -> (4, 5):   A A A c c      A = step 0, all of (2, 3)
                               A A A c c      b = step 1, axis 0: rows 2..4 over the new full width ...
                               b b b b b      c = step 1, axis 1: ... then columns 3..5 of the old rows
                               b b b b b

so a smaller model is the blocks of its first steps and nothing else. No tensor data is touched here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from croppable.safe import DTYPES, MAX_DIM, brief, is_int, is_shape, read_json, require, sequence_of_ints

__all__ = ["CONFIG", "INDEX", "LABELS", "METRICS", "Block", "Manifest", "TensorSpec", "file_of_step"]

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
LABELS = "labels.safetensors"
METRICS = "metrics.json"
FORMAT = "croppable"
VERSION = 1
SEGMENT_FILE = re.compile(r"[A-Za-z0-9_-]+\.safetensors")
TENSOR_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_SIZES = 4096
FILES_WITHOUT_GROUPING = 8
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Block:
    """One rectangle of one tensor, stored as one safetensors tensor called ``name``."""

    name: str
    tensor: str
    step: int
    start: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorSpec:
    """One tensor at all sizes: the model's dtype, the stored dtype and the shape at each size."""

    name: str
    dtype: torch.dtype
    stored: torch.dtype
    shapes: tuple[tuple[int, ...], ...]

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks of every step, steps ascending, axes ascending within a step."""
        first = self.shapes[0]
        yield Block(f"{self.name}.seg0001", self.name, 0, (0,) * len(first), first, self.stored)
        pairs = zip(self.shapes, self.shapes[1:], strict=False)
        for step, (old, new) in enumerate(pairs, start=1):
            grown = [axis for axis, (n, m) in enumerate(zip(old, new, strict=True)) if m > n]
            for axis in grown:
                start = tuple(old[a] if a == axis else 0 for a in range(len(new)))
                shape = (*old[:axis], new[axis] - old[axis], *new[axis + 1 :])
                suffix = f".axis{axis}" if len(grown) > 1 else ""
                name = f"{self.name}.seg{step + 1:04d}{suffix}"
                yield Block(name, self.name, step, start, shape, self.stored)


def file_of_step(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the 0-based file of every step: one each up to 8 sizes, else files of doubling width.

    Many segments go into few files, because an upload is atomic only for few files. At sizes 10, 20, ...,
    640 the files end at 10, 20, 40, 80, 160, 320 and 640: a download of any size fetches at most about
    twice what that size needs, and exactly what it needs where a file ends.
    """
    if len(sizes) <= FILES_WITHOUT_GROUPING:
        return tuple(range(len(sizes)))
    files, file, edge = [], 0, sizes[0]
    for size in sizes:
        if size > edge:
            file, edge = file + 1, max(size, 2 * edge)
        files.append(file)
    return tuple(files)


@dataclass(frozen=True)
class Manifest:
    """Everything that config.json and the index say; made only of checked values.

    Args:
        kind: Name of the model's class.
        model: The constructor's arguments.
        sizes: Ascending; the last is the full size.
        tensors: One spec per tensor.
        files: name -> (bytes, sha256) of every data file.
        weight_map: Block name -> file name.
        cropped_from: The size of the model that this one was cropped from, or None.
        library_version: What wrote it.
    """

    kind: str
    model: dict[str, Any]
    sizes: tuple[int, ...]
    tensors: tuple[TensorSpec, ...]
    files: Mapping[str, tuple[int, str]]
    weight_map: Mapping[str, str]
    cropped_from: int | None
    library_version: str

    @property
    def size(self) -> int:
        """The full size."""
        return self.sizes[-1]

    def check_size(self, size: int | None) -> int:
        """Return ``size``, or the full size for None.

        Raises:
            ValueError: If it is not an integer from 1 to the full size.
        """
        if size is None:
            return self.size
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= self.size:
            raise ValueError(
                f"size must be an integer between 1 and {self.size}, the checkpoint's own, got {size!r}"
            )
        return size

    def step_of(self, size: int) -> int:
        """Return the last step that a crop to ``size`` needs: the first size that is not smaller."""
        return next(step for step, own in enumerate(self.sizes) if own >= size)

    def blocks(self) -> list[Block]:
        """Return every block, tensor by tensor."""
        return [block for spec in self.tensors for block in spec.blocks()]

    def files_for(self, size: int) -> list[str]:
        """Return the model files that a crop to ``size`` reads, first segments first."""
        last = self.step_of(size)
        return sorted({self.weight_map[b.name] for b in self.blocks() if b.step <= last})

    def read_bytes(self, size: int) -> int:
        """Return the bytes of tensor data that a crop to ``size`` reads."""
        last = self.step_of(size)
        return sum(block.nbytes for block in self.blocks() if block.step <= last)

    def download_bytes(self, size: int) -> int:
        """Return the bytes of the model files that a crop to ``size`` downloads."""
        return sum(self.files[name][0] for name in self.files_for(size))

    def config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "library_version": self.library_version,
            "kind": self.kind,
            "model": self.model,
            "size": self.size,
            "sizes": list(self.sizes),
            "cropped_from": self.cropped_from,
            "tensors": {
                spec.name: {
                    "dtype": NAMES[spec.dtype],
                    "stored": NAMES[spec.stored],
                    "shapes": [list(shape) for shape in spec.shapes],
                }
                for spec in self.tensors
            },
            "files": {name: {"bytes": n, "sha256": sha} for name, (n, sha) in self.files.items()},
        }

    def index(self) -> dict[str, Any]:
        """Return the content of the index, as transformers and other tools know it."""
        total = sum(block.nbytes for block in self.blocks())
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(self.weight_map.items()))}

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check config.json and the index of ``folder``; no other file is needed.

        Raises:
            CheckpointError: If anything in them is not as docs/format.md says.
        """
        config = read_json(folder, CONFIG)
        path = folder / CONFIG
        _check_head(path, config)
        sizes = _sizes(path, config)
        tensors = tuple(
            _tensor(path, name, item, len(sizes)) for name, item in _items(path, config, "tensors")
        )
        files = dict(_file(path, name, item) for name, item in _items(path, config, "files"))
        manifest = cls(
            kind=config["kind"],
            model=config["model"],
            sizes=sizes,
            tensors=tensors,
            files=files,
            weight_map={},
            cropped_from=config.get("cropped_from"),
            library_version=config["library_version"],
        )
        weight_map = _weight_map(folder, manifest)
        return cls(**{**vars(manifest), "weight_map": weight_map})


def _check_head(path: Path, config: dict[str, Any]) -> None:
    found = brief(config.get("format"))
    remedy = "a transformers model loads with AutoModel.from_pretrained; a croppable one is written by save"
    require(config.get("format") == FORMAT, path, f"format {found}", f'format "{FORMAT}"', remedy)
    version = config.get("format_version")
    remedy = "upgrade croppable to read a newer format"
    expected = f"format_version {VERSION}"
    require(is_int(version, VERSION, VERSION), path, f"format_version {brief(version)}", expected, remedy)
    for key in ("kind", "library_version"):
        value = config.get(key)
        valid = isinstance(value, str) and TENSOR_NAME.fullmatch(value.replace("+", "-")) is not None
        require(valid, path, f"{key} {brief(value)}", "a short plain name")
    require(isinstance(config.get("model"), dict), path, "no 'model'", "the constructor's arguments")
    cropped = config.get("cropped_from")
    valid = cropped is None or is_int(cropped, 1, MAX_DIM)
    require(valid, path, f"cropped_from {brief(cropped)}", "null or a positive integer")


def _sizes(path: Path, config: dict[str, Any]) -> tuple[int, ...]:
    sizes = sequence_of_ints(config.get("sizes"), 1, MAX_DIM)
    expected = f"1 to {MAX_SIZES} positive integers, strictly increasing, ending at the size"
    found = f"sizes {brief(config.get('sizes'))} and size {brief(config.get('size'))}"
    valid = sizes is not None and 1 <= len(sizes) <= MAX_SIZES and config.get("size") == sizes[-1]
    ascending = valid and all(a < b for a, b in zip(sizes or (), (sizes or ())[1:], strict=False))
    require(ascending and is_int(config["size"], 1, MAX_DIM), path, found, expected)
    return tuple(sizes or ())


def _items(path: Path, config: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    value = config.get(key)
    valid = isinstance(value, dict) and bool(value) and all(isinstance(v, dict) for v in value.values())
    require(valid, path, f"{key} {brief(value)}", f"an object '{key}' of objects, not empty")
    return list(value.items()) if isinstance(value, dict) else []


def _tensor(path: Path, name: str, item: dict[str, Any], count: int) -> TensorSpec:
    where = f"the tensor {brief(name, 60)}"
    require(TENSOR_NAME.fullmatch(name) is not None, path, where, "a name of letters, digits, '_', '.', '-'")
    names = (item.get("dtype"), item.get("stored"))
    known = all(isinstance(n, str) and n in DTYPES for n in names)
    require(known, path, f"{where} of dtype {brief(names)}", f"dtypes among {', '.join(DTYPES)}")
    dtype, stored = (DTYPES[str(n)] for n in names)
    same = dtype == stored or (dtype.is_floating_point and stored.is_floating_point)
    require(same, path, f"{where} of {names[0]} stored as {names[1]}", "a float as a float, others as is")
    shapes = item.get("shapes")
    valid = isinstance(shapes, list) and len(shapes) == count and all(map(is_shape, shapes))
    require(valid, path, f"{where} of shapes {brief(shapes)}", f"{count} lists of positive integers")
    spec = TensorSpec(name, dtype, stored, tuple(tuple(shape) for shape in shapes or ()))
    pairs = list(zip(spec.shapes, spec.shapes[1:], strict=False))
    growing = all(len(a) == len(b) and all(n <= m for n, m in zip(a, b, strict=True)) for a, b in pairs)
    require(growing, path, f"{where} of shapes {brief(shapes)}", "shapes that never shrink with the size")
    return spec


def _file(path: Path, name: str, item: dict[str, Any]) -> tuple[str, tuple[int, str]]:
    require(
        SEGMENT_FILE.fullmatch(name) is not None,
        path,
        f"the file name {brief(name)}",
        "a plain name ending in .safetensors",
    )
    nbytes, sha256 = item.get("bytes"), item.get("sha256")
    valid = is_int(nbytes, 1, 1 << 60) and isinstance(sha256, str) and SHA256.fullmatch(sha256) is not None
    require(valid, path, f"the file entry {brief(item)}", "its bytes and its sha256")
    return name, (int(nbytes or 0), str(sha256))


def _weight_map(folder: Path, manifest: Manifest) -> dict[str, str]:
    path = folder / INDEX
    weight_map = read_json(folder, INDEX).get("weight_map")
    require(isinstance(weight_map, dict), path, "no 'weight_map'", "an object 'weight_map'")
    steps = {block.name: block.step for block in manifest.blocks()}
    differing = sorted(steps.keys() ^ weight_map.keys())
    found = f"{len(differing)} names too many or too few (the first: {brief(differing[:1])})"
    require(not differing, path, found, "the blocks that config.json describes")
    for name, file in weight_map.items():
        valid = isinstance(file, str) and SEGMENT_FILE.fullmatch(file) is not None
        require(valid, path, f"'{name}' in {brief(file)}", "a plain name ending in .safetensors")
        known = file in manifest.files and file != LABELS
        require(known, path, f"'{name}' in '{file}'", "a model file that config.json lists")
    unused = sorted(manifest.files.keys() - set(weight_map.values()) - {LABELS})
    require(not unused, folder / CONFIG, f"the unused file '{(unused or [''])[0]}'", "files that are used")
    return dict(weight_map)
