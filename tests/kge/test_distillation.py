"""Distillation as a training step: losses by hand, who learns from whom, and DualDE's two stages."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from croppable.core import named_tensors
from croppable.kge.baselines import extract
from croppable.kge.distillation import DistilledLinkPrediction, SoftLabelWeights, soft_losses
from croppable.kge.model import KGEModel
from croppable.kge.n3 import segment_n3
from croppable.kge.objective import LinkPrediction
from croppable.med import MED

ANCHOR, RELATION, TARGET = torch.tensor([0, 5, 2]), torch.tensor([0, 2, 1]), torch.tensor([4, 1, 3])
NEGATIVES = {
    "all": None,
    "shared": torch.tensor([0, 2, 5, 5, 3]),  # 3 is the last query's answer
    "uniform": torch.tensor([[1, 0], [5, 4], [0, 1]]),
}
TASKS = ["binary", "multiclass"]


def model_of(sizes: tuple[int, ...], score: str = "complex", seed: int = 0, **options: Any) -> KGEModel:
    torch.manual_seed(seed)
    model = KGEModel(6, 3, sizes, score, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def student_of(
    model: KGEModel, task: Any = "multiclass", adversarial: float = 0.0, **options: Any
) -> LinkPrediction:
    off = {"mutual": 0.0, "w1": 0.0, "w2": 0.0, "w3": 0.0, "adversarial": adversarial}
    return LinkPrediction(model, MED(model.sizes, task=task, **off), **options)


def batch(negatives: str = "all", side: Any = "tail") -> dict[str, Any]:
    return {"anchor": ANCHOR, "relation": RELATION, "target": TARGET, "negatives": NEGATIVES[negatives],
            "side": side}  # fmt: skip


def scores_of(model: KGEModel, negatives: str) -> tuple[Tensor, Tensor]:
    """Scores of the candidates ``[B, C]`` and the mask of the answers, for one query after another."""
    rows, masks = [], []
    for i in range(3):
        every = model(ANCHOR[i : i + 1], RELATION[i : i + 1])[0]
        ids = NEGATIVES[negatives]
        if ids is None:
            rows.append(every)
            masks.append(torch.arange(6) == TARGET[i])
        else:
            own = ids if ids.ndim == 1 else ids[i]
            others = torch.where(own == TARGET[i], -1e4, every[own])
            rows.append(torch.cat([every[TARGET[i]][None], others]))
            masks.append(torch.arange(len(own) + 1) == 0)
    return torch.stack(rows), torch.stack(masks)


def averaged(losses: Tensor, mask: Tensor) -> Tensor:
    """The mean over answers plus the mean over the others."""
    return losses[mask].mean() + losses[~mask].mean()


# -------------------------------------------------------------------------------------------- soft losses


def test_soft_losses_by_hand() -> None:
    student, teacher = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[2.0, 1.0]]])
    p, q = torch.tensor([2.0, 1.0]).softmax(0), torch.tensor([0.0, 1.0]).softmax(0)
    torch.testing.assert_close(soft_losses(student, teacher)[0, 0], (p * (p / q).log()).sum())
    assert soft_losses(student, teacher, "huber").tolist() == [[[1.5, 0.0]]]
    difference = 1 / (1 + math.exp(-2)) - 0.5
    assert soft_losses(student, teacher, "huber-sigmoid")[0, 0, 0].item() == pytest.approx(difference**2 / 2)


@pytest.mark.parametrize("form", ["kl", "huber-sigmoid"])
def test_a_temperature_divides_scores_and_multiplies_by_its_square(form: Any) -> None:
    student, teacher = torch.randn(1, 3, 5), torch.randn(1, 3, 5)
    expected = 9 * soft_losses(student / 3, teacher / 3, form)
    torch.testing.assert_close(soft_losses(student, teacher, form, 3.0), expected)


@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_the_gradient_keeps_its_size_at_high_temperatures(temperature: float) -> None:
    student = (0.01 * torch.randn(1, 3, 5)).requires_grad_()
    teacher = 0.01 * torch.randn(1, 3, 5)
    soft_losses(student, teacher, "kl", temperature).sum().backward()
    centred = (student - teacher) - (student - teacher).mean(-1, keepdim=True)
    torch.testing.assert_close(student.grad, centred.detach() / 5, atol=2e-4, rtol=0.02)


# --------------------------------------------------------------------------------------------------- BKD


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_a_student_like_its_teacher_learns_nothing_from_it_whatever_corrects_the_pool(negatives: str) -> None:
    model = model_of((2,))
    step = DistilledLinkPrediction(student_of(model, logq_correction=True), model)
    assert step(**batch(negatives))["soft"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_bkd_is_the_task_loss_plus_the_distance_on_the_same_candidates(task: Any, negatives: str) -> None:
    teacher = model_of((5,), seed=1)
    student = student_of(model_of((2,)), task)
    step = DistilledLinkPrediction(student, teacher, weight=0.7, temperature=2.0)
    losses = step(**batch(negatives))
    own, mask = scores_of(student.model, negatives)
    soft = soft_losses(own[None], scores_of(teacher, negatives)[0][None],
                       "kl" if task == "multiclass" else "huber-sigmoid", 2.0)[0]  # fmt: skip
    soft = soft.mean() if task == "multiclass" else averaged(soft, mask)
    torch.testing.assert_close(losses["soft"], 0.7 * soft)
    torch.testing.assert_close(losses["loss"], student(**batch(negatives))["loss"] + 0.7 * soft)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(task: Any, negatives: str) -> None:
    model = model_of((4,))
    step = DistilledLinkPrediction(student_of(model, task), model, temperature=2.0)
    soft = step(**batch(negatives))["soft"]
    assert soft.item() == pytest.approx(0, abs=1e-6)
    soft.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), atol=1e-5, rtol=0)


def test_self_adversarial_weights_average_the_soft_losses_too() -> None:
    teacher, model = model_of((5,), seed=1), model_of((2,))
    step = DistilledLinkPrediction(student_of(model, "binary", adversarial=0.5), teacher)
    (own, mask), (theirs, _) = scores_of(model, "uniform"), scores_of(teacher, "uniform")
    soft = F.huber_loss(own.sigmoid(), theirs.sigmoid(), reduction="none")
    weights = (0.5 * own[:, 1:]).softmax(-1)
    expected = soft[mask].mean() + (weights * soft[:, 1:]).sum(-1).mean()
    torch.testing.assert_close(step(**batch("uniform"))["soft"], expected)


def test_the_teacher_is_a_copy_of_the_full_size_that_bkd_never_changes() -> None:
    teacher = model_of((2, 5), seed=1, calibration="affine")
    step = DistilledLinkPrediction(student_of(model_of((2,)), n3=0.1), teacher)
    assert step.teacher.model.sizes == (5,)
    before = {name: tensor.clone() for name, tensor in named_tensors(teacher)}
    assert not [p for p in step.teacher.parameters() if p.requires_grad]
    train(step, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(teacher))
    assert torch.equal(step.teacher.model.entity, teacher.entity)
    assert torch.equal(step.teacher.model(ANCHOR, RELATION), teacher(ANCHOR, RELATION))


def test_n3_of_the_student_is_kept() -> None:
    step = DistilledLinkPrediction(student_of(model_of((2,)), n3=0.3), model_of((5,), seed=1))
    losses = step(**batch())
    torch.testing.assert_close(losses["n3"], step.student(**batch())["n3"])
    torch.testing.assert_close(losses["loss"], losses["n3"] + losses["soft"] + losses["evolution"])


def test_a_student_of_several_sizes_learns_at_each_of_them() -> None:
    teacher, model = model_of((5,), seed=1), model_of((1, 2, 4))
    alone = [
        DistilledLinkPrediction(student_of(small), teacher)(**batch())["loss"]
        for small in (extract(model, (size,)) for size in model.sizes)
    ]
    loss = DistilledLinkPrediction(student_of(model), teacher)(**batch())["loss"]
    torch.testing.assert_close(loss, torch.stack(alone).mean())


def test_reciprocal_models_take_batches_of_both_sides() -> None:
    teacher = model_of((5,), seed=1, reciprocal=True)
    model = model_of((2,), reciprocal=True)
    side = torch.tensor([True, False, True])
    soft = DistilledLinkPrediction(student_of(model), teacher)(**batch(side=side))["soft"]
    own, theirs = (m(ANCHOR, RELATION, None, side)[None] for m in (model, teacher))
    torch.testing.assert_close(soft, soft_losses(own, theirs).mean())


# ------------------------------------------------------------------------------------------------ DualDE


def test_soft_label_weights_by_hand_and_in_bounds() -> None:
    scores = torch.tensor([[[2.0, -1.0, 40.0], [0.5, -40.0, 0.0]]])
    true = torch.tensor([[[True, False, False], [True, False, False]]])
    binary = SoftLabelWeights("binary")
    sigma = torch.tensor([2.0, -1.0, 40.0, 0.5, -40.0, 0.0]).sigmoid().reshape(1, 2, 3)
    expected = torch.where(true, sigma, 1 - sigma)
    torch.testing.assert_close(binary(scores, true), expected)
    assert binary(scores, true)[0, 0, 0].item() == pytest.approx(1 / (1 + math.exp(-2)))
    multiclass = SoftLabelWeights("multiclass")
    found = multiclass(scores, true)
    torch.testing.assert_close(found, scores.softmax(-1)[..., 0])
    for weights in (found, binary(scores, true)):
        assert 0 <= weights.min() <= weights.max() <= 1


def test_soft_label_weights_have_a_slope_and_a_shift_for_each_kind() -> None:
    weights = SoftLabelWeights("binary", learnable=True)
    assert all(parameter.requires_grad for parameter in weights.parameters())
    assert not any(parameter.requires_grad for parameter in SoftLabelWeights("binary").parameters())
    with torch.no_grad():
        weights.slope.copy_(torch.tensor([2.0, 3.0]))
        weights.shift.copy_(torch.tensor([-1.0, 0.5]))
    found = weights(torch.tensor([[[0.3, -0.2]]]), torch.tensor([[[True, False]]]))
    expected = torch.tensor([[[2 * (0.3 - 1), 3 * (-0.2 + 0.5)]]]).sigmoid()
    torch.testing.assert_close(found, torch.stack([expected[..., 0], 1 - expected[..., 1]], -1))


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_dualde_weighs_hard_and_soft_losses_of_every_triple(negatives: str) -> None:
    """The loss of the student for bce, term by term."""
    teacher, model = model_of((5,), seed=1), model_of((2,))
    step = DistilledLinkPrediction(student_of(model, "binary"), teacher, "dualde", frozen_steps=1)
    losses = step(**batch(negatives))
    (own, mask), (theirs, _) = scores_of(model, negatives), scores_of(teacher, negatives)
    p = torch.where(mask, theirs.sigmoid(), 1 - theirs.sigmoid())
    soft = F.huber_loss(own.sigmoid(), theirs.sigmoid(), reduction="none")
    hard = torch.where(mask, F.softplus(-own), F.softplus(own))
    torch.testing.assert_close(losses["soft"], averaged(p * soft, mask))
    torch.testing.assert_close(losses["hard"], averaged((1 - p) * hard, mask))
    torch.testing.assert_close(losses["loss"], losses["soft"] + losses["hard"])


def test_dualde_of_a_softmax_weighs_queries_by_the_probability_of_the_answer() -> None:
    teacher, model = model_of((5,), seed=1), model_of((2,))
    step = DistilledLinkPrediction(student_of(model), teacher, "dualde", frozen_steps=1)
    losses = step(**batch())
    own, theirs = scores_of(model, "all")[0], scores_of(teacher, "all")[0]
    p = theirs.softmax(-1)[range(3), TARGET]
    hard = F.cross_entropy(own, TARGET, reduction="none")
    torch.testing.assert_close(losses["hard"], ((1 - p) * hard).mean())
    torch.testing.assert_close(losses["soft"], (p * soft_losses(own[None], theirs[None])[0]).mean())


def train(step: DistilledLinkPrediction, count: int, **options: Any) -> None:
    optimizer = torch.optim.Adagrad([p for p in step.parameters() if p.requires_grad], lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        step(**batch(**options))["loss"].backward()
        optimizer.step()


@pytest.mark.parametrize("task", TASKS)
def test_the_teacher_learns_in_the_second_stage_only(task: Any) -> None:
    teacher = model_of((5,), seed=1)
    step = DistilledLinkPrediction(student_of(model_of((2,)), task), teacher, "dualde", frozen_steps=2)
    start = step.student.model.entity.detach().clone()
    train(step, 2)
    assert torch.equal(step.teacher.model.entity, teacher.entity)
    assert not torch.equal(step.student.model.entity, start)
    train(step, 1)
    assert int(step.steps) == 3
    assert not torch.equal(step.teacher.model.entity, teacher.entity)
    step.eval()
    step(**batch())
    assert int(step.steps) == 3, "evaluating is no step"


def test_in_the_second_stage_each_takes_the_other_as_it_is() -> None:
    model = model_of((2,))
    step = DistilledLinkPrediction(student_of(model, "binary", n3=0.2), model_of((5,), seed=1), "dualde")
    losses = step(**batch("uniform"))
    teacher = step.teacher.model
    expected = {}
    for learner, giver in ((model, teacher), (teacher, model)):
        own, mask = scores_of(learner, "uniform")
        given = scores_of(giver, "uniform")[0].detach()
        p = torch.where(mask, given.sigmoid(), 1 - given.sigmoid())
        soft = averaged(p * F.huber_loss(own.sigmoid(), given.sigmoid(), reduction="none"), mask)
        hard = averaged((1 - p) * torch.where(mask, F.softplus(-own), F.softplus(own)), mask)
        rows = (learner.entity[ANCHOR], learner.relation[RELATION], learner.entity[TARGET])
        n3 = 0.2 * sum(segment_n3(part, learner.sizes).sum() for part in rows)
        prefix = "" if learner is model else "teacher_"
        expected |= {f"{prefix}soft": soft, f"{prefix}hard": hard, f"{prefix}n3": n3}
        expected[f"{prefix}own"] = soft + hard + n3
    for name in ("soft", "hard", "n3", "teacher_soft", "teacher_hard", "teacher_n3"):
        torch.testing.assert_close(losses[name], expected[name])
    torch.testing.assert_close(losses["loss"], expected["own"] + expected["teacher_own"])
    for learner, name in ((model, "own"), (teacher, "teacher_own")):
        (found,) = torch.autograd.grad(losses["loss"], learner.entity, retain_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(expected[name], learner.entity)[0])


def test_the_stage_survives_a_training_state() -> None:
    def build() -> DistilledLinkPrediction:
        student = student_of(model_of((2,)))
        return DistilledLinkPrediction(student, model_of((5,), seed=1), "dualde", frozen_steps=2)

    step, again = build(), build()
    train(step, 3)
    again.load_state_dict(step.state_dict())
    assert "teacher_loss" in again(**batch())
    assert torch.equal(again.teacher.model.entity, step.teacher.model.entity)


def test_learnt_weights_move_towards_soft_labels() -> None:
    """The hazard of learning them: soft losses are the smaller ones, and weights follow the smaller loss."""
    student = student_of(model_of((2,)), "binary")
    step = DistilledLinkPrediction(student, model_of((5,), seed=1), "dualde", learnable=True, frozen_steps=9)
    step(**batch("uniform"))["loss"].backward()
    assert step.trust_in_teacher.shift.grad is not None
    assert step.trust_in_teacher.shift.grad[0] < 0
    assert step.trust_in_teacher.shift.grad[1] > 0


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "guess"}, "kind must be one of bkd, dualde, got 'guess'"),
        ({"weight": -1.0}, "weight must not be negative"),
        ({"temperature": 0.0}, "temperature positive, got 1.0 and 0.0"),
        ({"kind": "dualde", "form": "huber"}, "got multiclass and huber"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DistilledLinkPrediction(student_of(model_of((2,))), model_of((5,)), **options)


def test_a_teacher_of_another_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="6 entities and 3 relations, but it has 9 and 3"):
        DistilledLinkPrediction(student_of(model_of((2,))), KGEModel(9, 3, (5,), "complex"))
    with pytest.raises(ValueError, match="build both with the same reciprocal"):
        DistilledLinkPrediction(student_of(model_of((2,), reciprocal=True)), model_of((5,)))
