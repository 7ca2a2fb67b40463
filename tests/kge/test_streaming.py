"""Softmax over all entities tile by tile: equal to that over all scores at once, in a tile's memory."""

from typing import Any

import pytest
import torch
from torch import Tensor

from croppable.kge import compiled_softmax, objective, streaming
from croppable.kge.model import KGEModel
from croppable.kge.objective import LinkPrediction
from croppable.kge.scores import SCORES
from croppable.med import MED

SIZES = (3, 7, 16, 33)
ENTITIES, RELATIONS, BATCH = 91, 5, 13
ADDITIVE = [name for name, score in SCORES.items() if score.additive]
OPTIONS: list[dict[str, Any]] = [
    {"mutual": 0.0},
    {"mutual": 0.3},
    {"mutual": 0.3, "teach_down": True},
    {"mutual": 0.0, "distill": 0.5},
    {"mutual": 0.3, "distill": 0.5, "mutual_reduction": "sum", "reduction": "sum"},
    {"mutual": 0.3, "w1": 0.0, "w3": 0.0, "learnable": False},
    {"mutual": 0.3, "n3": 0.1},
    {"mutual": 0.3, "calibration": "none"},
    {"mutual": 0.3, "reciprocal": True},
]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "TILE", {"cpu": len(SIZES) * BATCH * 20})
    monkeypatch.setattr(objective, "FEW_SCORES", 0)
    monkeypatch.setattr(compiled_softmax, "PIECE", 5)


@pytest.fixture(params=["kernels", "torch"])
def worker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(streaming, "import_kernels", lambda _: None)
    return str(request.param)


def step_of(compiled: Any, score: str, sizes: tuple[int, ...], **options: Any) -> LinkPrediction:
    torch.manual_seed(0)
    options = {"mutual": 0.3, "mutual_form": "kl", "learnable": True, "w1": 0.7, "w3": 0.9, **options}
    kinds = {key: options.pop(key) for key in ("calibration", "reciprocal") if key in options}
    n3 = options.pop("n3", 0.0)
    model = KGEModel(ENTITIES, RELATIONS, sizes, score, margin=1.0, **{"calibration": "affine", **kinds})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    return LinkPrediction(model, MED(sizes, task="multiclass", **options), n3=n3, compiled=compiled)


def batch_of() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randint(high, (BATCH,), generator=generator) for high in (ENTITIES, RELATIONS, ENTITIES)
    )


def run(step: LinkPrediction, side: Any = "tail") -> dict[str, Tensor]:
    losses = step(*batch_of(), None, side)
    losses["loss"].backward()
    gradients = {f"gradient of {n}": p.grad for n, p in step.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in (losses | gradients).items()}


def assert_equal(score: str, sizes: tuple[int, ...], side: Any = "tail", **options: Any) -> None:
    found = run(step_of("auto", score, sizes, **options), side)
    expected = run(step_of("none", score, sizes, **options).double(), side)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max()) + 1e-2
        # offsets do not matter to a softmax, and w1 pulls by a difference of nearly equal sums: rounding
        tolerance = 1e-3 if name.endswith(("offset", "w1")) else 1e-4
        difference = (found[name].double() - value.double()).abs().max() / scale
        assert difference < tolerance, f"{name} is off by {difference:.1e} of its largest value {scale:.1e}"


@pytest.mark.parametrize("sizes", [SIZES, (10, 20, 40), (24,)], ids=str)
@pytest.mark.parametrize("score", ADDITIVE)
def test_losses_and_gradients_are_those_of_the_specification(
    score: str, sizes: tuple[int, ...], worker: str
) -> None:
    assert_equal(score, sizes, "head", distill=0.5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_of_the_objective_is_that_of_the_specification(
    options: dict[str, Any], worker: str
) -> None:
    assert_equal("complex", SIZES, **options)


def test_queries_of_both_sides_in_one_batch_are_those_of_the_specification(worker: str) -> None:
    assert_equal("complex", SIZES, torch.arange(BATCH) % 2 == 0, reciprocal=True)


def test_no_tensor_holds_the_scores_of_all_entities(monkeypatch: pytest.MonkeyPatch, worker: str) -> None:
    widths: list[int] = []

    def recorded(*args: Any) -> Tensor:
        terms = plain(*args)
        widths.append(terms.shape[-1])
        return terms

    plain = streaming.segment_terms
    monkeypatch.setattr(streaming, "segment_terms", recorded)
    run(step_of("auto", "complex", SIZES))
    assert max(widths) == 20
    assert sum(widths) == 2 * ENTITIES  # forward, and again backward


def test_large_scores_do_not_overflow(worker: str) -> None:
    step = step_of("auto", "distmult", SIZES)
    with torch.no_grad():
        step.model.entity.mul_(30)
    assert all(value.isfinite().all() for value in run(step).values())


def test_a_score_that_is_not_finite_stays_visible(worker: str) -> None:
    step = step_of("auto", "distmult", SIZES)
    with torch.no_grad():
        step.model.entity[50, 2] = torch.nan
    assert not step(*batch_of())["loss"].isfinite()


@pytest.mark.parametrize(
    ("score", "options"),
    [("pairre", {}), ("distmult", {"mutual_form": "huber"}), ("distmult", {"mutual_form": "huber-sigmoid"})],
)
def test_what_does_not_stream_runs_by_the_specification(score: str, options: dict[str, Any]) -> None:
    step = step_of("auto", score, SIZES, **options)
    assert not streaming.supports(step.model.function, step.objective)
    assert (
        step(*batch_of())["loss"].item()
        == step_of("none", score, SIZES, **options)(*batch_of())["loss"].item()
    )
