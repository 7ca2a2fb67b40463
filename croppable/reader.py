"""Load a checkpoint at any size, reading that size's bytes only, and trusting nothing that it says.

All checks come first: config and index, the class's own shapes, every needed file's size and header. Only
then is memory taken, once, for the model itself. The format is docs/format.md, the checks are listed in
docs/security.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from croppable.core import named_tensors, skeleton
from croppable.kinds import KINDS
from croppable.labels import Labels
from croppable.manifest import CONFIG, LABELS, METRICS, Manifest
from croppable.safe import MAX_ELEMENTS, MEGABYTE, CheckpointError, SafeFile, brief, read_json, require
from croppable.segments import read_tensor

__all__ = ["from_pretrained", "load", "load_folder", "read_metrics"]

M = TypeVar("M", bound=nn.Module)
CONVENTION = "the constructor's arguments must be attributes of the same name (docs/format.md)"


def load(
    folder_or_repo: str | Path,
    size: int | None = None,
    revision: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    model_class: type[M] | None = None,
    verify: bool = False,
) -> M | Any:
    """Load a model at any size, from a folder or from the Hugging Face Hub, reading that size's bytes only.

    Args:
        folder_or_repo: A folder, or the id of a Hub repository such as "name/countries"; only the files
            that the size needs are downloaded.
        size: The size to load; default the full one. Any integer up to it will do.
        revision: Branch, tag or commit of the repository.
        device: Where the model shall live; default the CPU.
        dtype: Dtype of its floats; default what the model had when it was saved.
        model_class: The class, for a module of your own; default the one that the checkpoint's kind means.
        verify: Also read every needed file once to compare its sha256, and refuse NaN and infinity. A
            download is compared in any case.

    Returns:
        The model in eval mode, with ``labels`` where the checkpoint has them.

    Raises:
        CheckpointError: If the checkpoint is damaged, unsafe, or not what it says.
        FileNotFoundError: If there is no such folder and the name can be no repository.
        ValueError: If the size does not fit.
    """
    folder = Path(folder_or_repo).expanduser()
    if not folder.is_dir():
        from croppable.hub import pull

        folder = pull(str(folder_or_repo), size=size, revision=revision)
    elif revision is not None:
        raise ValueError(f"revision={revision!r} is for Hub repositories, but '{folder}' is a local folder")
    return load_folder(folder, size, device, dtype, model_class, verify)


from_pretrained = load  # the name under which users of the Hub look for it


def load_folder(
    folder: Path,
    size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    model_class: type[M] | None = None,
    verify: bool = False,
) -> M | Any:
    """Load a model from a local folder; arguments as in `load`."""
    manifest = Manifest.read(folder)
    size = manifest.check_size(size)
    small = _skeleton(folder / CONFIG, manifest, size, _kind(folder / CONFIG, manifest, model_class))
    labels = None
    with ExitStack() as stack:
        files = {n: stack.enter_context(_open(folder, n, manifest)) for n in manifest.files_for(size)}
        if verify:
            for name, file in files.items():
                file.check_sha256(manifest.files[name][1])
        if LABELS in manifest.files:
            nbytes, sha256 = manifest.files[LABELS]
            labels = Labels.read(folder, nbytes, rows_of(manifest.model), sha256 if verify else None)
        _fill(small, manifest, files, size, torch.device(device or "cpu"), dtype, verify)
    if labels is not None:
        small.labels = labels  # type: ignore[assignment]
    return small.eval()


def distinct(model: nn.Module) -> list[tuple[str, Tensor]]:
    seen: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in named_tensors(model):
        seen.setdefault(id(tensor), (name, tensor))
    return list(seen.values())


def rows_of(settings: Mapping[str, Any]) -> dict[str, int]:
    known = {"entity": settings.get("num_entities"), "relation": settings.get("num_relations")}
    return {what: rows for what, rows in known.items() if isinstance(rows, int)}


def build(kind: type[nn.Module], settings: Mapping[str, Any], path: str | Path) -> nn.Module:
    """Build the model on the meta device: shapes only, no memory."""
    try:
        with torch.device("meta"):
            return kind(**{name: _tuples(value) for name, value in settings.items()})
    except Exception as error:  # a class of the user's may raise anything; it is passed on below
        found = f"the arguments {brief(settings)}, with which {kind.__name__} fails: {brief(str(error))}"
        remedy = f"pass the class that wrote the checkpoint; {CONVENTION}"
        raise CheckpointError(path, found, f"arguments of {kind.__name__}", remedy) from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _kind(path: Path, manifest: Manifest, model_class: type[M] | None) -> type[nn.Module]:
    if model_class is None:
        known = ", ".join(KINDS)
        remedy = f"pass model_class=<the class {manifest.kind}> for a module of your own"
        require(manifest.kind in KINDS, path, f"kind {brief(manifest.kind)}", f"one of {known}", remedy)
        return KINDS[manifest.kind]()
    remedy = "pass the class that wrote the checkpoint"
    expected = f"kind {brief(model_class.__name__)}, the class that was passed"
    require(model_class.__name__ == manifest.kind, path, f"kind {brief(manifest.kind)}", expected, remedy)
    return model_class


def _skeleton(path: Path, manifest: Manifest, size: int, kind: type[nn.Module]) -> nn.Module:
    """Build the empty model of ``size``, once the class agrees with the checkpoint on every shape."""
    full = build(kind, manifest.model, path)
    own = getattr(full, "size", None)
    require(own == manifest.size, path, f"size {manifest.size}", f"the size of its model, {brief(own)}")
    for step in sorted({manifest.step_of(size), len(manifest.sizes) - 1}):
        shapes = {n: tuple(t.shape) for n, t in distinct(skeleton(full, manifest.sizes[step]))}
        promised = {spec.name: spec.shapes[step] for spec in manifest.tensors}
        wrong = sorted(n for n in shapes.keys() | promised if shapes.get(n) != promised.get(n))
        found = "; ".join(f"{brief(n, 60)} {promised.get(n)}" for n in wrong[:3])
        expected = "; ".join(f"{brief(n, 60)} {shapes.get(n)}" for n in wrong[:3])
        require(
            not wrong, path, f"at size {manifest.sizes[step]}: {found}", f"as {kind.__name__} has: {expected}"
        )
    return skeleton(full, size)


def _open(folder: Path, name: str, manifest: Manifest) -> SafeFile:
    blocks = [b for b in manifest.blocks() if manifest.weight_map[b.name] == name]
    expected = {b.name: (b.dtype, b.shape) for b in blocks}
    return SafeFile(folder, name, manifest.files[name][0], expected)


def _fill(
    small: nn.Module,
    manifest: Manifest,
    files: Mapping[str, SafeFile],
    size: int,
    device: torch.device,
    dtype: torch.dtype | None,
    verify: bool,
) -> None:
    """Give the tensors of ``small`` memory and read them."""
    last = manifest.step_of(size)
    specs = {spec.name: spec for spec in manifest.tensors}
    done: dict[int, Tensor] = {}
    first_name: dict[int, str] = {id(t): n for n, t in distinct(small)}
    for name, empty in list(named_tensors(small)):
        if id(empty) not in done:
            spec = specs[first_name[id(empty)]]
            require(empty.numel() <= MAX_ELEMENTS, name, f"{empty.numel()} elements", "fewer")
            kept = dtype if dtype is not None and spec.dtype.is_floating_point else spec.dtype
            out = torch.empty(empty.shape, dtype=kept, device=device)
            sources = [(files[manifest.weight_map[b.name]], b) for b in spec.blocks() if b.step <= last]
            finite = read_tensor(out, sources, finite=verify)
            require(finite, sources[0][0].path, f"NaN or infinity in '{name}'", "finite numbers")
            tensor = (
                nn.Parameter(out, requires_grad=empty.requires_grad)
                if isinstance(empty, nn.Parameter)
                else out
            )
            done[id(empty)] = tensor
        owner, _, leaf = name.rpartition(".")
        setattr(small.get_submodule(owner), leaf, done[id(empty)])


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.json; none if there is no such file.

    Raises:
        CheckpointError: If it is no list of objects, or bigger than 32 MB.
    """
    if not (folder / METRICS).exists():
        return []
    rows: list[dict[str, Any]] = read_json(folder, METRICS, 32 * MEGABYTE, list)
    good = all(isinstance(row, dict) for row in rows)
    require(good, folder / METRICS, "values that are no objects", "a list of objects")
    return rows
