"""What the compiled kernels of a training step are asked for, the same for every batch.

The file needs numba (extra "kge"); croppable/kge/compiled_batch.py runs the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from croppable.kge.loss_kernels import LINEAR, NO_HUBER, RAW_HUBER, RECIPROCAL, SIGMOID_HUBER
from croppable.kge.ranking_compiled import STEPS
from croppable.kge.ranking_kernels import SQUARED
from croppable.kge.scores import Score
from croppable.kge.usual_kernels import STEEPEST
from croppable.kge.vector_code import SQUARE
from croppable.med import MED

__all__ = ["Judging", "Plan"]


class Judging(NamedTuple):
    """Arguments that `judge` and `judge_gradients` share; see there."""

    sign: np.float32
    w: np.float32
    form: int
    temperature: np.float32
    huber: int


@dataclass(frozen=True)
class Plan:
    """What stays the same from batch to batch.

    Attributes:
        score: A score that compiled_step.supports accepts.
        sizes: Ascending, all of them.
        objective: An objective that compiled_step.supports accepts.
        sparse: Whether the entity table's gradient holds touched rows only.
    """

    score: Score
    sizes: tuple[int, ...]
    objective: MED
    sparse: bool = False

    def usual(self, fixed: bool, scores: int, w1: Tensor, w2: Tensor) -> bool:
        """Whether usual_kernels.py computes what is asked, which is faster than loss_kernels.py.

        Args:
            fixed: Whether scores are needed no more once they are judged.
            scores: The fewest that are judged together.
            w1: Strength of evolutionary improvement for targets.
            w2: The same for negatives.
        """
        objective = self.objective
        return (
            fixed
            and scores >= SQUARE
            and self.kind != SQUARED
            and not objective.adversarial
            and objective.evolution_form == "linear"
            and not (objective.mutual and objective.mutual_form == "huber")
            and max(abs(float(w1)), abs(float(w2))) <= STEEPEST
        )

    @property
    def kind(self) -> int:
        """Which term the kernels sum."""
        return STEPS[type(self.score)]

    def judging(self, positive: bool, w1: Tensor, w2: Tensor) -> Judging:
        """Return how positives, or negatives, are judged."""
        objective = self.objective
        forms = {"huber": RAW_HUBER, "huber-sigmoid": SIGMOID_HUBER}
        huber = forms[objective.mutual_form] if objective.mutual else NO_HUBER
        if positive:
            form = RECIPROCAL if objective.evolution_form == "reciprocal" else LINEAR
            return Judging(np.float32(-1), np.float32(float(w1)), form, np.float32(0), huber)
        temperature = np.float32(objective.adversarial)
        return Judging(np.float32(1), np.float32(float(w2)), LINEAR, temperature, huber)
