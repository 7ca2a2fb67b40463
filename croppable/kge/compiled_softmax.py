"""The work on a tile of croppable/kge/streaming.py by compiled kernels, on all threads.

The file needs numba (extra "kge"); nothing but streaming.py imports it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from croppable.kge import softmax_kernels
from croppable.kge.pieces import cut, on_all_threads
from croppable.kge.streaming import Plan, Softmax, Sums

__all__ = ["absorb", "weights_of_tile"]

PIECE = 16  # queries at once: enough that starting them costs nothing


def absorb(plan: Plan, terms: Tensor, calibration: Tensor, sums: Sums) -> None:
    """Do what `streaming.absorb` does."""
    arrays = [part.numpy() for part in sums]

    def piece(begin: int, end: int) -> None:
        softmax_kernels.absorb(
            terms.numpy(), begin, end, calibration.numpy(), plan.neighbours, plan.last, *arrays
        )

    on_all_threads(piece, cut(terms.shape[1], PIECE, terms[:, 0].numel()))


def weights_of_tile(
    plan: Plan, terms: Tensor, calibration: Tensor, found: Softmax, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """Do what `streaming.weights_of_tile` does."""
    moments = torch.empty(terms.shape[1], terms.shape[0], 2)
    arrays = [part.numpy() for part in (found.log_sum, found.mean, found.below, upstream, moments)]

    def piece(begin: int, end: int) -> None:
        softmax_kernels.gradients_of_tile(
            terms.numpy(), begin, end, calibration.numpy(), plan.teach_down, *arrays
        )

    on_all_threads(piece, cut(terms.shape[1], PIECE, terms[:, 0].numel()))
    by_shift, moment = moments.sum(0, dtype=torch.float64).unbind(-1)
    scale, shift = calibration
    return terms, torch.stack([(moment - shift * by_shift) / scale, by_shift]).float()
