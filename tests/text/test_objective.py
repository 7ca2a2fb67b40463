"""One forward for all losses; every baseline is a switch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from croppable.core import Nested, crop
from croppable.med import MED
from croppable.text.encoder import croppable_encoder
from croppable.text.objective import FineTuning, Schedule, hidden_losses, teacher_losses

Make = Callable[..., PreTrainedModel]
Inputs = dict[str, torch.Tensor]
SIZES = (1, 2, 4)
LABELS = torch.tensor([0, 2, 1])
OFF: dict[str, Any] = {"mutual": 0.0, "w1": 0.0, "w3": 0.0}


def step(
    make: Make, *, objective: dict[str, Any] | None = None, regression: bool = False, **kwargs: Any
) -> FineTuning:
    model = croppable_encoder(make("bert", num_labels=1 if regression else 3))
    task = "regression" if regression else "multiclass"
    med = MED(SIZES, task=task, **(OFF if objective is None else objective))  # type: ignore[arg-type]
    return FineTuning(Nested(model, SIZES), med, **kwargs).eval()


def test_plain_nested_is_the_mean_of_the_crops_own_losses(make_encoder: Make, inputs: Inputs) -> None:
    module = step(make_encoder)
    expected = [crop(module.nested.model, s)(**inputs, labels=LABELS).loss for s in SIZES]
    torch.testing.assert_close(module(labels=LABELS, **inputs)["loss"], torch.stack(expected).mean())


def test_regression_has_every_loss(make_encoder: Make, inputs: Inputs) -> None:
    objective = {"mutual": 1.0, "mutual_form": "huber", "w1": 1.0, "w3": 1.0, "distill": 1.0}
    module = step(make_encoder, objective=objective, regression=True, teacher=1.0, hidden=1.0)
    numbers = torch.tensor([0.0, 2.5, 5.0])
    losses = module(labels=numbers, teacher=torch.zeros(3, 1), **inputs)
    assert set(losses) == {"loss", "evolution", "mutual", "distill", "teacher", "hidden"}
    assert all(value > 0 for value in losses.values())
    torch.testing.assert_close(losses["loss"], sum(v for k, v in losses.items() if k != "loss"))
    plain = step(make_encoder, regression=True)
    expected = [F.mse_loss(crop(plain.nested.model, s)(**inputs).logits.squeeze(-1), numbers) for s in SIZES]
    torch.testing.assert_close(plain(labels=numbers, **inputs)["loss"], torch.stack(expected).mean())


def test_each_size_runs_once_whatever_the_losses(make_encoder: Make, inputs: Inputs) -> None:
    module = step(make_encoder, objective={"distill": 1.0}, teacher=1.0, hidden=1.0)
    calls: list[tuple[int, ...]] = []
    each = module.nested.each

    def counted(sizes: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(tuple(sizes))
        return each(sizes, *args, **kwargs)

    module.nested.each = counted  # type: ignore[method-assign]
    module(labels=LABELS, teacher=torch.zeros(3, 3), **inputs)
    assert calls == [SIZES]


def test_teacher_loss_by_hand() -> None:
    outputs = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    teacher = torch.tensor([[0.0, 0.0]])
    p = torch.softmax(outputs[0, 0] / 2, 0)
    expected = 4 * (0.5 * torch.log(0.5 / p)).sum()
    losses = teacher_losses(outputs, teacher, regression=False, temperature=2.0)
    torch.testing.assert_close(losses, torch.stack([expected, torch.zeros(())]))
    numbers = teacher_losses(
        torch.tensor([[[1.0], [3.0]]]), torch.tensor([[0.0], [1.0]]), regression=True, temperature=1.0
    )
    assert numbers.tolist() == [2.5]


def test_hidden_loss_sees_leading_channels_of_real_tokens_and_teaches_down_only() -> None:
    small = torch.zeros(1, 2, 1, requires_grad=True)
    full = torch.tensor([[[2.0, 9.0], [7.0, 9.0]]], requires_grad=True)
    losses = hidden_losses([[small], [full]], torch.tensor([[1, 0]]))
    assert losses.tolist() == [4.0]
    losses.sum().backward()
    assert small.grad is not None
    assert full.grad is None


def test_distillation_from_the_largest_does_not_move_the_largest(make_encoder: Make, inputs: Inputs) -> None:
    module = step(
        make_encoder, objective={**OFF, "distill": 1.0, "size_weights": [0.0, 0.0, 0.0]}, hidden=1.0
    )
    module(labels=LABELS, **inputs)["loss"].backward()
    query = module.nested.model.bert.encoder.layer[1].attention.self.query.weight.grad
    assert query[:16, :16].abs().sum() > 0  # sizes 1 and 2
    assert query[16:].abs().sum() == query[:, 16:].abs().sum() == 0


@pytest.mark.parametrize(
    ("schedule", "sizes", "seen"),
    [
        ("auto", (1, 2, 3, 4), {(1, 2, 3, 4)}),
        ("auto", (1, 2, 3, 4, 5), {(1, 2, 5), (2, 3, 5), (3, 4, 5), (4, 5)}),
        ("all", (1, 2, 3, 4, 5), {(1, 2, 3, 4, 5)}),
        ("pair", (2, 5), {(2, 5)}),
        ("random", (1, 3, 5), {(1,), (3,), (5,)}),
    ],
)
def test_schedules(
    make_encoder: Make, schedule: Schedule, sizes: tuple[int, ...], seen: set[tuple[int, ...]]
) -> None:
    heads = sizes[-1]
    model = croppable_encoder(make_encoder("bert", num_attention_heads=heads, hidden_size=2 * heads,
                                           intermediate_size=2 * heads))  # fmt: skip
    module = FineTuning(Nested(model, sizes), MED(sizes, task="multiclass"), schedule=schedule)
    assert {module.choose() for _ in range(60)} == seen


def test_a_step_of_some_sizes_equals_those_sizes_alone(make_encoder: Make, inputs: Inputs) -> None:
    module = step(make_encoder, schedule="random")
    torch.manual_seed(0)
    size = module.choose()[0]
    torch.manual_seed(0)
    loss = module(labels=LABELS, **inputs)["loss"]
    torch.testing.assert_close(loss, crop(module.nested.model, size)(**inputs, labels=LABELS).loss)


def test_one_size_is_plain_fine_tuning(make_encoder: Make, inputs: Inputs) -> None:
    model = croppable_encoder(make_encoder("bert"))
    module = FineTuning(Nested(model, (4,)), MED((4,), task="multiclass", **OFF))
    plain = make_encoder("bert")
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (module, plain)]
    for _ in range(3):
        losses = module.eval()(labels=LABELS, **inputs)["loss"], plain(**inputs, labels=LABELS).loss
        torch.testing.assert_close(*losses)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_bad_options_are_refused(make_encoder: Make, inputs: Inputs) -> None:
    with pytest.raises(ValueError, match="schedule must be one of auto, all, pair, random, got 'some'"):
        step(make_encoder, schedule="some")
    with pytest.raises(ValueError, match="needs the largest size in every step"):
        step(make_encoder, schedule="random", hidden=1.0)
    with pytest.raises(ValueError, match="needs the teacher's outputs in every batch"):
        step(make_encoder, teacher=1.0)(labels=LABELS, **inputs)
