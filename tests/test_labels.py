"""Names in two tensors behave as a list of strings, find themselves, and refuse what is none."""

import random
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from croppable import labels as labels_module
from croppable.kge.triples import graph_from_triples
from croppable.labels import Labels, StringTable, closest
from croppable.segments import write_file


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=40))
def test_a_table_is_the_list_of_its_strings(strings: list[str]) -> None:
    table = StringTable.of(strings)
    assert list(table) == strings
    assert table[-1] == strings[-1]
    assert table[1:3] == strings[1:3]
    for text in {*strings, "absent", "a\0", "\0a"}:
        assert table.find(text) == [i for i, other in enumerate(strings) if other == text]
        assert (text in table) == (text in strings)
    assert (table.duplicate() is None) == (len(set(strings)) == len(strings))
    assert table == StringTable.of(strings)
    assert table != StringTable.of([*strings, "more"])


def test_windows_cut_long_tables_without_losing_a_string(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "_WINDOW", 7)
    draw = random.Random(0)
    strings = ["".join(draw.choices("abé€😀", k=draw.randrange(12))) + str(i) for i in range(300)]
    strings[10:10] = [""]
    table = StringTable.of(strings)
    assert [table.index(text) for text in strings] == list(range(301))
    assert table.duplicate() is None
    assert StringTable.of([*strings, strings[77]]).duplicate() == strings[77]


def test_equal_hashes_of_different_strings_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "_PRIME", 1)  # the hash is then the sum of the bytes
    table = StringTable.of(["ab", "ba", "c", "aab", "baa"])
    assert [table.index(text) for text in table] == [0, 1, 2, 3, 4]
    assert table.duplicate() is None
    assert StringTable.of(["ab", "ba", "aab", "ab", "ba"]).duplicate() in ("ab", "ba")


def test_what_is_not_there_is_an_error() -> None:
    table = StringTable.of(["a", "b", "a"])
    assert table.index("a", 1) == 2
    with pytest.raises(ValueError, match="'z' is not among the 3 strings"):
        table.index("z")
    with pytest.raises(IndexError):
        table[3]
    assert 5 not in table  # type: ignore[operator]


def test_labels_come_from_a_graph_with_texts() -> None:
    graph = graph_from_triples(
        [("Q64", "P17", "Q183")],
        [("Q183", "P36", "Q64")],
        [("Q64", "P17", "Q183")],
        entity_labels={"Q64": "Berlin", "Q183": "Germany"},
    )
    labels = Labels.of(graph)
    assert list(labels.entity) == ["Q183", "Q64"]
    assert list(labels.entity_text or ()) == ["Germany", "Berlin"]
    assert labels.relation_text is None
    assert Labels.of(labels) is labels


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the entity name 'a' twice"):
        Labels(["a", "b", "a"], ["r"])
    with pytest.raises(ValueError, match="1 entity texts for 2 names"):
        Labels(["a", "b"], ["r"], ["x"])
    with pytest.raises(ValueError, match="an empty relation name"):
        Labels(["a", "b"], ["r", ""])


def test_labels_survive_the_file(tmp_path: Path) -> None:
    labels = Labels(["é", "日本", "x"], ["r"], ["same", "same", ""], ["relation"])
    nbytes, sha256 = write_file(tmp_path / "labels.safetensors", labels.pieces())
    assert Labels.read(tmp_path, nbytes, {"entity": 3}, sha256) == labels
    assert Labels.read(tmp_path, nbytes) != Labels(["é", "日本", "x"], ["r"])


def test_the_closest_names_come_first_whatever_their_case() -> None:
    names = StringTable.of(["Berlin", "Bern", "Paris", "bärlin", "Q64"])
    assert closest("berlin", names)[:2] == ["Berlin", "bärlin"]
    assert closest("zzz", names) == []


@pytest.mark.slow
def test_two_million_labels_load_in_a_second(tmp_path: Path) -> None:
    labels = Labels((f"http://entity/{i}" for i in range(2_000_000)), ["r"])
    nbytes, _ = write_file(tmp_path / "labels.safetensors", labels.pieces())
    del labels
    start = time.thread_time()  # of this thread alone: other workers are busy
    read = Labels.read(tmp_path, nbytes)
    assert read.entity.index("http://entity/1999999") == 1_999_999
    assert time.thread_time() - start < 3, "measured 0.8 s on a quiet machine"
    assert torch.equal(read.entity.offsets[:2], torch.tensor([0, 15]))
    start = time.thread_time()
    assert closest("http://entity/19x9999", read.entity)
    assert time.thread_time() - start < 15, "measured 3 s"
