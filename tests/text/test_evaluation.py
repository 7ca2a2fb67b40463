"""Outputs of every example at every size, in the order of the examples, however the batches fell."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from croppable.core import Nested, crop
from croppable.text.batching import Encoded, collate
from croppable.text.encoder import croppable_encoder
from croppable.text.evaluation import metric_rows, predict, scores
from croppable.text.glue import TASKS

Make = Callable[..., PreTrainedModel]
DATA = Encoded(
    features={"input_ids": [[5, 6], [7, 8, 9, 10], [11], [12, 13, 14]]},
    labels=torch.tensor([0, 1, 1, 0]), pad_id=0, truncated=0,
)  # fmt: skip


class Process:
    """Stands in for one of two processes; `reduce` adds what the other one would have."""

    num_processes = 2

    def __init__(self, rank: int) -> None:
        self.process_index = rank
        self.mine: torch.Tensor | None = None

    def reduce(self, outputs: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        self.mine = outputs
        return outputs


def test_outputs_are_the_crops_own_in_the_order_of_the_examples(make_encoder: Make) -> None:
    model = croppable_encoder(make_encoder("bert"))
    nested = Nested(model, (1, 4)).train()
    outputs = predict(nested, DATA, batch_size=2)
    assert nested.training
    assert outputs.shape == (2, 4, 3)
    for i, size in enumerate((1, 4)):
        small = crop(model, size).eval()
        for row in range(4):
            batch = collate(DATA, [row])
            batch.pop("labels")
            torch.testing.assert_close(outputs[i, row], small(**batch).logits[0].detach())


def test_a_single_model_has_one_size(make_encoder: Make) -> None:
    model = make_encoder("bert")
    nested = predict(Nested(croppable_encoder(model), (4,)), DATA)
    torch.testing.assert_close(predict(model, DATA), nested)


def test_processes_share_the_batches(make_encoder: Make) -> None:
    model = make_encoder("bert")
    alone = predict(model, DATA, batch_size=3)
    parts = [Process(0), Process(1)]
    for process in parts:
        predict(model, DATA, batch_size=3, accelerator=process)
    torch.testing.assert_close(sum(p.mine for p in parts if p.mine is not None), alone)
    assert (parts[1].mine == 0).any()
    few = [Process(0), Process(1)]  # one batch for two processes
    for process in few:
        predict(model, DATA, batch_size=8, accelerator=process)
    assert few[1].mine is not None
    assert few[1].mine.eq(0).all()


def test_scores_and_rows() -> None:
    outputs = torch.tensor([[[2.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    per_size = scores(outputs, torch.tensor([0, 1]), TASKS["rte"])
    assert per_size == [{"accuracy": 1.0}, {"accuracy": 0.0}]
    assert metric_rows(per_size, (3, 6), dataset="rte", split="validation", seed=7)[1] == {
        "size": 6, "dataset": "rte", "split": "validation", "metric": "accuracy", "value": 0.0, "seed": 7,
    }  # fmt: skip
    numbers = scores(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([1.0, 2.0, 3.0]), TASKS["stsb"])
    assert numbers[0]["pearson"] > 0.999
