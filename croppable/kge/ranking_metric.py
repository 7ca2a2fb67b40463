"""Filtered ranking as an ``evaluate.Metric``, for those whose own code makes the scores.

Croppable models are ranked at all sizes in one pass by `croppable.kge.ranking`; this form is for everything
else that speaks Hugging Face ``evaluate`` (extra ``text``). It needs no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import torch

from croppable.kge.metrics import rank_metrics

__all__ = ["RankingMetric"]


def _realistic_rank(scores: Sequence[float], answer: int, known: Sequence[int]) -> float:
    row = torch.as_tensor(scores, dtype=torch.float64)
    if not 0 <= answer < len(row):
        raise ValueError(f"a reference must be a candidate from 0 to {len(row) - 1}, got {answer}")
    if row.isnan().any():
        raise ValueError("scores must not be NaN: a NaN has no rank")
    own = row[answer]
    others = torch.ones(len(row), dtype=torch.bool)
    others[list(known)] = False
    others[answer] = False
    row = row[others]
    return 1 + int((row > own).sum()) + int((row == own).sum()) / 2


class RankingMetric(evaluate.Metric):  # type: ignore[misc]
    """MRR, Hits@1, 3, 10 and mean rank of the true answer among all candidates, ties "realistic".

    The rank of the answer is 1 + the number of higher scores + half the number of equal ones. Add a row per
    query: ``predictions`` the scores of all candidates, ``references`` the index of the answer, ``known``
    the indices of other true answers, which are left out ("filtered"; an empty list filters nothing).

    Example:
        ``RankingMetric().compute(predictions=[[0.1, 0.9, 0.5]], references=[2], known=[[1]])`` gives
        ``{"mrr": 1.0, "hits@1": 1.0, "hits@3": 1.0, "hits@10": 1.0, "mean_rank": 1.0}``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Filtered ranking of the true answer among all candidates.",
            citation="Bordes et al., Translating Embeddings for Modeling Multi-relational Data, NIPS 2013",
            inputs_description="predictions: scores; references: answer; known: other true answers",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                    "known": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, known: Any) -> dict[str, float]:
        rows = zip(predictions, references, known, strict=True)
        ranks = torch.tensor([_realistic_rank(*row) for row in rows], dtype=torch.float64)
        return {name: float(value) for name, value in rank_metrics(ranks).items()}
