"""Where the compiled code of kernels is kept between processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from croppable.kge import ranking

PROGRAM = """
import logging, sys, torch
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.ranking import rank_triples
from croppable.kge.ranking_kernels import count_wins
asked = torch.tensor([[0, 0, 1]])
rank_triples(KGEModel(5, 1, (2,), "distmult"), asked, KnownTriples(asked, 5, 1))
print("hits", sum(count_wins.stats.cache_hits.values()), count_wins.__module__)
"""


@pytest.mark.slow
def test_compiled_code_is_kept_when_the_installation_is_read_only(tmp_path: Path) -> None:
    package = Path(ranking.__file__).parents[1]
    copy = tmp_path / "installed" / "croppable"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "kge" / "__pycache__").touch()  # nothing can be written under a file, not even by root
    environment = {**os.environ, "PYTHONPATH": str(copy.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("NUMBA_CACHE_DIR", None)

    def run(cache: Path) -> str:
        here = environment | {"XDG_CACHE_HOME": str(cache), "HOME": str(cache)}
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(
            command, env=here, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    cache = tmp_path / "cache"
    cache.mkdir()
    assert "hits 0" in run(cache)
    assert list(cache.rglob("*.nbc")), "the user's cache must hold the compiled code"
    assert "hits 1" in run(cache)
    nowhere = tmp_path / "a-file"
    nowhere.touch()
    assert "set NUMBA_CACHE_DIR to keep the result" in run(nowhere)
