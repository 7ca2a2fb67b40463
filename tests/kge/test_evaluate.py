"""Named triples become a model's own ids, whatever their order; other sizes share the tables."""

from pathlib import Path

import pytest
import torch

from croppable.core import crop
from croppable.kge.evaluate import at_sizes, evaluate, learn
from croppable.kge.known import KnownTriples
from croppable.kge.metrics import metrics_rows
from croppable.kge.model import KGEModel
from croppable.kge.named import read_triples, triples_of
from croppable.kge.ranking import rank_triples
from croppable.kge.triples import KnowledgeGraph, graph_from_triples
from croppable.labels import Labels

TRAIN = [("a", "r", "b"), ("b", "r", "c"), ("c", "s", "d"), ("d", "s", "a")]
VALID, TEST = [("a", "s", "c")], [("b", "s", "d"), ("d", "r", "a")]


def graph() -> KnowledgeGraph:
    return graph_from_triples(TRAIN, VALID, TEST, name="letters")


def scrambled() -> KGEModel:
    """A model whose ids run the other way, with one entity and one relation more than the graph."""
    torch.manual_seed(0)
    model = KGEModel(5, 3, (2, 4), "distmult", calibration="affine", reciprocal=True)
    with torch.no_grad():
        for table in model.parameters():
            table.normal_()
    model.labels = Labels(["z", "d", "c", "b", "a"], ["s", "q", "r"])
    return model


def test_splits_come_in_the_models_own_ids() -> None:
    splits = triples_of(scrambled(), graph())
    entity, relation = ["z", "d", "c", "b", "a"], ["s", "q", "r"]
    for name, given in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        named = [(entity[h], relation[r], entity[t]) for h, r, t in splits[name].tolist()]
        assert named == given
    assert splits.keys() == {"train", "valid", "test"}


def test_a_file_is_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("a\tb\tr\nz\td\tq\n")
    assert read_triples(scrambled(), path, "htr").tolist() == [[4, 2, 3], [0, 1, 1]]
    path.write_text("a\tr\tb\na\tr\tnobody\na\tr\tnowhere\n")
    with pytest.raises(
        ValueError, match=r"2 tail names in .*x.tsv are unknown to the model: 'nobody', 'nowhere'"
    ):
        read_triples(scrambled(), path)
    path.write_text("")
    with pytest.raises(ValueError, match="has no triples"):
        read_triples(scrambled(), path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_triples(scrambled(), tmp_path / "absent.tsv")
    nameless = scrambled()
    nameless.labels = None
    with pytest.raises(ValueError, match="the model has no labels"):
        triples_of(nameless, graph())


def test_evaluation_equals_ranking_by_hand() -> None:
    model = scrambled()
    splits = triples_of(model, graph())
    known = KnownTriples(torch.cat([splits[name] for name in ("train", "valid", "test")]), 5, 3)
    ranks = rank_triples(model, splits["test"], known)
    expected = metrics_rows(ranks, dataset="letters", split="test", relations=["s", "q", "r"])
    assert evaluate(model, graph()) == expected
    with_classes = evaluate(model, graph(), classify=True)
    assert with_classes[: len(expected)] == expected
    assert {row["metric"] for row in with_classes[len(expected) :]} == {"accuracy"}


def test_other_sizes_rank_as_the_crops_do_and_share_the_tables() -> None:
    model = scrambled()
    other = at_sizes(model, (1, 3, 4))
    assert other.entity is model.entity
    rows = [r for r in evaluate(other, graph()) if r["metric"] == "mrr" and r["side"] == "head"]
    by_size = {r["size"]: r["value"] for r in rows if r["relation"] is None and r["ties"] == "realistic"}
    for size in (1, 3, 4):
        (row,) = [
            r
            for r in evaluate(at_sizes(crop(model, size), (size,)), graph())
            if (r["metric"], r["side"], r["relation"], r["ties"]) == ("mrr", "head", None, "realistic")
        ]
        assert by_size[size] == row["value"]
    with pytest.raises(ValueError, match=r"sizes must end at the model's own size 4, got \(1, 3\)"):
        at_sizes(model, (1, 3))


def test_what_cannot_be_evaluated_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to rank"):
        evaluate(scrambled())
    with pytest.raises(ValueError, match="split must be train, valid or test, got 'dev'"):
        evaluate(scrambled(), graph(), split="dev")
    with pytest.raises(ValueError, match="needs a graph"):
        evaluate(scrambled(), triples=tmp_path / "x.tsv", classify=True)


def test_learning_from_a_graph_gives_its_known_triples_and_probabilities() -> None:
    """DistMult with one dim: entities of the same sign belong together."""
    model = KGEModel(4, 1, (1,), "distmult")
    with torch.no_grad():
        model.entity.copy_(torch.tensor([[2.0], [3.0], [-2.0], [-3.0]]))
        model.relation.fill_(1.0)
    model.labels = Labels("abcd", ["r"])
    true = [("a", "r", "b"), ("c", "r", "d")]
    false = [("a", "r", "c"), ("b", "r", "d")]
    own = graph_from_triples(true, true, true, valid_negatives=false)
    known, calibration = learn(model, own)
    assert len(known) == 2
    probabilities = calibration.probability(torch.tensor([6.0, -6.0]))
    assert probabilities[0] > 0.7 > 0.3 > probabilities[1]
