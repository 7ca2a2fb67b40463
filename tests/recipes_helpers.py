"""What the tests of recipes share: where they are, processes, and the link prediction recipe's outputs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
RECIPE = RECIPES / "kge.py"
BIN = Path(sys.executable).parent
SIZES = (2, 4, 8)
OUTPUTS = {
    "config.json", "model.safetensors.index.json", "labels.safetensors", "metrics.json", "history.json",
    "training_config.json", "sizes.png", "curves.png", "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
}  # fmt: skip
Run = Callable[..., int]
Arguments = Callable[..., list[str]]
Overall = Callable[[Path], dict[tuple[int, str], float]]


def files(output: Path) -> set[str]:
    return {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}


def same_weights(a: Path, b: Path) -> bool:
    names = [path.name for path in a.glob("model-*.safetensors")]
    assert names
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def in_processes(
    count: int, command: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, under torchrun if by several processes, on the CPU whatever the machine has."""
    launch = (
        [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", str(count)]
        if count > 1
        else [sys.executable]
    )
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.run(
        [*launch, *command], env=env, capture_output=True, text=True, timeout=300, check=False
    )
