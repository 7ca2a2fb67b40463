"""Save and load: every size equals the crop, the bytes are the size's own, the format as documented."""

import json
from pathlib import Path
from typing import Self

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import croppable
from croppable.core import crop, named_tensors
from croppable.kge.model import KGEModel
from croppable.labels import Labels
from croppable.manifest import Manifest


class Mixer(nn.Module):
    """A user's module whose tensors grow along one, two and three axes, with a tie and buffers."""

    def __init__(self, size: int, options: tuple[int, ...] = (3, 2), bias: bool = True) -> None:
        super().__init__()
        self.size, self.options, self.bias = size, options, bias
        self.first = nn.Linear(options[0], 2 * size)
        self.second = nn.Linear(2 * size, size, bias=bias)
        self.tied = nn.Linear(2 * size, size, bias=False)
        self.tied.weight = self.second.weight
        self.cube = nn.Parameter(torch.randn(size, size + 1, 2 * size))
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.register_buffer("steps", torch.arange(size))
        self.register_buffer("mask", torch.tensor([True, False]), persistent=False)
        self.register_buffer("scalar", torch.tensor(1.5))

    def resized(self, size: int) -> Self:
        return type(self)(size, self.options, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) * self.scalar


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = dict(named_tensors(a)), dict(named_tensors(b))
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def kge(sizes: tuple[int, ...] = (2, 4, 8), score: str = "complex") -> KGEModel:
    torch.manual_seed(0)
    model = KGEModel(30, 4, sizes, score, margin=3.0, reciprocal=True, calibration="affine")
    with torch.no_grad():
        model.offset.normal_()
    return model


@pytest.mark.parametrize("size", range(1, 9))
def test_kge_loads_at_any_size_as_the_crop(tmp_path: Path, size: int) -> None:
    model = kge()
    croppable.save(model, tmp_path / "m")
    loaded = croppable.load(tmp_path / "m", size)
    assert same(loaded, crop(model, size))
    assert loaded.sizes == (*(s for s in (2, 4, 8) if s < size), size)
    assert (loaded.margin, loaded.reciprocal, loaded.training) == (3.0, True, False)


@pytest.mark.parametrize("size", range(1, 10))
def test_a_users_module_loads_at_any_size_as_the_crop(tmp_path: Path, size: int) -> None:
    model = Mixer(9)
    croppable.save(model, tmp_path / "m", sizes=(1, 4, 9))
    loaded = croppable.load(tmp_path / "m", size, model_class=Mixer)
    assert same(loaded, crop(model, size))
    assert loaded.tied.weight is loaded.second.weight
    assert not loaded.frozen.requires_grad
    assert loaded.cube.requires_grad
    assert torch.equal(loaded(torch.ones(2, 3)), crop(model, size).eval()(torch.ones(2, 3)))


def test_a_step_along_several_axes_is_one_block_per_axis(tmp_path: Path) -> None:
    model = Mixer(3)
    croppable.save(model, tmp_path / "m", sizes=(1, 3))
    blocks = load_file(tmp_path / "m" / "model-00002-of-00002.safetensors")
    cube = model.cube  # (1, 2, 2) -> (3, 4, 6)
    assert torch.equal(blocks["cube.seg0002.axis0"], cube[1:])
    assert torch.equal(blocks["cube.seg0002.axis1"], cube[:1, 2:])
    assert torch.equal(blocks["cube.seg0002.axis2"], cube[:1, :2, 2:])
    assert torch.equal(blocks["first.weight.seg0002"], model.first.weight[2:])
    assert not any(name.startswith(("tied", "scalar", "frozen")) for name in blocks)


def test_kge_segments_are_columns_and_reconstruct_by_hand(tmp_path: Path) -> None:
    model = kge()
    croppable.save(model, tmp_path / "m")
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    parts = [
        load_file(tmp_path / "m" / index["weight_map"][f"entity.seg{i:04d}"])[f"entity.seg{i:04d}"]
        for i in (1, 2, 3)
    ]
    assert [p.shape for p in parts] == [(30, 2, 2), (30, 2, 2), (30, 4, 2)]
    assert torch.equal(torch.cat(parts, 1), model.entity)
    assert index["metadata"]["total_size"] == 4 * sum(t.numel() for _, t in named_tensors(model))


def test_64_sizes_go_into_files_of_doubling_width(tmp_path: Path) -> None:
    model = kge(tuple(range(10, 641, 10)), "transe-l1")
    croppable.save(model, tmp_path / "m")
    manifest = Manifest.read(tmp_path / "m")
    ends = {}
    for block in manifest.blocks():
        name = manifest.weight_map[block.name]
        ends[name] = max(ends.get(name, 0), manifest.sizes[block.step])
    assert [ends[name] for name in sorted(ends)] == [10, 20, 40, 80, 160, 320, 640]
    assert manifest.files_for(50) == sorted(ends)[:4]
    assert same(croppable.load(tmp_path / "m", 50), crop(model, 50))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_storage_dtype_is_given_back_as_the_models_own(tmp_path: Path, dtype: torch.dtype) -> None:
    model = kge()
    croppable.save(model, tmp_path / "m", dtype=dtype)
    loaded = croppable.load(tmp_path / "m", 4)
    assert loaded.entity.dtype == torch.float32
    assert torch.equal(loaded.entity, model.entity[:, :4].to(dtype).float())
    assert croppable.load(tmp_path / "m", dtype=torch.bfloat16).entity.dtype == torch.bfloat16
    entity_bytes = sum(
        load_file(tmp_path / "m" / f)[n].nbytes
        for n, f in Manifest.read(tmp_path / "m").weight_map.items()
        if n.startswith("entity")
    )
    assert entity_bytes == model.entity.numel() * dtype.itemsize


def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = kge()
    with torch.no_grad():
        model.entity[3, 3] = 1e6
    with pytest.raises(ValueError, match=r"'entity.seg0002' holds the value 1e\+06, .*bfloat16"):
        croppable.save(model, tmp_path / "m", dtype=torch.float16)
    assert not (tmp_path / "m").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_saved_crop_is_the_same_format(tmp_path: Path) -> None:
    model = kge()
    model.labels = Labels([f"e{i}" for i in range(30)], ["a", "b", "c", "d"])
    croppable.save(model, tmp_path / "m")
    croppable.save(croppable.load(tmp_path / "m", 4), tmp_path / "c", cropped_from=8)
    manifest = Manifest.read(tmp_path / "c")
    assert (manifest.sizes, manifest.cropped_from) == ((2, 4), 8)
    again = croppable.load(tmp_path / "c")
    assert same(again, crop(model, 4))
    assert again.labels == model.labels


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        croppable.save(kge(), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_overwriting_needs_to_be_asked_for_and_leaves_other_files_alone(tmp_path: Path) -> None:
    croppable.save(kge(), tmp_path / "m")
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        croppable.save(kge(), tmp_path / "m")
    croppable.save(kge((1, 3)), tmp_path / "m", overwrite=True)
    assert croppable.load(tmp_path / "m").sizes == (1, 3)
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"
    names = {path.name for path in (tmp_path / "m").glob("*.safetensors")}
    assert names == set(Manifest.read(tmp_path / "m").files), "segments of the old checkpoint must go"


def test_the_model_and_what_it_holds_are_untouched(tmp_path: Path) -> None:
    model, rows = kge(), [{"size": 8, "dataset": "x", "split": "test", "metric": "mrr", "value": 0.5}]
    before = {name: tensor.clone() for name, tensor in named_tensors(model)}
    state = torch.random.get_rng_state()
    croppable.save(model, tmp_path / "m", metrics=rows)
    croppable.load(tmp_path / "m", 3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in named_tensors(model))
    assert model.training


class Hidden(Mixer):
    def __init__(self, size: int, secret: int = 3) -> None:
        super().__init__(size)

    def resized(self, size: int) -> Self:
        return type(self)(size)


class Forgetful(Mixer):
    """Its argument is an attribute, of another value."""

    def __init__(self, size: int, width: int = 3) -> None:
        super().__init__(size, (width, 2))
        self.width = 7

    def resized(self, size: int) -> Self:
        return type(self)(size)


def test_what_cannot_be_saved_says_why(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Hidden has no attributes for its arguments \['secret'\]"):
        croppable.save(Hidden(3), tmp_path / "m")
    with pytest.raises(TypeError, match=r"gives other tensors than the model has: \['first.weight'\]"):
        croppable.save(Forgetful(3), tmp_path / "m")
    with pytest.raises(TypeError, match="is not croppable"):
        croppable.save(nn.Linear(2, 2), tmp_path / "m")
    with pytest.raises(ValueError, match="sizes must be positive integers"):
        croppable.save(Mixer(3), tmp_path / "m", sizes=(1, 2))
    with pytest.raises(ValueError, match="dtype must be a floating point one"):
        croppable.save(Mixer(3), tmp_path / "m", dtype=torch.int8)
    with pytest.raises(ValueError, match="30 rows of 'entity' but there are 2 labels"):
        croppable.save(kge(), tmp_path / "m", labels=Labels(["a", "b"], list("abcd")))
    with pytest.raises(TypeError, match="labels must be Labels or a KnowledgeGraph"):
        croppable.save(kge(), tmp_path / "m", labels=["a", "b"])
    assert not (tmp_path / "m").exists()
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_are_no_plain_values_are_refused(tmp_path: Path) -> None:
    model = Mixer(3)
    model.bias = nn.Identity()
    with pytest.raises(TypeError, match="must be numbers, strings, lists and dicts"):
        croppable.save(model, tmp_path / "m")
