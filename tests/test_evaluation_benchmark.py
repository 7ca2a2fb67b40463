"""The evaluation benchmark runs and writes what it says."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "evaluation.py"


def test_writes_numbers_and_page(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pykeen", reason="PyKEEN is the peer: pip install pykeen")
    arguments = (
        f"--data_dir {data_dir}/kg/umls --sizes 4 8 --repeats 1 --peer_triples 40 --output_dir {tmp_path}"
    )
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), *arguments.split()])
    runpy.run_path(str(BENCHMARK), run_name="__main__")
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert [row["score"] for row in result["rows"]] == ["distmult", "transe-l1"]
    for row in result["rows"]:
        assert row["pykeen_measured_triples"] == 40
        assert row["times_faster"] == pytest.approx(row["pykeen_one_size_seconds"] / row["ours_seconds"])
        assert row["ours_seconds"] > 0
        assert row["floor_seconds"] > 0
    assert "| distmult | 8 | 2 |" in (tmp_path / "evaluation.md").read_text()
