"""Acts of sabotage on a good checkpoint, and the watch that is kept while it is refused.

The saboteur is careful: sizes and sha256 in config.json are put right again after he has changed a file, so
that the check he aims at is the one met. test_bad_manifests.py and test_bad_files.py use this.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import croppable
from croppable.kge.model import KGEModel
from croppable.labels import Labels

CONFIG, INDEX, LABELS = "config.json", "model.safetensors.index.json", "labels.safetensors"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Sabotage = Callable[[Path], None]


def text(name: str, edit: Callable[[str], str]) -> Sabotage:
    return lambda folder: (folder / name).write_text(edit((folder / name).read_text())) and None


def swap(name: str, old: str, new: str) -> Sabotage:
    def edit(content: str) -> str:
        assert old in content, "the sabotage must change something"
        return content.replace(old, new, 1)

    return text(name, edit)


def tree(name: str, *path: str, to: Any) -> Sabotage:
    """Set one value deep in a JSON file; ``to`` may be a function of the old value."""

    def edit(content: str) -> str:
        root = node = json.loads(content)
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = to(node.get(path[-1])) if callable(to) else to
        return json.dumps(root)

    return text(name, edit)


def config(*path: str, to: Any) -> Sabotage:
    return tree(CONFIG, *path, to=to)


def without(name: str, *path: str) -> Sabotage:
    def edit(content: str) -> str:
        root = node = json.loads(content)
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
        return json.dumps(root)

    return text(name, edit)


def replaced(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    config("files", name, to=entry)(folder)


def header(name: str, edit: Callable[[dict[str, Any]], Any]) -> Sabotage:
    """Change a safetensors header (a string replaces it as it is) and put config.json right."""

    def act(folder: Path) -> None:
        data = (folder / name).read_bytes()
        length = int.from_bytes(data[:8], "little")
        content = json.loads(data[8 : 8 + length])
        changed = edit(content)
        raw = (changed if isinstance(changed, str) else json.dumps(content)).encode()
        replaced(folder, name, len(raw).to_bytes(8, "little") + raw + data[8 + length :])

    return act


def entry(name: str, tensor: str, key: str, value: Any) -> Sabotage:
    return header(name, lambda content: content[tensor].update({key: value}))


def cut(name: str, size: int, honest: bool = False) -> Sabotage:
    def act(folder: Path) -> None:
        data = (folder / name).read_bytes()[:size]
        if honest:
            replaced(folder, name, data)
        else:
            (folder / name).write_bytes(data)

    return act


def grow(name: str, honest: bool = True) -> Sabotage:
    def act(folder: Path) -> None:
        data = (folder / name).read_bytes() + bytes(8)
        replaced(folder, name, data) if honest else (folder / name).write_bytes(data)

    return act


def fifo(name: str) -> Sabotage:
    def act(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return act


def link(name: str, target: str) -> Sabotage:
    def act(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return act


def instead_a_folder(name: str) -> Sabotage:
    def act(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return act


def gone(name: str) -> Sabotage:
    return lambda folder: (folder / name).unlink()


def exchanged(folder: Path) -> None:
    first, second = (folder / FIRST).read_bytes(), (folder / SECOND).read_bytes()
    replaced(folder, FIRST, second)
    replaced(folder, SECOND, first)


def labels(**tables: Any) -> Sabotage:
    """Write a labels file of these (data, offsets), bypassing all checks of the writer."""

    def act(folder: Path) -> None:
        from safetensors.torch import save

        tensors = {}
        for name, (data, offsets) in tables.items():
            tensors[f"{name}.bytes"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            tensors[f"{name}.offsets"] = torch.tensor(offsets)
        replaced(folder, LABELS, save(tensors))

    return act


RELATION = (b"abc", [0, 1, 2, 3])
HUGE = 10**30


def bad_number(value: float) -> Sabotage:
    def act(folder: Path) -> None:
        data = bytearray((folder / FIRST).read_bytes())
        data[-4:] = torch.tensor([value]).view(torch.uint8).numpy().tobytes()
        replaced(folder, FIRST, bytes(data))

    return act


def flipped(folder: Path) -> None:
    data = bytearray((folder / FIRST).read_bytes())
    data[-1] ^= 1
    (folder / FIRST).write_bytes(data)


def good_checkpoint(tmp_path: Path) -> Path:
    """Write a small good checkpoint, and beside it what a bad one may try to read."""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    model = KGEModel(6, 3, (2, 4))
    croppable.save(model, folder, labels=Labels([f"é{i}" for i in range(6)], list("abc")))
    (tmp_path / "secret.safetensors").write_bytes((folder / SECOND).read_bytes())
    return folder


OPENED: list[str] = []
_watching = [False]


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching[0] and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED.append(os.fsdecode(arguments[0]))


sys.addaudithook(_watch)


def peak_memory_mb(reset: bool = False) -> int:
    """Return the process's peak resident memory since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def refusal(folder: Path) -> croppable.CheckpointError:
    """Load, which must fail: in 5 s and 300 MB, and with no file opened outside the folder."""
    before = peak_memory_mb(reset=True)
    start = time.perf_counter()
    OPENED.clear()
    _watching[0] = True
    try:
        with pytest.raises(croppable.CheckpointError) as caught:
            croppable.load(folder, verify=True)
    finally:
        _watching[0] = False
    assert time.perf_counter() - start < 5
    assert peak_memory_mb() - before < 300
    outside = [path for path in OPENED if "secret" in path or path.startswith(("/etc", "/dev"))]
    assert not outside
    return caught.value


def check_refused(folder: Path, sabotage: Sabotage, message: str) -> None:
    """Spoil the checkpoint; loading it must be refused with the message, which must be fit to print."""
    sabotage(folder)
    error = refusal(folder)
    assert all((error.file, error.found, error.expected, error.remedy))
    assert str(folder) in error.file
    assert len(str(error)) < 2000
    assert str(error).isprintable()
    with pytest.raises(croppable.CheckpointError, match=message):
        croppable.load(folder, verify=True)
