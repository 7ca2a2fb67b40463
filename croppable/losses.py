"""Losses of outputs at several sizes, element by element, and the weights between them.

Paper: "Croppable Knowledge Graph Embedding", arXiv 2407.02779 (Eqs. 3-8). Outputs are ``[K, B, C]`` (K sizes
ascending, B examples, C classes or candidates) of any model. `croppable.med.MED` reduces what these give.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Task", "dynamic_weights", "example_losses", "kl_divergence", "mutual_huber", "prior_error",
           "true_column", "true_mask"]  # fmt: skip

Task = Literal["binary", "multiclass", "regression"]


def _check_same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"both arguments must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def mutual_huber(smaller: Tensor, larger: Tensor, delta: float = 1.0, *, sigmoid: bool = False) -> Tensor:
    """Compute the Huber distance between neighbouring sizes (paper, Eq. 3; gradient to both sides).

    Args:
        smaller: Outputs of the smaller size, any shape.
        larger: Outputs of its larger neighbour, the same shape.
        delta: Where the loss turns from quadratic to linear; 1 in the paper.
        sigmoid: Compare sigma(s) instead of raw scores, so that the scale of scores, which grows with the
            size, is not mistaken for a difference in knowledge.

    Returns:
        The element-wise loss, the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same_shape(smaller, larger)
    if sigmoid:
        smaller, larger = smaller.sigmoid(), larger.sigmoid()
    return F.huber_loss(smaller, larger, reduction="none", delta=delta)


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute KL(softmax(teacher) || softmax(student)) over the last axis.

    The softmax relative of `mutual_huber`: invariant to a shift of all scores of an example.

    Args:
        student: Logits ``[..., C]``.
        teacher: Logits ``[..., C]``; detach them to teach in one direction only.

    Returns:
        ``[...]``, non-negative.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same_shape(student, teacher)
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def dynamic_weights(fractions_K: Tensor, w3: Tensor) -> Tensor:
    """Compute exp(w3 * d_i / d_n) for every size (paper, Eq. 7).

    Args:
        fractions_K: d_i / d_n of every size.
        w3: Scalar. Its gradient through the loss is never negative, so a learnable w3 only falls.

    Returns:
        ``[K]``.
    """
    return torch.exp(w3 * fractions_K)


def example_losses(outputs_KBC: Tensor, targets_B: Tensor, task: Task) -> Tensor:
    """Compute the unweighted task loss of every example at every size.

    Binary: softplus(-s) for the true column, softplus(s) for each other, element-wise. Multiclass:
    cross-entropy. Regression: squared error of the only column.

    Args:
        outputs_KBC: Scores, logits or predictions.
        targets_B: Index of the true column (int64), or the real target for regression.
        task: Which of the three.

    Returns:
        ``[K, B, C]`` for binary, else ``[K, B]``.
    """
    if task == "binary":
        return F.softplus(torch.where(true_mask(outputs_KBC, targets_B), -outputs_KBC, outputs_KBC))
    if task == "multiclass":
        return outputs_KBC.logsumexp(-1) - true_column(outputs_KBC, targets_B)
    return (outputs_KBC.squeeze(-1) - targets_B) ** 2


def prior_error(outputs_KBC: Tensor, targets_B: Tensor, task: Task) -> Tensor:
    """Compute how wrong each size is on each example, in [0, 1], without gradient.

    Binary: 1 - sigma(s) for the true column and sigma(s) for the others. Multiclass: 1 - p(true).
    Regression: 1 - exp(-squared error).

    Returns:
        The shape of `example_losses`.
    """
    outputs = outputs_KBC.detach()
    if task == "binary":
        return torch.where(true_mask(outputs, targets_B), -outputs, outputs).sigmoid()
    return -torch.expm1(-example_losses(outputs, targets_B, task))


def true_mask(outputs_KBC: Tensor, targets_B: Tensor) -> Tensor:
    """Mark the true column of every example, ``[B, C]``."""
    columns = torch.arange(outputs_KBC.shape[-1], device=outputs_KBC.device)
    return columns == targets_B[:, None]


def true_column(outputs_KBC: Tensor, targets_B: Tensor) -> Tensor:
    """Take the true column of every example, ``[K, B]``."""
    index = targets_B.expand(outputs_KBC.shape[0], -1).unsqueeze(-1)
    return outputs_KBC.gather(-1, index).squeeze(-1)
