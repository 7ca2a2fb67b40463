"""Vectors for other programs, in every format; tests/test_cli.py reads them with their peers."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from croppable.core import crop
from croppable.kge.export import FORMATS, export
from croppable.kge.model import KGEModel
from croppable.labels import Labels


def model_of(labels: Labels | None = None) -> KGEModel:
    torch.manual_seed(0)
    model = KGEModel(3, 2, (2, 4), "complex")
    model.labels = labels
    return model


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["entity", "relation"])
def test_every_format_writes_the_names_with_the_vectors(tmp_path: Path, format: str, kind: str) -> None:
    if format == "faiss" and importlib.util.find_spec("faiss") is None:
        pytest.skip("faiss is not installed")
    model = model_of(Labels(["Oslo", "Bergen", "Tromsø"], ["north_of", "south_of"]))
    paths = export(model, tmp_path / "new" / "vectors", format, kind)  # type: ignore[arg-type]
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    content = b"".join(path.read_bytes() for path in paths)
    for name in ("Oslo", "Tromsø") if kind == "entity" else ("north_of",):
        assert name.encode() in content


def test_a_smaller_models_vectors_are_the_leading_columns(tmp_path: Path) -> None:
    model = model_of()
    lines = []
    for one in (model, crop(model, 2)):
        (path,) = export(one, tmp_path / f"{one.size}.txt", "word2vec")
        lines.append([line.split() for line in path.read_text().splitlines()])
    full, small = lines
    assert (full[0], small[0]) == (["3", "8"], ["3", "4"])
    assert [line[:5] for line in full[1:]] == small[1:]
    row = torch.tensor([float(number) for number in small[2][1:]])
    assert torch.equal(row, model.entity[1, :2].flatten()), "nine digits give every float32 back"
    assert [line[0] for line in small[1:]] == ["0", "1", "2"], "without labels the ids are the names"


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"format must be one of {', '.join(FORMATS)}, got 'csv'")):
        export(model_of(), tmp_path / "v", "csv")
    labels = Labels(["New York", "New_York", "Oslo"], ["a", "b"])
    with pytest.raises(ValueError, match="two names become the same word 'New_York'"):
        export(model_of(labels), tmp_path / "v", "word2vec")
    assert not (tmp_path / "v").exists()
