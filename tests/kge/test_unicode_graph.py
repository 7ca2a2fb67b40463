"""The embedded graph: the same for everybody, true, without leakage, and as its page says."""

import doctest
import hashlib
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch

from croppable.kge.unicode_graph import unicode_graph

PAGE = Path(__file__).resolve().parents[2] / "docs" / "unicode-graph.md"


@pytest.fixture(scope="module")
def graph():
    return unicode_graph()


@pytest.fixture(scope="module")
def facts(graph):
    return {(graph.entities[h], graph.relations[r], graph.entities[t]) for h, r, t in graph.triples.tolist()}


def test_every_machine_builds_the_same_graph(graph):
    digest = hashlib.sha256()
    for split in (graph.train, graph.valid, graph.test):
        for h, r, t in sorted(split.tolist()):
            digest.update(
                "\t".join((graph.entities[h], graph.relations[r], graph.entities[t])).encode() + b"\n"
            )
    for label in graph.entity_labels:
        digest.update(label.encode())
    assert digest.hexdigest() == "3b3316454f752f9df87b351b46e35240f5ff356f02d5984e00a9758e416f5ee4"


def test_counts(graph):
    assert (graph.num_entities, graph.num_relations) == (7_711, 19)
    assert [len(graph.train), len(graph.valid), len(graph.test)] == [31_675, 1_759, 1_759]


@pytest.mark.parametrize(
    "fact",
    [
        ("U+00E9", "base", "U+0065"),
        ("U+00E9", "mark", "U+0301"),
        ("U+00E9", "upper case", "U+00C9"),
        ("U+00E9", "script", "script:LATIN"),
        ("U+00E9", "category", "category:lowercase letter"),
        ("U+0663", "number", "number:3"),
        ("U+0663", "direction", "direction:Arabic number"),
        ("U+0028", "mirror image", "U+0029"),
        ("U+0915", "next", "U+0916"),
        ("U+30AB", "onset", "onset:K"),
        ("U+30AB", "rime", "rime:A"),
        ("U+30AB", "next", "U+30AD"),
        ("U+0110", "letter", "letter:D"),
        ("U+0301", "combining class", "combining class:230"),
        ("U+FF21", "width", "width:fullwidth"),
        ("U+FF21", "variant of", "U+0041"),
        ("U+1D400", "style", "style:BOLD"),
        ("U+FB01", "spelled with", "U+0069"),
        ("U+2460", "form", "form:circle"),
        ("U+2190", "described as", "word:LEFTWARDS"),
    ],
)
def test_facts_that_people_know(facts, fact):
    assert fact in facts


def test_every_relation_has_an_example_above(graph):
    known = {
        mark.args[1][i][1]
        for mark in test_facts_that_people_know.pytestmark
        for i in range(len(mark.args[1]))
    }
    assert known == set(graph.relations)


def test_labels_can_be_read(graph):
    label = dict(zip(graph.entities, graph.entity_labels, strict=True))
    assert label["U+00E9"] == "é LATIN SMALL LETTER E WITH ACUTE"
    assert label["U+0301"] == "◌\u0301 COMBINING ACUTE ACCENT"
    assert label["script:GREEK"] == "script GREEK"
    assert label["number:3"] == "number 3"
    assert len(set(graph.entity_labels)) == graph.num_entities
    assert not any(re.search(r"[\t\n\r]", text) for text in (*graph.entities, *graph.entity_labels))


def test_the_splits_are_disjoint_and_train_knows_everything(graph):
    assert graph.duplicates == 0
    assert graph.leaked == 0
    assert len({tuple(triple) for triple in graph.triples.tolist()}) == len(graph.triples)
    assert len(graph.unseen_entities) == 0
    assert len(graph.unseen_relations) == 0
    assert torch.bincount(graph.train[:, ::2].flatten(), minlength=graph.num_entities).min() >= 2
    for split in (graph.valid, graph.test):
        assert set(split[:, 1].tolist()) == set(range(graph.num_relations))


def test_no_relation_repeats_or_turns_round_another(graph):
    relations = defaultdict(set)
    for h, r, t in graph.triples.tolist():
        relations[h, t].add(r)
    turned = [pair for pair in relations if pair[::-1] in relations]
    assert turned == []
    size = Counter(graph.triples[:, 1].tolist())
    shared = Counter(frozenset(rs) for rs in relations.values() if len(rs) > 1)
    for pair, count in shared.items():
        assert count < 0.01 * min(size[r] for r in pair)


def test_every_value_and_character_has_enough_facts(graph):
    count = torch.bincount(graph.triples[:, ::2].flatten(), minlength=graph.num_entities).tolist()
    for entity, n in zip(graph.entities, count, strict=True):
        assert n >= (4 if entity.startswith("U+") else 5)


def test_another_seed_splits_the_same_facts_otherwise(graph, facts):
    other = unicode_graph(seed=1)
    assert other.entities == graph.entities
    assert len(other.test) == len(graph.test)
    assert {tuple(t) for t in other.triples.tolist()} == {tuple(t) for t in graph.triples.tolist()}
    shared = {tuple(t) for t in other.test.tolist()} & {tuple(t) for t in graph.test.tolist()}
    assert 0 < len(shared) < 0.2 * len(graph.test)


def test_the_page_counts_what_the_graph_has(graph):
    counts = [Counter(split[:, 1].tolist()) for split in (graph.train, graph.valid, graph.test)]
    tails = {
        r: len(graph.triples[graph.triples[:, 1] == r][:, 2].unique()) for r in range(graph.num_relations)
    }
    rows = [
        f"| {name} | {' | '.join(f'{count[r]:,}' for count in counts)} | {tails[r]:,} |"
        for r, name in enumerate(graph.relations)
    ]
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^\| ([a-z ]+?) \|.*?((?:\| [\d,]+ ){4})\|$", text, re.MULTILINE)
    assert [f"| {name} {counts}|" for name, counts in found] == rows, "\n".join(rows)


def test_the_code_on_the_page_runs():
    assert doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8").failed == 0
