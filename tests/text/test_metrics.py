"""GLUE metrics equal hand-computed values, offline."""

import math

import pytest

from croppable.text.glue import TASKS
from croppable.text.metrics import GLUE_METRICS, GlueMetric


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize(
    "task", ["sst2", "mnli", "mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli", "hans"]
)
def test_accuracy(task: str) -> None:
    assert GlueMetric(task).compute(predictions=[0, 1, 1, 1], references=[0, 1, 0, 1]) == {"accuracy": 0.75}


@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_accuracy_and_f1(task: str) -> None:
    # 2 true positives, 1 false positive, 1 false negative: F1 = 4 / (4 + 1 + 1)
    values = GlueMetric(task).compute(predictions=[1, 1, 1, 0, 0], references=[1, 1, 0, 1, 0])
    assert values == {"accuracy": 0.6, "f1": pytest.approx(2 / 3)}


def test_f1_without_positives_is_zero() -> None:
    assert GlueMetric("mrpc").compute(predictions=[0, 0], references=[0, 1])["f1"] == 0.0


def test_matthews() -> None:
    # TP 2, TN 1, FP 1, FN 1: (2*1 - 1*1) / sqrt(3 * 3 * 2 * 2)
    values = GlueMetric("cola").compute(predictions=[1, 1, 1, 0, 0], references=[1, 1, 0, 1, 0])
    assert values == {"matthews_correlation": pytest.approx(1 / 6)}
    assert GlueMetric("cola").compute(predictions=[1, 1], references=[1, 0]) == {"matthews_correlation": 0.0}


def test_correlations() -> None:
    # Pearson of (1,2,4) and (2,1,3): cov 2/3 * ... by hand: x-mean (-4/3,-1/3,5/3), y-mean (0,-1,1)
    expected = (1 / 3 + 5 / 3) / math.sqrt((16 + 1 + 25) / 9 * 2)
    values = GlueMetric("stsb").compute(predictions=[1.0, 2.0, 4.0], references=[2.0, 1.0, 3.0])
    assert values == {"pearson": pytest.approx(expected), "spearmanr": pytest.approx(0.5)}


def test_correlation_of_a_constant_is_zero() -> None:
    assert GlueMetric("stsb").compute(predictions=[1.0, 1.0], references=[1.0, 2.0]) == {
        "pearson": 0.0,
        "spearmanr": 0.0,
    }


def test_batches_may_be_added_one_by_one() -> None:
    metric = GlueMetric("sst2")
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add(prediction=1, reference=0)
    assert metric.compute() == {"accuracy": pytest.approx(2 / 3)}


def test_every_task_has_its_headline_metric() -> None:
    assert len(TASKS) == 9
    assert all(task.headline in GLUE_METRICS[task.metric] for task in TASKS.values())


def test_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of cola, sst2, .*, got 'ax'"):
        GlueMetric("ax")
