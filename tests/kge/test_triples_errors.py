"""Graphs that cannot be read: one clear line that names the file, the row and what is wrong."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from graph_files import SPLITS, TEST, TRAIN, VALID, write

from croppable.kge.triples import graph_from_hub, graph_from_triples, read_graph


@pytest.mark.parametrize(
    ("extension", "line", "text", "message"),
    [
        (".tsv", 3, "Berlin\tin", r"no triple in .*train\.tsv line 3: expected 3 .* got 2 \('Berlin\\tin'\)"),
        (".txt", 3, "a\tb\tc\td", r"train\.txt line 3: expected 3 tab-separated fields, got 4 "),
        (".tsv", 1, "one", r"train\.tsv line 1: expected 3 tab-separated fields, got 1 \('one'\)"),
        (".tsv", 2, "a\t\tc", r"train\.tsv line 2: the relation is empty \('a\\t\\tc'\)"),
        (".csv", 2, "a,b", r"train\.csv line 2: expected 3 comma-separated fields, got 2 \('a,b'\)"),
        (".csv", 3, 'a,"",c', r"train\.csv line 3: the relation is empty"),
        (".tsv.gz", 4, "only\ttwo", r"train\.tsv\.gz line 4: expected 3 tab-separated fields, got 2"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_named(tmp_path, extension, line, text, message):
    folder = write(tmp_path / "g", extension=extension)
    separator = "," if ".csv" in extension else "\t"
    lines = [separator.join(("a", "b", "c"))] * 5
    lines[line - 1] = text
    raw = "\n".join(lines).encode()
    (folder / f"train{extension}").write_bytes(gzip.compress(raw) if extension.endswith(".gz") else raw)
    with pytest.raises(ValueError, match=message):
        read_graph(folder)


def test_a_malformed_line_behind_a_header_blank_lines_and_quoted_newlines(tmp_path):
    folder = write(tmp_path / "g", extension=".csv")
    (folder / "train.csv").write_text('head,relation,tail\n\n"a\nb",r,c\nx,y\n')
    with pytest.raises(ValueError, match=r"train\.csv line 5: expected 3 comma-separated fields, got 2"):
        read_graph(folder)


def test_a_long_bad_line_is_cut(tmp_path):
    folder = write(tmp_path / "g")
    (folder / "test.tsv").write_text("x" * 10_000 + "\ty\n")
    with pytest.raises(ValueError, match="got 2") as caught:
        read_graph(folder)
    assert len(str(caught.value)) < 500


def test_a_malformed_line_far_into_a_big_file_is_named(tmp_path):
    folder = write(tmp_path / "g")
    lines = ["some head\tsome relation\tsome tail"] * 100_000
    lines[80_000] = "some head\tsome relation"
    (folder / "train.tsv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"train\.tsv line 80001: "):
        read_graph(folder)


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    folder = write(tmp_path / "g")
    (folder / "valid.tsv").write_bytes(b"a\tr\tb\n" + "größe\tr\tb\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"valid\.tsv line 2 is not UTF-8 .*save it as UTF-8"):
        read_graph(folder)


def test_a_truncated_gzip_is_named(tmp_path):
    folder = write(tmp_path / "g", extension=".tsv.gz")
    raw = (folder / "train.tsv.gz").read_bytes()
    (folder / "train.tsv.gz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"train\.tsv\.gz does not unpack .*fetch it again"):
        read_graph(folder)
    (folder / "train.tsv.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"train\.tsv\.gz does not unpack"):
        read_graph(folder)


@pytest.mark.parametrize("content", ["", "\n\n", "head\trelation\ttail\n"])
def test_empty_splits_are_named_together(tmp_path, content):
    folder = write(tmp_path / "g")
    (folder / "valid.tsv").write_text(content)
    (folder / "test.tsv").write_text(content)
    with pytest.raises(ValueError, match=r"no triples: valid \(.*valid\.tsv\), test \(.*test\.tsv\)"):
        read_graph(folder)


def test_an_empty_parquet_split_is_named(tmp_path):
    folder = write(tmp_path / "g", SPLITS | {"test": []}, extension=".parquet")
    with pytest.raises(ValueError, match=r"no triples: test"):
        read_graph(folder)


@pytest.mark.parametrize("order", ["", "hr", "hrtt", "hrx", "HRT", "sro", "hhr"])
def test_an_unknown_column_order_is_refused(tmp_path, order):
    with pytest.raises(ValueError, match=f"permutation of the letters h, r, t .* got '{order}'"):
        read_graph(tmp_path, column_order=order)
    with pytest.raises(ValueError, match="permutation"):
        graph_from_hub("anything", column_order=order)


def test_a_missing_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nowhere is not a folder: expected one with train, valid and test"
    ):
        read_graph(tmp_path / "nowhere")
    path = tmp_path / "train.tsv"
    path.write_text("a\tb\tc\n")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read_graph(path)


def test_missing_splits_list_what_was_found(tmp_path):
    folder = write(tmp_path / "g", {"train": TRAIN})
    (folder / "notes.md").write_text("")
    with pytest.raises(
        FileNotFoundError, match=r"has no valid and no test file: .* found \['notes.md', 'train.tsv'\]"
    ):
        read_graph(folder)


def test_two_files_for_one_split_are_refused(tmp_path):
    folder = write(write(tmp_path / "g"), {"valid": VALID}, extension=".csv.gz")
    with pytest.raises(ValueError, match=r"more than one file .*\['valid.tsv', 'valid.csv.gz'\]; keep one"):
        read_graph(folder)


def test_parquet_without_triple_columns(tmp_path):
    folder = write(tmp_path / "g", extension=".parquet")
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), folder / "train.parquet")
    with pytest.raises(ValueError, match=r"has the columns \['a', 'b'\]: expected head, relation and tail"):
        read_graph(folder)
    pq.write_table(pa.table({"h": ["x", "y"], "r": ["y", "z"], "t": ["y", None]}), folder / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet row 2: the tail is empty"):
        read_graph(folder)
    (folder / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"train\.parquet cannot be read as parquet"):
        read_graph(folder)


@pytest.mark.parametrize("bad", [("a", "b"), ("a", "b", ""), ("a", "b", 3), "abcd"])
def test_bad_triples_in_memory_are_named(bad):
    with pytest.raises(ValueError, match=r"no triple in valid at place 1: expected three non-empty strings"):
        graph_from_triples(TRAIN, [VALID[0], bad], TEST)
    with pytest.raises(ValueError, match=r"no triples: valid \(as given\)"):
        graph_from_triples(TRAIN, [], TEST)
