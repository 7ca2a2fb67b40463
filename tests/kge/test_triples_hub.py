"""Graphs from the Hub: what `datasets` returns, and what it says when it cannot."""

import pytest
from graph_files import SPLITS, TEST, TRAIN, VALID, named, same, write

from croppable.kge.triples import graph_from_hub, graph_from_triples


@pytest.fixture
def hub(monkeypatch):
    """Make ``datasets.load_dataset`` return what the test says, without a network."""
    import datasets

    def stage(result):
        def load_dataset(path, config=None, revision=None):
            if isinstance(result, Exception):
                raise result
            return datasets.DatasetDict({k: datasets.Dataset.from_dict(v) for k, v in result.items()})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return stage


def columns(triples):
    return dict(zip(("head", "relation", "tail"), map(list, zip(*triples, strict=True)), strict=True))


def test_a_hub_dataset_with_named_columns(hub):
    hub({"train": columns(TRAIN), "validation": columns(VALID), "test": columns(TEST)})
    graph = graph_from_hub("someone/kg")
    assert graph.name == "kg"
    assert named(graph) == SPLITS
    same(graph, graph_from_triples(TRAIN, VALID, TEST))


def test_a_hub_dataset_with_one_text_column(hub):
    hub({split: {"text": ["\t".join(triple) for triple in triples]} for split, triples in SPLITS.items()})
    assert named(graph_from_hub("kg")) == SPLITS
    hub({split: {"text": ["a\tb\tc", "a\tb"]} for split in SPLITS})
    with pytest.raises(
        ValueError, match=r"kg split train row 2: expected 3 tab-separated fields \('a\\tb'\)"
    ):
        graph_from_hub("kg")


def test_a_real_local_dataset_folder_loads_through_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = write(tmp_path / "g", extension=".parquet")
    assert named(graph_from_hub(str(folder), name="local")) == SPLITS


def test_hub_errors_say_what_to_do(hub):
    import datasets

    hub(datasets.exceptions.DatasetNotFoundError("Dataset 'no/such' doesn't exist"))
    with pytest.raises(
        FileNotFoundError, match=r"no dataset 'no/such' .*check its name, or pass a local folder"
    ):
        graph_from_hub("no/such")
    hub(ConnectionError("no route"))
    with pytest.raises(
        ConnectionError, match=r"'some/kg' cannot be fetched .*no route.*or pass a local folder"
    ):
        graph_from_hub("some/kg")
    hub({"train": columns(TRAIN)})
    with pytest.raises(FileNotFoundError, match=r"has no valid and no test split: found \['train'\]"):
        graph_from_hub("some/kg")
    hub({"train": columns(TRAIN), "test": {"head": [], "relation": [], "tail": []}, "dev": columns(VALID)})
    with pytest.raises(ValueError, match=r"no triples: test \(some/kg\)"):
        graph_from_hub("some/kg")
