"""The benchmarks of training measure what they say, on cases of milliseconds."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def growth() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "training_growth.py"
    spec = importlib.util.spec_from_file_location("training_growth", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_growth"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("options", "sparse"),
    [
        ({}, False),
        ({"negatives": "shared", "optimizer": "adagrad", "entities": 500}, True),
        ({"negatives": "all", "score": "complex"}, False),
        ({"compiled": "none"}, False),
    ],
    ids=str,
)
def test_a_case_is_measured(growth: ModuleType, options: dict[str, Any], sparse: bool) -> None:
    case = growth.Case(**{"entities": 100, "dims": 16, "sizes": 4, "count": 5, "batch": 7, **options})
    found = growth.measure(case, 2)
    assert found["median_ms"] > 0
    assert found["sparse"] == sparse
    assert found["table_gb"] == pytest.approx(
        case.entities * 16 * (2 if case.score == "complex" else 1) * 4 / 1e9
    )


def test_the_exponent_is_the_slope_in_logarithms(growth: ModuleType) -> None:
    cases = [growth.Case(dims=d) for d in (10, 100, 1000)]
    assert growth.grown(cases) == "dims"
    assert growth.exponent(cases, [{"median_ms": d**2} for d in (1.0, 50.0, 100.0)]) == pytest.approx(2)


def test_every_series_grows_in_one_thing(growth: ModuleType) -> None:
    for cases in growth.SERIES.values():
        name = growth.grown(cases)
        settings = {tuple(v for k, v in vars(case).items() if k != name) for case in cases}
        assert len(settings) == 1
