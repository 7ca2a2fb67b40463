"""Training states on disk: round trips, the seal, and which one is the newest."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from croppable.state import StateFolder, flatten, random_states, set_random_states, unflatten


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


TREE: dict[Any, Any] = {
    "step": 7,
    "none": None,
    "flags": [True, 1, 1.0, "text", float("-inf")],
    "tuple": (1, [2, (3,)]),
    0: {"exp": torch.tensor(2.5)},
    "a/b": torch.arange(3),
    "a": {"b": torch.ones(2, 2, dtype=torch.bfloat16), "": torch.tensor([True])},
    "empty": [{}, [], (), torch.zeros(0, 3)],
}


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    structure, tensors = flatten(TREE)
    assert same(unflatten(json.loads(json.dumps(structure)), tensors), TREE)
    states = StateFolder(tmp_path / "deep" / "states")
    states.write(7, TREE)
    assert same(states.read(), TREE)


def test_a_state_is_a_copy_and_shared_tensors_stay_equal() -> None:
    shared = torch.ones(2)
    structure, tensors = flatten({"x": shared, "y": shared, "column": torch.ones(3, 3)[:, 1]})
    shared.zero_()
    assert unflatten(structure, tensors)["y"].tolist() == [1, 1]
    assert all(tensor.is_contiguous() for tensor in tensors.values())


@pytest.mark.parametrize(
    "bad",
    [{"x": {1, 2}}, {"x": object()}, {"x": {(1, 2): 3}}, {"x": b"bytes"}],
    ids=["set", "object", "tuple as key", "bytes"],
)
def test_other_things_are_refused(bad: Any) -> None:
    message = re.escape(f"lists, scalars, and dicts of str or int, got {type(bad['x'])} at '/x'")
    with pytest.raises(TypeError, match=message):
        flatten(bad)


def test_the_newest_is_the_highest_step_whatever_its_number_of_digits(tmp_path: Path) -> None:
    states = StateFolder(tmp_path, keep=4)
    for step in (99_999_999, 5, 100_000_000):
        states.write(step, {"step": step})
    (tmp_path / "step-999").mkdir()
    (tmp_path / "other").mkdir()
    assert [path.name for path in states.complete()] == ["step-00000005", "step-99999999", "step-100000000"]
    assert states.newest() == tmp_path / "step-100000000"
    assert states.read() == {"step": 100_000_000}


def test_old_states_and_what_was_not_finished_are_removed(tmp_path: Path) -> None:
    states = StateFolder(tmp_path, keep=2)
    (tmp_path / "step-00000000").mkdir()
    for step in (1, 2, 3):
        for what in ("writing", "removing"):
            (tmp_path / f".step-{step:08d}.x.{what}").mkdir()
        states.write(step, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_the_same_step_is_written_again(tmp_path: Path) -> None:
    states = StateFolder(tmp_path)
    states.write(1, {"value": 1})
    states.write(1, {"value": 2})
    assert states.read() == {"value": 2}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x20
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["tensors.safetensors", "tree.json", "done.json"])
@pytest.mark.parametrize(
    "damage",
    [flip, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\xff{]")],
    ids=["flip", "unlink", "empty", "garbage"],
)
def test_a_damaged_state_does_not_count(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    states = StateFolder(tmp_path)
    states.write(1, {"value": 1, "weights": torch.ones(3)})
    newest = states.write(2, {"value": 2, "weights": torch.ones(3)})
    damage(newest / name)
    assert states.newest() == tmp_path / "step-00000001"
    assert states.read()["value"] == 1


def test_a_removal_that_is_cut_short_leaves_no_half_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = StateFolder(tmp_path)
    for step in (1, 2):
        states.write(step, {"step": step})

    def killed(path: Path) -> None:
        (path / "tree.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("croppable.state.shutil", SimpleNamespace(rmtree=killed))
    with pytest.raises(KeyboardInterrupt):
        states.write(3, {"step": 3})
    monkeypatch.undo()
    assert set(tmp_path.glob("step-*")) == set(states.complete())
    states.write(4, {"step": 4})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_clearing_leaves_other_files_alone(tmp_path: Path) -> None:
    states = StateFolder(tmp_path)
    states.clear()
    states.write(1, {})
    for name in ("step-by-step", ".step-00000002.x.writing", ".step-00000001.x.removing", "notes"):
        (tmp_path / name).mkdir()
    states.clear()
    assert {path.name for path in tmp_path.iterdir()} == {"step-by-step", "notes"}
    assert states.newest() is None


def test_reading_without_a_state_says_what_to_do(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            FileNotFoundError, match=re.escape(f"no complete training state in {folder}: start")
        ):
            StateFolder(folder).read()


def test_fewer_than_two_states_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 2 training states, got 1"):
        StateFolder(tmp_path, keep=1)


def test_random_states_are_taken_up_again() -> None:
    random.gauss(0, 1)  # leaves a second number waiting inside the generator
    structure, tensors = flatten(random_states())
    expected = (random.gauss(0, 1), random.random(), torch.randn(3).tolist())
    set_random_states(unflatten(json.loads(json.dumps(structure)), tensors))
    assert (random.gauss(0, 1), random.random(), torch.randn(3).tolist()) == expected
