"""Metrics against arithmetic done by hand, and the rows of metrics.json."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from croppable.kge import metrics
from croppable.kge.metrics import METRICS, mean_mrr, metrics_rows, rank_metrics, write_metrics
from croppable.kge.ranking import Ranks


@pytest.fixture
def ranks() -> Ranks:
    """Two sizes, three triples of relations 0, 2, 2; the first axis of the ranks is tail, head."""
    optimistic = torch.tensor([[[1, 2, 4], [1, 1, 2]], [[1, 1, 10], [1, 1, 1]]])
    pessimistic = torch.tensor([[[1, 4, 4], [1, 1, 2]], [[1, 1, 12], [1, 1, 1]]])
    return Ranks(
        sizes=(10, 20),
        triples=torch.tensor([[0, 0, 1], [1, 2, 2], [2, 2, 0]]),
        num_entities=14,
        optimistic_SKT=optimistic,
        pessimistic_SKT=pessimistic,
    )


def value(rows: list[dict[str, Any]], **wanted: Any) -> float:
    """Return the value of the only row that has these columns."""
    (row,) = (row for row in rows if all(row[key] == item for key, item in wanted.items()))
    return float(row["value"])


def test_metrics_by_hand() -> None:
    found = rank_metrics(torch.tensor([[1.0, 2.0, 3.5, 10.0], [1.0, 1.0, 1.0, 11.0]], dtype=torch.float64))
    assert {name: values.tolist() for name, values in found.items()} == {
        "mrr": pytest.approx([(1 + 1 / 2 + 1 / 3.5 + 1 / 10) / 4, (3 + 1 / 11) / 4]),
        "hits@1": [0.25, 0.75],
        "hits@3": [0.5, 0.75],
        "hits@10": [1.0, 0.75],
        "mean_rank": [4.125, 3.5],
    }
    assert list(found) == list(METRICS)


def test_headline_rows(ranks: Ranks) -> None:
    rows = metrics_rows(ranks, dataset="toy", split="test", extra={"seed": 3})
    headline = {"side": "both", "relation": None, "category": None, "ties": "realistic"}
    assert value(rows, size=10, metric="mrr", **headline) == pytest.approx(
        (1 + 1 / 3 + 1 / 4 + 1 + 1 + 1 / 11) / 6
    )
    assert value(rows, size=10, metric="hits@1", **headline) == pytest.approx(3 / 6)
    assert value(rows, size=10, metric="hits@3", **headline) == pytest.approx(4 / 6)
    assert value(rows, size=10, metric="hits@10", **headline) == pytest.approx(5 / 6)
    assert value(rows, size=10, metric="mean_rank", **headline) == pytest.approx((1 + 3 + 4 + 1 + 1 + 11) / 6)
    assert value(rows, size=20, metric="mrr", **headline) == pytest.approx((1 + 1 + 1 / 2 + 3) / 6)
    common = {"dataset": "toy", "split": "test", "seed": 3, "num_triples": 3, "num_entities": 14}
    common |= {"entity_set": "all", "unseen_entities": "kept"}
    assert all(row.items() >= common.items() for row in rows)
    assert len(rows) == 2 * 5 * 3 * 3  # sizes, metrics, ties, sides


@pytest.mark.parametrize(
    ("ties", "hits"), [("optimistic", 2 / 3), ("realistic", 2 / 3), ("pessimistic", 1 / 3)]
)
def test_tie_policies_and_sides(ranks: Ranks, ties: str, hits: float) -> None:
    rows = metrics_rows(ranks, dataset="toy", split="test")
    tail = {"optimistic": [1, 2, 4], "realistic": [1, 3, 4], "pessimistic": [1, 4, 4]}[ties]
    asked: dict[str, Any] = {"size": 10, "side": "tail", "ties": ties}
    assert value(rows, metric="mean_rank", **asked) == pytest.approx(sum(tail) / 3)
    assert value(rows, metric="mrr", **asked) == pytest.approx(sum(1 / rank for rank in tail) / 3)
    head = {"optimistic": 10, "realistic": 11, "pessimistic": 12}[ties]
    assert value(rows, metric="mean_rank", size=10, side="head", ties=ties) == pytest.approx((2 + head) / 3)
    assert value(rows, metric="hits@3", size=10, side="tail", ties=ties) == pytest.approx(hits)


def test_rows_of_relations_and_categories(ranks: Ranks) -> None:
    rows = metrics_rows(
        ranks, dataset="toy", split="test", relations=["a", "b", "c"], categories=["1-1", "1-N", "N-N"]
    )
    c = [row for row in rows if row["relation"] == "c"]
    assert {row["side"] for row in c} == {"both"}
    assert {row["category"] for row in c} == {"N-N"}
    assert {row["num_triples"] for row in c} == {2}
    assert value(c, metric="mean_rank", size=10) == pytest.approx((3 + 4 + 1 + 11) / 4)
    assert not [row for row in rows if row["relation"] == "b" or row["category"] == "1-N"], "b has no triple"
    many = [row for row in rows if row["category"] == "N-N" and row["relation"] is None]
    assert value(many, metric="mean_rank", size=10, side="tail") == pytest.approx(7 / 2)
    assert value(many, metric="mean_rank", size=10, side="head") == pytest.approx(12 / 2)
    assert value(many, metric="mean_rank", size=10, side="both") == pytest.approx(19 / 4)


@pytest.mark.parametrize("what", ["relations", "categories"])
def test_too_few_names(ranks: Ranks, what: str) -> None:
    with pytest.raises(ValueError, match=rf"{what} must have an entry for every relation id up to 2, got 2"):
        metrics_rows(ranks, dataset="toy", split="test", **{what: ["x", "y"]})


def test_mean_mrr_is_over_sizes_and_sides(ranks: Ranks) -> None:
    at_10, at_20 = (1 + 1 / 3 + 1 / 4 + 1 + 1 + 1 / 11) / 6, (1 + 1 + 1 / 2 + 3) / 6
    assert mean_mrr(ranks) == pytest.approx((at_10 + at_20) / 2)


def test_written_rows_are_a_json_list(ranks: Ranks, tmp_path: Path) -> None:
    rows = metrics_rows(ranks, dataset="toy", split="test")
    write_metrics(tmp_path / "metrics.json", rows)
    assert json.loads((tmp_path / "metrics.json").read_text()) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_metrics(path, [{"value": 1.0}])
    before = path.read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(path, [{"value": float("nan")}])

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(metrics.Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_metrics(path, [{"value": 2.0}])
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
