"""What the times of a benchmark belong to."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["cpu_name", "describe"]

PLACE = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """Return the processor's name, as far as the system tells it."""
    lines = PLACE.read_text(encoding="utf-8").splitlines() if PLACE.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(*packages: str) -> dict[str, str | int | float | None]:
    """Return processor, cores, load before the measurement, and versions of Python and of packages.

    Raises:
        SystemExit: If a package is missing: it says how to install it.
    """
    try:
        versions = {name: version(name) for name in packages}
    except PackageNotFoundError as error:
        raise SystemExit(f"this benchmark needs {error.name}: pip install -e '.[dev]'") from None
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **versions,
    }
