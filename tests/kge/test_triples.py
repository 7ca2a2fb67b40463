"""Reading graphs: every format says the same, and the counts are the published ones."""

import gzip
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from graph_files import SPLITS, TEST, TRAIN, VALID, named, same, write
from hypothesis import given
from hypothesis import strategies as st

from croppable.kge.files import read_labels
from croppable.kge.triples import graph_from_triples, read_graph

# name: entities, relations, train, valid, test, unseen entities, negatives in valid and test (data/README.md)
PUBLISHED = {
    "fb15k-237": (14_541, 237, 272_115, 17_535, 20_466, 36, None, None),
    "wn18rr": (40_943, 11, 86_835, 3_034, 3_134, 384, None, None),
    "codex-s": (2_034, 42, 32_888, 1_827, 1_828, 0, 1_827, 1_828),
    "fb13": (75_043, 13, 316_232, 5_908, 23_733, 0, 5_908, 23_733),
    "umls": (135, 46, 5_216, 652, 661, 0, None, None),
    "nations": (14, 55, 1_592, 199, 201, 0, None, None),
}


@pytest.mark.parametrize("extension", [".tsv", ".txt", ".csv", ".parquet", ".tsv.gz", ".txt.gz", ".csv.gz"])
def test_every_format_reads_the_same_names_unmangled(tmp_path, extension):
    graph = read_graph(write(tmp_path / "g", extension=extension))
    assert named(graph) == SPLITS
    same(graph, graph_from_triples(TRAIN, VALID, TEST))


def test_gzipped_parquet(tmp_path):
    folder = write(tmp_path / "g", extension=".parquet")
    for path in list(folder.iterdir()):
        path.with_suffix(".parquet.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert named(read_graph(folder)) == SPLITS


def test_ids_are_places_in_the_sorted_names(tmp_path):
    graph = read_graph(write(tmp_path / "g"), name="tiny")
    assert graph.name == "tiny"
    assert list(graph.entities) == sorted({n for s in SPLITS.values() for h, _, t in s for n in (h, t)})
    assert list(graph.relations) == sorted({r for s in SPLITS.values() for _, r, _ in s})
    assert graph.train.dtype == torch.long
    assert graph.train.shape == (7, 3)
    assert graph.triples.shape == (10, 3)
    assert graph.num_entities == len(graph.entities)
    assert graph.num_relations == len(graph.relations)


@pytest.mark.parametrize("order", ["hrt", "htr", "rht", "rth", "thr", "trh"])
@pytest.mark.parametrize("extension", [".tsv", ".csv.gz"])
def test_column_order(tmp_path, order, extension):
    folder = write(tmp_path / "g", extension=extension, order=order)
    assert named(read_graph(folder, column_order=order)) == SPLITS


@pytest.mark.parametrize(
    "header", [("Tail", "head", "relation"), ("t", "h", "r"), ("object", "subject", "predicate")]
)
@pytest.mark.parametrize("extension", [".tsv", ".csv", ".txt.gz"])
def test_a_header_wins_over_the_column_order(tmp_path, header, extension):
    folder = write(tmp_path / "g", extension=extension, order="thr", header=header)
    assert named(read_graph(folder)) == SPLITS


def test_parquet_takes_named_columns_among_others_and_any_type(tmp_path):
    folder = tmp_path / "g"
    folder.mkdir()
    table = pa.table(
        {
            "when": [1, 2],
            "object": [7, 8],
            "subject": [1, 2],
            "predicate": pa.array(["a", "b"]).dictionary_encode(),
        }
    )
    for split in SPLITS:
        pq.write_table(table, folder / f"{split}.parquet")
    assert named(read_graph(folder))["train"] == [("1", "a", "7"), ("2", "b", "8")]


def test_parquet_takes_three_unnamed_columns_in_the_column_order(tmp_path):
    folder = tmp_path / "g"
    folder.mkdir()
    for split in SPLITS:
        pq.write_table(pa.table({"a": ["x"], "b": ["y"], "c": ["z"]}), folder / f"{split}.parquet")
    assert named(read_graph(folder, column_order="thr"))["test"] == [("y", "z", "x")]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_blank_lines_and_byte_order_marks(tmp_path, ending, mark):
    for split in SPLITS:
        text = (
            mark + ending.join(["", "a\tr\tb", "", "b\tr\tc", ""])
            if not mark
            else mark + f"a\tr\tb{ending}b\tr\tc"
        )
        (tmp_path / f"{split}.tsv").write_bytes(text.encode())
    assert named(read_graph(tmp_path))["train"] == [("a", "r", "b"), ("b", "r", "c")]


@pytest.mark.parametrize(("extension", "separator"), [(".tsv", "\t"), (".csv", ",")])
def test_a_header_behind_blank_lines(tmp_path, extension, separator):
    for split in SPLITS:
        lines = ["", "", separator.join(("tail", "relation", "head")), "", separator.join("abc")]
        (tmp_path / f"{split}{extension}").write_text("\n".join(lines))
    assert named(read_graph(tmp_path))["train"] == [("c", "b", "a")]


def test_txt_without_tabs_is_cut_at_spaces(tmp_path):
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text("a r b\nb r c\n")
    assert named(read_graph(tmp_path))["valid"] == [("a", "r", "b"), ("b", "r", "c")]


@pytest.mark.parametrize("valid", ["valid", "validation", "dev"])
def test_names_of_the_validation_split(tmp_path, valid):
    folder = write(tmp_path / "g", {"train": TRAIN, valid: VALID, "test": TEST})
    assert named(read_graph(folder)) == SPLITS


name = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\t\n\r"), min_size=1)


@given(st.lists(st.tuples(name, name, name), min_size=1))
def test_any_text_survives_tsv(tmp_path_factory, triples):
    header = sorted(field.strip().lower()[:1] for field in triples[0]) == ["h", "r", "t"]
    mark = triples[0][0].startswith("\ufeff")
    if header or mark:
        return
    folder = write(tmp_path_factory.mktemp("any"), dict.fromkeys(SPLITS, triples))
    assert named(read_graph(folder))["train"] == triples


# Labels and negatives


def test_labels_align_with_ids_and_fall_back_to_them(tmp_path):
    folder = write(tmp_path / "g")
    (folder / "entity_labels.tsv").write_text(
        "Berlin\tcity of Berlin\tmore\ttext\n007\t\nnobody\tNobody\n日本\tJapan\n"
    )
    with gzip.open(folder / "relation_labels_partial.tsv.gz", "wt") as stream:
        stream.write("is a\tis a kind of\n")
    graph = read_graph(folder)
    labels = dict(zip(graph.entities, graph.entity_labels, strict=True))
    assert labels["Berlin"] == "city of Berlin"
    assert labels["日本"] == "Japan"
    assert labels["007"] == "007"
    assert labels["Germany"] == "Germany"
    assert "nobody" not in labels
    assert dict(zip(graph.relations, graph.relation_labels, strict=True))["is a"] == "is a kind of"
    assert dict(zip(graph.relations, graph.relation_labels, strict=True))["borders"] == "borders"


def test_without_label_files_there_are_no_labels(tmp_path):
    graph = read_graph(write(tmp_path / "g"))
    assert graph.entity_labels is None
    assert graph.relation_labels is None
    assert graph.valid_negatives is None


def test_negatives_share_the_ids(tmp_path):
    folder = write(tmp_path / "g", SPLITS | {"valid_negatives": [("Berlin", "borders", "Atlantis")]})
    graph = read_graph(folder)
    h, r, t = graph.valid_negatives[0].tolist()
    assert (graph.entities[h], graph.relations[r], graph.entities[t]) == ("Berlin", "borders", "Atlantis")
    assert graph.test_negatives is None
    assert graph.entities.index("Atlantis") in graph.unseen_entities
    same(graph, graph_from_triples(TRAIN, VALID, TEST, valid_negatives=[("Berlin", "borders", "Atlantis")]))


def test_a_label_file_with_a_bad_line_names_it(tmp_path):
    folder = write(tmp_path / "g")
    (folder / "entity_labels.tsv").write_text("Berlin\tcity\nGermany\n")
    with pytest.raises(
        ValueError, match=r"no label in .*entity_labels\.tsv line 2: expected an id, a tab and a label"
    ):
        read_graph(folder)
    (folder / "entity_labels.tsv").write_text("\tcity\n")
    with pytest.raises(ValueError, match="line 1"):
        read_labels(folder / "entity_labels.tsv")


# What is unusual is kept, counted and said


def test_what_only_valid_or_test_has_is_kept_counted_and_said(tmp_path):
    graph = read_graph(write(tmp_path / "g"))
    assert [graph.entities[i] for i in graph.unseen_entities] == ["Land"]
    assert [graph.relations[i] for i in graph.unseen_relations] == ["borders"]
    assert graph.duplicates == 1
    assert graph.leaked == 0
    assert graph.summary() == (
        "g: 13 entities, 7 relations, 7 train / 1 valid / 2 test triples; not in train but kept: 1 entities, "
        "1 relations; 1 repeated lines in train"
    )


def test_triples_of_test_that_train_has_are_said():
    graph = graph_from_triples(TRAIN, TRAIN[:1], TRAIN[1:3])
    assert graph.leaked == 3
    assert "3 valid or test triples are in train too" in graph.summary()


# Published data


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_counts_of_the_benchmarks(data_dir, dataset):
    graph = read_graph(data_dir / "kg" / dataset)
    lengths = [
        None if triples is None else len(triples)
        for triples in (graph.train, graph.valid, graph.test, graph.valid_negatives, graph.test_negatives)
    ]
    unseen = len(graph.unseen_entities)
    assert graph.name == dataset
    assert (graph.num_entities, graph.num_relations, *lengths[:3], unseen, *lengths[3:]) == PUBLISHED[dataset]
    assert len(graph.unseen_relations) == 0
    with gzip.open(data_dir / "kg" / dataset / "test.tsv.gz", "rt", encoding="utf-8") as stream:
        assert named(graph)["test"] == [tuple(line.rstrip("\n").split("\t")) for line in stream]


def test_labels_of_the_benchmarks(data_dir):
    graph = read_graph(data_dir / "kg" / "codex-s")
    assert graph.entity_labels[graph.entities.index("Q100")] == "Boston"
    assert graph.relation_labels[graph.relations.index("P101")] == "field of work"
    assert sum(a != b for a, b in zip(graph.entities, graph.entity_labels, strict=True)) == 1_085
    graph = read_graph(data_dir / "kg" / "wn18rr")
    assert all(graph.entity_labels)
    assert not set(graph.entities) & set(graph.entity_labels)


def test_pyarrow_and_datasets_are_imported_only_when_needed():
    import subprocess

    code = (
        "import sys, croppable.kge.triples as t; "
        "t.graph_from_triples([('a','r','b')], [('a','r','b')], [('a','r','b')]).summary(); "
        "assert not {'pyarrow', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
