"""The fine-tuning step: which sizes a batch runs at, one forward for all of them, and what they learn from.

Task losses and the ties between sizes are MED's (croppable/med.py); this file adds the teachers, a cached
one over the outputs and the largest size over the hidden states. Every loss reads the same forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from croppable.core import Nested
from croppable.losses import kl_divergence
from croppable.med import MED

__all__ = ["FineTuning", "Schedule", "hidden_losses", "teacher_losses"]

Schedule = Literal["auto", "all", "pair", "random"]
ALL_UP_TO = 4  # with more sizes than this, running all of them costs more than it teaches


def teacher_losses(
    outputs_KBC: Tensor, teacher_BC: Tensor, *, regression: bool, temperature: float
) -> Tensor:
    """Compute how far each size is from a teacher.

    Classes: T^2 KL(softmax(teacher / T) || softmax(outputs / T)) (Hinton et al., arXiv 1503.02531).
    Regression: the squared difference.

    Args:
        outputs_KBC: Logits or predictions.
        teacher_BC: The teacher's.
        regression: Which of the two.
        temperature: T; larger is softer. Not used for regression.

    Returns:
        ``[K]``, the mean over the batch.
    """
    teacher = teacher_BC.detach().expand_as(outputs_KBC)
    if regression:
        return ((outputs_KBC - teacher) ** 2).mean((1, 2))
    return temperature**2 * kl_divergence(outputs_KBC / temperature, teacher / temperature).mean(1)


def hidden_losses(states: Sequence[Sequence[Tensor]], mask_BT: Tensor) -> Tensor:
    """Compute how far each smaller size's hidden states are from the same channels of the largest size.

    Mean squared error on the leading channels, over layers and real tokens; the largest is detached. After
    the importance reorder the leading channels are the ones that matter.

    Args:
        states: Per size, ascending, the hidden states ``[B, T, hidden]`` of every layer.
        mask_BT: 1 for real tokens.

    Returns:
        ``[K - 1]``; empty for one size.
    """
    losses = []
    for small in states[:-1]:
        per_layer = [
            F.mse_loss(s[mask_BT.bool()], full.detach()[..., : s.shape[-1]][mask_BT.bool()])
            for s, full in zip(small, states[-1], strict=True)
        ]
        losses.append(torch.stack(per_layer).mean())
    return torch.stack(losses) if losses else mask_BT.new_zeros(0, dtype=torch.float32)


class FineTuning(nn.Module):
    """Loss of a batch of labelled texts at several sizes, one forward each, one backward for all.

    Args:
        nested: The model at its sizes.
        objective: MED over ``[K, B, C]`` outputs; its task says whether this is regression.
        schedule: Which sizes a step runs: "all"; "pair", the largest and one random neighbouring pair;
            "random", one random size, which with a plain objective is training of random sub-networks
            (HAT, arXiv 2005.14187); "auto", all sizes up to four of them, else "pair".
        teacher: Weight of the distance to cached outputs of a teacher; 0 is off.
        temperature: Of the teacher's and the students' softmax.
        hidden: Weight of the hidden-state distillation from the largest size; 0 is off.

    Raises:
        ValueError: If the schedule is unknown, or hidden-state distillation lacks the largest size.
    """

    def __init__(
        self,
        nested: Nested,
        objective: MED,
        *,
        schedule: Schedule = "auto",
        teacher: float = 0.0,
        temperature: float = 1.0,
        hidden: float = 0.0,
    ) -> None:
        super().__init__()
        if schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {', '.join(get_args(Schedule))}, got {schedule!r}")
        if hidden and schedule == "random":
            raise ValueError("hidden-state distillation needs the largest size in every step: not 'random'")
        if schedule == "auto":
            schedule = "all" if len(nested.sizes) <= ALL_UP_TO else "pair"
        self.nested, self.objective, self.schedule = nested, objective, schedule
        self.teacher, self.temperature, self.hidden = teacher, temperature, hidden

    def choose(self) -> tuple[int, ...]:
        """Return the sizes of one step, from torch's global random numbers where there is a choice."""
        sizes = self.nested.sizes
        if self.schedule == "random":
            return (sizes[int(torch.randint(len(sizes), ()))],)
        if self.schedule == "all" or len(sizes) <= 2:
            return sizes
        first = int(torch.randint(len(sizes) - 1, ()))
        return tuple(sorted({*sizes[first : first + 2], sizes[-1]}))

    def forward(
        self, labels: Tensor, attention_mask: Tensor, teacher: Tensor | None = None, **inputs: Tensor
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            labels: Classes ``[B]`` int64, or numbers ``[B]`` for regression.
            attention_mask: ``[B, T]``.
            teacher: Cached outputs ``[B, C]``; needed if the teacher's weight is not 0.
            **inputs: Further inputs of the model, such as ``input_ids``.

        Returns:
            Scalars: "loss" and its parts.

        Raises:
            ValueError: If the teacher's outputs are missing.
        """
        if self.teacher and teacher is None:
            raise ValueError("a teacher weight needs the teacher's outputs in every batch ('teacher')")
        sizes = self.choose()
        wants_states = bool(self.hidden) and len(sizes) > 1
        each: list[Any] = self.nested.each(
            sizes, attention_mask=attention_mask, output_hidden_states=wants_states, **inputs
        )
        outputs_KBC = torch.stack([output.logits for output in each]).float()
        losses = self.objective.terms(outputs_KBC, labels, sizes)
        total = losses["loss"]
        if self.teacher and teacher is not None:
            regression = self.objective.task == "regression"
            per_size = teacher_losses(
                outputs_KBC, teacher, regression=regression, temperature=self.temperature
            )
            losses["teacher"] = self.teacher * per_size.mean()
            total = total + losses["teacher"]
        if wants_states:
            per_size = hidden_losses([output.hidden_states for output in each], attention_mask)
            losses["hidden"] = self.hidden * per_size.mean()
            total = total + losses["hidden"]
        return {**losses, "loss": total}
