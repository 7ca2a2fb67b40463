"""The real Hub client against a stand-in on the loopback: what is sent, what is kept, what goes wrong."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import TOKEN, Hub

import croppable
from croppable.core import crop, named_tensors
from croppable.kge.model import KGEModel
from croppable.labels import Labels
from croppable.manifest import Manifest

ENTITIES, SIZES = 2_000, tuple(range(10, 641, 10))
NewClient = Callable[..., "Client"]

# The client reads its environment when it is imported, so it lives in a process of its own: one for all
# tests, which runs what it is sent and answers with the value of `result` or with the error.
WORKER = """
import io, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import torch, croppable, croppable.hub
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 20_000
# The client reads by ten megabytes; small files shall be resumed in the middle too.
for line in sys.stdin:
    space = {"croppable": croppable, "torch": torch}
    try:
        exec(json.loads(line), space)
        answer = {"result": space.get("result")}
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), file=answers, flush=True)
"""


class Client:
    """A process with croppable and huggingface_hub, pointed at the stand-in."""

    def __init__(self, hub: Hub, home: Path, **environment: str) -> None:
        self.home = home
        plain = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        self.environment = {
            **plain,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            **environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def ask(self, code: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def run(self, code: str) -> Any:
        answer = self.ask(code)
        assert "error" not in answer, answer
        return answer["result"]

    def fail(self, code: str) -> dict[str, Any]:
        answer = self.ask(code)
        assert "error" in answer, f"this should have failed: {code}"
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


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


def model(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> KGEModel:
    torch.manual_seed(seed)
    return KGEModel(ENTITIES, 5, sizes)


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


def load(size: int) -> str:
    return (
        f"model = croppable.load('me/countries', size={size})\n"
        f"result = [list(model.entity.shape), model.entity.double().sum().item(), model.labels.entity[7]]"
    )


def test_push_publishes_the_checkpoint_and_its_card_in_one_commit(
    hub: Hub, client: Client, folder: Path, pushed: str
) -> None:
    repository = hub.repositories["me/countries"]
    tree = repository.trees[repository.branches["main"]]
    assert repository.branches["main"] == pushed
    assert len(repository.trees) == 2, "the first commit is the empty repository's"
    assert not repository.private
    names = {path.name for path in folder.iterdir()} - {"notes.txt"} | {"README.md", ".gitattributes"}
    assert tree.keys() == names
    for name in names - {"README.md", ".gitattributes"}:
        assert tree[name] == (folder / name).read_bytes()
    paths = [request.path for request in hub.log]
    assert any("/lfs/complete" in path for path in paths), "a file of more than 1 MB goes in parts"
    assert not (folder / "README.md").exists(), "a generated card does not appear in the user's folder"


def test_the_card_has_a_row_per_size_and_metric(hub: Hub, client: Client, pushed: str) -> None:
    tree = hub.repositories["me/countries"].trees[pushed]
    card = tree["README.md"].decode()
    (client.home / "README.md").write_text(card)
    index = client.run(
        "from huggingface_hub import ModelCard\n"
        f"data = ModelCard.load({str(client.home / 'README.md')!r}).data\n"
        "result = [[[r.metric_type, r.metric_value, r.metric_args, r.metric_name, r.dataset_split]\n"
        "           for r in data.eval_results],\n"
        "          data.library_name, data.pipeline_tag, data.tags, data.license,\n"
        "          data.to_dict()['croppable']]"
    )
    results, library, pipeline, tags, licence, block = index
    assert len(results) == 2 * len(SIZES)
    assert ["mrr", 0.04, {"size": 40}, "mrr at size 40", "test"] in results
    assert (library, pipeline, licence) == ("croppable", "graph-ml", "cc-by-4.0")
    assert {"croppable", "matryoshka", "knowledge-graph-embedding"} <= set(tags)
    assert block["sizes"] == list(SIZES)
    lines = card.splitlines()
    assert sum(line.startswith("| ") for line in lines) == 1 + len(SIZES)
    assert "| 40 | 0.3 MB | 0.0400 | 0.0400 |" in lines
    assert "![Quality and cost of every size](sizes.png)" in lines
    for text in ("python train.py --lr 0.1", "made up", "cc-by-4.0", "arXiv:2407.02779", "me/countries"):
        assert text in card


@pytest.mark.parametrize("size", [10, 40, 160])
def test_a_size_fetches_its_own_bytes_and_then_none(
    hub: Hub, client: Client, folder: Path, pushed: str, size: int, tmp_path: Path, new_client: NewClient
) -> None:
    other = new_client()
    start = len(hub.log)
    shape, total, label = other.run(load(size))
    assert (shape, label) == ([ENTITIES, size], "entity 7")
    assert total == pytest.approx(model().entity[:, :size].double().sum().item())
    table = 640 * ENTITIES * 4
    small = sum(path.stat().st_size for path in folder.iterdir() if "model-" not in path.name)
    assert hub.sent(start) <= 1.03 * size / 640 * table + small + 40_000
    assert {name for name in hub.files_sent(start) if name.startswith("model-")} == set(
        Manifest.read(folder).files_for(size)
    )
    start = len(hub.log)
    other.run(load(size))
    assert hub.files_sent(start) == [], "everything must come from the cache"
    other.run(load(2 * size))
    fetched = {name for name in hub.files_sent(start) if name.startswith("model-")}
    assert fetched == set(Manifest.read(folder).files_for(2 * size)) - set(
        Manifest.read(folder).files_for(size)
    )


def test_what_is_loaded_is_the_crop(client: Client, folder: Path, pushed: str) -> None:
    code = (
        "model = croppable.load('me/countries', size=20)\n"
        "result = {name: tensor.tolist() for name, tensor in model.state_dict().items()}"
    )
    expected = {name: t.tolist() for name, t in named_tensors(crop(croppable.load(folder), 20))}
    assert client.run(code) == expected


def test_offline_loads_what_is_cached_and_says_what_is_not(
    hub: Hub, client: Client, pushed: str, tmp_path: Path, new_client: NewClient
) -> None:
    client.run(load(20))
    offline = new_client(client.home, HF_HUB_OFFLINE="1")
    start = len(hub.log)
    assert offline.run(load(20))[0] == [ENTITIES, 20]
    answer = offline.fail(load(640))
    assert answer["error"] == "HubError"
    assert "go online" in answer["message"]
    assert len(hub.log) == start, "offline means offline"
    unreachable = new_client(client.home, HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.run(load(20))[0] == [ENTITIES, 20], "a Hub that is down is no reason to fail"


def test_a_new_version_replaces_the_old_and_both_load(
    hub: Hub, client: Client, folder: Path, pushed: str, tmp_path: Path
) -> None:
    client.run(f"result = croppable.push_to_hub({str(folder)!r}, 'me/versions')")
    old = hub.repositories["me/versions"].branches["main"]
    croppable.save(model(1, (10, 30)), tmp_path / "new", labels=croppable.load(folder, 10).labels)
    new = client.run(
        f"result = croppable.push_to_hub({str(tmp_path / 'new')!r}, 'me/versions', message='v2')"
    )
    tree = hub.repositories["me/versions"].trees[new]
    assert {name for name in tree if name.startswith("model-")} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert "sizes.png" in tree, "files that are no part of a checkpoint stay"
    code = "m = croppable.load('me/versions'{})\nresult = [m.size, m.entity[0, 0].item()]"
    assert client.run(code.format("")) == [30, model(1, (10, 30)).entity[0, 0].item()]
    assert client.run(code.format(f", revision={old!r}")) == [640, model().entity[0, 0].item()]
    answer = client.fail(code.format(", revision='v9'"))
    assert "has no revision 'v9'" in answer["message"]


def test_a_push_while_loading_does_not_mix_versions(
    hub: Hub, client: Client, folder: Path, tmp_path: Path
) -> None:
    client.run(f"result = croppable.push_to_hub({str(folder)!r}, 'me/moving')")
    first = hub.repositories["me/moving"].branches["main"]
    code = (
        "from croppable import hub\n"
        "original = hub._check_sizes\n"
        "def push_in_between(*arguments):\n"
        "    hub._check_sizes = original\n"
        f"    croppable.push_to_hub({str(folder)!r}, 'me/moving', message='in between')\n"
        "    original(*arguments)\n"
        "hub._check_sizes = push_in_between\n"
        "result = str(hub.pull('me/moving', 20))"
    )
    assert Path(client.run(code)).name == first
    assert hub.repositories["me/moving"].branches["main"] != first


def test_wrong_tokens_and_missing_repositories_say_what_to_do(hub: Hub, client: Client, folder: Path) -> None:
    answer = client.fail("croppable.load('me/nothing')")
    assert answer["error"] == "HubError"
    assert "neither a folder 'me/nothing' nor, for you, such a Hub repository" in answer["message"]
    code = f"croppable.push_to_hub({str(folder)!r}, 'me/other', token='hf_wrong')"
    answer = client.fail(code)
    assert answer["error"] == "HubError"
    assert "log in with 'hf auth login'" in answer["message"]
    assert "hf_wrong" not in answer["message"]
    assert "me/other" not in hub.repositories
    client.run(f"croppable.push_to_hub({str(folder)!r}, 'me/secret', private=True)")
    assert hub.repositories["me/secret"].private
    for token in ("'hf_wrong'", "False"):
        assert client.fail(f"croppable.hub.pull('me/secret', token={token})")["error"] == "HubError"
    assert client.run("result = str(croppable.hub.pull('me/secret', 10))")


def test_names_that_are_neither_are_refused_without_asking_anybody(hub: Hub, client: Client) -> None:
    start = len(hub.log)
    for name in ("./nothing", "a/b/c", "/nothing", "a b"):
        assert client.fail(f"croppable.load({name!r})")["error"] == "FileNotFoundError", name
    assert len(hub.log) == start


def test_a_repository_of_something_else_is_refused(hub: Hub, client: Client) -> None:
    code = (
        "from huggingface_hub import HfApi\n"
        "api = HfApi(); api.create_repo('me/bert')\n"
        'content = b\'{"model_type": "bert"}\'\n'
        "api.upload_file(path_or_fileobj=content, path_in_repo='config.json', repo_id='me/bert')"
    )
    client.run(code)
    answer = client.fail("croppable.load('me/bert')")
    assert answer["error"] in ("CheckpointError", "HubError")
    client.run("HfApi = __import__('huggingface_hub').HfApi; HfApi().create_repo('me/empty')")
    assert "lacks a file" in client.fail("croppable.load('me/empty')")["message"]


def test_a_server_that_ignores_ranges_and_breaks_off_once_is_resumed(
    hub: Hub, client: Client, folder: Path, pushed: str, tmp_path: Path, new_client: NewClient
) -> None:
    other = new_client()
    hub.ignore_range = True
    hub.break_once["model-00004-of-00007.safetensors"] = 100_000
    start = len(hub.log)
    _, total, _ = other.run(load(80))
    cut = [r for r in hub.log[start:] if r.path.endswith("model-00004-of-00007.safetensors") and r.sent]
    assert [r.status for r in cut] == [200, 200], "the whole file comes again, and must not be appended"
    assert total == pytest.approx(model().entity[:, :80].double().sum().item())
    hub.ignore_range = False
    hub.break_once["model-00005-of-00007.safetensors"] = 100_000
    start = len(hub.log)
    other.run(load(160))
    again = [r for r in hub.log[start:] if r.path.endswith("model-00005-of-00007.safetensors") and r.sent]
    assert [r.status for r in again] == [200, 206]
    assert sum(r.sent for r in again) == (folder / "model-00005-of-00007.safetensors").stat().st_size


def test_a_connection_that_keeps_breaking_is_a_clean_error_and_poisons_nothing(
    hub: Hub, client: Client, pushed: str, tmp_path: Path, new_client: NewClient
) -> None:
    other = new_client()
    name = "model-00003-of-00007.safetensors"
    hub.break_off[name] = 0
    answer = other.fail("import time; time.sleep = lambda seconds: None\n" + load(40))
    assert answer["error"] == "HubError"
    assert "the connection broke while trying to download 'me/countries'" in answer["message"]
    assert not list(tmp_path.rglob("*.incomplete"))
    assert not list(tmp_path.rglob(name))
    hub.break_off.clear()
    assert other.run(load(40))[0] == [ENTITIES, 40]


@pytest.mark.parametrize("fault", ["content", "size"])
def test_what_is_not_what_was_promised_does_not_stay_in_the_cache(
    hub: Hub, client: Client, folder: Path, pushed: str, tmp_path: Path, new_client: NewClient, fault: str
) -> None:
    other = new_client()
    name = "model-00002-of-00007.safetensors"
    if fault == "content":
        hub.spoil[name] = lambda data: data[:-1] + bytes([data[-1] ^ 1])
    else:
        hub.spoil[name] = lambda data: data[:-8]
    answer = other.fail(load(20))
    assert answer["error"] in ("CheckpointError", "HubError")
    assert not list(tmp_path.rglob(name))
    for blob in tmp_path.rglob("blobs/" + "?" * 64):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    hub.spoil.clear()
    assert other.run(load(20))[0] == [ENTITIES, 20]


def test_a_segment_of_another_size_is_refused_before_it_is_fetched(
    hub: Hub, client: Client, folder: Path, tmp_path: Path
) -> None:
    client.run(f"result = croppable.push_to_hub({str(folder)!r}, 'me/swollen')")
    repository = hub.repositories["me/swollen"]
    tree = repository.trees[repository.branches["main"]]
    tree["model-00001-of-00007.safetensors"] += bytes(10**6)
    start = len(hub.log)
    answer = client.fail("croppable.load('me/swollen', 10)")
    assert answer["error"] == "CheckpointError"
    assert "bytes on the Hub; expected" in answer["message"]
    assert not any(name.startswith("model-") for name in hub.files_sent(start))


def test_a_broken_folder_is_not_published(hub: Hub, client: Client, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    croppable.save(croppable.load(folder, 20), broken)
    name = "model-00002-of-00002.safetensors"
    (broken / name).write_bytes((broken / name).read_bytes()[:-1] + b"x")
    answer = client.fail(f"croppable.push_to_hub({str(broken)!r}, 'me/broken')")
    assert answer["error"] == "CheckpointError"
    assert "sha256" in answer["message"]
    assert "me/broken" not in hub.repositories


def test_a_model_is_pushed_without_a_folder(hub: Hub, client: Client, folder: Path) -> None:
    code = (
        f"model = croppable.load({str(folder)!r}, 20)\n"
        "croppable.push_to_hub(model, 'me/direct')\n"
        "result = croppable.load('me/direct').labels == model.labels"
    )
    assert client.run(code) is True
    own = "---\nlicense: mit\n---\n# Mine"
    (folder / "README.md").write_text(own)
    client.run(f"croppable.push_to_hub({str(folder)!r}, 'me/mine')")
    (folder / "README.md").unlink()
    repository = hub.repositories["me/mine"]
    assert repository.trees[repository.branches["main"]]["README.md"].decode() == own
