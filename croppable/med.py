"""MED: mutual learning, evolutionary improvement and dynamic loss weights on a leading axis of sizes.

Paper: "Croppable Knowledge Graph Embedding", arXiv 2407.02779 (Eqs. 3-8). It takes outputs ``[K, B, C]`` (K
sizes ascending, B examples, C classes or candidates) and knows nothing of models: link prediction has
candidates in C, classification has classes, regression has C = 1. The losses themselves are
croppable/losses.py. A weight of zero switches a mechanism off; with all of them off the objective is the
plain nested sum (Matryoshka).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from croppable.losses import (
    Task,
    dynamic_weights,
    example_losses,
    kl_divergence,
    mutual_huber,
    prior_error,
    true_column,
    true_mask,
)

__all__ = ["MED"]

Mutual = Literal["huber", "huber-sigmoid", "kl"]
Evolution = Literal["linear", "reciprocal"]
Teacher = Literal["largest", "ensemble"]

SMALLEST_SIGMOID = 1e-4  # keeps exp(w1 / sigma(s)) finite: the paper's form is singular at sigma = 0


class MED(nn.Module):
    """The MED objective, and by its weights every ablation of it down to the plain nested sum.

    L = mutual * sum_{i>=2} L_ML(i-1, i) + sum_i c_i exp(w3 d_i / d_n) L_EI(i) + distill * sum_{i<n} KL(n, i)
    (paper, Eq. 8; the last term is not in the paper: in-place distillation from the detached largest size, or
    from all sizes together). L_EI(i) is the task loss with example weights that grow with the error of size
    i-1 and sum to one over the batch (binary: over positives and over negatives apart; Eqs. 4-6); size 1
    weighs uniformly.

    Args:
        sizes: Ascending sizes, in the order of the outputs' leading axis.
        task: "binary" (one positive column among negatives), "multiclass", or "regression".
        mutual: Weight of mutual learning; 0 is off.
        mutual_form: "huber" on raw outputs, "huber-sigmoid", or "kl" over the candidates.
        mutual_reduction: "mean" over examples and candidates, or "sum" as the paper's formula is written.
        teach_down: Detach the larger neighbour in mutual learning, so that only the smaller one learns.
        w1: Strength of the re-weighting of positives (or of whole examples); 0 is off.
        w2: Strength of the re-weighting of negatives (binary only); 0 is off.
        w3: Exponent of the dynamic loss weight; 0 weighs sizes equally.
        learnable: Train w1, w2 and w3, as in the paper.
        evolution_form: "linear": weights softmax(w * error); "reciprocal": positives softmax(w1 / sigma(s))
            as in the paper, with sigma inside because scores may be negative.
        adversarial: Temperature of self-adversarial negative weights (RotatE, arXiv 1902.10197, Eq. 5),
            normalised per query; 0 is off.
        distill: Weight of in-place distillation; 0 is off. Several: the weight of every size as a student.
        teacher: Who teaches there, detached: the "largest" size all others, or the "ensemble" of all sizes,
            the softmax of their mean log-probabilities (Lan et al., arXiv 1806.04606, with equal gates),
            every one of them.
        size_weights: Constant factor c_i per size; 1 for all if omitted.
        reduction: "mean" divides by K, so that learning rates carry over to other numbers of sizes; "sum"
            as in the paper.

    Raises:
        ValueError: If an option is unknown, or weights and sizes differ in number.
    """

    _fractions: Tensor
    _size_weights: Tensor
    _student_weights: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        task: Task = "binary",
        mutual: float = 1.0,
        mutual_form: Mutual = "huber-sigmoid",
        mutual_reduction: Literal["mean", "sum"] = "mean",
        teach_down: bool = False,
        w1: float = 1.0,
        w2: float = 1.0,
        w3: float = 1.0,
        learnable: bool = False,
        evolution_form: Evolution = "linear",
        adversarial: float = 0.0,
        distill: float | Sequence[float] = 0.0,
        teacher: Teacher = "largest",
        size_weights: Sequence[float] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        _check_option("task", task, get_args(Task))
        _check_option("mutual_form", mutual_form, get_args(Mutual))
        _check_option("evolution_form", evolution_form, get_args(Evolution))
        _check_option("teacher", teacher, get_args(Teacher))
        _check_option("reduction", reduction, ("mean", "sum"))
        _check_option("mutual_reduction", mutual_reduction, ("mean", "sum"))
        self.sizes = tuple(sizes)
        weights = (1.0,) * len(self.sizes) if size_weights is None else size_weights
        self.task, self.mutual, self.mutual_form = task, mutual, mutual_form
        self.mutual_reduction, self.teach_down = mutual_reduction, teach_down
        self.evolution_form, self.adversarial, self.distill = evolution_form, adversarial, distill
        students = (distill,) * len(self.sizes) if isinstance(distill, int | float) else distill
        self.distills = any(students)
        self.teacher, self.reduction = teacher, reduction
        self.w1, self.w2, self.w3 = (nn.Parameter(torch.tensor(float(w)), learnable) for w in (w1, w2, w3))
        # Buffers, as a tensor that is made of numbers in a step waits for the device.
        fractions = [size / self.sizes[-1] for size in self.sizes]
        self.register_buffer("_fractions", torch.tensor(fractions), persistent=False)
        self.register_buffer("_size_weights", _of_sizes("size_weights", weights, sizes), persistent=False)
        self.register_buffer("_student_weights", _of_sizes("distill", students, sizes), persistent=False)
        self.w2.requires_grad_(learnable and task == "binary")  # data parallelism wants no idle parameter

    def forward(self, outputs_KBC: Tensor, targets_B: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Return the scalar loss; see `terms`."""
        return self.terms(outputs_KBC, targets_B, sizes)["loss"]

    def terms(
        self, outputs_KBC: Tensor, targets_B: Tensor, sizes: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Return the loss and its parts.

        Args:
            outputs_KBC: Outputs at the sizes, ascending.
            targets_B: Index of the true column, or the real target for regression.
            sizes: Which sizes the leading axis holds, when only some were evaluated.

        Returns:
            Scalars "loss", "evolution", "mutual", "distill", and w1, w2, w3 where they are learnable.

        Raises:
            ValueError: If the leading axis and the sizes differ in number, or a shape does not fit the task.
        """
        sizes = self.sizes if sizes is None else tuple(sizes)
        self._check_shapes(outputs_KBC.shape, targets_B.shape, sizes)
        outputs = outputs_KBC.float()
        improvement = self._improvement(outputs, targets_B)
        distilled = self._distillation(outputs, sizes)
        return self.reduce(improvement, self._mutual(outputs, sizes), distilled, sizes)

    def reduce(
        self, improvement_K: Tensor, mutual: Tensor, distill: Tensor, sizes: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Weigh and add up the parts of the loss; for those who have them by other means.

        Args:
            improvement_K: L_EI of every size.
            mutual: Mutual learning, weighted and summed over pairs of neighbours.
            distill: In-place distillation, weighted and summed over sizes.
            sizes: As in `terms`.

        Returns:
            As `terms`.
        """
        sizes = self.sizes if sizes is None else tuple(sizes)
        factors = dynamic_weights(self._at(sizes, self._fractions), self.w3)
        per_size = improvement_K * factors * self._at(sizes, self._size_weights)
        count = len(sizes) if self.reduction == "mean" else 1
        parts = {
            "evolution": per_size.sum() / count,
            "mutual": mutual / count,
            "distill": distill / count,
        }
        loss = parts["evolution"] + parts["mutual"] + parts["distill"]
        learned = {n: w.detach() for n, w in self.named_parameters() if w.requires_grad}
        return {"loss": loss, **parts, **learned}

    def _check_shapes(self, outputs: torch.Size, targets: torch.Size, sizes: tuple[int, ...]) -> None:
        columns = 1 if self.task == "regression" else "C"
        if len(outputs) != 3 or outputs[0] != len(sizes) or columns not in ("C", outputs[2]):
            raise ValueError(f"outputs must be [K={len(sizes)}, B, {columns}], got {tuple(outputs)}")
        if targets != outputs[1:2]:
            raise ValueError(f"targets must be [B={outputs[1]}], one per example, got {tuple(targets)}")

    def extra_repr(self) -> str:
        """Show the switches."""
        return f"sizes={self.sizes}, task={self.task}, mutual={self.mutual}, distill={self.distill}"

    def _improvement(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L_EI of every size, ``[K]``."""
        losses = example_losses(outputs, targets, self.task)
        if self.task == "binary":
            return self._binary_improvement(outputs, losses, targets)
        return self.improve(losses)

    def improve(self, losses_KB: Tensor) -> Tensor:
        """Compute L_EI of every size from the loss of every example, but for the binary task.

        Args:
            losses_KB: From `example_losses`.

        Returns:
            ``[K]``.
        """
        first = torch.full_like(losses_KB[:1], 1 / losses_KB.shape[1])
        errors = -torch.expm1(-losses_KB[:-1].detach())  # as `prior_error`
        weights = torch.cat([first, (self.w1 * errors).softmax(-1)])
        return (weights * losses_KB).sum(-1)

    def _binary_improvement(self, outputs: Tensor, losses: Tensor, targets: Tensor) -> Tensor:
        sizes, batch, columns = outputs.shape
        errors = prior_error(outputs, targets, self.task)
        errors = torch.cat([torch.zeros_like(errors[:1]), errors[:-1]])  # size 1 has nobody before it
        positive_error = true_column(errors, targets)
        if self.evolution_form == "reciprocal":
            truth = (1 - positive_error).clamp_min(SMALLEST_SIGMOID)
            positive = (self.w1 / truth).softmax(-1)
        else:
            positive = (self.w1 * positive_error).softmax(-1)
        logits = (self.w2 * errors).masked_fill(true_mask(outputs, targets), -torch.inf)
        if self.adversarial:
            negative = (logits + self.adversarial * outputs.detach()).softmax(-1) / batch
        else:
            negative = logits.reshape(sizes, -1).softmax(-1).reshape(sizes, batch, columns)
        return (positive * true_column(losses, targets)).sum(-1) + (negative * losses).sum((-1, -2))

    def _mutual(self, outputs: Tensor, sizes: Sequence[int]) -> Tensor:
        if not self.mutual or len(sizes) < 2:
            return outputs.new_zeros(())
        smaller, larger = outputs[:-1], outputs[1:]
        larger = larger.detach() if self.teach_down else larger
        if self.mutual_form == "kl":
            losses = kl_divergence(smaller, larger)
        else:
            losses = mutual_huber(smaller, larger, sigmoid=self.mutual_form == "huber-sigmoid")
        total = losses.sum() if self.mutual_reduction == "sum" else losses.flatten(1).mean(1).sum()
        return self.mutual * total

    def _distillation(self, outputs: Tensor, sizes: Sequence[int]) -> Tensor:
        if not self.distills or len(outputs) < 2:
            return outputs.new_zeros(())
        if self.teacher == "ensemble":
            distances = self._from_all(outputs).mean(1)
        else:
            students, knowledge = outputs[:-1], outputs[-1:].detach().expand_as(outputs[:-1])
            distance = mutual_huber if self.task == "regression" else kl_divergence
            distances = distance(students, knowledge).flatten(1).mean(1)
        return self.distillation(distances, sizes)

    def distillation(self, distances: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Weigh the distances of students to their teacher, ``[K]`` or of all but the largest, and add up."""
        sizes = self.sizes if sizes is None else sizes
        return (self._at(sizes[: len(distances)], self._student_weights) * distances).sum()

    def _at(self, sizes: Sequence[int], values_K: Tensor) -> Tensor:
        """Take the values of some of the sizes."""
        places = [self.sizes.index(size) for size in sizes]
        return values_K if len(places) == len(values_K) else torch.stack([values_K[p] for p in places])

    def _from_all(self, outputs: Tensor) -> Tensor:
        """Distance of every size to the mean of all, ``[K, B]``."""
        if self.task == "regression":
            return mutual_huber(outputs, outputs.detach().mean(0).expand_as(outputs)).squeeze(-1)
        # kl_divergence(outputs, log_p) with one teacher for all sizes and no tensor of K of its terms
        log_p = outputs.detach().log_softmax(-1).mean(0).log_softmax(-1)
        p = log_p.exp()
        return (p * log_p).sum(-1) - torch.einsum("bc,kbc->kb", p, outputs) + outputs.logsumexp(-1)


def _of_sizes(name: str, values: Sequence[float], sizes: Sequence[int]) -> Tensor:
    if len(values) != len(sizes):
        raise ValueError(f"{name} must have one value per size, got {tuple(values)} for {tuple(sizes)}")
    return torch.tensor(values, dtype=torch.float32)


def _check_option(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
