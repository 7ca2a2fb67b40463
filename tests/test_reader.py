"""What loading reads and takes: the bytes of the size, the memory of the model, nothing of the outside."""

import gc
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sabotage import CONFIG, FIRST, INDEX, LABELS, SECOND, good_checkpoint, peak_memory_mb, replaced
from torch import nn

import croppable
from croppable.core import crop, named_tensors
from croppable.kge.model import KGEModel
from croppable.manifest import Manifest
from croppable.reader import read_metrics

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 20,000 x 640, as 64 sizes; 51.2 MB."""
    folder = tmp_path_factory.mktemp("wide") / "m"
    model = KGEModel(20_000, 5, range(10, 641, 10))
    return croppable.save(model, folder, metrics=[{"size": 640, "value": 0.5}])


@linux
@pytest.mark.parametrize("size", [10, 40, 45, 160, 640])
def test_the_bytes_read_are_those_of_the_size(wide: Path, size: int) -> None:
    croppable.load(wide, size)  # whatever is imported late is imported now
    before = bytes_read()
    croppable.load(wide, size)
    needed = (size + 9) // 10 * 10
    assert bytes_read() - before <= 1.03 * needed / 640 * 20_000 * 640 * 4 + 200_000


@linux
@pytest.mark.parametrize("size", [160, 640])
def test_the_peak_memory_is_the_model_plus_one_block(wide: Path, size: int) -> None:
    model = croppable.load(wide, 10)
    gc.collect()
    start = peak_memory_mb(reset=True)
    model = croppable.load(wide, size)
    grown = peak_memory_mb() - start
    assert grown <= model.entity.nbytes / 2**20 + 8


@linux
def test_saving_takes_no_second_copy(wide: Path, tmp_path: Path) -> None:
    model = croppable.load(wide)
    start = peak_memory_mb(reset=True)
    croppable.save(model, tmp_path / "again")
    assert peak_memory_mb() - start <= 12


def test_only_the_files_of_the_size_need_be_there(wide: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(wide)
    for name in (CONFIG, INDEX, *manifest.files_for(40)):
        shutil.copy(wide / name, tmp_path / name)
    assert croppable.load(tmp_path, 33).entity.shape == (20_000, 33)
    with pytest.raises(croppable.CheckpointError, match=r"no file.*incomplete"):
        croppable.load(tmp_path, 41)


def test_sizes_devices_and_names_that_do_not_fit_are_refused(wide: Path, tmp_path: Path) -> None:
    for size in (0, -1, 641, True, 2.0, "40"):
        with pytest.raises(ValueError, match="size must be an integer between 1 and 640, the checkpoint"):
            croppable.load(wide, size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="revision='main' is for Hub repositories"):
        croppable.load(wide, revision="main")
    with pytest.raises(croppable.CheckpointError, match="kind 'Linear', the class that was passed"):
        croppable.load(wide, model_class=nn.Linear)
    assert croppable.load(wide, 3, device="meta").entity.is_meta
    assert croppable.load(wide, 3, dtype=torch.float64).entity.dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_loading_onto_an_accelerator_is_the_same(wide: Path) -> None:
    here, there = croppable.load(wide, 45), croppable.load(wide, 45, device="cuda")
    assert there.entity.device.type == "cuda"
    assert torch.equal(there.entity.cpu(), here.entity)


def test_metrics_are_read_alone(wide: Path, tmp_path: Path) -> None:
    assert read_metrics(wide) == [{"size": 640, "value": 0.5}]
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.json").write_text("[1]")
    with pytest.raises(croppable.CheckpointError, match="a list of objects"):
        read_metrics(tmp_path)


def test_a_hub_cache_of_links_is_read_and_other_links_are_not(tmp_path: Path) -> None:
    model = good_checkpoint(tmp_path)
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in model.iterdir():
        shutil.move(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert croppable.load(snapshot, 2).size == 2
    (snapshot / FIRST).unlink()
    (snapshot / FIRST).symlink_to("../../../secret.safetensors")
    with pytest.raises(croppable.CheckpointError, match="link that leaves"):
        croppable.load(snapshot, 2)


class Wrapper(nn.Module):
    """Raises whatever a user's constructor may raise."""

    def __init__(self, size: int) -> None:
        super().__init__()
        if size != 4:
            raise KeyError("only 4")
        self.size = size
        self.weight = nn.Parameter(torch.ones(size))

    def resized(self, size: int) -> "Wrapper":
        return type(self)(size)


def test_what_a_users_constructor_raises_is_passed_on(tmp_path: Path) -> None:
    croppable.save(Wrapper(4), tmp_path / "m")
    path = tmp_path / "m" / CONFIG
    path.write_text(path.read_text().replace('"size": 4', '"size": 5', 1))
    with pytest.raises(croppable.CheckpointError, match=r"with which Wrapper fails: .*only 4") as caught:
        croppable.load(tmp_path / "m", model_class=Wrapper)
    assert isinstance(caught.value.__cause__, KeyError)


def test_stored_booleans_of_any_byte_are_true_or_false(tmp_path: Path) -> None:
    class Flags(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size
            self.register_buffer("flags", torch.zeros(size, dtype=torch.bool))

        def resized(self, size: int) -> "Flags":
            return Flags(size)

    croppable.save(Flags(3), tmp_path / "m")
    name = "model-00001-of-00001.safetensors"
    data = (tmp_path / "m" / name).read_bytes()
    replaced(tmp_path / "m", name, data[:-3] + b"\x00\x02\xff")
    flags = croppable.load(tmp_path / "m", model_class=Flags).flags
    assert flags.tolist() == [False, True, True]
    assert flags.view(torch.uint8).max() == 1


FILES = (CONFIG, INDEX, FIRST, SECOND, LABELS)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], dict[str, Any]]:
    folder = good_checkpoint(tmp_path_factory.mktemp("fuzz"))
    contents = {name: (folder / name).read_bytes() for name in FILES}
    return folder, contents, dict(named_tensors(croppable.load(folder)))


@settings(max_examples=400, deadline=5000, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_random_damage_is_refused_or_harmless(fuzzed: Any, data: st.DataObject) -> None:
    """Bytes flipped and files cut at random: a `CheckpointError`, or a model of the promised shape."""
    folder, contents, tensors = fuzzed
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    name = data.draw(st.sampled_from(FILES))
    content = bytearray(contents[name])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    (folder / name).write_bytes(bytes(content))
    changed = bytes(content) != contents[name]
    verify = data.draw(st.booleans())
    try:
        model = croppable.load(folder, verify=verify)
    except croppable.CheckpointError:
        if not changed:
            raise
        return
    assert {n: t.shape for n, t in named_tensors(model)} == {n: t.shape for n, t in tensors.items()}
    assert not (changed and verify and name in (FIRST, SECOND, LABELS)), "the sha256 must have caught this"


def test_the_crop_of_a_crop_is_the_crop(tmp_path: Path) -> None:
    folder = good_checkpoint(tmp_path)
    full = croppable.load(folder)
    for size in (1, 2, 3, 4):
        loaded = croppable.load(folder, size)
        for (name, a), (_, b) in zip(named_tensors(loaded), named_tensors(crop(full, size)), strict=True):
            assert torch.equal(a, b), name
