"""Training a small model with a larger one as its teacher: what one nested run is compared with.

One step, `DistilledLinkPrediction`, for the training loop and every kind of negatives. Teacher and students
score the same candidates; the answers' column and the other columns are the hard labels, the teacher's
scores the soft ones. Smaller models without any training are croppable/kge/baselines.py's affair.

Shape suffixes: K sizes of the student, B queries, C candidates.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from croppable.kge.baselines import extract
from croppable.kge.model import KGEModel
from croppable.kge.objective import LinkPrediction
from croppable.losses import Task, example_losses, kl_divergence, mutual_huber
from croppable.med import MED, Mutual

__all__ = ["DistilledLinkPrediction", "SoftLabelWeights", "soft_losses"]

Kind = Literal["bkd", "dualde"]


def soft_losses(
    student_KBC: Tensor, teacher_KBC: Tensor, form: Mutual = "kl", temperature: float = 1.0
) -> Tensor:
    """Compute T^2 times the distance between a student's and its teacher's scores divided by T.

    The factor keeps the gradient's size as T grows (Hinton et al., arXiv 1503.02531, section 2).

    Args:
        student_KBC: Scores.
        teacher_KBC: Scores that broadcast with the student's; detach them to teach in one direction only.
        form: "kl": KL(teacher || student) over the candidates; "huber-sigmoid": Huber distance of sigma(s)
            (DualDE, arXiv 2009.05912, Eq. 4, with the sigma of its authors' code); "huber": of raw scores.
        temperature: T.

    Returns:
        ``[K, B]`` for "kl", else ``[K, B, C]``.
    """
    pair = (student_KBC / temperature, teacher_KBC / temperature)
    student, teacher = torch.broadcast_tensors(*pair)  # type: ignore[no-untyped-call]
    if form == "kl":
        return temperature**2 * kl_divergence(student, teacher)
    return temperature**2 * mutual_huber(student, teacher, sigmoid=form == "huber-sigmoid")


class SoftLabelWeights(nn.Module):
    """How much the soft label of each triple counts: DualDE's soft label evaluation (Eqs. 8 and 9).

    True triples: sigma(a (s + b)), the more the higher their giver scores them; others: 1 - sigma(a (s + b)).
    The hard label counts the rest. Under a softmax only the answer is evaluated, and s is the logit of its
    probability, so that at the start the weight is that probability.

    Args:
        task: "binary": one weight per triple; "multiclass": one per query.
        learnable: Train a and b, which start at 1 and 0, as the paper does. The gradient of a weight is soft
            minus hard loss, so that it grows wherever the hard loss is the larger one: fixed is our default.
    """

    def __init__(self, task: Task, *, learnable: bool = False) -> None:
        super().__init__()
        self.task: Task = task
        kinds = 2 if task == "binary" else 1  # of true triples, of others
        self.slope = nn.Parameter(torch.ones(kinds), learnable)
        self.shift = nn.Parameter(torch.zeros(kinds), learnable)

    def forward(self, scores_KBC: Tensor, true_KBC: Tensor) -> Tensor:
        """Return the weights in [0, 1], ``[K, B, C]``, or ``[K, B]`` for "multiclass".

        Args:
            scores_KBC: Scores of who gives the labels; taken as constants.
            true_KBC: Mask of the answers.
        """
        scores = scores_KBC.detach()
        if self.task == "binary":
            kind = (~true_KBC).long()
            trust = (self.slope[kind] * (scores + self.shift[kind])).sigmoid()
            return torch.where(true_KBC, trust, 1 - trust)
        others = scores.masked_fill(true_KBC, -torch.inf).logsumexp(-1)
        answers = scores.masked_fill(~true_KBC, 0).sum(-1)
        return (self.slope * (answers - others + self.shift)).sigmoid()


class DistilledLinkPrediction(nn.Module):
    """Loss of a batch for a student with a teacher; a training step like `LinkPrediction`.

    "bkd", basic knowledge distillation (Hinton et al., arXiv 1503.02531):
        L = L_task(student) + weight * D(student, teacher)
    A teacher assistant (Mirzadeh et al., arXiv 1902.03393) is the same loss, taught by the next larger
    student instead of by the largest model: a chain of such steps.

    "dualde" (Zhu et al., WSDM 2022, arXiv 2009.05912, Eqs. 4 to 15, without the angles and lengths that its
    authors' code leaves out as well), with p from `SoftLabelWeights` of the other's scores:
        L_student = sum of p * weight * D(student, teacher) + (1 - p) * L_hard(student)
    In the second stage, after ``frozen_steps``, the teacher is trained along with L_teacher, the same with
    the roles exchanged, plus N3 of its own. Each takes the other's scores as constants.

    D is `soft_losses`. Answers and other candidates are averaged each by itself as in `croppable.MED`; where
    the student's objective has self-adversarial negatives, the same weights average the soft losses.

    Args:
        student: The step of the student, of one size or several; sizes are averaged.
        teacher: A larger model; its full size teaches. It is copied, so that the caller's stays as it is.
        kind: "bkd" or "dualde".
        weight: Factor of the soft losses; 1 in DualDE.
        temperature: T of `soft_losses`; 1 in DualDE.
        form: Of `soft_losses`; None: "kl" for a student trained by softmax, else "huber-sigmoid".
        learnable: Whether DualDE's weights are trained, see `SoftLabelWeights`.
        frozen_steps: Length of DualDE's first stage, in training steps.

    Raises:
        ValueError: If the kind is unknown, a number is out of range, or the teacher is of another graph.
    """

    steps: Tensor

    def __init__(
        self,
        student: LinkPrediction,
        teacher: KGEModel,
        kind: Kind = "bkd",
        *,
        weight: float = 1.0,
        temperature: float = 1.0,
        form: Mutual | None = None,
        learnable: bool = False,
        frozen_steps: int = 0,
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if weight < 0 or temperature <= 0:
            raise ValueError(
                f"weight must not be negative and temperature positive, got {weight} and {temperature}"
            )
        task, adversarial = student.objective.task, student.objective.adversarial
        self.form: Mutual = form or ("kl" if task == "multiclass" else "huber-sigmoid")
        if kind == "dualde" and (self.form == "kl") != (task == "multiclass"):
            raise ValueError(
                f"dualde weighs hard and soft labels one against the other, so that both must be per query "
                f"(multiclass and kl) or per triple (binary and huber), got {task} and {self.form}"
            )
        _check_same_graph(student.model, teacher)
        alone = MED((teacher.size,), task=task, mutual=0, w1=0, w2=0, w3=0, adversarial=adversarial)
        self.student = student
        n3 = student.n3 if isinstance(student.n3, int | float) else student.n3[-1]
        self.teacher = LinkPrediction(
            extract(teacher, (teacher.size,)), alone, n3=n3, logq_correction=student.logq_correction
        )
        self.teacher.model.requires_grad_(kind == "dualde")
        self.kind: Kind = kind
        self.weight, self.temperature, self.frozen_steps = weight, temperature, frozen_steps
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # kept in training states
        if kind == "dualde":
            self.trust_in_teacher = SoftLabelWeights(task, learnable=learnable)
            self.trust_in_student = SoftLabelWeights(task, learnable=learnable)

    @property
    def model(self) -> KGEModel:
        """The student's embedding model."""
        return self.student.model

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Compute the losses of a batch; arguments as in `LinkPrediction.forward`.

        Returns:
            Scalars: "loss" and its parts; those of the teacher are called "teacher_...".
        """
        together = self.kind == "dualde" and int(self.steps) >= self.frozen_steps
        if self.training:
            self.steps += 1
        student_KBC, target, student_rows = self.student.scores(**batch)
        with torch.set_grad_enabled(together and torch.is_grad_enabled()):
            teacher_KBC, _, teacher_rows = self.teacher.scores(**batch)
        student_KBC, teacher_KBC = student_KBC.float(), teacher_KBC.float()
        if self.kind == "bkd":
            losses = self._basic(student_KBC, teacher_KBC, target)
            return self.student.penalised(losses, *student_rows)
        losses = self._dual(self.student, student_KBC, teacher_KBC, self.trust_in_teacher, target)
        losses = self.student.penalised(losses, *student_rows)
        if not together:
            return losses
        theirs = self._dual(self.teacher, teacher_KBC, student_KBC, self.trust_in_student, target)
        theirs = self.teacher.penalised(theirs, *teacher_rows)
        named = {f"teacher_{name}": value for name, value in theirs.items()}
        return {**losses, **named, "loss": losses["loss"] + theirs["loss"]}

    def _basic(self, student_KBC: Tensor, teacher_KBC: Tensor, target: Tensor) -> dict[str, Tensor]:
        losses = self.student.objective.terms(student_KBC, target)
        soft = soft_losses(student_KBC, teacher_KBC, self.form, self.temperature)
        total = self.weight * self._average(soft, student_KBC, target)
        return {**losses, "soft": total, "loss": losses["loss"] + total}

    def _dual(
        self, own: LinkPrediction, own_KBC: Tensor, other_KBC: Tensor, trust: SoftLabelWeights, target: Tensor
    ) -> dict[str, Tensor]:
        """Compute the loss of one of the two, with the other as its teacher."""
        other_KBC = other_KBC.detach()
        weights = trust(other_KBC, _true_mask(other_KBC, target))
        soft = weights * soft_losses(own_KBC, other_KBC, self.form, self.temperature)
        hard = (1 - weights) * example_losses(own_KBC, target, own.objective.task)
        total = self.weight * self._average(soft, own_KBC, target)
        kept = self._average(hard, own_KBC, target)
        return {"soft": total, "hard": kept, "loss": total + kept}

    def _average(self, losses: Tensor, scores_KBC: Tensor, target: Tensor) -> Tensor:
        """Average over sizes and queries; of losses ``[K, B, C]`` answers and the others each by itself.

        With w2 = 0 these are the weights of `croppable.MED`.
        """
        if losses.ndim == 2:
            return losses.mean()
        adversarial = self.student.objective.adversarial
        true = _true_mask(scores_KBC, target)
        # At temperature 0 all others of a query count alike.
        others = (adversarial * scores_KBC.detach()).masked_fill(true, -torch.inf).softmax(-1)
        return (torch.where(true, 1.0, others) * losses).sum() / losses[..., 0].numel()


def _true_mask(scores_KBC: Tensor, target: Tensor) -> Tensor:
    """Mark the answers' column, ``[1, B, C]``."""
    columns = torch.arange(scores_KBC.shape[-1], device=scores_KBC.device)
    return (columns == target[:, None])[None]


def _check_same_graph(student: KGEModel, teacher: KGEModel) -> None:
    ours, theirs = ((m.num_entities, m.num_relations) for m in (student, teacher))
    if ours != theirs:
        raise ValueError(
            f"the teacher must know the same graph of {ours[0]} entities and {ours[1]} relations, but it has "
            f"{theirs[0]} and {theirs[1]}: train it on this graph"
        )
    if student.reciprocal and not teacher.reciprocal:
        raise ValueError(
            "a reciprocal student asks for both sides in one batch, which a teacher that is not reciprocal "
            "cannot answer: build both with the same reciprocal"
        )
