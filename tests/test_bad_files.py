"""Bad segment and label files: refused by name, fast, in little memory, without leaving the folder."""

import json
import sys
from pathlib import Path

import pytest
from sabotage import (
    FIRST,
    HUGE,
    LABELS,
    RELATION,
    SECOND,
    Sabotage,
    bad_number,
    check_refused,
    config,
    cut,
    entry,
    exchanged,
    fifo,
    flipped,
    gone,
    good_checkpoint,
    grow,
    header,
    instead_a_folder,
    labels,
    link,
    replaced,
)

import croppable

CASES: dict[str, tuple[Sabotage, str]] = {
    # segment files
    "segment missing": (gone(SECOND), "no file"),
    "segment cut by one byte": (cut(SECOND, -1), "cut short"),
    "segment cut to nothing": (cut(SECOND, 0), "0 bytes"),
    "segment cut to nothing, honestly": (cut(SECOND, 1, honest=True), "found"),
    "segment cut inside its header": (cut(SECOND, 40, honest=True), "header"),
    "segment cut inside its data": (cut(SECOND, -4, honest=True), "bytes"),
    "segment with bytes behind": (grow(SECOND), "as its header says"),
    "segment longer than promised": (grow(SECOND, honest=False), "cut short or replaced"),
    "segment is a pipe": (fifo(SECOND), "pipe"),
    "segment is a folder": (instead_a_folder(SECOND), "folder"),
    "segment links outside": (link(SECOND, "../secret.safetensors"), "link that leaves"),
    "segment links to a device": (link(SECOND, "/dev/zero"), "link that leaves"),
    "segments exchanged": (exchanged, "added or missing"),
    "header of 2^63 bytes": (
        lambda f: replaced(f, SECOND, (2**63).to_bytes(8, "little") + bytes(100)),
        "header of 9223372036854775808",
    ),
    "header of 90 MB": (
        lambda f: replaced(f, SECOND, (90 << 20).to_bytes(8, "little") + b" " * (90 << 20)),
        "header of",
    ),
    "header that is no JSON": (header(SECOND, lambda _: "{nope}"), "strict JSON"),
    "header that is a list": (header(SECOND, lambda _: "[]"), "JSON list"),
    "header with a duplicate tensor": (
        header(SECOND, lambda c: json.dumps(c).replace("{", '{"entity.seg0002": {}, ', 1)),
        "twice",
    ),
    "header with a million empty tensors": (
        header(
            SECOND,
            lambda c: c.update(
                {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(15000)}
            ),
        ),
        "header entry",
    ),
    "header with an unexpected tensor": (
        header(SECOND, lambda c: c.update({"x": c.pop("entity.seg0002")})),
        "added or missing",
    ),
    "header with a tensor called ../x": (
        header(SECOND, lambda c: c.update({"../x": c.pop("entity.seg0002")})),
        "added or missing",
    ),
    "header with another dtype": (entry(SECOND, "entity.seg0002", "dtype", "I32"), "int32"),
    "header with an unknown dtype": (entry(SECOND, "entity.seg0002", "dtype", "F8_E4M3"), "header entry"),
    "header with another shape": (entry(SECOND, "entity.seg0002", "shape", [2, 6]), r"\(2, 6\)"),
    "header with a huge shape": (entry(SECOND, "entity.seg0002", "shape", [2**60, 0]), "header entry"),
    "header with a shape that lies": (entry(SECOND, "entity.seg0002", "shape", [600, 2]), "header entry"),
    "header with a negative shape": (entry(SECOND, "entity.seg0002", "shape", [-6, -2]), "header entry"),
    "header with a shape in words": (entry(SECOND, "entity.seg0002", "shape", "62"), "header entry"),
    "header with overlapping tensors": (
        entry(SECOND, "relation.seg0002", "data_offsets", [0, 24]),
        "header entry",
    ),
    "header with a gap": (entry(SECOND, "relation.seg0002", "data_offsets", [56, 80]), "header entry"),
    "header with offsets backwards": (
        entry(SECOND, "relation.seg0002", "data_offsets", [72, 48]),
        "header entry",
    ),
    "header with negative offsets": (
        entry(SECOND, "entity.seg0002", "data_offsets", [-48, 0]),
        "header entry",
    ),
    "header with offsets of 10^30": (entry(SECOND, "entity.seg0002", "data_offsets", [HUGE, HUGE]), "entry"),
    "header with offsets as floats": (entry(SECOND, "entity.seg0002", "data_offsets", [0.0, 48.0]), "entry"),
    "header with three offsets": (
        entry(SECOND, "entity.seg0002", "data_offsets", [0, 24, 48]),
        "header entry",
    ),
    "header with no offsets": (
        header(SECOND, lambda c: c["entity.seg0002"].pop("data_offsets")),
        "header entry",
    ),
    "header with a number for a tensor": (header(SECOND, lambda c: c.update({"entity.seg0002": 5})), "entry"),
    "NaN in a segment": (bad_number(float("nan")), "NaN or infinity"),
    "infinity in a segment": (bad_number(float("-inf")), "NaN or infinity"),
    "one bit flipped": (flipped, "sha256"),
    "a wrong sha256": (config("files", FIRST, "sha256", to="0" * 64), "sha256"),
    # labels.safetensors
    "labels missing": (gone(LABELS), "no file"),
    "labels cut": (cut(LABELS, -5), "cut short"),
    "labels is a pipe": (fifo(LABELS), "pipe"),
    "labels links outside": (link(LABELS, "../secret.safetensors"), "link that leaves"),
    "labels without relations": (labels(entity=(b"abcdef", range(7))), "the tensors"),
    "labels of something else": (
        labels(entity=(b"abcdef", range(7)), relation=RELATION, x=RELATION),
        "the tensors",
    ),
    "labels too few": (labels(entity=(b"abcde", range(6)), relation=RELATION), "5 strings in 'entity'"),
    "labels too many": (labels(entity=(b"abcdefg", range(8)), relation=RELATION), "7 strings in 'entity'"),
    "offsets not from 0": (labels(entity=(b"abcdef", [1, 2, 3, 4, 5, 5, 6]), relation=RELATION), "offsets"),
    "offsets beyond the end": (
        labels(entity=(b"abcdef", [0, 1, 2, 3, 4, 5, 99]), relation=RELATION),
        "offsets",
    ),
    "offsets short of the end": (labels(entity=(b"abcdefg", range(7)), relation=RELATION), "offsets"),
    "offsets that fall": (labels(entity=(b"abcdef", [0, 5, 1, 3, 4, 5, 6]), relation=RELATION), "offsets"),
    "offsets far outside": (
        labels(entity=(b"abcdef", [0, 2**62, 2, 3, 4, 5, 6]), relation=RELATION),
        "offsets",
    ),
    "offsets negative": (labels(entity=(b"abcdef", [0, -9, 2, 3, 4, 5, 6]), relation=RELATION), "offsets"),
    "labels no UTF-8": (labels(entity=(b"abc\xffef", range(7)), relation=RELATION), "no UTF-8"),
    "labels of half a character": (
        labels(entity=(b"ab\xc3\xa9ef", range(7)), relation=RELATION),
        "middle of a",
    ),
    "labels with surrogates": (
        labels(entity=(b"ab\xed\xa0\x80f", [0, 1, 2, 5, 5, 5, 6]), relation=RELATION),
        "UTF-8",
    ),
    "labels twice": (labels(entity=(b"abcdea", range(7)), relation=RELATION), "'a' twice"),
    "relation labels twice": (labels(entity=(b"abcdef", range(7)), relation=(b"aab", range(4))), "'a' twice"),
    "labels promised with other bytes": (config("files", LABELS, "bytes", to=10), "cut short or replaced"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="pipes, links and memory are measured the Linux way")
@pytest.mark.parametrize("name", CASES)
def test_refused(tmp_path: Path, name: str) -> None:
    check_refused(good_checkpoint(tmp_path), *CASES[name])


def test_the_good_one_loads(tmp_path: Path) -> None:
    assert croppable.load(good_checkpoint(tmp_path), verify=True).labels.entity[5] == "é5"
