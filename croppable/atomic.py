"""Folders and files that appear complete or not at all.

The order is always the same: write under a temporary name beside the target, flush every file and folder
to the disk, rename, flush the parent. A process killed at any moment leaves the old state or the new one,
never a mixture; what it leaves besides is a hidden ``.NAME.TOKEN.writing`` folder that nobody reads.
This file knows nothing of what it writes.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["new_folder", "write_into"]


def _sync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    # A folder can be opened for flushing on POSIX only; elsewhere the rename itself is all there is.
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settle(folder: Path) -> None:
    """Give every file below ``folder`` the process's ordinary mode and flush all of it, leaves first.

    safetensors leaves its files at mode 0600, which no other user of a shared disk could read.
    """
    probe = folder / f".mode-{secrets.token_hex(4)}"
    probe.touch()
    mode = probe.stat().st_mode & 0o777  # 0666 & ~umask, without touching the umask of other threads
    probe.unlink()
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(root, name)
            path.chmod(mode)
            _sync(path)
        _sync(Path(root))


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside ``folder``; it is gone afterwards, by rename or removal."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.writing"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Write a folder that appears at once, complete, when the block ends without an error.

    Args:
        folder: The target; it must not exist, or be an empty folder.

    Yields:
        The temporary folder to write into.

    Raises:
        FileExistsError: If ``folder`` is a file or holds anything.
    """
    target = Path(folder).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"'{folder}' exists and is not an empty folder: choose a new name or remove it")
    with _staging(target) as temporary:
        yield temporary
        _settle(temporary)
        temporary.rename(target)
        _sync(target.parent)


@contextmanager
def write_into(folder: str | Path, last: str, old: Sequence[str] = ()) -> Iterator[Path]:
    """Write files into a folder that may hold others; the file ``last`` makes them count.

    An absent folder appears at once, as with `new_folder`. In an existing one the old ``last`` is removed,
    the new files are moved in, and the new ``last`` is moved in at the end: whoever requires ``last`` never
    takes a half-written set for a whole one.

    Args:
        folder: The target folder.
        last: Name of the file without which the others mean nothing.
        old: Patterns of files that belong to what is replaced; those that are not written again are removed.

    Yields:
        The temporary folder to write into; it must contain ``last`` in the end.
    """
    target = Path(folder).absolute()
    if not target.exists():
        with new_folder(target) as temporary:
            yield temporary
        return
    with _staging(target) as temporary:
        yield temporary
        _settle(temporary)
        (target / last).unlink(missing_ok=True)
        _sync(target)
        names = sorted(path.name for path in temporary.iterdir() if path.name != last)
        for path in {path for pattern in old for path in target.glob(pattern)}:
            path.unlink()
        for name in [*names, last]:
            (temporary / name).replace(target / name)
        _sync(target)
