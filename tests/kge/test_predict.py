"""Answers equal a naive search; names, texts and ids mean the same; errors name what is near."""

import math
import random

import pytest
import torch

from croppable.core import crop
from croppable.kge.classify import Calibration
from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.predict import embeddings, find, nearest, predict
from croppable.labels import Labels

PLACES = ["Q1", "Q2", "Q3", "Q4", "Q5", "Q6"]
TEXTS = ["Berlin", "Paris", "Germany", "France", "Georgia", "Georgia"]


def places(score: str = "transe-l1", reciprocal: bool = False) -> KGEModel:
    torch.manual_seed(0)
    model = KGEModel(6, 2, (2, 4), score, reciprocal=reciprocal)
    with torch.no_grad():
        for table in model.parameters():
            table.normal_()
    model.labels = Labels(PLACES, ["P36", "P17"], TEXTS, ["capital", "country"])
    return model


def known() -> KnownTriples:
    return KnownTriples(torch.tensor([[2, 0, 0], [3, 0, 1], [0, 1, 2], [0, 1, 3]]), 6, 2)


@pytest.mark.parametrize("score", ["transe-l1", "complex", "rotate", "pairre"])
@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("side", ["head", "tail"])
def test_answers_are_the_best_of_all_scores(score: str, reciprocal: bool, side: str) -> None:
    model = places(score, reciprocal)
    other = "head" if side == "tail" else "tail"
    answers = predict(model, **{other: "Q1"}, relation="P17", k=6)
    scores = model(torch.tensor([0]), torch.tensor([1]), None, side)[0].tolist()
    assert [a.id for a in answers] == sorted(range(6), key=lambda entity: -scores[entity])
    assert [a.score for a in answers] == pytest.approx(sorted(scores, reverse=True))
    assert [a.rank for a in answers] == [1, 2, 3, 4, 5, 6]
    assert [(a.name, a.text) for a in answers] == [(PLACES[a.id], TEXTS[a.id]) for a in answers]


def test_names_texts_and_ids_ask_the_same() -> None:
    model = places()
    by_id = predict(model, head=0, relation=1)
    assert predict(model, head="Q1", relation="P17") == by_id
    assert predict(model, head="Berlin", relation="country") == by_id


def test_known_answers_are_dropped_or_marked() -> None:
    model = places()
    dropped = predict(model, head="Q1", relation="P17", known=known())
    assert {a.id for a in dropped} == {0, 1, 4, 5}
    assert [a.known for a in dropped] == [False] * 4
    marked = predict(model, head="Q1", relation="P17", known=known(), drop_known=False)
    assert {a.id for a in marked if a.known} == {2, 3}
    assert len(marked) == 6
    heads = predict(model, tail="Q1", relation="P36", known=known(), drop_known=False)
    assert {a.id for a in heads if a.known} == {2}
    assert all(a.known is None for a in predict(model, head="Q1", relation="P17"))


def test_batches_equal_single_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("croppable.kge.predict._SCORES_AT_ONCE", 13)  # two questions at a time
    model, draw = places(), random.Random(0)
    heads = [draw.choice(PLACES) for _ in range(7)]
    relations = [draw.choice(["P36", "P17"]) for _ in range(7)]
    together = predict(model, head=heads, relation=relations, k=3, known=known())
    assert together == [
        predict(model, head=h, relation=r, k=3, known=known()) for h, r in zip(heads, relations, strict=True)
    ]
    assert predict(model, head=heads, relation="P36", k=2) == [
        predict(model, head=h, relation="P36", k=2) for h in heads
    ]
    assert predict(model, head="Q1", relation=["P36", "P17"], k=2) == [
        predict(model, head="Q1", relation=r, k=2) for r in ("P36", "P17")
    ]
    assert predict(model, head=["Q1"], relation="P36", k=2) == [
        predict(model, head="Q1", relation="P36", k=2)
    ]


def test_probabilities_follow_the_calibration() -> None:
    answers = predict(places(), head="Q1", relation="P17", calibration=Calibration(2.0, 1.0))
    for answer in answers:
        assert answer.probability == pytest.approx(1 / (1 + math.exp(-(2 * answer.score + 1))))
    assert predict(places(), head="Q1", relation="P17")[0].probability is None


def test_what_cannot_be_asked_says_why() -> None:
    model = places()
    with pytest.raises(ValueError, match=r"no entity is called 'Berlim': the closest are 'Berlin'"):
        predict(model, head="Berlim", relation="P17")
    with pytest.raises(ValueError, match=r"no relation is called 'kountry': the closest are 'country'"):
        predict(model, head="Q1", relation="kountry")
    with pytest.raises(ValueError, match=r"2 entity names have the text 'Georgia': .* 'Q5', 'Q6'"):
        predict(model, head="Georgia", relation="P17")
    with pytest.raises(ValueError, match="nothing is similar"):
        find(model, "%%%%%%%%")
    with pytest.raises(ValueError, match="entity ids go from 0 to 5, got 6"):
        find(model, 6)
    with pytest.raises(ValueError, match="either head="):
        predict(model, relation="P17")
    with pytest.raises(ValueError, match="either head="):
        predict(model, head="Q1", tail="Q2", relation="P17")
    with pytest.raises(ValueError, match="k must be at least 1"):
        predict(model, head="Q1", relation="P17", k=0)
    with pytest.raises(ValueError, match="2 entities and 3 relations"):
        predict(model, head=["Q1", "Q2"], relation=["P17"] * 3)
    with pytest.raises(ValueError, match="at least one question"):
        predict(model, head=[], relation="P17")
    model.labels = None
    with pytest.raises(ValueError, match="the model has no labels: give the entity as an id"):
        predict(model, head="Q1", relation=0)
    assert predict(model, head=0, relation=0, k=1)[0].name.isdigit()


def test_diverged_weights_are_an_error() -> None:
    model = places()
    with torch.no_grad():
        model.entity[3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        predict(model, head="Q1", relation="P17")


@pytest.mark.parametrize("score", ["transe-l1", "complex"])
def test_nearest_is_the_naive_search(score: str) -> None:
    model = places(score)
    rows = model.entity.flatten(1).tolist()

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    expected = sorted((i for i in range(6) if i != 2), key=lambda i: -cosine(rows[i], rows[2]))
    answers = nearest(model, "Germany", k=4)
    assert [a.id for a in answers] == expected[:4]
    assert answers[0].score == pytest.approx(cosine(rows[expected[0]], rows[2]), abs=1e-6)
    far = nearest(model, "Q3", k=9, metric="euclidean")
    assert [a.id for a in far] == sorted(
        (i for i in range(6) if i != 2), key=lambda i: math.dist(rows[i], rows[2])
    )
    assert far[0].score == pytest.approx(-math.dist(rows[far[0].id], rows[2]), abs=1e-5)
    with pytest.raises(ValueError, match="metric 'cosine' or 'euclidean', got 4 and 'dot'"):
        nearest(model, 0, 4, "dot")


def test_embeddings_come_with_their_names_and_leading_columns_are_a_crop() -> None:
    model = places("complex", reciprocal=True)
    names, rows = embeddings(model, labels=True)
    assert names == PLACES
    assert rows.shape == (6, 8)
    assert torch.equal(embeddings(crop(model, 2)), rows[:, :4])
    relation_names, relations = embeddings(model, "relation", labels=True)
    assert relation_names == ["P36", "P17", "P36 (inverse)", "P17 (inverse)"]
    assert relations.shape == (4, 8)
    rows.zero_()
    assert bool(model.entity.any()), "the vectors are a copy"
    model.labels = None
    with pytest.raises(ValueError, match="no labels"):
        embeddings(model, labels=True)
    with pytest.raises(ValueError, match="kind must be 'entity' or 'relation'"):
        embeddings(model, "entities")
