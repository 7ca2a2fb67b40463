"""What a benchmark says of the machine."""

from pathlib import Path

import machine
import pytest
import torch


def test_names_the_processor_and_versions() -> None:
    about = machine.describe("torch")
    assert about["torch"] == torch.__version__
    assert about["cpu"] == machine.cpu_name() != ""
    assert set(about) == {"cpu", "cores", "load_before", "python", "torch"}


def test_reads_the_first_model_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "cpuinfo"
    place.write_text(
        "processor\t: 0\nmodel name\t: Abacus: two rods\nmodel name\t: other\n", encoding="utf-8"
    )
    monkeypatch.setattr(machine, "PLACE", place)
    assert machine.cpu_name() == "Abacus: two rods"


def test_missing_package_says_how_to_install_it() -> None:
    with pytest.raises(SystemExit, match=r"needs no-such-package: pip install -e '\.\[dev\]'"):
        machine.describe("torch", "no-such-package")
