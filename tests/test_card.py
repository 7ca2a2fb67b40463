"""The model card of a checkpoint in a folder (tests/test_hub_push.py reads the published one)."""

from pathlib import Path

import pytest

import croppable
from croppable.card import headline_rows, model_card
from croppable.kge.model import KGEModel

ROWS = [
    {"size": size, "dataset": "numbers", "split": "test", "metric": metric, "value": value, **slice_}
    for size, mrr in ((2, 0.25), (4, 0.5))
    for metric, value in (("mrr", mrr), ("hits@10", 0.75))
    for slice_ in (
        {"side": "both", "relation": None, "category": None, "ties": "realistic"},
        {"side": "head", "relation": None, "category": None, "ties": "realistic"},
        {"side": "both", "relation": "next", "category": "1-1", "ties": "realistic"},
        {"side": "both", "relation": None, "category": None, "ties": "optimistic"},
    )
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return croppable.save(KGEModel(6, 2, (2, 4), "distmult"), tmp_path / "m", metrics=ROWS)


def test_the_headline_is_one_row_per_size_and_metric() -> None:
    chosen = headline_rows(ROWS)
    assert [(row["size"], row["metric"], row["value"]) for row in chosen] == [
        (2, "mrr", 0.25), (2, "hits@10", 0.75), (4, "mrr", 0.5), (4, "hits@10", 0.75),
    ]  # fmt: skip
    plain = [{"size": 2, "metric": "accuracy", "value": 1.0}]
    assert headline_rows(plain) == plain, "rows without slices are headlines"


def test_a_card_says_what_a_size_reaches_and_how_the_model_came_about(folder: Path) -> None:
    card = model_card(
        folder, repo_id="me/numbers", license="mit", command="python recipes/kge.py", data="Numbers"
    )
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "license: mit" in front
    assert "link-prediction" in front
    for text in (
        "# numbers",
        "0.25",
        "0.75",
        "python recipes/kge.py",
        "Numbers",
        'load("me/numbers"',
        "2407.02779",
    ):
        assert text in body, text
    assert "sizes.png" not in card
    (folder / "sizes.png").touch()
    assert "sizes.png" in model_card(folder)


def test_a_card_needs_no_metrics(tmp_path: Path) -> None:
    folder = croppable.save(KGEModel(6, 2, (2, 4)), tmp_path / "m")
    assert "# model" in model_card(folder)
