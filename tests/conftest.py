"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of benchmark data: CROPPABLE_DATA, by default ../shared/data beside the project."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("CROPPABLE_DATA", root.parent / "shared" / "data"))
    if folder.is_dir():
        return folder
    reason = f"no benchmark data in {folder}: set CROPPABLE_DATA to the folder that holds kg/ and glue/"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
