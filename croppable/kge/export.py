"""Vectors for other programs: safetensors, npy, word2vec text, parquet, faiss.

A dim that stores several floats (re and im of a complex one) becomes that many neighbouring columns, so the
leading columns of every file are a smaller model's vectors. Names go along in the form each format has.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from croppable.kge.model import KGEModel
from croppable.kge.predict import embeddings

__all__ = ["FORMATS", "export"]

Kind = Literal["entity", "relation"]


def _names_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.names.json")


def _write_names(path: Path, names: list[str]) -> None:
    _names_file(path).write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")


def _safetensors(path: Path, names: list[str], vectors: Tensor) -> None:
    """The tensor "vectors", and the names as bytes and offsets (docs/format.md, labels)."""
    from croppable.labels import StringTable
    from croppable.segments import write_file

    table = StringTable.of(names)
    pieces = {"names.offsets": (table.offsets, torch.int64), "vectors": (vectors, vectors.dtype)}
    write_file(path, {**pieces, "names.bytes": (table.data, torch.uint8)})


def _npy(path: Path, names: list[str], vectors: Tensor) -> None:
    """A numpy array, and the names as a JSON list in FILE.names.json."""
    import numpy as np

    with path.open("wb") as file:
        np.save(file, vectors.float().numpy(), allow_pickle=False)
    _write_names(path, names)


def _word2vec(path: Path, names: list[str], vectors: Tensor) -> None:
    """word2vec's text format: a line "n d", then a name and d numbers per line; spaces become "_"."""
    words = ["_".join(name.split()) for name in names]
    if len(set(words)) < len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise ValueError(
            f"two names become the same word {twice!r} once spaces are replaced, which word2vec's format "
            f"cannot tell apart: export to another format"
        )
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{len(words)} {vectors.shape[1]}\n")
        for word, row in zip(words, vectors, strict=True):
            # Nine digits give every float32 back exactly.
            file.write(f"{word} {' '.join(f'{value:.9g}' for value in row.tolist())}\n")


def _parquet(path: Path, names: list[str], vectors: Tensor) -> None:
    """Columns "id", "name" and "vector" (a list of floats of fixed length)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = pa.array(vectors.float().flatten().numpy())
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = pa.table({"id": pa.array(range(len(names)), pa.int64()), "name": names, "vector": column})
    pq.write_table(table, path)


def _faiss(path: Path, names: list[str], vectors: Tensor) -> None:
    """A flat index of unit vectors by inner product, that is cosine; the names in FILE.names.json."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError("faiss is not installed: pip install 'croppable[faiss]'") from error
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit.numpy())
    faiss.write_index(index, str(path))
    _write_names(path, names)


FORMATS: dict[str, Callable[[Path, list[str], Tensor], None]] = {
    "safetensors": _safetensors,
    "npy": _npy,
    "word2vec": _word2vec,
    "parquet": _parquet,
    "faiss": _faiss,
}


def export(model: KGEModel, path: str | Path, format: str, kind: Kind = "entity") -> list[Path]:
    """Write the vectors of a model into one file, with the names inside or beside it.

    Args:
        model: A model; without ``labels`` the ids are the names.
        path: The file to write.
        format: A key of `FORMATS`.
        kind: "entity" or "relation".

    Returns:
        The files written.

    Raises:
        ValueError: If the format is unknown, its library is missing, or it cannot hold the names.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    if model.labels is None:
        vectors = embeddings(model, kind)
        assert isinstance(vectors, Tensor)
        names = [str(place) for place in range(len(vectors))]
    else:
        names, vectors = embeddings(model, kind, labels=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    FORMATS[format](path, names, vectors)
    return [file for file in (path, _names_file(path)) if file.exists()]
