"""Texts to batches: tokenizing with an account of what was cut, and batches of similar length.

Padding is wasted work, and at about 64 MFLOP a token it is most of a naive batch: batches are formed of
examples of similar length. Order depends on (seed, epoch) alone, so a resumed run sees the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from croppable.text.glue import Examples

__all__ = [
    "Encoded",
    "batches_per_epoch",
    "collate",
    "encode",
    "length_limit",
    "ordered_batches",
    "training_batches",
]

POOL = 50  # batches sorted by length together: long enough to be even, short enough to stay random


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Tokenized examples of one split.

    Attributes:
        features: Lists of ints per example, by model input ("input_ids", perhaps "token_type_ids").
        labels: ``[N]``.
        pad_id: Token id that fills short rows.
        truncated: How many examples were longer than the limit and cut.
        teacher: Cached outputs of a teacher ``[N, C]``, if any.
    """

    features: dict[str, list[list[int]]]
    labels: Tensor
    pad_id: int
    truncated: int
    teacher: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each example ``[N]``."""
        return torch.tensor([len(ids) for ids in self.features["input_ids"]])

    def with_teacher(self, outputs: Tensor) -> Encoded:
        """Return the same examples with cached outputs ``[N, C]`` of a teacher."""
        return replace(self, teacher=outputs)


def length_limit(tokenizer: Any, config: Any, max_length: int) -> int:
    """Return ``max_length`` after checking that the model has a position for every token.

    Raises:
        TypeError: If the model's config names no number of positions, as those of encoders do.
        ValueError: If the model or the tokenizer allow less.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        raise TypeError(
            f"'{config.model_type}' is no encoder such as BERT: its config has no max_position_embeddings"
        )
    if "roberta" in config.model_type:  # its first positions, up to the padding index, are not used
        positions -= config.pad_token_id + 1
    allowed = min(positions, tokenizer.model_max_length)
    if not 3 <= max_length <= allowed:
        raise ValueError(f"max_length must be from 3 to the model's {allowed} positions, got {max_length}")
    return max_length


def encode(examples: Examples, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenize all examples, cutting those longer than ``max_length`` tokens and counting them.

    Raises:
        ValueError: If the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token: it does not belong to an encoder such as BERT")
    whole = tokenizer(*examples.texts, truncation=False, verbose=False, return_attention_mask=False)
    features = {name: list(rows) for name, rows in whole.items()}
    long = [i for i, ids in enumerate(features["input_ids"]) if len(ids) > max_length]
    if long:
        texts = [[column[i] for i in long] for column in examples.texts]
        cut = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        for name, rows in features.items():
            for i, row in zip(long, cut[name], strict=True):
                rows[i] = row
    return Encoded(
        features=features, labels=examples.labels, pad_id=tokenizer.pad_token_id, truncated=len(long)
    )


def collate(encoded: Encoded, rows: Sequence[int], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Return one padded batch: the model's inputs, "labels" and, if cached, "teacher"."""
    width = max(len(encoded.features["input_ids"][i]) for i in rows)
    batch = {}
    for name, lists in encoded.features.items():
        fill = encoded.pad_id if name == "input_ids" else 0
        batch[name] = torch.tensor([lists[i] + [fill] * (width - len(lists[i])) for i in rows])
    lengths = torch.tensor([len(encoded.features["input_ids"][i]) for i in rows])
    batch["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
    index = torch.as_tensor(rows)
    batch["labels"] = encoded.labels[index]
    if encoded.teacher is not None:
        batch["teacher"] = encoded.teacher[index]
    return {name: tensor.to(device) for name, tensor in batch.items()}


def batches_per_epoch(count: int, batch_size: int, world: int = 1) -> int:
    """Return how many batches each of ``world`` processes sees per epoch."""
    return -(-count // (batch_size * world))


def _epoch(lengths: Tensor, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Return the batches of one epoch, of equal size, similar length inside and random order."""
    # Two large odd factors keep (seed, epoch) pairs apart.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch * 7_919) % 2**63)
    order = torch.randperm(len(lengths), generator=generator)
    missing = -len(order) % batch_size
    order = torch.cat([order, *[order] * (missing // len(order) + 1)])[: len(order) + missing]
    batches: list[Tensor] = []
    for pool in torch.split(order, batch_size * POOL):
        ranked = pool[lengths[pool].argsort(stable=True)]
        batches.extend(torch.split(ranked, batch_size))
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


def training_batches(
    encoded: Encoded,
    batch_size: int,
    *,
    seed: int,
    first: int = 0,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[dict[str, Tensor]]:
    """Yield batches for ever, epoch after epoch, from batch number ``first`` on.

    Every process gets ``batch_size`` rows of each global batch, all of similar length. The last batch of an
    epoch is filled up with other examples, so that all batches are of one size.
    """
    per_epoch = batches_per_epoch(len(encoded), batch_size, world)
    lengths = encoded.lengths
    number = first
    while True:
        epoch, offset = divmod(number, per_epoch)
        for rows in _epoch(lengths, batch_size * world, seed, epoch)[offset:]:
            yield collate(encoded, rows[rank::world].tolist(), device)
            number += 1


def ordered_batches(encoded: Encoded, batch_size: int) -> list[list[int]]:
    """Return all rows once, in batches by ascending length."""
    return [rows.tolist() for rows in torch.split(encoded.lengths.argsort(stable=True), batch_size)]
