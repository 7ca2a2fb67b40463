"""The nuclear 3-norm of embedding rows, segment by segment (Lacroix et al., arXiv 1806.07297, Eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["N3Penalty", "n3_weights", "segment_n3"]


def segment_n3(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum cubed moduli per segment, averaged over rows.

    Args:
        rows: ``[B, D]``, or ``[B, D, P]`` where the modulus of a dim is over its parts.
        sizes: Ascending; segment k is the dims from size k-1 up to size k.

    Returns:
        ``[K]``.
    """
    cubes = (rows**2).sum(-1).clamp_min(1e-30) ** 1.5 if rows.ndim == 3 else rows.abs() ** 3
    per_dim = cubes.mean(0)
    widths = [b - a for a, b in zip((0, *sizes), sizes, strict=False)]
    return torch.stack([part.sum() for part in torch.split(per_dim, widths)])


def n3_weights(
    n3: float | Sequence[float],
    sizes: Sequence[int],
    *,
    balance: float,
    reach: float = 1.0,
    trunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute what the N3 of a segment is weighed by; see `LinkPrediction` for the arguments.

    A segment of shared rows has the penalties of all sizes whose loss reads it, as far as their gradients
    reach.

    Returns:
        Weights of the segments of rows that sizes share ``[K]``, and of each size's own ``[K, K]``.
    """
    count = len(sizes)
    place = torch.arange(count)
    reads = torch.ones(count, count).tril()  # of size i, segment k
    if trunk is not None:
        branches = list(sizes).index(trunk) + 1
        reads[branches:] = torch.eye(count)[branches:]
    down = reads * reach ** (place[:, None] - place).clamp_min(0)
    if isinstance(n3, int | float):
        weights = n3 * ((count - place) / count) ** (balance - 1)  # by segment
    else:
        weights = torch.tensor(n3)[:, None]  # by size
    return (weights * down).sum(0) / count, weights * reads / count


class N3Penalty(nn.Module):
    """The weighted N3 of a batch's rows.

    Args:
        sizes: Ascending, K of them.
        weights: From `n3_weights`; kept as buffers, for a copy to the device in a step waits for it.
    """

    of_shared: Tensor
    of_own: Tensor

    def __init__(self, sizes: Sequence[int], weights: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.register_buffer("of_shared", weights[0], persistent=False)
        self.register_buffer("of_own", weights[1], persistent=False)

    def forward(self, anchor: Tensor, relation: Tensor, answer: Tensor, *, own: bool = False) -> Tensor:
        """Compute the penalty, a scalar.

        Args:
            anchor: Rows of entities, ``[B, D(, P)]``.
            relation: Rows of relations ``[B, D(, P)]``, or each size's own ``[K, B, D(, P)]``.
            answer: Rows of entities, ``[B, D(, P)]``.
            own: Whether sizes have relations of their own.
        """
        entities = self.of_shared * (segment_n3(anchor, self.sizes) + segment_n3(answer, self.sizes))
        if own:
            relations = self.of_own * torch.stack([segment_n3(each, self.sizes) for each in relation])
        else:
            relations = self.of_shared * segment_n3(relation, self.sizes)
        return entities.sum() + relations.sum()
