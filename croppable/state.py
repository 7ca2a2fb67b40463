"""Training states on disk: written so that a kill at any moment loses nothing, read without pickle.

A state is a folder ``step-00001234`` with tensors in safetensors, everything else in JSON, and a seal with
every file's sha256 (croppable/atomic.py). Older states are removed only when a new one is complete. What
is in a state is the training loop's affair.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from croppable.atomic import new_folder

__all__ = ["StateFolder", "flatten", "random_states", "set_random_states", "unflatten"]

TENSORS, TREE, DONE = "tensors.safetensors", "tree.json", "done.json"
_STATE = re.compile(r"^step-(\d{8,})$")


def flatten(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a tree of dicts, lists, tuples, scalars and tensors into JSON and named tensors.

    Raises:
        TypeError: If the tree holds anything else.
    """
    tensors: dict[str, Tensor] = {}

    def visit(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            name = f"{len(tensors)}:{path}"  # the number keeps "a/b" apart from b inside a
            tensors[name] = node.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(node, dict) and all(isinstance(key, str | int) for key in node):
            return {"dict": [[key, visit(value, f"{path}/{key}")] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            kind = "list" if isinstance(node, list) else "tuple"
            return {kind: [visit(value, f"{path}/{i}") for i, value in enumerate(node)]}
        if node is None or isinstance(node, bool | int | float | str):
            return {"value": node}
        raise TypeError(
            f"a training state holds tensors, lists, scalars, and dicts of str or int, got {type(node)} at "
            f"'{path}'"
        )

    return visit(tree, ""), tensors


def unflatten(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    """Put together again what `flatten` took apart."""
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(value, tensors) for key, value in content}
    if kind in ("list", "tuple"):
        values = [unflatten(value, tensors) for value in content]
        return values if kind == "list" else tuple(values)
    return content


class StateFolder:
    """The training states of one run, newest last.

    Args:
        root: Folder that holds the states; made when the first one is written.
        keep: How many complete states to keep, at least 2: the newest may be the one that a broken disk
            spoilt.

    Raises:
        ValueError: If ``keep`` is below 2.
    """

    def __init__(self, root: Path, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError(f"keep must be at least 2 training states, got {keep}")
        self.root, self.keep = Path(root), keep

    def complete(self) -> list[Path]:
        """Return the complete states, oldest first; a state is complete if its files have their sha256."""
        return [path for path in self._named() if _is_complete(path)]

    def _named(self) -> list[Path]:
        """Every folder that is called a state, oldest first."""
        found = self.root.iterdir() if self.root.is_dir() else ()
        named = [(int(match[1]), path) for path in found if (match := _STATE.match(path.name))]
        return [path for _, path in sorted(named)]

    def newest(self) -> Path | None:
        """Return the newest complete state, or None."""
        found = self.complete()
        return found[-1] if found else None

    def clear(self) -> None:
        """Remove every state, complete or not; other files are left alone."""
        self._remove(self._named())

    def _remove(self, states: Iterable[Path]) -> None:
        """Remove states, and what earlier writing and removing left unfinished; none is ever half there."""
        for path in states:
            path.rename(path.with_name(f".{path.name}.{secrets.token_hex(4)}.removing"))
        for path in (*self.root.glob(".step-*.writing"), *self.root.glob(".step-*.removing")):
            shutil.rmtree(path)

    def write(self, step: int, tree: Any) -> Path:
        """Write the state after ``step`` optimizer steps, then remove those that are too old or spoilt.

        Args:
            step: Number of optimizer steps done.
            tree: What to keep, see `flatten`.
        """
        from safetensors.torch import save_file

        folder = self.root / f"step-{step:08d}"
        if folder.exists():
            self._remove([folder])  # the same step again, after going on from an older state
        skeleton, tensors = flatten(tree)
        with new_folder(folder) as temporary:
            save_file(tensors, temporary / TENSORS)
            (temporary / TREE).write_text(json.dumps(skeleton), encoding="utf-8")
            (temporary / DONE).write_text(json.dumps(_digests(temporary)), encoding="utf-8")
        kept = self.complete()[-self.keep :]
        self._remove(path for path in self._named() if path not in kept)
        return folder

    def read(self) -> Any:
        """Read the newest complete state.

        Raises:
            FileNotFoundError: If there is no complete state.
        """
        from safetensors.torch import load_file

        newest = self.newest()
        if newest is None:
            raise FileNotFoundError(
                f"no complete training state in {self.root}: start without resuming, or name the folder "
                f"whose step-* subfolders hold states"
            )
        skeleton = json.loads((newest / TREE).read_text(encoding="utf-8"))
        return unflatten(skeleton, load_file(newest / TENSORS))


def random_states() -> dict[str, Any]:
    """Return the states of the random generators of this process, as a tree for `flatten`."""
    version, internal, gauss = random.getstate()
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(internal), gauss]}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Take up what `random_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu())


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for name in (TENSORS, TREE):
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _is_complete(folder: Path) -> bool:
    try:
        sealed = json.loads((folder / DONE).read_text(encoding="utf-8"))
        return bool(sealed == _digests(folder))
    except (FileNotFoundError, ValueError):  # a file is missing, or the seal is no JSON
        return False
