"""The index of known triples against brute force, and relation categories by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from croppable.kge.known import SIDES, KnownTriples, relation_categories
from croppable.kge.triples import read_graph

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@st.composite
def graphs(draw):
    entities, relations = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    entity, relation = st.integers(0, entities - 1), st.integers(0, relations - 1)
    triples = draw(st.lists(st.tuples(entity, relation, entity), max_size=60))
    return torch.tensor(triples, dtype=torch.long).reshape(-1, 3), entities, relations


def answers(triples, anchor, relation, side):
    """Brute force: the sorted known answers of one query."""
    found = {(t if side == "tail" else h) for h, r, t in triples.tolist()
             if r == relation and (h if side == "tail" else t) == anchor}  # fmt: skip
    return sorted(found)


@given(graphs())
def test_targets_counts_and_unknown_equal_brute_force(graph):
    triples, num_entities, num_relations = graph
    known = KnownTriples(triples, num_entities, num_relations)
    queries = torch.cartesian_prod(torch.arange(num_entities), torch.arange(num_relations))
    anchor, relation = queries.unbind(1)
    for side in SIDES:
        expected = [answers(triples, a, r, side) for a, r in queries.tolist()]
        rows, entities = known.targets(anchor, relation, side)
        assert rows.tolist() == [row for row, found in enumerate(expected) for _ in found]
        assert entities.tolist() == [entity for found in expected for entity in found]
        assert known.counts(anchor, relation, side).tolist() == [len(found) for found in expected]
        for row, found in enumerate(expected):
            ranks = torch.arange(num_entities - len(found))[None]
            got = known.unknown(anchor[row : row + 1], relation[row : row + 1], side, ranks)
            assert got[0].tolist() == [e for e in range(num_entities) if e not in found]


@given(graphs())
def test_contains_equals_brute_force_in_any_shape(graph):
    triples, num_entities, num_relations = graph
    known = KnownTriples(triples, num_entities, num_relations)
    entities = torch.arange(num_entities)
    grid = torch.cartesian_prod(entities, torch.arange(num_relations), entities)
    truth = {tuple(triple) for triple in triples.tolist()}
    expected = [tuple(triple) in truth for triple in grid.tolist()]
    assert known.contains(grid).tolist() == expected
    assert known.contains(grid.view(num_entities, -1, 3)).flatten().tolist() == expected
    assert len(known) == len(truth)


def test_rows_of_a_batch_may_repeat_and_be_unanswered():
    known = KnownTriples(torch.tensor([[0, 0, 2], [0, 0, 1], [3, 1, 1], [0, 0, 2]]), 5, 2)
    rows, entities = known.targets(torch.tensor([4, 0, 3, 0]), torch.tensor([1, 0, 0, 0]), "tail")
    assert rows.tolist() == [1, 1, 3, 3]
    assert entities.tolist() == [1, 2, 1, 2]
    rows, entities = known.targets(torch.tensor([1]), torch.tensor([1]), "head")
    assert (rows.tolist(), entities.tolist()) == ([0], [3])
    rows, entities = known.targets(
        torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long), "tail"
    )
    assert (rows.tolist(), entities.tolist()) == ([], [])


def test_the_triples_are_not_touched():
    triples = torch.tensor([[3, 0, 1], [0, 1, 2]])
    before = triples.clone()
    KnownTriples(triples, 4, 2).counts(triples[:, 0], triples[:, 1], "tail")
    assert torch.equal(triples, before)


def test_ids_whose_triple_key_would_pass_64_bits():
    num_entities, num_relations = 2**33, 2**20  # head x relation x tail would need 86 bits
    triples = torch.tensor([[2**33 - 1, 2**20 - 1, 2**33 - 1], [5, 2**20 - 1, 7], [2**33 - 1, 2**20 - 1, 0]])
    known = KnownTriples(triples, num_entities, num_relations)
    assert known.contains(triples).all()
    assert not known.contains(triples + torch.tensor([0, -1, 0])).any()
    assert known.targets(triples[:1, 0], triples[:1, 1], "tail")[1].tolist() == [0, 2**33 - 1]
    assert known.unknown(triples[:1, 0], triples[:1, 1], "tail", torch.tensor([[0, 2**33 - 3]])).tolist() == [
        [1, 2**33 - 2]
    ]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])])
def test_to_gives_the_same_index_elsewhere(device):
    triples = torch.randint(9, (50, 3), generator=torch.Generator().manual_seed(0))
    known = KnownTriples(triples, 9, 9)
    moved = known.to(device)
    there = triples.to(device)
    assert moved.contains(there).all()
    assert (
        moved.counts(there[:, 0], there[:, 1], "tail").tolist()
        == known.counts(triples[:, 0], triples[:, 1], "tail").tolist()
    )
    assert len(moved) == len(known)


def test_the_test_split_of_a_real_graph(data_dir):
    graph = read_graph(data_dir / "kg" / "wn18rr")
    known = KnownTriples(graph.triples, graph.num_entities, graph.num_relations)
    truth = {tuple(triple) for triple in graph.triples.tolist()}
    assert len(known) == len(truth)
    assert known.contains(graph.triples).all()
    corrupted = graph.test.roll(1, 0) * torch.tensor([1, 0, 0]) + graph.test * torch.tensor([0, 1, 1])
    assert known.contains(corrupted).tolist() == [tuple(triple) in truth for triple in corrupted.tolist()]
    rows, entities = known.targets(graph.test[:, 0], graph.test[:, 1], "tail")
    found = {
        (*graph.test[row, :2].tolist(), entity)
        for row, entity in zip(rows.tolist(), entities.tolist(), strict=True)
    }
    queries = {tuple(triple[:2]) for triple in graph.test.tolist()}
    assert found == {triple for triple in truth if triple[:2] in queries}


@pytest.mark.parametrize(
    ("triples", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.long), r"long tensor \[T, 3\].*torch.int64 \(3, 2\)"),
        (torch.zeros(3, 3), r"long tensor \[T, 3\].*torch.float32 \(3, 3\)"),
        (
            torch.tensor([[0, 0, 5]]),
            r"0 to 4 for entities and 0 to 1 for relations, got columns from \[0, 0, 5\]",
        ),
        (torch.tensor([[0, 2, 0]]), "ids must be 0 to 4"),
        (torch.tensor([[-1, 0, 0]]), "ids must be 0 to 4"),
    ],
)
def test_bad_triples_are_refused(triples, message):
    with pytest.raises(ValueError, match=message):
        KnownTriples(triples, 5, 2)


def test_too_many_ids_and_an_unknown_side_are_refused():
    triples = torch.tensor([[0, 0, 1]])
    with pytest.raises(ValueError, match=r"do not fit 64-bit keys: entities x relations .* below 2\*\*63"):
        KnownTriples(triples, 2**40, 2**23)
    with pytest.raises(ValueError, match=r"side must be one of \('tail', 'head'\), got 'both'"):
        KnownTriples(triples, 2, 1).counts(triples[:, 0], triples[:, 1], "both")


def test_relation_categories_by_hand():
    triples = [
        (0, 0, 1), (1, 0, 2), (2, 0, 0),             # one tail per head, one head per tail
        (0, 1, 1), (0, 1, 2), (0, 1, 3), (4, 1, 5),  # (3 + 1) / 2 = 2 tails per head
        (1, 2, 0), (2, 2, 0), (3, 2, 0), (3, 2, 4),  # 4 / 2 heads per tail, 4 / 3 tails per head
        (0, 3, 1), (0, 3, 2), (1, 3, 1), (1, 3, 2),  # two of each
        (0, 4, 1), (0, 4, 2), (3, 4, 4),             # 3 / 2 tails per head: the threshold itself is N
        (0, 5, 1), (0, 5, 1), (0, 5, 1),             # repetitions count once
    ]  # fmt: skip
    categories = relation_categories(torch.tensor(triples), 7)
    assert categories == ["1-1", "1-N", "N-1", "N-N", "1-N", "1-1", "unseen"]
    assert relation_categories(torch.empty(0, 3, dtype=torch.long), 2) == ["unseen", "unseen"]
    assert relation_categories(torch.tensor(triples), 7, threshold=2.1)[1] == "1-1"
