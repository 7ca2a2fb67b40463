"""Link prediction as a training step: queries in, losses out.

Joins the nested model, the objective over sizes (croppable/med.py) and a regulariser. The batch comes from
croppable/kge/sampling.py, the loop is croppable/training.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from croppable.core import Nested
from croppable.kge.model import KGEModel
from croppable.kge.scores import Side
from croppable.med import MED

__all__ = ["LinkPrediction", "segment_n3"]

MASKED = -1e4  # score of a negative that is the answer itself: probability zero, and still finite


def segment_n3(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum cubed moduli per segment, averaged over rows: N3 (Lacroix et al., arXiv 1806.07297, Eq. 4).

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


class LinkPrediction(nn.Module):
    """Loss of a batch of queries at all sizes together.

    Args:
        model: The embedding model.
        objective: Over ``[K, B, C]`` scores and the index of the true column.
        n3: Weight of N3; 0 is off.
        n3_balanced: Weigh the N3 of a segment by the share of the sizes whose loss reaches it (segment k of
            K: (K - k) / K), so that every segment feels losses and penalty in the same proportion. Without it
            the late segments, which few losses reach, are over-regularised.
        compiled: Whether ``torch.compile`` fuses scores and losses after the gather ("loss"), or not ("none").
    """

    def __init__(
        self,
        model: KGEModel,
        objective: MED,
        *,
        n3: float = 0.0,
        n3_balanced: bool = True,
        compiled: Literal["none", "loss"] = "none",
    ) -> None:
        super().__init__()
        self.nested = Nested(model, model.sizes)
        self.objective = objective
        self.n3, self.n3_balanced = n3, n3_balanced
        self._loss: Callable[..., dict[str, Tensor]] = self._loss_of_rows
        if compiled == "loss":
            self._loss = torch.compile(self._loss_of_rows, dynamic=False)

    @property
    def model(self) -> KGEModel:
        """The embedding model."""
        model = self.nested.model
        assert isinstance(model, KGEModel)
        return model

    def forward(
        self,
        anchor: Tensor,
        relation: Tensor,
        target: Tensor,
        negatives: Tensor | None = None,
        side: Side | Tensor = "tail",
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            anchor: Ids of the known entities, ``[B]``.
            relation: Ids of the relations, ``[B]``.
            target: Ids of the answers, ``[B]``.
            negatives: Ids ``[B, N]`` per query, ``[C]`` shared by all queries, or None: every entity.
            side: The side that is asked for; reciprocal models also take a bool tensor, see `KGEModel`.

        Returns:
            Scalars: "loss" and its parts.
        """
        per_query = negatives is not None and negatives.ndim == 2
        candidates = torch.cat([target[:, None], negatives], 1) if per_query else negatives
        rows = self.model.lookup(anchor, relation, candidates, side)
        answers = None if per_query else self.model.lookup(target, relation, None, side)[0]
        shared = None if per_query else negatives
        return self._loss(*rows, answers, target, shared, negatives is None, side)

    def _loss_of_rows(
        self,
        anchor: Tensor,
        relation: Tensor,
        candidates: Tensor,
        answers: Tensor | None,
        target: Tensor,
        shared: Tensor | None,
        against_all: bool,
        side: Side | Tensor,
    ) -> dict[str, Tensor]:
        sizes = self.nested.sizes
        scores = self.model.score_rows(sizes, anchor, relation, candidates, side=side)
        if answers is None:
            answers = candidates[:, 0]
        if shared is not None:
            scores = scores.masked_fill(shared == target[:, None], MASKED)
            own = self.model.score_rows(sizes, anchor, relation, answers[:, None], side=side)
            scores = torch.cat([own, scores], -1)
        true_column = target if against_all else torch.zeros_like(target)
        losses = self.objective.terms(scores, true_column)
        if self.n3:
            share = [(len(sizes) - k) / len(sizes) if self.n3_balanced else 1.0 for k in range(len(sizes))]
            weights = torch.tensor(share, device=anchor.device)
            cubes = torch.stack([segment_n3(rows, sizes) for rows in (anchor, relation, answers)])
            penalty = (cubes @ weights).sum()
            losses = {**losses, "n3": self.n3 * penalty, "loss": losses["loss"] + self.n3 * penalty}
        return losses
