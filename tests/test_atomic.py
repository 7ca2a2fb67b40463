"""Folders appear complete or not at all, whatever interrupts the writing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from croppable import atomic
from croppable.atomic import new_folder, write_into


def test_a_new_folder_appears_complete_with_ordinary_modes(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "x"
    with new_folder(target) as temporary:
        (temporary / "a").write_text("1")
        (temporary / "a").chmod(0o600)
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_text("2")
        assert not target.exists()
    umask = os.umask(0)
    os.umask(umask)
    assert (target / "a").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (target / "sub" / "b").read_text() == "2"
    assert [p.name for p in target.parent.iterdir()] == ["x"]


@pytest.mark.parametrize("existing", [False, True])
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "x"
    if existing:
        target.mkdir()
        (target / "last").write_text("old")

    def interrupted() -> None:
        with write_into(target, "last") as temporary:
            (temporary / "last").write_text("new")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == (["x"] if existing else [])
    assert not existing or (target / "last").read_text() == "old"


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").touch()
    with pytest.raises(FileExistsError, match="not an empty folder"), new_folder(tmp_path / "x"):
        pytest.fail("the block must not be entered")
    with new_folder(tmp_path / "empty") as temporary:
        (temporary / "a").touch()


def test_write_into_replaces_its_own_files_only(tmp_path: Path) -> None:
    for name in ("part-1", "part-2", "mine", "last"):
        (tmp_path / name).write_text("old")
    with write_into(tmp_path, "last", old=("part-*",)) as temporary:
        (temporary / "part-1").write_text("new")
        (temporary / "last").write_text("new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "part-1": "new",
        "mine": "old",
        "last": "new",
    }


WRITE_FOREVER = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("atomic", sys.argv[2])  # alone: importing torch takes seconds
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
target = pathlib.Path(sys.argv[1])
for i in range(10**6):
    with atomic.write_into(target, "last", old=("part-*",)) as temporary:
        for part in range(3):
            (temporary / f"part-{part}").write_text(str(i) * 5000)
        (temporary / "last").write_text(str(i))
    print(i, flush=True)
"""


def test_a_killed_process_never_leaves_a_mixture_that_counts(tmp_path: Path) -> None:
    target = tmp_path / "x"
    seen = 0
    for attempt in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOREVER, str(target), str(atomic.__file__)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (target / "last").exists():
            seen += 1
            turn = (target / "last").read_text()
            assert all((target / f"part-{part}").read_text() == turn * 5000 for part in range(3))
    assert seen, "some attempt must leave a complete folder, or nothing was tested"
