"""The only training loop: steps, evaluation, early stopping, and a training state that survives a kill.

It knows an ``nn.Module`` whose forward takes a batch and returns losses, and nothing of graphs, text or
sizes. Distribution and mixed precision are Accelerate's, handed in by the recipe. A state is written by
croppable/state.py; resuming from it gives the weights that an uninterrupted run would have given.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm.auto import tqdm

from croppable.interrupt import collected_signals
from croppable.state import StateFolder, random_states, set_random_states

__all__ = ["FitResult", "TrainingError", "fit", "linear_schedule"]

SLOW = 2.0  # seconds of a first step that are worth a word
BAR_EVERY = 20  # steps between updates of the progress bar: reading a loss waits for the device


class TrainingError(RuntimeError):
    """Training cannot go on: a loss was not finite, or there are no more batches."""


class FitResult(NamedTuple):
    """What `fit` did.

    Attributes:
        steps: Optimizer steps done in all, those before a resume included.
        best_step: Step of the best evaluation, None without evaluations.
        stopped: "finished", "early" (no better evaluation within the patience) or "interrupted".
        history: One dict per logged step or evaluation, in order.
    """

    steps: int
    best_step: int | None
    stopped: str
    history: list[dict[str, Any]]


def linear_schedule(optimizer: Optimizer, num_steps: int, warmup_steps: int = 0) -> LRScheduler:
    """Raise the learning rate linearly over the warm-up, then let it fall to zero at ``num_steps``."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        return max(0.0, (num_steps - step) / max(1, num_steps - warmup_steps))

    return LambdaLR(optimizer, factor)


class _Progress:
    """Everything of a run that a resumed run needs besides weights and optimizer."""

    def __init__(self) -> None:
        self.step = 0
        self.best_value = -math.inf
        self.best_step: int | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.bad_evaluations = 0
        self.history: list[dict[str, Any]] = []


def fit(
    step: nn.Module,
    batches: Callable[[int], Iterable[Mapping[str, Any]]],
    *,
    accelerator: Any,
    optimizer: Optimizer,
    num_steps: int,
    scheduler: LRScheduler | None = None,
    accumulation: int = 1,
    clip_norm: float | None = None,
    evaluate: Callable[[int], Mapping[str, Any]] | None = None,
    evaluate_every: int = 0,
    patience: int = 0,
    state_dir: Path | None = None,
    checkpoint_every: int = 0,
    keep: int = 2,
    resume: bool = False,
    history: Sequence[dict[str, Any]] = (),
    log_every: int = 50,
    log: Callable[[dict[str, Any]], None] | None = None,
    description: str = "training",
) -> FitResult:
    """Train ``step`` in place; with an evaluation, leave the best weights in it.

    Args:
        step: Module whose ``forward(**batch)`` returns the scalar loss, or a dict of scalars with "loss".
        batches: Called with the number of the first micro-batch (0, or later when resuming); yields the
            micro-batches from there on, at least ``accumulation`` of them per step.
        accelerator: A prepared-from-nothing ``accelerate.Accelerator``.
        optimizer: Over the parameters of ``step``.
        num_steps: Optimizer steps in all.
        scheduler: Stepped once per optimizer step, on every process alike.
        accumulation: Micro-batches per optimizer step; their gradients are averaged.
        clip_norm: Largest global gradient norm; None does not clip.
        evaluate: Called with the step number in eval mode; its "score" (higher is better) picks the best.
        evaluate_every: Steps between evaluations; the last step is always evaluated.
        patience: Stop after so many evaluations in a row without a better score; 0 never stops early.
        state_dir: Folder of this run's training states, needed for ``checkpoint_every`` and ``resume``; with
            it a SIGTERM or Ctrl-C ends the run after a state is written. States of an earlier run are
            removed unless it is resumed: they must not be taken for this run's.
        checkpoint_every: Steps between states, the last step always included; 0 writes none but on a signal.
        keep: Newest states kept, at least 2.
        resume: Go on from the newest complete state in ``state_dir``.
        history: Rows of an earlier part of the same training, which the history begins with.
        log_every: Steps between logged losses.
        log: Receives each row of the history on the main process.
        description: Label of the progress bar.

    Raises:
        TrainingError: If a loss is not finite, which names the step and the newest state; or if the batches
            run out.
        FileNotFoundError: If there is no complete state to resume from.
        ValueError: If arguments contradict each other, or the state is of another setup.
    """
    if (checkpoint_every or resume) and state_dir is None:
        raise ValueError("checkpoint_every and resume need state_dir, the folder of training states")
    if num_steps < 1 or accumulation < 1:
        raise ValueError(f"num_steps and accumulation must be at least 1, got {num_steps} and {accumulation}")
    states = None if state_dir is None else StateFolder(state_dir, keep=keep)
    module, optimizer = accelerator.prepare(step, optimizer)
    run = _Run(accelerator, step, module, optimizer, scheduler, states)
    run.progress.history.extend(history)
    run.start(resume)
    progress = run.progress
    source = iter(batches(progress.step * accumulation))
    bar = tqdm(total=num_steps, initial=progress.step, desc=description, unit="step",
               disable=not accelerator.is_main_process)  # fmt: skip

    def due(every: int) -> bool:
        return bool(every) and progress.step % every == 0

    def finished() -> bool:
        return progress.step >= num_steps or (bool(patience) and progress.bad_evaluations >= patience)

    interrupted = False
    with collected_signals() as received, bar:
        while not (finished() or interrupted):
            _optimize(run, bar, source, accumulation, clip_norm)
            last = progress.step == num_steps
            if due(BAR_EVERY):
                bar.set_postfix(loss=f"{run.last_loss():.4f}", refresh=False)
            if last or due(log_every):
                run.log_losses(log)
            if evaluate and (last or due(evaluate_every)):
                run.evaluate(evaluate, log)
            interrupted = run.agree(bool(received))
            if due(checkpoint_every) or interrupted or (checkpoint_every and finished()):
                run.save()
    if progress.best_weights is not None:
        step.load_state_dict(progress.best_weights)
    stopped = "interrupted" if interrupted else "finished" if progress.step >= num_steps else "early"
    return FitResult(progress.step, progress.best_step, stopped, progress.history)


def _optimize(run: _Run, bar: tqdm[Any], *arguments: Any) -> None:
    """Do a step and show it; explain a first one that took long."""
    begun = time.perf_counter()
    run.optimize(*arguments)
    seconds = time.perf_counter() - begun
    if not bar.disable and bar.n == bar.initial and seconds > SLOW:  # a disabled bar counts nothing
        bar.write(f"the first step took {seconds:.1f} s: it compiles what is not cached yet", file=sys.stderr)
    bar.update()


class _Run:
    """One run of `fit`: the pieces it moves, and what is done with them."""

    def __init__(
        self,
        accelerator: Any,
        step: nn.Module,
        module: nn.Module,
        optimizer: Any,
        scheduler: LRScheduler | None,
        states: StateFolder | None,
    ) -> None:
        self.accelerator, self.step, self.module = accelerator, step, module
        self.optimizer, self.scheduler, self.states = optimizer, scheduler, states
        self.progress = _Progress()
        # What a state must have been written with to go on from it.
        self.setup = {
            "processes": accelerator.num_processes,
            "optimizer": type(optimizer.optimizer).__name__,
            "scheduler": type(scheduler).__name__,
        }
        self._losses: dict[str, Tensor] = {}
        self._first_bad = torch.full((), -1, dtype=torch.long, device=accelerator.device)

    def start(self, resume: bool) -> None:
        """Take up the newest state, or make room for those of a fresh run."""
        if resume:
            self.restore()
        elif self.states and self.accelerator.is_main_process:
            self.states.clear()
        self.accelerator.wait_for_everyone()

    def optimize(self, source: Iterator[Mapping[str, Any]], accumulation: int, clip: float | None) -> None:
        """Do one optimizer step over ``accumulation`` micro-batches."""
        self.module.train()
        totals: dict[str, Tensor] = {}
        for micro in range(accumulation):
            batch = next(source, None)
            if batch is None:
                raise TrainingError(
                    f"the batches ran out after step {self.progress.step}: there must be {accumulation} for "
                    f"every step up to the last"
                )
            final = micro == accumulation - 1
            guard: AbstractContextManager[Any] = (
                nullcontext() if final else self.accelerator.no_sync(self.module)
            )
            with guard:
                with self.accelerator.autocast():
                    outputs = self.module(**batch)
                losses = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
                self.accelerator.backward(losses["loss"] / accumulation)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() / accumulation
        self._losses = totals
        bad = ~torch.isfinite(self._losses["loss"])
        here = torch.where(bad, self.progress.step + 1, -1)
        self._first_bad = torch.where(self._first_bad < 0, here, self._first_bad)
        if clip is not None:
            self.accelerator.clip_grad_norm_(self.module.parameters(), clip)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.progress.step += 1

    def last_loss(self) -> float:
        """Return the newest loss; refuse to go on if one was not finite."""
        self._check_finite()
        return float(self._losses["loss"])

    def _check_finite(self) -> None:
        bad = int(self._first_bad)
        if self.agree(bad >= 0):
            saved = self.states.newest() if self.states else None
            advice = f"the last good state is {saved}" if saved else "no state was saved"
            where = f"step {bad}" if bad >= 0 else f"another process before step {self.progress.step}"
            raise TrainingError(
                f"the loss became not finite at {where}: {advice}; lower the learning rate, "
                f"clip gradients, or train in float32"
            )

    def agree(self, flag: bool) -> bool:
        """Return whether ``flag`` is true on any process."""
        if self.accelerator.num_processes == 1:
            return flag
        mine = torch.tensor(int(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(mine, reduction="sum") > 0)

    def log_losses(self, log: Callable[[dict[str, Any]], None] | None) -> None:
        """Append the newest losses and the learning rate to the history."""
        self._check_finite()
        row = {"step": self.progress.step, **{name: float(value) for name, value in self._losses.items()}}
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self._record(row, log)

    def _record(self, row: dict[str, Any], log: Callable[[dict[str, Any]], None] | None) -> None:
        self.progress.history.append(row)
        if log and self.accelerator.is_main_process:
            log(row)

    def evaluate(
        self, evaluate: Callable[[int], Mapping[str, Any]], log: Callable[[dict[str, Any]], None] | None
    ) -> None:
        """Evaluate, and keep a copy of the weights if they are the best so far."""
        self._check_finite()
        self.module.eval()
        with torch.no_grad():
            values = dict(evaluate(self.progress.step))
        self._record({"step": self.progress.step, **values}, log)
        if values["score"] > self.progress.best_value:
            self.progress.best_value, self.progress.best_step = values["score"], self.progress.step
            self.progress.best_weights = {k: v.detach().clone() for k, v in self.step.state_dict().items()}
            self.progress.bad_evaluations = 0
        else:
            self.progress.bad_evaluations += 1

    def save(self) -> None:
        """Write a state on the main process, with the random states of all of them."""
        from accelerate.utils import gather_object

        if self.states is None:
            return
        self._check_finite()
        tree = {
            "step": self.step.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "progress": vars(self.progress),
            "random": gather_object([random_states()]),
            "setup": self.setup,
        }
        if self.accelerator.is_main_process:
            self.states.write(self.progress.step, tree)
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Take up the newest complete state.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it was written by another number of processes, another optimizer or scheduler, or
                for another model.
        """
        assert self.states is not None
        tree = self.states.read()
        if tree["setup"] != self.setup:
            raise ValueError(
                f"the state in {self.states.root} was written with {tree['setup']}, but this run has "
                f"{self.setup}: resume with the flags that it was started with"
            )
        try:
            self.step.load_state_dict(tree["step"])
            self.optimizer.load_state_dict(tree["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the state in {self.states.root} is of another model ({reason}): resume with the flags that "
                f"it was started with"
            ) from error
        if self.scheduler is not None:
            self.scheduler.load_state_dict(tree["scheduler"])
        vars(self.progress).update(tree["progress"])
        set_random_states(tree["random"][self.accelerator.process_index])
