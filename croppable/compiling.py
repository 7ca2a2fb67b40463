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

__all__ = ["compile_or_not", "find_compiler", "import_kernels"]

COMPILERS = ("g++", "clang++", "c++", "cl")

F = TypeVar("F", bound=Callable[..., object])
_log = logging.getLogger(__name__)


def find_compiler() -> str | None:
    """Return the path of the C++ compiler that ``torch.compile`` would use: CXX, or a usual name."""
    named = os.environ.get("CXX")
    names = (named,) if named else COMPILERS
    return next((path for name in names if (path := shutil.which(name))), None)


def compile_or_not(function: F) -> F:
    """Return ``torch.compile(function)`` for static shapes, or ``function`` where there is no compiler.

    Every new combination of shapes compiles anew, so callers keep shapes fixed.
    """
    if find_compiler() is None:
        _log.warning(
            "not compiled: no C++ compiler found (%s); results are the same, slower. Install one or set CXX",
            os.environ.get("CXX") or ", ".join(COMPILERS),
        )
        return function
    return torch.compile(function, dynamic=False)  # type: ignore[return-value]


@lru_cache
def import_kernels(module: str) -> ModuleType | None:
    """Import one of the library's modules that need numba, or return None where numba is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in ("numba", "llvmlite"):
            raise
        _say_missing(error.name)
        return None


@lru_cache
def _say_missing(name: str) -> None:
    """Say it once, whatever was to be imported."""
    _log.warning("no compiled kernels: %s is missing; pip install 'croppable[kge]'", name)
