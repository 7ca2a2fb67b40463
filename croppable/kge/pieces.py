"""Work cut into pieces and run on all of torch's threads, by kernels that let go of Python's lock.

The threads are those of torch's own OpenMP where they can be had: between its operations OpenMP's threads
spin for milliseconds on the cores that a second pool would need, which cost a third of a training step on
two cores (docs/performance.md). Elsewhere there is a pool.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["LEAST", "cut", "even_cuts", "on_all_threads"]

LEAST = 2**15  # numbers worth a thread, as in torch: on busy cores, starting one can cost milliseconds

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@lru_cache(maxsize=1)
def _openmp() -> Any:
    """Return ``GOMP_parallel`` of the GNU OpenMP that came with torch, or None."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            parallel = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):  # for another machine, or without its entry point
            continue
        parallel.argtypes = (_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        parallel.restype = None
        return parallel
    return None


@lru_cache(maxsize=1)
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="croppable-step")


def on_all_threads(work: Callable[[int, int], object], pieces: Sequence[tuple[int, int]]) -> None:
    """Run ``work(begin, end)`` for every piece.

    Raises:
        Exception: What a piece raised first; pieces not begun by then are left out.
    """
    threads = min(torch.get_num_threads(), len(pieces))
    todo, errors = deque(pieces), list[BaseException]()

    def body(_: Any = None) -> None:
        while not errors:
            try:
                piece = todo.popleft()
            except IndexError:
                return
            try:
                work(*piece)
            except BaseException as error:  # nothing can be raised through OpenMP; it is below
                errors.append(error)

    parallel = _openmp()
    if threads <= 1:
        body()
    elif parallel is not None:
        parallel(_Body(body), None, threads, 0)
    else:
        for future in [_pool(threads, os.getpid()).submit(body) for _ in range(threads)]:
            future.result()
    if errors:
        raise errors[0]


def cut(count: int, largest: int, numbers: int = LEAST) -> list[tuple[int, int]]:
    """Cut ``count`` into pieces of at most ``largest``, a multiple of the threads where it can be.

    Args:
        count: What is to be cut.
        largest: Bound of a piece.
        numbers: Numbers that are worked on for each of ``count``; pieces of fewer than LEAST are not made
            for the sake of threads.
    """
    threads = torch.get_num_threads()
    number = -(-count // max(1, largest))
    worth = max(number, count * numbers // LEAST)
    number = min(count, worth, -(-number // threads) * threads)
    return [(count * i // number, count * (i + 1) // number) for i in range(number)]


def even_cuts(starts: NDArray[Any], count: int) -> list[int]:
    """Cut rows into ``count`` pieces of as much work: a row costs about as much as one of its uses."""
    work = starts + np.arange(len(starts))
    cuts = np.searchsorted(work, work[-1] * np.arange(1, count) // count)
    return [0, *cuts.tolist(), len(starts) - 1]
