"""A run that is killed at random moments loses nothing and ends as if nobody had touched it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "kill.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the benchmark forks its runs")
def test_a_few_kills(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(BENCHMARK),
        "--kills",
        "3",
        "--seed",
        "1",
        "--output",
        str(tmp_path / "kill.json"),
    ]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    result = json.loads((tmp_path / "kill.json").read_text())
    assert (result["kills"], result["lost"], result["mixed"], result["bit_identical"]) == (3, 0, 0, True)
    assert result["resumed_at"] == sorted(set(result["resumed_at"]))
    assert result["resumed_at"][-1] < result["steps"]
