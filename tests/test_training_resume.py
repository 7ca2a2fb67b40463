"""The training loop interrupted: training states, resuming bit for bit, and signals."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from training_steps import STEPS, Scores, Step, Train, equal, rows, states, stop_at

from croppable.training import FitResult

pytest_plugins = ["training_fixtures"]


# ------------------------------------------------------------------------------------- states and resuming

EVALUATED: dict[str, Any] = {"evaluate_every": 3, "log_every": 1}


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_resuming_equals_not_stopping_bit_for_bit(train: Train, tmp_path: Path, stop: int) -> None:
    values = (1.0, 4.0, 2.0, 3.0)
    whole, expected = train(evaluate=Scores(*values), **EVALUATED)
    _, first = train(stop_at(stop), evaluate=Scores(*values), state_dir=tmp_path, **EVALUATED)
    assert (first.stopped, first.steps, states(tmp_path)) == ("interrupted", stop, [stop])
    torch.manual_seed(99)  # whatever the new process does before
    rest = Scores(*values[stop // 3 :])
    module, result = train(evaluate=rest, state_dir=tmp_path, resume=True, **EVALUATED)
    assert result == expected
    assert rest.steps == [step for step in (3, 6, 9, 12) if step > stop]
    assert equal(module, whole)


def test_resuming_with_accumulation_begins_at_the_right_micro_batch(train: Train, tmp_path: Path) -> None:
    whole, expected = train(accumulation=3, log_every=1)
    train(stop_at(14), accumulation=3, log_every=1, state_dir=tmp_path)
    assert states(tmp_path) == [5]
    module, result = train(accumulation=3, log_every=1, state_dir=tmp_path, resume=True)
    assert equal(module, whole)
    assert result == expected


def test_states_are_written_regularly_and_at_the_end_and_the_newest_are_kept(
    train: Train, tmp_path: Path
) -> None:
    train(state_dir=tmp_path / "a", checkpoint_every=5)
    assert states(tmp_path / "a") == [10, 12]
    train(state_dir=tmp_path / "b", checkpoint_every=2, keep=3)
    assert states(tmp_path / "b") == [8, 10, 12]
    train(state_dir=tmp_path / "c")
    assert states(tmp_path / "c") == []


def test_resuming_a_finished_run_changes_nothing(train: Train, tmp_path: Path) -> None:
    options = {"evaluate_every": 3, "checkpoint_every": 4, "state_dir": tmp_path}
    whole, expected = train(evaluate=Scores(1.0, 4.0, 2.0, 3.0), **options)
    module, result = train(evaluate=Scores(), resume=True, **options)
    assert equal(module, whole)
    assert result == expected


def test_resuming_a_run_that_stopped_early_does_not_go_on(train: Train, tmp_path: Path) -> None:
    options = {"evaluate_every": 2, "patience": 2, "checkpoint_every": 100, "state_dir": tmp_path}
    whole, expected = train(evaluate=Scores(1.0, 2.0, 2.0, 1.0), **options)
    assert states(tmp_path) == [8]
    module, result = train(evaluate=Scores(), resume=True, **options)
    assert (result, result.stopped, equal(module, whole)) == (expected, "early", True)


def test_a_fresh_run_removes_the_states_of_an_earlier_one(train: Train, tmp_path: Path) -> None:
    train(state_dir=tmp_path, checkpoint_every=4)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".step-00000020.abc.writing").mkdir()
    train(stop_at(2), state_dir=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes", "step-00000002"}
    _, result = train(state_dir=tmp_path, resume=True)
    assert result.steps == STEPS


def test_a_spoilt_newest_state_gives_way_to_the_one_before(train: Train, tmp_path: Path) -> None:
    whole, _ = train(state_dir=tmp_path, checkpoint_every=4)
    path = tmp_path / "step-00000012" / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    module, result = train(state_dir=tmp_path, checkpoint_every=4, resume=True)
    assert equal(module, whole)
    assert (result.steps, states(tmp_path)) == (STEPS, [8, 12])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, FileNotFoundError, "no complete training state in FOLDER: start without"),
        ({"optimizer": torch.optim.SGD}, ValueError, "in FOLDER was written with {'processes': 1,"),
        ({"scheduled": False}, ValueError, "resume with the flags that it was started with"),
        ({"module": "wider"}, ValueError, "is of another model (Error(s) in loading state_dict for Step:"),
    ],
)  # fmt: skip
def test_what_cannot_be_resumed_is_refused(
    train: Train, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    if options:
        train(stop_at(3), state_dir=tmp_path)
    if options.get("module") == "wider":
        options = {"module": Step()}
        options["module"].linear = nn.Linear(4, 2)
    with pytest.raises(error, match=re.escape(message.replace("FOLDER", str(tmp_path)))):
        train(state_dir=tmp_path, resume=True, **options)


def test_a_state_of_another_number_of_processes_is_refused(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(stop_at(3), state_dir=tmp_path)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(
        ValueError, match=r"written with \{'processes': 1, .* but this run has \{'processes': 2"
    ):
        train(state_dir=tmp_path, resume=True)


# ------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_with_a_state(
    train: Train, tmp_path: Path, number: signal.Signals
) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    _, result = train(stop_at(4, number), state_dir=tmp_path)
    assert (result.stopped, result.steps, states(tmp_path)) == ("interrupted", 4, [4])
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_interrupts_at_once(train: Train, tmp_path: Path) -> None:
    def batches(first: int) -> Iterator[dict[str, Tensor]]:
        yield next(rows(first, 1))
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield next(rows(1, 2))

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(batches, state_dir=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_in_the_last_step_is_not_lost(train: Train, tmp_path: Path) -> None:
    whole, expected = train()
    _, result = train(stop_at(STEPS), state_dir=tmp_path)
    assert (result.stopped, states(tmp_path)) == ("interrupted", [STEPS])
    module, result = train(state_dir=tmp_path, resume=True)
    assert (result, equal(module, whole)) == (expected, True)


def test_without_a_folder_a_signal_ends_the_run_all_the_same(train: Train) -> None:
    _, result = train(stop_at(4))
    assert (result.stopped, result.steps) == ("interrupted", 4)


def test_training_works_in_a_thread_that_may_not_ask_for_signals(train: Train) -> None:
    results: list[FitResult] = []
    thread = threading.Thread(target=lambda: results.append(train()[1]))
    thread.start()
    thread.join()
    assert [result.stopped for result in results] == ["finished"]
