import pytest
import torch

from croppable.kge.known import KnownTriples
from croppable.kge.metrics import rank_metrics
from croppable.kge.model import KGEModel
from croppable.kge.ranking import rank_triples
from croppable.kge.ranking_metric import RankingMetric


def test_worked_example_with_ties_and_filter() -> None:
    values = RankingMetric().compute(
        # higher 2, equal 1 -> rank 3.5; the same with one higher answer known -> 2.5
        predictions=[[0.9, 0.8, 0.5, 0.5, 0.1], [0.9, 0.8, 0.5, 0.5, 0.1]],
        references=[2, 2],
        known=[[], [0, 2]],
    )
    assert values == {
        "mrr": pytest.approx((1 / 3.5 + 1 / 2.5) / 2),
        "hits@1": 0.0,
        "hits@3": 0.5,
        "hits@10": 1.0,
        "mean_rank": 3.0,
    }


def test_equals_the_ranking_of_a_model_at_its_full_size() -> None:
    torch.manual_seed(0)
    triples = torch.stack([torch.randint(7, (9,)), torch.randint(2, (9,)), torch.randint(7, (9,))], dim=1)
    triples = triples.unique(dim=0)
    model = KGEModel(7, 2, (4,), "distmult").eval()
    known = KnownTriples(triples, 7, 2)
    expected = rank_metrics(rank_triples(model, triples, known).by_ties("realistic"))
    metric = RankingMetric()
    for side, (anchor, answer) in {"tail": (0, 2), "head": (2, 0)}.items():
        with torch.no_grad():
            scores = model(triples[:, anchor], triples[:, 1], None, side)
        rows, entities = known.targets(triples[:, anchor], triples[:, 1], side)
        others = [entities[rows == i].tolist() for i in range(len(triples))]
        metric.add_batch(predictions=scores.tolist(), references=triples[:, answer].tolist(), known=others)
    values = metric.compute()
    assert values == {name: pytest.approx(value.mean().item()) for name, value in expected.items()}


@pytest.mark.parametrize(
    ("scores", "answer", "message"),
    [([0.1, 0.2], 2, "candidate from 0 to 1, got 2"), ([0.1, float("nan")], 0, "must not be NaN")],
)
def test_bad_rows_are_refused(scores: list[float], answer: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankingMetric().compute(predictions=[scores], references=[answer], known=[[]])
