"""The training loop on a module of nine numbers: plain course, accumulating, evaluating, what goes wrong."""

import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_steps import STEPS, Scores, Step, Train, equal, rows, states, stop_at

from croppable import training
from croppable.training import TrainingError, linear_schedule

pytest_plugins = ["training_fixtures"]


# ------------------------------------------------------------------------------------ the plain course


def test_equals_a_loop_written_by_hand(train: Train) -> None:
    module, result = train(log_every=1)
    torch.manual_seed(0)
    random.seed(0)
    plain = Step()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    losses, rates = [], []
    for i, batch in enumerate(rows(0, STEPS)):
        loss = plain(**batch)["loss"]
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (STEPS - i - 1) / STEPS
        optimizer.zero_grad()
        losses.append(loss.item())
        rates.append(optimizer.param_groups[0]["lr"])
    assert equal(module, plain)
    assert (result.steps, result.best_step, result.stopped) == (STEPS, None, "finished")
    assert [row["step"] for row in result.history] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in result.history] == losses
    assert [row["half"] for row in result.history] == [loss / 2 for loss in losses]
    assert [row["learning_rate"] for row in result.history] == pytest.approx(rates)


def test_the_same_seed_gives_the_same_weights(train: Train) -> None:
    assert equal(train()[0], train()[0])


def test_a_step_may_return_just_its_loss(train: Train) -> None:
    class Bare(Step):
        def forward(self, x: Tensor, y: Tensor) -> Any:
            return super().forward(x, y)["loss"]

    torch.manual_seed(0)
    bare = Bare()
    _, result = train(module=bare)
    assert set(result.history[-1]) == {"step", "loss", "learning_rate"}


def test_the_schedule_rises_over_the_warm_up_and_falls_to_zero() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=8.0)
    schedule = linear_schedule(optimizer, 6, warmup_steps=2)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [0, 4, 8, 6, 4, 2, 0, 0]


def test_losses_are_logged_now_and_then_and_at_the_end(train: Train) -> None:
    seen: list[dict[str, Any]] = []
    _, result = train(log_every=5, log=seen.append)
    assert [row["step"] for row in seen] == [5, 10, 12]
    assert seen == result.history


@pytest.mark.parametrize(("slow", "said"), [(0.0, True), (60.0, False)])
def test_a_slow_first_step_is_explained(
    train: Train, slow: float, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "SLOW", slow)
    train()
    assert ("s: it compiles what is not cached yet" in capsys.readouterr().err) == said


# -------------------------------------------------------------------------------- accumulation, clipping


def test_accumulation_equals_a_larger_batch(train: Train) -> None:
    def joined(first: int) -> Iterator[dict[str, Tensor]]:
        parts = rows(3 * first, 10**6)
        for one, two, three in zip(parts, parts, parts, strict=False):
            yield {name: torch.cat([one[name], two[name], three[name]]) for name in one}

    quiet = lambda: Step(noise=0.0)  # noqa: E731
    torch.manual_seed(0)
    small, logged = train(accumulation=3, log_every=1, module=quiet(), optimizer=torch.optim.SGD)
    torch.manual_seed(0)
    large, expected = train(joined, log_every=1, module=quiet(), optimizer=torch.optim.SGD)
    for a, b in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    losses = [[row["loss"] for row in result.history] for result in (logged, expected)]
    assert losses[0] == pytest.approx(losses[1])


def test_gradients_are_clipped_by_their_global_norm(train: Train) -> None:
    torch.manual_seed(0)
    start = Step()
    free, _ = train(steps=1, optimizer=torch.optim.SGD, lr=1.0, scheduled=False)
    clipped, _ = train(steps=1, optimizer=torch.optim.SGD, lr=1.0, scheduled=False, clip_norm=0.01)

    def moved(module: Step) -> Tensor:
        pairs = zip(module.parameters(), start.parameters(), strict=True)
        return torch.cat([(a - b).flatten() for a, b in pairs])

    assert moved(clipped).norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(moved(clipped), moved(free) / moved(free).norm() * 0.01, atol=1e-6, rtol=1e-3)


# --------------------------------------------------------------------------- evaluation and early stopping


def test_the_best_weights_are_left_in_the_module(train: Train) -> None:
    scores = Scores(1.0, 3.0, 2.0, 0.0)
    module, result = train(evaluate=scores, evaluate_every=3)
    assert scores.steps == [3, 6, 9, 12]
    assert (result.best_step, result.stopped, result.steps) == (6, "finished", STEPS)
    halfway = train(stop_at(6))[0]
    assert equal(module, halfway)
    assert [row["score"] for row in result.history if "score" in row] == [1, 3, 2, 0]


def test_the_last_step_is_always_evaluated(train: Train) -> None:
    for every, expected in ((5, [5, 10, 12]), (0, [12]), (100, [12])):
        scores = Scores(0.0, 0.0, 0.0)
        train(evaluate=scores, evaluate_every=every)
        assert scores.steps == expected


def test_patience_counts_evaluations_without_a_better_score(train: Train) -> None:
    scores = Scores(1.0, 2.0, 2.0, 1.0, 5.0, 5.0)
    _, result = train(evaluate=scores, evaluate_every=2, patience=2)
    assert (result.stopped, result.steps, result.best_step) == ("early", 8, 4)
    scores = Scores(1.0, 0.5, 2.0, 0.5, 3.0, 0.0)
    _, result = train(evaluate=scores, evaluate_every=2, patience=2)
    assert (result.stopped, result.steps, result.best_step) == ("finished", STEPS, 10)


def test_evaluation_sees_eval_mode_and_no_gradients_and_training_goes_on_in_train_mode(train: Train) -> None:
    module, modes = Step(), []

    def evaluate(step: int) -> dict[str, float]:
        modes.append((module.training, torch.is_grad_enabled()))
        return {"score": float(step)}

    modes_in_training = []
    module.linear.register_forward_pre_hook(lambda *_: modes_in_training.append(module.training))
    train(module=module, evaluate=evaluate, evaluate_every=4)
    assert modes == [(False, False)] * 3
    assert modes_in_training == [True] * STEPS


# --------------------------------------------------------------------------------------- what goes wrong


def nan_from(number: int) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    def batches(first: int) -> Iterator[dict[str, Tensor]]:
        for i, row in enumerate(rows(first, 10**6), first + 1):
            yield {**row, "y": row["y"] * (math.nan if i >= number else 1)}

    return batches


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_names_its_step_and_the_last_good_state(
    train: Train, tmp_path: Path, accumulation: int
) -> None:
    batches = nan_from(7 * accumulation - (accumulation - 1))
    with pytest.raises(TrainingError) as caught:
        train(batches, state_dir=tmp_path, checkpoint_every=2, accumulation=accumulation)
    assert str(caught.value) == (
        f"the loss became not finite at step 7: the last good state is {tmp_path / 'step-00000006'}; "
        f"lower the learning rate, clip gradients, or train in float32"
    )
    assert states(tmp_path) == [4, 6]
    _, result = train(state_dir=tmp_path, resume=True, accumulation=accumulation)
    assert result.steps == STEPS
    assert all(math.isfinite(row["loss"]) for row in result.history)


def test_a_loss_that_is_not_finite_without_states(train: Train) -> None:
    with pytest.raises(
        TrainingError, match="not finite at step 3: no state was saved; lower the learning rate"
    ):
        train(nan_from(3))


def test_a_loss_that_is_not_finite_is_never_evaluated(train: Train) -> None:
    scores = Scores(0.0)
    with pytest.raises(TrainingError, match="not finite at step 1"):
        train(nan_from(1), evaluate=scores, evaluate_every=1)
    assert scores.steps == []


def test_batches_that_run_out_are_an_error(train: Train) -> None:
    with pytest.raises(
        TrainingError, match="the batches ran out after step 5: there must be 1 for every step"
    ):
        train(lambda first: rows(first, 5))
    with pytest.raises(
        TrainingError, match="the batches ran out after step 2: there must be 2 for every step"
    ):
        train(lambda first: rows(first, 5), accumulation=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"checkpoint_every": 3},
            "checkpoint_every and resume need state_dir, the folder of training states",
        ),
        ({"resume": True}, "checkpoint_every and resume need state_dir"),
        ({"state_dir": Path("nowhere"), "keep": 1}, "keep must be at least 2 training states, got 1"),
        ({"steps": 0, "scheduled": False}, "num_steps and accumulation must be at least 1, got 0 and 1"),
        ({"accumulation": 0}, "num_steps and accumulation must be at least 1, got 12 and 0"),
    ],
)
def test_contradictions_are_refused(train: Train, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train(**options)
    assert not Path("nowhere").exists()
