"""Opening files that somebody else wrote: the part of the reader that trusts nothing.

Every refusal is one `CheckpointError`. Nothing here allocates more than the stated limits, follows a link
out of the checkpoint's folder, waits on a pipe, maps a file into memory (a file cut short under a mapping
kills the process) or turns a string into code. What the files *mean* is manifest.py's affair.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

import torch

__all__ = ["DTYPES", "CheckpointError", "Entry", "SafeFile", "read_json"]

MEGABYTE = 1 << 20
FILE_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
MAX_RANK = 8
MAX_DIM = 1 << 40
MAX_ELEMENTS = 1 << 48

# The dtypes of format version 1, by their safetensors names.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: which file, what was found, what was expected, what to do.

    Args:
        file: The file or folder at fault.
        found: What is there.
        expected: What should be there.
        remedy: What the reader of the message can do about it.
    """

    def __init__(self, file: str | Path, found: str, expected: str, remedy: str) -> None:
        self.file, self.found, self.expected, self.remedy = str(file), found, expected, remedy
        super().__init__(f"{file}: found {found}; expected {expected}; {remedy}")

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[str, str, str, str]]:
        return type(self), (self.file, self.found, self.expected, self.remedy)


DAMAGED = "the file is damaged or was not written by croppable: get the checkpoint again"


def brief(value: object, limit: int = 120) -> str:
    """Return ``repr(value)`` in ASCII, cut to ``limit`` characters: safe to print, whatever a file held."""
    text = ascii(value if not isinstance(value, str | bytes) else value[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def is_int(value: object, low: int, high: int) -> bool:
    """Return whether ``value`` is an integer (no bool) in ``low..high``."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_shape(value: object) -> bool:
    """Return whether ``value`` is a list of at most 8 positive lengths with at most 2^48 elements."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_RANK
        and all(is_int(n, 1, MAX_DIM) for n in value)
        and math.prod(value) <= MAX_ELEMENTS
    )


def roots_of(folder: Path) -> list[Path]:
    """Return where files of ``folder`` may really lie: in it, or in the blobs of its Hub cache."""
    real = Path(os.path.realpath(folder))
    if real.parent.name == "snapshots":
        return [real, real.parent.parent / "blobs"]
    return [real]


def _open(folder: Path, name: str) -> FileIO:
    path = folder / name
    if not FILE_NAME.fullmatch(name):
        raise CheckpointError(folder, f"the file name {brief(name)}", "a plain name without folders", DAMAGED)
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(root) for root in roots_of(folder)):
        raise CheckpointError(
            path, "a link that leaves the folder", f"a file inside '{folder}'", "copy the file itself there"
        )
    try:
        # Not blocking: opening a pipe would wait for a writer that never comes.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(real, flags)
    except FileNotFoundError:
        remedy = "the checkpoint is incomplete: copy or download it again"
        raise CheckpointError(path, "no file", f"a file '{name}'", remedy) from None
    except OSError as error:
        remedy = "make it a readable regular file"
        raise CheckpointError(path, f"what cannot be opened ({error.strerror})", "a file", remedy) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(path, "a folder, pipe or device", "a regular file", DAMAGED)
    return FileIO(descriptor, "rb")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {brief(twice)} twice")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {brief(text)}")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"the number {text}")


def parse_json(path: str | Path, data: bytes, kind: type = dict) -> Any:
    """Parse strict JSON: UTF-8, no key twice, finite numbers, of the type ``kind`` at the top."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_float=_finite,
            parse_constant=_constant,
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, brief(str(error)), "strict JSON", DAMAGED) from error
    if not isinstance(value, kind):
        raise CheckpointError(path, f"a JSON {type(value).__name__}", f"a JSON {kind.__name__}", DAMAGED)
    return value


def read_json(folder: Path, name: str, limit: int = MEGABYTE, kind: type = dict) -> Any:
    """Read a small JSON file of a checkpoint.

    Args:
        folder: The checkpoint's folder.
        name: The file's name in it.
        limit: The most bytes it may have.
        kind: The Python type its top level must have.

    Raises:
        CheckpointError: If it is absent, no regular file inside the folder, too big, or no strict JSON.
    """
    with _open(folder, name) as file:
        data = file.read(limit + 1)
    if data is None or len(data) > limit:
        raise CheckpointError(folder / name, f"more than {limit} bytes", f"at most {limit} bytes", DAMAGED)
    return parse_json(folder / name, data, kind)


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in a safetensors file: ``begin`` counts from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafeFile:
    """A safetensors file whose header is exactly what was promised; reads bytes, maps nothing.

    Args:
        folder: The checkpoint's folder.
        name: The file's name in it.
        nbytes: The size that it must have; None when nothing was promised.
        expected: The tensors that it must hold, and no others: name -> (dtype, shape). None accepts any.

    Raises:
        CheckpointError: If anything differs.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        nbytes: int | None = None,
        expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] | None = None,
    ) -> None:
        self.path = folder / name
        self._file = _open(folder, name)
        try:
            size = os.fstat(self._file.fileno()).st_size
            if nbytes is not None and size != nbytes:
                remedy = "the file was cut short or replaced: get the checkpoint again"
                raise CheckpointError(self.path, f"{size} bytes", f"{nbytes} bytes", remedy)
            self.entries = self._read_header(size)
            if expected is not None:
                self._compare(expected)
        except BaseException:
            self._file.close()
            raise

    def _read_header(self, size: int) -> dict[str, Entry]:
        length = int.from_bytes(self._file.read(8) or b"", "little")
        if size < 8 or length > min(MEGABYTE, size - 8):
            expected = f"a header of at most {max(0, min(MEGABYTE, size - 8))} bytes"
            raise CheckpointError(self.path, f"a header of {length} bytes", expected, DAMAGED)
        header = parse_json(self.path, self._file.read(length) or b"")
        header.pop("__metadata__", None)
        entries: dict[str, Entry] = {}
        position = start = 8 + length
        for name, item in sorted(header.items(), key=self._order):
            try:
                dtype, shape, (begin, end) = DTYPES[item["dtype"]], item["shape"], item["data_offsets"]
                entry = Entry(dtype, tuple(shape), start + begin)
                valid = is_shape(shape) and is_int(begin, 0, size) and entry.nbytes == end - begin
            except (KeyError, TypeError, ValueError, AttributeError):
                valid = False
            if not valid or entry.begin != position:
                found = f"the header entry {brief(name, 60)}: {brief(item)}"
                expected = "a known dtype, a positive shape, and bytes that follow the last tensor's"
                raise CheckpointError(self.path, found, expected, DAMAGED)
            entries[name] = entry
            position += entry.nbytes
        if position != size:
            raise CheckpointError(
                self.path, f"{size} bytes", f"{position} bytes, as its header says", DAMAGED
            )
        return entries

    @staticmethod
    def _order(pair: tuple[str, Any]) -> float:
        """Sort header entries by where they begin; what is no entry comes first, to be refused."""
        item = pair[1]
        offsets = item.get("data_offsets") if isinstance(item, dict) else None
        return offsets[0] if isinstance(offsets, list) and offsets and is_int(offsets[0], 0, 1 << 62) else -1

    def _compare(self, expected: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        differing = sorted(expected.keys() ^ self.entries.keys())
        if differing:
            here = "is there" if differing[0] in self.entries else "is missing"
            raise CheckpointError(
                self.path,
                f"{len(differing)} tensors added or missing (the first, {brief(differing[0])}, {here})",
                f"the {len(expected)} tensors that config.json promises",
                DAMAGED,
            )
        for name, promise in expected.items():
            entry = self.entries[name]
            if (entry.dtype, entry.shape) != promise:
                raise CheckpointError(
                    self.path,
                    f"'{name}' of {entry.dtype} {entry.shape}",
                    f"{promise[0]} {promise[1]}, as config.json promises",
                    DAMAGED,
                )

    def read_into(self, target: bytearray | memoryview, begin: int) -> None:
        """Fill ``target`` with the bytes from ``begin`` on.

        Raises:
            CheckpointError: If the file ends before.
        """
        self._file.seek(begin)
        view = memoryview(target)
        while view:
            count = self._file.readinto(view)
            if not count:
                remedy = "the file was cut short while it was read: get it again"
                raise CheckpointError(self.path, "the end of the file", f"{len(view)} more bytes", remedy)
            view = view[count:]

    def check_sha256(self, expected: str) -> None:
        """Read the whole file and compare its sha256.

        Raises:
            CheckpointError: If it differs.
        """
        self._file.seek(0)
        digest = hashlib.sha256()
        while block := self._file.read(MEGABYTE):
            digest.update(block)
        if digest.hexdigest() != expected:
            remedy = "the content was damaged or replaced: get the checkpoint again"
            raise CheckpointError(self.path, f"sha256 {digest.hexdigest()}", f"sha256 {expected}", remedy)

    def __enter__(self) -> SafeFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def require(condition: bool, file: str | Path, found: str, expected: str, remedy: str = DAMAGED) -> None:
    """Raise a `CheckpointError` unless ``condition`` holds."""
    if not condition:
        raise CheckpointError(file, found, expected, remedy)


def sequence_of_ints(value: object, low: int, high: int) -> Sequence[int] | None:
    """Return ``value`` if it is a list of integers in ``low..high``, else None."""
    return value if isinstance(value, list) and all(is_int(v, low, high) for v in value) else None
