"""Every example once an epoch, batches of similar length, the same order for the same seed."""

from itertools import islice
from typing import Any

import pytest
import torch

from croppable.text.batching import (
    Encoded,
    batches_per_epoch,
    collate,
    encode,
    length_limit,
    ordered_batches,
    training_batches,
)
from croppable.text.glue import Examples


def encoded(lengths: list[int]) -> Encoded:
    """Example i consists of its own number, so that it can be recognised."""
    ids = [[i + 1] * n for i, n in enumerate(lengths)]
    return Encoded(features={"input_ids": ids}, labels=torch.arange(len(lengths)), pad_id=0, truncated=0)


def examples(*columns: list[str]) -> Examples:
    return Examples(texts=columns, labels=torch.zeros(len(columns[0]), dtype=torch.long), empty=0)


def test_long_texts_are_cut_and_counted_and_short_ones_are_not(tokenizer: Any) -> None:
    texts = examples(["good film", "a " * 20, ""], ["the plot", "bad " * 5, "NA"])
    result = encode(texts, tokenizer, 12)
    assert result.truncated == 1
    assert result.lengths.tolist() == [7, 12, 4]
    assert result.features["input_ids"][0] == tokenizer("good film", "the plot")["input_ids"]
    assert result.features["token_type_ids"][0] == [0, 0, 0, 0, 1, 1, 1]
    na = tokenizer.convert_tokens_to_ids("na")
    assert result.features["input_ids"][2] == [2, 3, na, 3]  # [CLS] [SEP] na [SEP]


def test_a_tokenizer_without_padding_is_refused(tokenizer: Any) -> None:
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        encode(examples(["x"]), tokenizer, 8)


@pytest.mark.parametrize(("kind", "allowed"), [("bert", 40), ("roberta", 38)])
def test_more_tokens_than_positions_are_refused(
    tokenizer: Any, make_encoder: Any, kind: str, allowed: int
) -> None:
    config = make_encoder(kind, pad_token_id=1).config
    assert length_limit(tokenizer, config, allowed) == allowed
    with pytest.raises(ValueError, match=f"from 3 to the model's {allowed} positions, got 64"):
        length_limit(tokenizer, config, 64)


def test_collate_pads_to_the_longest() -> None:
    batch = collate(encoded([2, 3, 1]).with_teacher(torch.eye(3)), [2, 1])
    assert batch["input_ids"].tolist() == [[3, 0, 0], [2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [2, 1]
    assert batch["teacher"].tolist() == [[0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("world", [1, 2])
def test_an_epoch_shows_every_example_once_and_fills_the_last_batch(world: int) -> None:
    data = encoded([1 + i % 7 for i in range(50)])
    per_epoch = batches_per_epoch(50, 4, world)
    seen: list[int] = []
    for rank in range(world):
        batches = training_batches(data, 4, seed=0, rank=rank, world=world)
        seen += [label for batch in islice(batches, per_epoch) for label in batch["labels"].tolist()]
    assert set(seen) == set(range(50))
    assert len(seen) == per_epoch * 4 * world < 50 + 4 * world


def test_a_tiny_split_is_repeated_to_fill_one_batch() -> None:
    batch = next(training_batches(encoded([1, 2, 3]), 8, seed=0))
    assert sorted(set(batch["labels"].tolist())) == [0, 1, 2]
    assert len(batch["labels"]) == 8


def test_batches_have_similar_lengths() -> None:
    data = encoded([1 + (i * 37) % 64 for i in range(640)])
    padding = [
        1 - batch["attention_mask"].float().mean() for batch in islice(training_batches(data, 16, seed=0), 40)
    ]
    assert sum(padding) / len(padding) < 0.05


def test_order_depends_on_seed_and_epoch_and_a_start_in_the_middle_goes_on() -> None:
    data = encoded([1 + i % 5 for i in range(30)])

    def labels(**kwargs: Any) -> list[list[int]]:
        return [b["labels"].tolist() for b in islice(training_batches(data, 4, **kwargs), 24)]  # 3 epochs

    whole = labels(seed=0)
    assert whole == labels(seed=0)
    assert whole != labels(seed=1)
    assert whole[:8] != whole[8:16]
    assert labels(seed=0, first=11)[:13] == whole[11:]


def test_ordered_batches_hold_each_row_once_by_length() -> None:
    batches = ordered_batches(encoded([3, 1, 2, 5, 4]), 2)
    assert batches == [[1, 2], [0, 4], [3]]
