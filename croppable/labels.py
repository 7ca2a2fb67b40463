"""Names of entities and relations: two million of them in a second, without two million Python strings.

A table of strings is one run of UTF-8 bytes and the offsets between them, exactly as labels.safetensors
stores it. A string is made when somebody asks for it; a name is found by its 64-bit hash among the sorted
hashes, and then compared, so that a lookup needs no dictionary. This file knows no models and no graphs.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from croppable.manifest import LABELS
from croppable.safe import CheckpointError, SafeFile, brief
from croppable.segments import read_whole

__all__ = ["Labels", "StringTable"]

_PRIME = 1099511628211  # the 64-bit FNV prime; any large odd number does
_WINDOW = 1 << 20  # bytes hashed at once: the hash needs 8 bytes of memory for each
REMEDY = "the labels are damaged: get the checkpoint again"


def _signed(value: int) -> int:
    """Return ``value`` modulo 2^64 as the signed integer that torch holds it in."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


class StringTable(Sequence[str]):
    """An immutable sequence of strings in two tensors.

    Args:
        data: All strings in UTF-8, one after the other, uint8 ``[N]``.
        offsets: Where each string starts, int64 ``[n + 1]``; the last is ``N``.

    Raises:
        ValueError: If the offsets do not start at 0, fall, or do not end at ``N``, or if a string is no
            valid UTF-8.
    """

    def __init__(self, data: Tensor, offsets: Tensor) -> None:
        # The ends alone do not bound what lies between: the order is what keeps every read inside.
        ends = (int(offsets[0]), int(offsets[-1])) if offsets.ndim == 1 and len(offsets) else (-1, -1)
        if ends != (0, len(data)) or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(
                f"offsets that run from {ends[0]} to {ends[1]}, not evenly from 0 to {len(data)}"
            )
        self.data, self.offsets = data, offsets
        self._bytes = memoryview(data.numpy().data)
        self._check_utf8()

    @classmethod
    def of(cls, strings: Iterable[str]) -> StringTable:
        """Build a table of ``strings``."""
        encoded = [text.encode("utf-8") for text in strings]
        data = torch.frombuffer(bytearray(b"".join(encoded)) or bytearray(1), dtype=torch.uint8)
        lengths = torch.tensor([0, *map(len, encoded)])
        return cls(data[: int(lengths.sum())], lengths.cumsum(0))

    def _windows(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of whole strings of about a megabyte, or of one string that is longer."""
        low, count = 0, len(self)
        while low < count:
            edge = int(self.offsets[low]) + _WINDOW
            high = int(torch.searchsorted(self.offsets, edge, right=True)) - 1
            high = min(count, max(high, low + 1))
            yield low, high
            low = high

    def _check_utf8(self) -> None:
        for low, high in self._windows():
            first, last = int(self.offsets[low]), int(self.offsets[high])
            try:
                str(self._bytes[first:last], "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"bytes near {first + error.start} that are no UTF-8") from None
        starts = self.offsets[:-1][self.offsets[:-1] < self.offsets[1:]]
        if bool(((self.data[starts] & 0xC0) == 0x80).any()):
            raise ValueError("a string that starts in the middle of a character")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return str(self._bytes[int(self.offsets[place]) : int(self.offsets[place + 1])], "utf-8")

    def __iter__(self) -> Iterator[str]:
        for low, high in self._windows():
            for first, last in pairwise(self.offsets[low : high + 1].tolist()):
                yield str(self._bytes[first:last], "utf-8")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StringTable):
            return NotImplemented
        return torch.equal(self.offsets, other.offsets) and torch.equal(self.data, other.data)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StringTable({len(self)} strings)"

    @cached_property
    def _hashes(self) -> tuple[Tensor, Tensor]:
        """All hashes, ascending, and the places they belong to."""
        parts = [self._hash(low, high) for low, high in self._windows()]
        hashes, places = torch.sort(torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64))
        return hashes, places

    def _hash(self, low: int, high: int) -> Tensor:
        """Hash strings ``low`` to ``high``: sum of (byte + 1) * p^(position in the string), modulo 2^64.

        With running sums over the window this is p^-start * (sum[end] - sum[start]); p is odd, so its
        inverse exists.
        """
        first, last = int(self.offsets[low]), int(self.offsets[high])
        powers = torch.full((last - first + 1,), _PRIME, dtype=torch.int64)
        powers[0] = 1
        terms = (self.data[first:last].long() + 1) * powers.cumprod_(0)[:-1]
        sums = torch.cat([torch.zeros(1, dtype=torch.int64), terms.cumsum(0)])
        inverse = powers.fill_(_signed(pow(_PRIME, -1, 1 << 64)))
        inverse[0] = 1
        bounds = self.offsets[low : high + 1] - first
        return (sums[bounds[1:]] - sums[bounds[:-1]]) * inverse.cumprod_(0)[bounds[:-1]]

    def find(self, text: str) -> list[int]:
        """Return every place of ``text``, ascending."""
        hashes, places = self._hashes
        wanted = 0
        for byte in reversed(text.encode("utf-8", "surrogatepass")):
            wanted = (wanted * _PRIME + byte + 1) % (1 << 64)
        low = int(torch.searchsorted(hashes, _signed(wanted)))
        high = int(torch.searchsorted(hashes, _signed(wanted), right=True))
        return [place for place in sorted(places[low:high].tolist()) if self[place] == text]

    def index(self, value: str, start: int = 0, stop: int | None = None) -> int:
        """Return the first place of ``value``.

        Raises:
            ValueError: If it is not there.
        """
        found = [p for p in self.find(value) if start <= p and (stop is None or p < stop)]
        if not found:
            raise ValueError(f"{brief(value)} is not among the {len(self)} strings")
        return found[0]

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and bool(self.find(value))

    def duplicate(self) -> str | None:
        """Return a string that occurs twice, or None."""
        hashes, places = self._hashes
        same = (hashes[1:] == hashes[:-1]).nonzero()[:, 0]
        seen: set[tuple[int, str]] = set()
        # Equal hashes need not be equal strings, but only they can be.
        for place in sorted({*same.tolist(), *(same + 1).tolist()}):
            key = (int(hashes[place]), self[int(places[place])])
            if key in seen:
                return key[1]
            seen.add(key)
        return None


class Labels:
    """The names that belong to the rows of a model.

    Args:
        entity: Names of the entities by id, each once.
        relation: Names of the relations by id, each once.
        entity_text: One text for people per entity (texts may repeat), or None.
        relation_text: The same per relation.

    Raises:
        ValueError: If a name is empty or occurs twice, or a text is missing.
    """

    def __init__(
        self,
        entity: Iterable[str],
        relation: Iterable[str],
        entity_text: Iterable[str] | None = None,
        relation_text: Iterable[str] | None = None,
    ) -> None:
        self.entity, self.relation = _table(entity), _table(relation)
        self.entity_text = None if entity_text is None else _table(entity_text)
        self.relation_text = None if relation_text is None else _table(relation_text)
        for what, names, texts in (
            ("entity", self.entity, self.entity_text),
            ("relation", self.relation, self.relation_text),
        ):
            if (twice := names.duplicate()) is not None:
                raise ValueError(f"the {what} name {brief(twice)} twice: every name must be there once")
            if "" in names:
                raise ValueError(f"an empty {what} name: every name must have a character")
            if texts is not None and len(texts) != len(names):
                raise ValueError(f"{len(texts)} {what} texts for {len(names)} names: give one for each")

    @classmethod
    def of(cls, source: Labels | Any) -> Labels:
        """Return ``source`` if it is labels, else take them from a `KnowledgeGraph`.

        Raises:
            TypeError: If it is neither.
        """
        if isinstance(source, Labels):
            return source
        if not (hasattr(source, "entities") and hasattr(source, "relations")):
            raise TypeError(f"labels must be Labels or a KnowledgeGraph, got {type(source).__name__}")
        texts = getattr(source, "entity_labels", None), getattr(source, "relation_labels", None)
        return cls(source.entities, source.relations, *texts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Labels) and self.tables() == other.tables()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Labels({len(self.entity)} entities, {len(self.relation)} relations)"

    def tables(self) -> dict[str, StringTable]:
        """Return the tables that exist, by the names they have in the file."""
        tables = {name: getattr(self, name) for name in _TABLES}
        return {name: table for name, table in tables.items() if table is not None}

    def pieces(self) -> dict[str, tuple[Tensor, torch.dtype]]:
        """Return what `croppable.segments.write_file` writes into labels.safetensors."""
        tables = self.tables()
        offsets = {f"{name}.offsets": (table.offsets, torch.int64) for name, table in tables.items()}
        data = {f"{name}.bytes": (table.data, torch.uint8) for name, table in tables.items()}
        return {**offsets, **data}

    @classmethod
    def read(
        cls, folder: Path, nbytes: int, rows: Mapping[str, int] | None = None, sha256: str | None = None
    ) -> Labels:
        """Read and check labels.safetensors.

        Args:
            folder: The checkpoint's folder.
            nbytes: The size that the file must have.
            rows: How many names there must be per table ("entity", "relation"), where that is known.
            sha256: Compare the file with this first, unless None.

        Raises:
            CheckpointError: If anything in the file is not as docs/format.md says.
        """
        path = folder / LABELS
        with SafeFile(folder, LABELS, nbytes) as file:
            if sha256 is not None:
                file.check_sha256(sha256)
            names = {name.rpartition(".")[0] for name in file.entries}
            wanted = {f"{name}.{part}" for name in names for part in ("bytes", "offsets")}
            types = {"bytes": torch.uint8, "offsets": torch.int64}
            good = all(
                e.dtype == types.get(name.rpartition(".")[2]) and len(e.shape) == 1
                for name, e in file.entries.items()
            )
            if not (
                {"entity", "relation"} <= names <= set(_TABLES) and wanted == file.entries.keys() and good
            ):
                found = f"the tensors {brief(sorted(file.entries))}"
                expected = (
                    "one U8 '.bytes' and one I64 '.offsets' for entity, relation and perhaps their texts"
                )
                raise CheckpointError(path, found, expected, REMEDY)
            for name in names:
                count = file.entries[f"{name}.offsets"].shape[0] - 1
                promised = (rows or {}).get(name.removesuffix("_text"), count)
                if count != promised:
                    raise CheckpointError(
                        path, f"{count} strings in '{name}'", f"{promised}, one per row of the model", REMEDY
                    )
            try:
                tables = {n: StringTable(*(read_whole(file, f"{n}.{p}") for p in types)) for n in names}
                return cls(**tables)
            except ValueError as error:
                if isinstance(error, CheckpointError):
                    raise
                expected = "offsets from 0 to the end, valid UTF-8, every name once"
                raise CheckpointError(path, str(error), expected, REMEDY) from error


_TABLES = ("entity", "relation", "entity_text", "relation_text")


def _table(strings: Iterable[str]) -> StringTable:
    return strings if isinstance(strings, StringTable) else StringTable.of(strings)


def closest(text: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return the names most like ``text``, the closest first; upper and lower case count as the same.

    Only the thousand names that share most pairs of neighbouring characters with ``text`` are compared in
    full: comparing millions would take minutes.
    """
    wanted = text.casefold()
    pairs = {wanted[i : i + 2] for i in range(len(wanted) - 1)} or {wanted}
    folded = ((name.casefold(), name) for name in names)
    shared = ((sum(pair in key for pair in pairs) - abs(len(key) - len(wanted)), key, n) for key, n in folded)
    candidates = {key: name for _, key, name in heapq.nlargest(1000, shared)}
    return [candidates[match] for match in difflib.get_close_matches(wanted, candidates, count, 0.5)]
