"""The optimizer of a training step, and whether the entity table's gradient is dense or sparse.

A dense gradient costs a pass over the whole table for itself and for the optimizer; a sparse one costs more
per touched row (docs/performance.md has both measured). Adagrad takes either and gives the same result: a row
without gradient does not move. Adam moves every row at every step by its momentum: its gradient stays dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Adagrad, Adam, Optimizer

from croppable.compiling import import_kernels
from croppable.kge.objective import LinkPrediction

__all__ = ["RowAdagrad", "make_optimizer", "prefers_sparse"]

Kind = Literal["adam", "adagrad"]
CROSSOVER = 6.0  # a touched row of a sparse gradient costs what so many rows of a dense one cost


def prefers_sparse(num_entities: int, touched_rows: int) -> bool:
    """Whether Adagrad is faster with a sparse gradient of the entity table.

    Args:
        num_entities: Rows of the table.
        touched_rows: Rows that a batch uses, counted with repetitions: an upper bound is enough.
    """
    return CROSSOVER * touched_rows < num_entities


class RowAdagrad(Adagrad):
    """Adagrad that updates the rows of a sparse gradient where they lie, and dense ones in as few passes.

    torch's own handles them by sparse arithmetic, which sorts and copies all values several times. On the
    CPU a row takes one pass, compiled where numba is there (croppable/kge/row_kernels.py).
    State and results are the same. Learning rate decay and weight decay would touch other rows: they are 0.

    Args:
        parameters: What to train.
        lr: Learning rate.
        eps: Keeps the quotient finite.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float = 1e-2, eps: float = 1e-10) -> None:
        super().__init__(parameters, lr=lr, eps=eps)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters: tables here, the rest by torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        done: list[tuple[Tensor, Tensor]] = []
        left = False
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse or _kernels(parameter, parameter.grad) is not None:
                    done.append((parameter, parameter.grad))
                    state = self.state[parameter]
                    state["step"] += 1
                    _update_rows(parameter, state["sum"], parameter.grad, group["lr"], group["eps"])
                    parameter.grad = None
                else:
                    left = True
        if left:
            super().step()
        for parameter, gradient in done:
            parameter.grad = gradient
        return loss


def _kernels(parameter: Tensor, *others: Tensor) -> Any:
    """Return croppable/kge/row_kernels.py, or None where it is missing or does not know the arrays."""
    arrays = (parameter, *others)
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in arrays)
    if not plain or parameter.ndim < 2 or not all(t.is_contiguous() for t in arrays):
        return None
    return import_kernels("croppable.kge.row_kernels")


def _update_rows(parameter: Tensor, total: Tensor, gradient: Tensor, lr: float, eps: float) -> None:
    if gradient.is_sparse:
        rows, values = gradient._indices()[0], gradient._values()
        if not bool((rows[1:] > rows[:-1]).all()):  # several backward passes gave a row several gradients
            gradient = gradient.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
    else:
        rows, values = torch.arange(len(parameter)), gradient
    kernels = _kernels(parameter, values, total)
    if kernels is not None:
        kernels.update_rows(rows, values, total, parameter, lr, eps)
        return
    sums = total.index_select(0, rows).addcmul_(values, values)
    total.index_copy_(0, rows, sums)
    parameter.index_add_(0, rows, values / sums.sqrt_().add_(eps), alpha=-lr)


def make_optimizer(
    step: LinkPrediction,
    kind: Kind,
    learning_rate: float,
    *,
    touched_rows: int,
    sparse: bool | Literal["auto"] = "auto",
) -> Optimizer:
    """Make an optimizer of the step's trainable parameters, and set ``step.sparse`` to what it takes.

    Where the step has a trunk, the optimizer keeps its sizes joined (`LinkPrediction.join_after`).

    Args:
        step: The training step.
        kind: "adam" (fused) or "adagrad" (fused on CPUs where the gradient is dense).
        learning_rate: Of the optimizer.
        touched_rows: Rows of the entity table that a batch uses; all of them for a softmax over all entities.
        sparse: Whether the table's gradient is sparse; "auto": where `prefers_sparse` says so
            and `LinkPrediction.makes_sparse`.

    Raises:
        ValueError: If ``kind`` is unknown, or a sparse gradient is asked for that Adam would not take.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if sparse is True and kind == "adam":
        raise ValueError(
            "kind 'adam' moves all rows at every step and takes no sparse gradient: "
            "use 'adagrad', or sparse=False"
        )
    if sparse == "auto":
        few = prefers_sparse(step.model.num_entities, touched_rows)
        sparse = kind == "adagrad" and few and step.makes_sparse
    step.sparse = sparse
    parameters = [p for p in step.parameters() if p.requires_grad]
    optimizer: Optimizer
    if kind == "adam":
        optimizer = Adam(parameters, lr=learning_rate, fused=True)
    elif sparse:
        optimizer = RowAdagrad(parameters, lr=learning_rate)
    else:
        optimizer = Adagrad(parameters, lr=learning_rate, fused=step.model.entity.device.type == "cpu")
    step.join_after(optimizer)
    return optimizer
