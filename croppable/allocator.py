"""Keep freed memory in the process instead of giving it back to the kernel.

glibc maps every large tensor anew and unmaps it when it is freed, so a training step that makes and frees
the same tensors pays a page fault per 4 KiB each time. On two cores this was two thirds of a step
(docs/performance.md).
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Let glibc reuse large freed blocks; call it once, before the first large tensor.

    Returns:
        Whether it was done: False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version")):
        return False
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
