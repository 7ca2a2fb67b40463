"""Costs of a size, and the card that shows them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from croppable.core import crop, skeleton
from croppable.text.card import text_card
from croppable.text.costs import flops_per_sequence, latencies, size_costs
from croppable.text.encoder import croppable_encoder
from croppable.text.glue import TASKS

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "bert.md"
Make = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("size", [1, 4])
def test_flops_by_hand(make_encoder: Make, size: int) -> None:
    model = crop(croppable_encoder(make_encoder("bert")), size)
    hidden, ffn, tokens, layers, classes = 8 * size, 16 * size, 6, 2, 3
    layer = 4 * 2 * tokens * hidden**2 + 2 * 2 * tokens**2 * hidden + 2 * 2 * tokens * hidden * ffn
    head = 2 * hidden**2 + 2 * hidden * classes
    assert flops_per_sequence(model, tokens) == layers * layer + head


@pytest.mark.parametrize(
    ("sizes", "every", "pair"),
    [((2, 4, 8, 12), 1.60, 1.39), ((3, 6, 9, 12), 1.89, 1.57), (tuple(range(1, 13)), 4.57, 1.65)],
)
def test_the_cost_table_of_the_guide(sizes: tuple[int, ...], every: float, pair: float) -> None:
    with torch.device("meta"):
        base = croppable_encoder(BertForSequenceClassification(BertConfig()))
    flops = {size: flops_per_sequence(skeleton(base, size), 128) for size in sizes}
    steps = [{*sizes[i : i + 2], 12} for i in range(len(sizes) - 1)]
    mean = sum(flops[size] for step in steps for size in step) / len(steps)
    assert (sum(flops.values()) / flops[12], mean / flops[12]) == pytest.approx((every, pair), abs=0.005)
    row = f"| {', '.join(str(64 * s) for s in sizes)} | {every:.2f} | {pair:.2f} |"
    assert (row if len(sizes) < 5 else f"| {every:.2f} | {pair:.2f} |") in GUIDE.read_text()


def test_costs_grow_with_size_and_leave_the_model_alone(make_encoder: Make) -> None:
    model = croppable_encoder(make_encoder("bert")).train()
    table = size_costs(model, (1, 2, 4), length=8, batches=(1, 2), repeats=1)
    assert list(table) == [1, 2, 4]
    assert list(table[1]) == ["hidden", "parameters", "MB", "MFLOPs", "ms, batch 1", "ms, batch 2"]
    for name in ("hidden", "parameters", "MB", "MFLOPs"):
        assert table[1][name] < table[2][name] < table[4][name]
    assert table[4]["parameters"] == sum(p.numel() for p in model.parameters())
    assert all(row["ms, batch 1"] > 0 for row in table.values())
    assert model.training


def test_latency_is_of_each_model(make_encoder: Make) -> None:
    models = {
        size: make_encoder("bert", hidden_size=32 * size, intermediate_size=64 * size) for size in (1, 32)
    }
    times = latencies(models, batch=8, length=32, repeats=3)
    assert times[1] < times[32]


def test_card_shows_every_size_and_reads_as_a_card() -> None:
    rows = [
        {"size": s, "dataset": "mrpc", "split": "validation", "metric": m, "value": v}
        for s, m, v in ((3, "accuracy", 0.7), (3, "f1", 0.8), (12, "accuracy", 0.9), (12, "f1", 0.95))
    ]
    card = text_card(
        task=TASKS["mrpc"], rows=rows, costs={3: {"parameters": 3660194, "MB": 14.64}, 12: {"MB": 90.9}},
        folders={3: "width-96", 12: ""}, repo_id="me/tiny", license="apache-2.0", command="glue.py",
    )  # fmt: skip
    _, front, text = card.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["pipeline_tag"] == "text-classification"
    results = meta["model-index"][0]["results"]
    values = {m["name"]: m["value"] for result in results for m in result["metrics"]}
    assert values["f1 at size 3"] == 0.8
    assert len(values) == 4
    assert "| size | subfolder | accuracy | f1 | parameters | MB |" in text
    assert "| 3 | width-96 | 0.7000 | 0.8000 | 3,660,194 | 14.6 |" in text
    assert "| 12 | (root) | 0.9000 | 0.9500 |  | 90.9 |" in text
    assert 'from_pretrained("me/tiny", subfolder="width-96")' in text
