"""Work cut into pieces and run on all of torch's threads, by kernels that let go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

__all__ = ["cut", "on_all_threads"]


@lru_cache(maxsize=1)
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="croppable-step")


def on_all_threads(work: Callable[[int, int], object], pieces: Sequence[tuple[int, int]]) -> None:
    """Run ``work(begin, end)`` for every piece."""
    threads = torch.get_num_threads()
    if threads == 1 or len(pieces) == 1:
        for piece in pieces:
            work(*piece)
    else:
        for _ in _pool(threads, os.getpid()).map(work, *zip(*pieces, strict=True)):
            pass


def cut(count: int, largest: int) -> list[tuple[int, int]]:
    """Cut ``count`` into pieces of at most ``largest``, a multiple of the threads where it can be."""
    threads = torch.get_num_threads()
    number = -(-count // max(1, largest))
    number = min(count, -(-number // threads) * threads)
    return [(count * i // number, count * (i + 1) // number) for i in range(number)]
