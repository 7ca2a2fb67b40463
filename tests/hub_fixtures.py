"""Fixtures of the Hub's tests, a pytest plugin: the stand-in, clients, and a model to publish."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_client import ENTITIES, SIZES, Client, model
from hub_server import Hub

import croppable
from croppable.labels import Labels


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


@pytest.fixture(autouse=True)
def _healthy(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "hub" in request.fixturenames:
        hub = request.getfixturevalue("hub")
        hub.ignore_range = False
        for faults in (hub.break_off, hub.break_once, hub.spoil, hub.lose):
            faults.clear()
        assert not hub.errors


@pytest.fixture
def new_client(hub: Hub, tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Make more clients, with an empty cache unless told otherwise."""
    clients: list[Client] = []

    def make(home: Path = tmp_path, **environment: str) -> Client:
        clients.append(Client(hub, home, **environment))
        return clients[-1]

    yield make
    for one in clients:
        one.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "countries"
    labels = Labels([f"entity {i}" for i in range(ENTITIES)], list("abcde"))
    rows = [
        {
            **{"size": size, "dataset": "unit", "split": "test"},
            **{"metric": metric, "value": size / 1000},
            **{"side": "both", "relation": None, "category": None, "ties": "realistic"},
        }
        for size in SIZES
        for metric in ("mrr", "hits@10")
    ]
    rows += [{**rows[0], "ties": "optimistic", "value": 0.9}, {**rows[0], "side": "head", "value": 0.9}]
    croppable.save(model(), folder, labels=labels, metrics=rows)
    (folder / "sizes.png").write_bytes(b"\x89PNG")
    (folder / "notes.txt").write_text("private notes")
    return folder


@pytest.fixture(scope="module")
def pushed(client: Client, folder: Path) -> str:
    """Push the model to me/countries; return the commit."""
    commit = client.run(
        f"result = croppable.push_to_hub({str(folder)!r}, 'me/countries', private=False, "
        f"license='cc-by-4.0', command='python train.py --lr 0.1', data='made up')"
    )
    assert isinstance(commit, str)
    return commit
