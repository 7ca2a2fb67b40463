"""The importance permutation changes the order of units and nothing else."""

from collections.abc import Callable

import pytest
import torch
from transformers import AlbertConfig, AlbertForSequenceClassification, PreTrainedModel

import croppable
from croppable.text.encoder import croppable_encoder
from croppable.text.reorder import importance, permuted, reordered

Make = Callable[..., PreTrainedModel]
Inputs = dict[str, torch.Tensor]


def batch(inputs: Inputs) -> Inputs:
    return {**inputs, "labels": torch.tensor([0, 2, 1])}


def test_outputs_are_unchanged(encoder: PreTrainedModel, inputs: Inputs) -> None:
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    moved = reordered(encoder, [batch(inputs)])
    torch.testing.assert_close(moved(**inputs).logits, encoder(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert any(not torch.equal(moved.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in before.items())


def test_scores_descend_afterwards(encoder: PreTrainedModel, inputs: Inputs) -> None:
    for group, score in importance(reordered(encoder, [batch(inputs)]), [batch(inputs)]).items():
        assert (score.diff() <= 1e-4 * score.max()).all(), group


def test_hidden_outputs_are_permuted_alike_in_every_layer(make_encoder: Make, inputs: Inputs) -> None:
    model = make_encoder("bert")
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    moved = permuted(model, {"hidden": order})
    states = (m(**inputs, output_hidden_states=True).hidden_states for m in (moved, model))
    for ours, theirs in zip(*states, strict=True):
        torch.testing.assert_close(ours, theirs[..., order])


def test_importance_is_the_first_order_change_of_the_loss(make_encoder: Make, inputs: Inputs) -> None:
    """Oracle: scale one neuron's activation by 1 - eps and look at the loss of every example."""
    model = make_encoder("bert").double()
    labelled = batch(inputs)
    scores = importance(model, [labelled])["neurons.1"]
    dense = model.bert.encoder.layer[1].output.dense

    def loss(row: int) -> torch.Tensor:
        with torch.no_grad():
            return model(**{name: tensor[row : row + 1] for name, tensor in labelled.items()}).loss

    eps, unit = 1e-6, 5
    before = torch.stack([loss(row) for row in range(3)])
    with torch.no_grad():
        dense.weight[:, unit] *= 1 - eps
    after = torch.stack([loss(row) for row in range(3)])
    assert scores[unit].item() == pytest.approx(((before - after) / eps).abs().sum().item(), rel=1e-3)


def test_an_important_corner_beats_an_unimportant_one(make_encoder: Make, inputs: Inputs) -> None:
    """Neurons that do nothing are put last, so that a crop loses them and not the others."""
    model = croppable_encoder(make_encoder("bert"))
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.dense.weight[:, :32] = 0
    scores = importance(model, [batch(inputs)])
    orders = {group: score.argsort(descending=True) for group, score in scores.items() if "neurons" in group}
    assert all((order[32:] < 32).all() for order in orders.values())
    small = croppable.crop(permuted(model, orders), 2)
    assert all(layer.output.dense.weight.abs().sum(0).gt(0).all() for layer in small.bert.encoder.layer)


def test_mode_gradients_and_random_numbers_are_left_alone(make_encoder: Make, inputs: Inputs) -> None:
    model = make_encoder("bert").train()
    model.bert.pooler.eval()
    state = torch.get_rng_state()
    importance(model, [batch(inputs)])
    assert model.training
    assert not model.bert.pooler.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_bad_input_is_refused(make_encoder: Make, inputs: Inputs) -> None:
    model = make_encoder("bert")
    with pytest.raises(ValueError, match="a batch has no 'labels'"):
        importance(model, [inputs])
    with pytest.raises(ValueError, match="at least one batch of training examples, got none"):
        importance(model, [])
    with pytest.raises(ValueError, match="the order of 'hidden' is no permutation"):
        permuted(model, {"hidden": torch.zeros(32, dtype=torch.long)})
    other = AlbertForSequenceClassification(
        AlbertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64, num_hidden_layers=1)
    )
    with pytest.raises(ValueError, match="AlbertForSequenceClassification cannot be reordered"):
        importance(other, [batch(inputs)])
