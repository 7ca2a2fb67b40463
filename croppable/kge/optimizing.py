"""The optimizer of a training step, and whether the entity table's gradient is dense or sparse.

A dense gradient costs a pass over the whole table for itself and for the optimizer; a sparse one costs more
per touched row (docs/performance.md has both measured). Adagrad takes either and gives the same result: a row
without gradient does not move. Adam moves every row at every step by its momentum: its gradient stays dense.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch.optim import Adagrad, Adam, Optimizer

from croppable.kge.objective import LinkPrediction

__all__ = ["make_optimizer", "prefers_sparse"]

Kind = Literal["adam", "adagrad"]
CROSSOVER = 4.0  # a touched row of a sparse gradient costs what so many rows of a dense one cost


def prefers_sparse(num_entities: int, touched_rows: int) -> bool:
    """Whether Adagrad is faster with a sparse gradient of the entity table.

    Args:
        num_entities: Rows of the table.
        touched_rows: Rows that a batch uses, counted with repetitions: an upper bound is enough.
    """
    return CROSSOVER * touched_rows < num_entities


def make_optimizer(
    step: LinkPrediction,
    kind: Kind,
    learning_rate: float,
    *,
    touched_rows: int,
    sparse: bool | Literal["auto"] = "auto",
) -> Optimizer:
    """Make an optimizer of the step's trainable parameters, and set ``step.sparse`` to what it takes.

    Args:
        step: The training step.
        kind: "adam" (fused) or "adagrad" (fused where the gradient is dense).
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
    if sparse:  # as it is anyway; said so, torch does not warn of it in every run
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    parameters = [p for p in step.parameters() if p.requires_grad]
    if kind == "adam":
        return Adam(parameters, lr=learning_rate, fused=True)
    return Adagrad(parameters, lr=learning_rate, fused=not sparse)
