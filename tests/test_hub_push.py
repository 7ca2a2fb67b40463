"""Publish with the real Hub client to a stand-in: what is sent, the model card, what goes wrong."""

import subprocess
import sys
from pathlib import Path

from hub_client import SIZES, Client, model
from hub_server import Hub

import croppable

pytest_plugins = ["hub_fixtures"]
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "kge.py"


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


def test_the_recipe_publishes_what_it_trained(hub: Hub, client: Client, tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(12)]
    lines = [f"{a}\t{r}\t{names[(i + s) % 12]}" for i, a in enumerate(names) for r, s in (("x", 1), ("y", 3))]
    for split, some in (("train", lines[:18]), ("valid", lines[18:21]), ("test", lines[21:])):
        (tmp_path / f"{split}.tsv").write_text("\n".join(some) + "\n")
    flags = {
        **{"data_dir": tmp_path, "output_dir": tmp_path / "out", "num_train_epochs": 1, "eval_epochs": 0},
        **{"hub_model_id": "me/trained", "per_device_train_batch_size": 8},
    }
    command = [sys.executable, str(RECIPE), "--sizes", "2", "4", "--push_to_hub", "--hub_private_repo"]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    environment = {**client.environment, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["me/trained"]
    tree = repository.trees[repository.branches["main"]]
    assert repository.private
    assert {"config.json", "metrics.json", "sizes.png", "labels.safetensors", "training_config.json"} <= set(
        tree
    )
    card = tree["README.md"].decode()
    assert "--num_train_epochs 1" in card
    assert "12 entities, 2 relations" in card
    code = "model = croppable.load('me/trained', 2)\nresult = [model.size, list(model.labels.entity)]"
    assert client.run(code) == [2, sorted(names)]
