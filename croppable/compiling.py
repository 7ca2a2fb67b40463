"""Compilation where the machine allows it, and one clear line in the log where it does not."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import TypeVar

import torch

__all__ = ["compile_or_not", "find_compiler", "import_gpu_kernels", "import_kernels"]

COMPILERS = ("g++", "clang++", "c++", "cl")
REMEDIES = {
    "numba": "pip install 'croppable[kge]'",
    "llvmlite": "pip install 'croppable[kge]'",
    "triton": "pip install triton (torch's CUDA builds for Linux have it)",
}

F = TypeVar("F", bound=Callable[..., object])
_log = logging.getLogger(__name__)


def find_compiler() -> str | None:
    """Return the path of the C++ compiler that ``torch.compile`` would use: CXX, or a usual name."""
    named = os.environ.get("CXX")
    names = (named,) if named else COMPILERS
    return next((path for name in names if (path := shutil.which(name))), None)


def compile_or_not(function: F, *, graphs: bool = False) -> F:
    """Return ``torch.compile(function)`` for static shapes, or ``function`` where there is no compiler.

    Every new combination of shapes compiles anew, so callers keep shapes fixed.

    Args:
        function: What is compiled.
        graphs: Let a CUDA device replay the kernels of a call as one graph instead of being sent each of
            them: a step of small tensors is mostly sending.
    """
    if find_compiler() is None:
        _log.warning(
            "not compiled: no C++ compiler found (%s); results are the same, slower. Install one or set CXX",
            os.environ.get("CXX") or ", ".join(COMPILERS),
        )
        return function
    mode = "reduce-overhead" if graphs else None
    return torch.compile(function, dynamic=False, mode=mode)  # type: ignore[return-value]


@lru_cache
def import_kernels(module: str) -> ModuleType | None:
    """Import one of the library's modules that need numba or triton, or return None where that is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in REMEDIES:
            raise
        _say_missing(package)
        return None


def import_gpu_kernels(module: str, device: torch.device) -> ModuleType | None:
    """Import one of the library's modules of Triton kernels, or return None where they do not run.

    They run on CUDA devices where triton is installed and the module's ``check(device)`` passes: a tiny case,
    compiled, launched and compared with PyTorch's own operations on first use. What fails is said once.
    """
    if device.type != "cuda":
        return None
    kernels = import_kernels(module)
    return kernels if kernels is not None and _passes(kernels, device) else None


@lru_cache
def _passes(kernels: ModuleType, device: torch.device) -> bool:
    try:
        kernels.check(device)
    except Exception as error:  # compilers, linkers and drivers raise what they like
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        _log.warning(
            "no Triton kernels on %s: %s failed its check (%s); results are the same, slower",
            device, kernels.__name__, reason,
        )  # fmt: skip
        _log.debug("the whole error", exc_info=True)
        return False
    return True


@lru_cache
def _say_missing(name: str) -> None:
    """Say it once, whatever was to be imported."""
    _log.warning("no compiled kernels: %s is missing; %s", name, REMEDIES[name])
