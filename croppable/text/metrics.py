"""The GLUE metrics, with the keys of the Hub's ``glue`` metric and without the network.

``evaluate.load("glue", "mrpc")`` downloads its script; a direct subclass of ``evaluate.Metric`` needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

__all__ = ["GLUE_METRICS", "GlueMetric"]

GLUE_METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews_correlation",),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearmanr"),
    "mnli": ("accuracy",),
    "mnli_matched": ("accuracy",),
    "mnli_mismatched": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
    "hans": ("accuracy",),
}


def _accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    return float((predicted == true).mean())


def _f1(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(f1_score(true, predicted, zero_division=0.0))


def _matthews(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(matthews_corrcoef(true, predicted))


def _correlation(function: Any, predicted: np.ndarray, true: np.ndarray) -> float:
    # Undefined for constants; a model that always says the same has learnt no correlation.
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return 0.0
    return float(function(predicted, true)[0])


_FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": lambda p, t: _correlation(pearsonr, p, t),
    "spearmanr": lambda p, t: _correlation(spearmanr, p, t),
}


class GlueMetric(evaluate.Metric):  # type: ignore[misc]
    """The metrics of one GLUE task.

    ``GlueMetric("mrpc").compute(predictions=[0, 1], references=[0, 1])`` gives
    ``{"accuracy": 1.0, "f1": 1.0}``. Correlations of a constant are 0, where the Hub's are NaN.

    Args:
        config_name: A key of `GLUE_METRICS`.
        **kwargs: For ``evaluate.Metric``.

    Raises:
        ValueError: If the task is unknown.
    """

    def __init__(self, config_name: str, **kwargs: Any) -> None:
        if config_name not in GLUE_METRICS:
            raise ValueError(f"the task must be one of {', '.join(GLUE_METRICS)}, got {config_name!r}")
        super().__init__(config_name=config_name, **{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        kind = "float32" if self.config_name == "stsb" else "int64"
        return evaluate.MetricInfo(
            description=f"The metrics of GLUE's {self.config_name}.",
            citation="Wang et al., GLUE, arXiv 1804.07461",
            inputs_description="predictions and references: one number per example",
            features=datasets.Features(
                {"predictions": datasets.Value(kind), "references": datasets.Value(kind)}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predicted, true = np.asarray(predictions), np.asarray(references)
        return {name: _FUNCTIONS[name](predicted, true) for name in GLUE_METRICS[self.config_name]}
