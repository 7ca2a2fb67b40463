"""The benchmarks of training measure what they say, on cases of milliseconds."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from croppable.kge.triples import KnowledgeGraph


def load(name: str) -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def growth() -> ModuleType:
    return load("training_growth")


@pytest.fixture(scope="module")
def training_step() -> ModuleType:
    return load("training_step")


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


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize(("pool", "pools"), [(0, 1), (5, 1), (5, 4)])
def test_our_step_trains_with_own_and_with_shared_negatives(
    training_step: ModuleType, optimizer: str, pool: int, pools: int
) -> None:
    triples = torch.randint(9, (training_step.B * 2, 3), generator=torch.Generator().manual_seed(0))
    names = tuple(map(str, range(9)))
    graph = KnowledgeGraph("small", names, names, triples, triples[:1], triples[:1])
    step = training_step.our_step(graph, "transe-l1", (2, 4), pool=pool, pools=pools, optimizer=optimizer)
    assert all(step() > 0 for _ in range(2))


def test_a_step_is_compared_within_rounds(training_step: ModuleType) -> None:
    times = {"ours": [0.001, 0.002, 0.004], "peer": [0.01, 0.02, 0.08]}
    found = training_step.summary(times, "peer")
    assert found["ours"]["median_ms"] == pytest.approx(2)
    assert found["ours"]["ratio"] == pytest.approx(0.1)


def test_several_steps_leave_the_first_out(training_step: ModuleType) -> None:
    times = iter([100.0, 1.0, 2.0, 3.0, 4.0])
    assert training_step.several(lambda: next(times))() == 2.5


def test_the_page_says_how_many_times_as_long_the_peer_takes(training_step: ModuleType) -> None:
    def row(milliseconds: float) -> dict[str, Any]:
        return {"median_ms": milliseconds, "quartiles_ms": [1.0, 2.0], "ratio": milliseconds / 200}

    peers = {"64 shared by the batch": 10, "as shipped": 200, "with freed memory kept": 150}
    result = {
        "graph": "small", "rounds": 3, "machine": {"cpu": "some"}, "separate": {"rotate": {"times": 31.0}},
        "scores": {"rotate": {name: row(4) for name in training_step.SIZES}},
        "pykeen": {"adam": {name: row(value) for name, value in peers.items()}},
    }  # fmt: skip
    page = training_step.page(result)
    assert "| adam | 64 shared by the batch | 10.0 | 200 | 20.0 | 150 | 15.0 |" in page
    assert "| rotate | 4.0 (1.0 to 2.0) |" in page
