"""The compiled kernels give the losses and gradients of the eager specification."""

import logging
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from croppable import compiling
from croppable.kge import compiled_step
from croppable.kge.gradient_kernels import gather_weights, row_gradients
from croppable.kge.loss_kernels import STATS, judge, judge_gradients
from croppable.kge.model import KGEModel
from croppable.kge.objective import LinkPrediction
from croppable.kge.pool_kernels import pool_gradients, sum_rows, target_gradients
from croppable.kge.sampling import RUN
from croppable.kge.scores import SCORES
from croppable.kge.step_kernels import own_scores, pool_scores, target_scores
from croppable.kge.usual_kernels import TOGETHER, judge_own, judge_pool, judge_usual, weigh_usual
from croppable.med import MED

SIZES = (10, 20, 40, 80, 160)
MANY = tuple(range(10, 171, 10))
ODD = (3, 7, 16, 33)
ENTITIES, RELATIONS, BATCH = 60, 5, 37
ADDITIVE = [name for name, score in SCORES.items() if score.additive]


def step_of(
    compiled: Any,
    score: str,
    sizes: tuple[int, ...],
    *,
    n3: float = 0.0,
    sparse: bool = False,
    **options: Any,
) -> LinkPrediction:
    torch.manual_seed(0)
    keys = ("reciprocal", "calibration")
    kinds = {"calibration": "affine"} | {key: options.pop(key) for key in keys if key in options}
    model = KGEModel(ENTITIES, RELATIONS, sizes, score, margin=2.0, init_scale=0.05, **kinds)
    with torch.no_grad():
        if SCORES[score].product:
            model.entity.mul_(6)
            model.relation.mul_(6)
        for name, parameter in model.named_parameters():
            if name in ("log_scale", "offset"):
                parameter.uniform_(-0.5, 0.2)
    strengths = {"learnable": True, "w1": 0.7, "w2": 1.3, "w3": 0.9}
    med = MED(sizes, **{**strengths, **options})
    return LinkPrediction(model, med, n3=n3, compiled=compiled, sparse=sparse)


def batch_of(negatives: int, shared: bool | int) -> tuple[Tensor, ...]:
    """A batch with negatives of each query, shared by all, or in so many pools."""
    generator = torch.Generator().manual_seed(1)
    others = {False: (BATCH, negatives), True: (negatives,)}.get(shared, (int(shared), negatives))
    shapes = ((BATCH,), (BATCH,), others)
    anchor, target, others = (torch.randint(ENTITIES, shape, generator=generator) for shape in shapes)
    return anchor, torch.randint(RELATIONS, (BATCH,), generator=generator), target, others


def run(step: LinkPrediction, batch: tuple[Tensor, ...], side: Any) -> dict[str, Tensor]:
    """Losses and gradients by name."""
    losses = step(*batch, side)
    losses["loss"].backward()
    gradients = {f"gradient of {n}": p.grad for n, p in step.named_parameters() if p.grad is not None}
    return {k: v.detach().to_dense() for k, v in (losses | gradients).items()}


def assert_equal(
    score: str,
    sizes: tuple[int, ...],
    *,
    negatives: int = 50,
    side: Any = "tail",
    shared: bool | int = False,
    **options: Any,
) -> None:
    batch = batch_of(negatives, shared)
    found = run(step_of("auto", score, sizes, **options), batch, side)
    reference = step_of("none", score, sizes, **{**options, "sparse": False}).double()
    expected = run(reference, batch, side)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max()) + 1e-3
        # w1 and w2 pull by a difference of nearly equal sums: single precision has fewer digits there
        atol = 1e-3 if name.endswith(("w1", "w2")) else 1e-4
        difference = (found[name].double() - value.double()).abs().max() / scale
        assert difference < atol, f"{name} is off by {difference:.1e} of its largest value {scale:.1e}"


@pytest.mark.parametrize("shared", [False, True, 3])
@pytest.mark.parametrize("sizes", [SIZES, MANY, ODD, (24,)], ids=str)
@pytest.mark.parametrize("score", ADDITIVE)
def test_losses_and_gradients_are_those_of_the_specification(
    score: str, sizes: tuple[int, ...], shared: bool
) -> None:
    assert_equal(score, sizes, shared=shared, side="head")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("negatives", [16, 50, 64, 150])
@pytest.mark.parametrize("sizes", [SIZES, MANY, ODD, (24,)], ids=str)
@pytest.mark.parametrize("score", ADDITIVE)
def test_scores_that_are_not_kept_give_the_losses_and_gradients_of_the_specification(
    score: str, sizes: tuple[int, ...], negatives: int, shared: bool
) -> None:
    assert_equal(score, sizes, negatives=negatives, shared=shared, calibration="none")


def test_runs_of_queries_are_whole_blocks_of_the_kernels() -> None:
    assert RUN % TOGETHER == 0


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("pools", [2, 3, BATCH - 1])
@pytest.mark.parametrize("options", [{"calibration": "none"}, {}, {"adversarial": 0.5}], ids=str)
def test_pools_of_a_run_of_queries_are_those_of_the_specification(
    options: dict[str, Any], pools: int, sparse: bool
) -> None:
    assert_equal("transe-l1", MANY, shared=pools, sparse=sparse, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"mutual": 0.0},
        {"teach_down": True},
        {"w1": -3.0, "w2": 4.0},
        {"w1": 0.0, "w2": 0.0},
        {"learnable": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("shared", [False, True])
def test_the_usual_objective_in_all_forms_is_that_of_the_specification(
    options: dict[str, Any], shared: bool
) -> None:
    assert_equal("transe-l1", MANY, shared=shared, calibration="none", **options)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_sigma_and_sums_are_those_of_double_precision(sign: float) -> None:
    scores = torch.linspace(-40, 40, 2 * 17 * 50).reshape(50, 17, 2).permute(2, 1, 0).contiguous()
    sigma, stats = torch.empty_like(scores), torch.empty(17, STATS)
    judge_usual(scores.numpy(), np.float32(sign), np.float32(0.8), True, sigma.numpy(), stats.numpy())
    exact = (sign * scores).double()
    truth = exact.sigmoid()
    error = ((sigma - truth) / truth).abs()
    assert (error < 1e-7 * (3 + exact.abs() / 4)).all()
    before = torch.cat([torch.zeros_like(truth[:, :1]), truth[:, :-1]], 1)
    weight, loss = (0.8 * (before - 1)).exp(), torch.nn.functional.softplus(exact)
    huber = (truth - before) ** 2 / 2
    terms = (weight, weight * loss, weight * before, weight * loss * before, huber)
    expected = torch.stack([term.sum((0, 2)) for term in terms], -1)
    torch.testing.assert_close(stats[:, 1:].double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("calibration", ["affine", "none"])
@pytest.mark.parametrize("score", ["transe-l1", "rotate"])
def test_numbers_that_are_equal_do_not_pull_whatever_the_sign_of_zero(score: str, calibration: str) -> None:
    gradients = []
    for compiled in ("none", "auto"):
        step = step_of(compiled, score, MANY, calibration=calibration)
        with torch.no_grad():
            step.model.entity[: ENTITIES // 2, ::2] = 0.0
            step.model.entity[ENTITIES // 2 :, ::2] = -0.0
            step.model.relation[:] = -0.0
        run(step, batch_of(64, shared=True), "tail")
        assert step.model.entity.grad is not None
        gradients.append(step.model.entity.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)


def test_the_same_batch_gives_the_same_bits() -> None:
    runs = [
        run(step_of("auto", "transe-l1", MANY, calibration="none"), batch_of(64, False), "tail") for _ in "ab"
    ]
    assert all(torch.equal(runs[0][name], value) for name, value in runs[1].items())


OPTIONS: list[dict[str, Any]] = [
    {"mutual": 0.0},
    {"mutual_form": "huber"},
    {"mutual_form": "huber", "teach_down": True},
    {"teach_down": True},
    {"evolution_form": "reciprocal"},
    {"adversarial": 0.7},
    {"adversarial": 0.7, "evolution_form": "reciprocal"},
    {"reduction": "sum", "mutual_reduction": "sum"},
    {"learnable": False, "w1": 0.0, "w2": 0.0, "w3": 0.0},
    {"w1": -3.0, "w2": -2.0},
    {"size_weights": [1.0, 2.0, 3.0, 4.0, 5.0]},
    {"calibration": "none"},
    {"calibration": "scale"},
    {"reciprocal": True},
    {"n3": 0.1},
    {"sparse": True},
    {"negatives": 1},
    {"negatives": 130},
]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_of_the_objective_is_that_of_the_specification(
    options: dict[str, Any], shared: bool
) -> None:
    assert_equal("transe-l1", SIZES, shared=shared, **options)


def test_queries_of_both_sides_in_one_batch_are_those_of_the_specification() -> None:
    assert_equal("complex", SIZES, reciprocal=True, side=torch.arange(BATCH) % 2 == 0)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("calibration", ["affine", "none"])
@pytest.mark.parametrize("score", ["transe-l1", "rotate"])
def test_two_threads_give_what_one_gives(score: str, shared: bool, calibration: str) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(
                run(step_of("auto", score, MANY, calibration=calibration), batch_of(70, shared), "tail")
            )
    finally:
        torch.set_num_threads(before)
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-6)


def test_a_run_of_the_same_shapes_compiles_each_kernel_once() -> None:
    kernels: list[Any] = [
        own_scores, pool_scores, target_scores, judge, judge_gradients, gather_weights,
        row_gradients, pool_gradients, target_gradients, sum_rows, judge_usual, judge_own, judge_pool,
        weigh_usual,
    ]  # fmt: skip
    for score in ADDITIVE:
        for sizes in (SIZES, MANY, (24,)):
            for shared in (False, True):
                for negatives, calibration in ((9, "affine"), (64, "none")):
                    step = step_of("auto", score, sizes, calibration=calibration)
                    run(step, batch_of(negatives, shared), "tail")
    assert {kernel.py_func.__name__: len(kernel.signatures) for kernel in kernels} == {
        kernel.py_func.__name__: 1 for kernel in kernels
    }


def test_the_sparse_gradient_holds_the_touched_rows_only() -> None:
    step, batch = step_of("auto", "distmult", SIZES, sparse=True), batch_of(3, shared=True)
    step(*batch)["loss"].backward()
    gradient = step.model.entity.grad
    assert gradient is not None
    assert gradient.is_sparse
    anchor, _, target, pool = batch
    assert gradient.coalesce().indices()[0].tolist() == torch.cat([anchor, target, pool]).unique().tolist()


def test_numbers_that_are_not_finite_stay_visible() -> None:
    step = step_of("auto", "transe-l1", SIZES)
    with torch.no_grad():
        step.model.entity[7, 3] = torch.nan
    assert not step(*batch_of(50, shared=False))["loss"].isfinite()


def test_dims_behind_a_size_do_not_reach_its_loss() -> None:
    step = step_of("auto", "transe-l1", ODD, mutual=0.0, size_weights=[1.0, 1.0, 0.0, 0.0], w3=0.0)
    batch = batch_of(50, shared=False)
    expected = step(*batch)["loss"].item()
    with torch.no_grad():
        step.model.entity[:, 7:] = 1e3
    assert step(*batch)["loss"].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        (0, torch.full((BATCH,), ENTITIES), IndexError, "anchor ids must be from 0 to 59, got 60 to 60"),
        (2, torch.full((BATCH,), -1), IndexError, "target ids must be from 0 to 59, got -1 to -1"),
        (3, torch.full((BATCH, 2), 99), IndexError, "negative ids must be from 0 to 59, got 99 to 99"),
        (
            3,
            torch.zeros(BATCH + 1, 2, dtype=torch.long),
            ValueError,
            r"negatives \[B, N\], \[C\] or \[G, C\]",
        ),
        (3, torch.zeros(BATCH, 2, dtype=torch.int32), ValueError, "negative ids must be int64"),
        (3, torch.zeros(BATCH, 0, dtype=torch.long), ValueError, "at least one negative"),
    ],
)
def test_ids_that_no_kernel_may_follow_are_refused(
    place: int, value: Tensor, error: type[Exception], message: str
) -> None:
    batch = list(batch_of(5, shared=False))
    batch[place] = value
    with pytest.raises(error, match=message):
        step_of("auto", "transe-l1", SIZES)(*batch)


@pytest.mark.parametrize(
    "options", [{"task": "multiclass"}, {"mutual_form": "kl"}, {"distill": 0.5}, {"w2": 100.0}], ids=str
)
def test_what_the_kernels_do_not_know_runs_by_the_specification(options: dict[str, Any]) -> None:
    batch = batch_of(6, shared=False)
    step = step_of("auto", "transe-l1", SIZES, **options)
    assert not compiled_step.supports(step.model.function, step.model.entity, step.objective)
    expected = step_of("none", "transe-l1", SIZES, **options)(*batch)["loss"]
    assert step(*batch)["loss"].item() == expected.item()


def test_without_numba_one_line_says_so_and_the_specification_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in list(sys.modules):
        if "compiled" in name or name.endswith("_kernels") or name == "croppable.kge.vector_code":
            monkeypatch.delitem(sys.modules, name)
        elif name.split(".")[0] == "numba":
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr("croppable.kge.compiled_step")
    for cached in (compiling.import_kernels, compiling._say_missing):
        cached.cache_clear()
    batch = batch_of(6, shared=False)
    with caplog.at_level(logging.WARNING):
        step = step_of("auto", "transe-l1", SIZES)
        losses = [step(*batch)["loss"].item() for _ in range(2)]
    for cached in (compiling.import_kernels, compiling._say_missing):
        cached.cache_clear()
    assert losses[0] == step_of("none", "transe-l1", SIZES)(*batch)["loss"].item()
    assert len(caplog.records) == 1
    assert "numba is missing" in caplog.text
