"""The reader that docs/format.md prints reads what the library writes, at every size."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import croppable
from croppable.core import crop, named_tensors
from croppable.kge.model import KGEModel
from croppable.labels import Labels

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "format.md"


@pytest.fixture(scope="module")
def reader() -> dict[str, Any]:
    section = DOCUMENT.read_text(encoding="utf-8").partition("## A reader")[2]
    space: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0], space)
    return space


class Grid(torch.nn.Module):
    """Grows along two axes at once."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.table = torch.nn.Parameter(torch.randn(size + 1, 3, 2 * size))
        self.register_buffer("counts", torch.arange(5))

    def resized(self, size: int) -> "Grid":
        return Grid(size)


@pytest.mark.parametrize("model", [KGEModel(7, 2, (1, 2, 5), "complex", calibration="scale"), Grid(5)])
def test_the_documented_reader_reads_every_size(
    reader: dict[str, Any], model: torch.nn.Module, tmp_path: Path
) -> None:
    croppable.save(model, tmp_path / "m", sizes=(1, 2, 5))
    for size in (1, 2, 5):
        for name, tensor in named_tensors(crop(model, size)):
            read = reader["read_tensor"](tmp_path / "m", name, size)
            assert np.array_equal(read, tensor.detach().numpy()), (name, size)


def test_the_documented_reader_reads_labels(reader: dict[str, Any], tmp_path: Path) -> None:
    names = ["é", "日本", "plain"]
    croppable.save(KGEModel(3, 1, (2,)), tmp_path / "m", labels=Labels(names, ["r"]))
    assert reader["read_labels"](tmp_path / "m") == names
    assert reader["read_labels"](tmp_path / "m", "relation") == ["r"]
