"""Compilation happens once per shape, and its absence is one line in the log."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from croppable import compiling
from croppable.kge.model import KGEModel
from croppable.kge.objective import LinkPrediction
from croppable.med import MED

# torch.compile warns of what it does inside
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = (2, 4, 8)


def step_of(compiled: Any) -> LinkPrediction:
    torch.manual_seed(0)
    model = KGEModel(20, 3, SIZES, "transe-l1", margin=2.0, calibration="scale")
    return LinkPrediction(model, MED(SIZES), compiled=compiled)


def batch_of(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randint(high, shape, generator=generator)
        for high, shape in ((20, (6,)), (3, (6,)), (20, (6,)), (20, (6, 4)))
    )


def test_without_a_compiler_one_line_says_so_and_results_are_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    step = step_of("loss")
    with caplog.at_level(logging.WARNING):
        losses = [step(*batch_of(seed))["loss"].item() for seed in range(3)]
    assert losses == [step_of("none")(*batch_of(seed))["loss"].item() for seed in range(3)]
    assert [record.name for record in caplog.records] == ["croppable.compiling"]
    assert "no C++ compiler found (g++, clang++, c++, cl)" in caplog.text


def test_the_compiler_that_cxx_names_is_the_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "my-compiler"
    mine.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(mine))
    assert compiling.find_compiler() == str(mine)
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    assert compiling.find_compiler() is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_run_of_the_same_shapes_compiles_forward_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounterWithBackend("eager")
    compile_it = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_it(f, backend=counter, **options))
    step = step_of("loss")
    optimizer = torch.optim.Adam(step.parameters())
    for seed in range(4):
        loss = step(*batch_of(seed))["loss"]
        torch.testing.assert_close(loss, step_of("none")(*batch_of(seed))["loss"] if seed == 0 else loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_compiled_loss_has_the_values_and_gradients_of_the_specification() -> None:
    results = []
    for compiled in ("none", "loss"):
        step = step_of(compiled)
        losses = step(*batch_of(0))
        losses["loss"].backward()
        results.append({n: p.grad for n, p in step.named_parameters() if p.grad is not None} | losses)
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("graphs", [False, True])
def test_graphs_are_asked_of_the_compiler(monkeypatch: pytest.MonkeyPatch, graphs: bool) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(compiling, "find_compiler", lambda: "some compiler")
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    compiling.compile_or_not(len, graphs=graphs)
    assert asked == [{"dynamic": False, "mode": "reduce-overhead" if graphs else None}]


def test_a_step_with_a_trunk_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounterWithBackend("eager")
    compile_it = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_it(f, backend=counter, **options))
    torch.manual_seed(0)
    model = KGEModel(20, 3, SIZES, "complex", relations="own")
    objective = MED(SIZES, task="multiclass", mutual=0.0, distill=1.0, teacher="ensemble")
    step = LinkPrediction(model, objective, trunk=4, reach=0.5, n3=(0.1, 0.2, 0.3), compiled="loss")
    anchor, relation, target, _ = batch_of(0)
    assert torch.isfinite(step(anchor, relation, target, torch.arange(9))["loss"])
    assert counter.frame_count == 1
