"""A small graph whose names a careless reader mangles, and how to write and compare it."""

import csv
import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from croppable.kge.files import SLOTS
from croppable.kge.triples import KnowledgeGraph

# Names that a careless reader mangles: quotes, commas, spaces, null words, numbers, other separators.
TRAIN = [
    ("Berlin", "capital_of", "Germany"),
    ('5" "disk"', "is a", "storage, magnetic"),
    ("NULL", "NaN", "NA"),
    ("007", "1e5", "true"),
    ("é\u2028x", "größer als", "日本"),
    ("#hash", "'quote", '"'),
    ("Berlin", "capital_of", "Germany"),
]
VALID = [("Germany", "is a", "Land")]
TEST = [("日本", "borders", "Land"), ("Berlin", "is a", "Germany")]
SPLITS = {"train": TRAIN, "valid": VALID, "test": TEST}


def write(folder, splits=SPLITS, extension=".tsv", order="hrt", header=None):
    folder.mkdir(exist_ok=True)
    for split, triples in splits.items():
        rows = [["hrt".index(slot) for slot in order]]
        rows = [[triple[place] for place in rows[0]] for triple in triples]
        if header:
            rows.insert(0, header)
        path = folder / f"{split}{extension}"
        if extension == ".parquet":
            names = [SLOTS[slot] for slot in order]
            columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
            pq.write_table(pa.table(dict(zip(names, columns, strict=True))), path)
            continue
        opener = gzip.open if extension.endswith(".gz") else open
        with opener(path, "wt", encoding="utf-8", newline="") as stream:
            if ".csv" in extension:
                csv.writer(stream).writerows(rows)
            else:
                stream.writelines("\t".join(row) + "\n" for row in rows)
    return folder


def named(graph: KnowledgeGraph):
    return {
        split: [
            (graph.entities[h], graph.relations[r], graph.entities[t])
            for h, r, t in getattr(graph, split).tolist()
        ]
        for split in ("train", "valid", "test")
    }


def same(a: KnowledgeGraph, b: KnowledgeGraph):
    assert a.entities == b.entities
    assert a.relations == b.relations
    for split in ("train", "valid", "test"):
        assert torch.equal(getattr(a, split), getattr(b, split))
