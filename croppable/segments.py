"""Moving tensor data between memory and safetensors files, a few megabytes at a time.

A block is written from a strided view of the model's tensor and read back into its place in the output,
through one small buffer: neither way is there a second copy of a tensor, so the peak is the tensors
themselves plus one buffer. Reading goes down the rows of the output and takes the same rows from every
block, so that each cache line of the output is touched once, however many segments a row has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from croppable.manifest import NAMES, Block
from croppable.safe import SafeFile

__all__ = ["read_tensor", "read_whole", "write_file"]

CHUNK = 4 << 20  # bytes of output handled at once: below, Python's calls cost more than they save in cache


def _rows(row_bytes: int) -> int:
    return max(1, CHUNK // max(1, row_bytes))


def write_file(path: Path, pieces: Mapping[str, tuple[Tensor, torch.dtype]]) -> tuple[int, str]:
    """Write a safetensors file; the same input gives the same bytes.

    Args:
        path: Where to write.
        pieces: name -> (tensor or strided view, dtype to store it in), in the order of the file.

    Returns:
        Its size in bytes and its sha256.

    Raises:
        ValueError: If a finite value has no finite counterpart in the stored dtype.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (tensor, dtype) in pieces.items():
        end = position + tensor.numel() * dtype.itemsize
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        start = len(text).to_bytes(8, "little") + text
        file.write(start)
        digest.update(start)
        for name, (tensor, dtype) in pieces.items():
            rows_first = tensor.detach().reshape(1) if tensor.ndim == 0 else tensor.detach()
            step = _rows(rows_first[0].numel() * dtype.itemsize)
            for low in range(0, rows_first.shape[0], step):
                data = _encode(name, rows_first[low : low + step], dtype)
                file.write(data)
                digest.update(data)
    return len(start) + position, digest.hexdigest()


def _encode(name: str, chunk: Tensor, dtype: torch.dtype) -> bytearray:
    data = bytearray(chunk.numel() * dtype.itemsize)
    stored = torch.frombuffer(data, dtype=dtype).view(chunk.shape)
    stored.copy_(chunk)
    if chunk.dtype != dtype and not bool((stored.isfinite() | ~chunk.isfinite().to("cpu")).all()):
        largest = float(chunk.abs().max())
        raise ValueError(
            f"'{name}' holds the value {largest:g}, which does not fit into {dtype}: "
            f"save with dtype=torch.bfloat16 or dtype=torch.float32"
        )
    return data


def read_tensor(out: Tensor, sources: Sequence[tuple[SafeFile, Block]], finite: bool = False) -> bool:
    """Fill ``out``, a leading corner of a stored tensor, from the blocks that cover it.

    Args:
        out: The output on any device, in any dtype that the stored one converts to.
        sources: The blocks (of one tensor) and the files they lie in.
        finite: Whether to look for NaN and infinity.

    Returns:
        False if ``finite`` and some value is not; True otherwise.
    """
    target = out.reshape(1) if out.ndim == 0 else out
    rows, width = target.shape[0], target[0].numel() * target.element_size()
    step = min(rows, _rows(width))
    buffer = bytearray()
    okay = True
    for low in range(0, rows, step):
        high = min(rows, low + step)
        # Many small copies to an accelerator are slow: its rows are assembled here and sent at once.
        on_cpu = target.device.type == "cpu"
        chunk = target[low:high] if on_cpu else torch.empty(target[low:high].shape, dtype=target.dtype)
        for file, block in sources:
            buffer = _read_rows(chunk, low, file, block, buffer)
        if not on_cpu:
            target[low:high].copy_(chunk)
        okay = okay and (not finite or not chunk.is_floating_point() or bool(chunk.isfinite().all()))
    return okay


def _read_rows(chunk: Tensor, low: int, file: SafeFile, block: Block, buffer: bytearray) -> bytearray:
    """Copy into ``chunk`` (rows ``low`` ... of the output) what ``block`` has of it; return the buffer."""
    start, shape = block.start or (0,), block.shape or (1,)
    first, last = max(low, start[0]), min(low + chunk.shape[0], start[0] + shape[0])
    inner = [
        slice(s, min(s + n, end)) for s, n, end in zip(start[1:], shape[1:], chunk.shape[1:], strict=True)
    ]
    if first >= last or any(part.start >= part.stop for part in inner):
        return buffer
    # Stored booleans are bytes that somebody wrote: read as numbers, any of them becomes a true or a false.
    dtype = torch.uint8 if block.dtype == torch.bool else block.dtype
    row_bytes = block.nbytes // shape[0]
    if len(buffer) < (last - first) * row_bytes:
        buffer = bytearray((last - first) * row_bytes)
    view = memoryview(buffer)[: (last - first) * row_bytes]
    file.read_into(view, file.entries[block.name].begin + (first - start[0]) * row_bytes)
    read = torch.frombuffer(view, dtype=dtype).view(last - first, *shape[1:])
    kept = read[(slice(None), *(slice(0, part.stop - part.start) for part in inner))]
    chunk[(slice(first - low, last - low), *inner)].copy_(kept)
    return buffer


def read_whole(file: SafeFile, name: str) -> Tensor:
    """Read one tensor of a file as it is stored."""
    entry = file.entries[name]
    data = bytearray(entry.nbytes)
    file.read_into(data, entry.begin)
    return torch.frombuffer(data, dtype=entry.dtype).view(entry.shape)
