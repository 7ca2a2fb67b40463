"""Download with the real Hub client from a stand-in: what is fetched, what is kept, what goes wrong."""

import hashlib
from pathlib import Path

import pytest
from hub_client import ENTITIES, Client, NewClient, load, model
from hub_server import Hub

import croppable
from croppable.core import crop, named_tensors
from croppable.manifest import Manifest

pytest_plugins = ["hub_fixtures"]


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
