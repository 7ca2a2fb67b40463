"""The command line as a user types it: what it prints, what it writes, how it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import TOKEN, Hub
from safetensors.torch import load_file
from typer.testing import CliRunner

import croppable
from croppable.card import headline_rows
from croppable.cli import app, main
from croppable.core import crop
from croppable.kge.known import KnownTriples
from croppable.kge.metrics import metrics_rows
from croppable.kge.model import KGEModel
from croppable.kge.predict import nearest, predict
from croppable.kge.ranking import rank_triples
from croppable.kge.triples import KnowledgeGraph, read_graph
from croppable.labels import Labels, StringTable


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of 12 towns in a ring; town names have spaces, one is called 7."""
    folder = tmp_path_factory.mktemp("data") / "ring"
    folder.mkdir()
    names = [f"town {i}" for i in range(11)] + ["7"]
    lines = [
        f"{names[i]}\t{r}\t{names[(i + step) % 12]}"
        for i in range(12)
        for r, step in (("next", 1), ("far", 5))
    ]
    for split, some in (("train", lines[:16]), ("valid", lines[16:20]), ("test", lines[20:])):
        (folder / f"{split}.tsv").write_text("\n".join(some) + "\n")
    return folder


@pytest.fixture(scope="module")
def graph(data: Path) -> KnowledgeGraph:
    return read_graph(data)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, graph: KnowledgeGraph) -> Path:
    """A model that has learnt the ring: angles turned by the relation."""
    model = KGEModel(12, 2, (1, 2, 4), "rotate", margin=2.0, calibration="scale")
    place = torch.tensor([11 if name == "7" else int(name.split()[1]) for name in graph.entities])
    with torch.no_grad():
        angle = 2 * torch.pi * place / 12
        model.entity.copy_(torch.stack([angle.cos(), angle.sin()], -1)[:, None].expand(-1, 4, -1))
        for relation, name in enumerate(graph.relations):
            model.relation[relation] = 2 * torch.pi * {"next": 1, "far": 5}[name] / 12
        model.entity += 0.01 * torch.randn(12, 4, 2, generator=torch.Generator().manual_seed(0))
    known = KnownTriples(graph.triples, 12, 2)
    rows = metrics_rows(rank_triples(model, graph.test, known), dataset="ring", split="test")
    folder = tmp_path_factory.mktemp("saved") / "model"
    texts = [f"Town number {p}" for p in place.tolist()]
    return croppable.save(model, folder, labels=Labels(graph.entities, graph.relations, texts), metrics=rows)


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output if status else result.stdout


def run_json(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_info_tells_sizes_bytes_and_metrics_without_the_weights(saved: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors.index.json", "metrics.json"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    about = run_json("info", tmp_path)
    assert about["kind"] == "KGEModel"
    assert about["tensors"]["entity"]["shapes"][-1] == [12, 4, 2]
    assert [row["size"] for row in about["sizes"]] == [1, 2, 4]
    row = about["sizes"][1]
    assert row["read_bytes"] == 12 * 2 * 2 * 4 + 2 * 2 * 4 + 2 * 4
    files = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors")
    assert row["download_bytes"] == sum((saved / name).stat().st_size for name in files)
    assert row["metrics"]["mrr"] == 1.0
    text = run("info", tmp_path)
    assert "KGEModel of size 4: entity (12, 4, 2), relation (2, 4), log_scale (3,)" in text
    lines = [line.split() for line in text.splitlines()]
    assert lines[1][:4] == ["size", "read_bytes", "download_bytes", "mrr"]
    assert lines[3][0] == "2"
    assert "1.0000" in lines[3]


def test_info_verifies_on_request(saved: Path, tmp_path: Path) -> None:
    run("info", saved, "--verify")
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    last = tmp_path / "model-00003-of-00003.safetensors"
    last.write_bytes(last.read_bytes()[:-1] + b"\x00")
    run("info", tmp_path)
    with pytest.raises(croppable.CheckpointError, match="sha256"):
        run("info", tmp_path, "--verify")


def test_crop_writes_a_checkpoint_of_its_own(saved: Path, tmp_path: Path) -> None:
    run("crop", saved, 2, tmp_path / "small", "--dtype", "float16")
    about = run_json("info", tmp_path / "small")
    assert (about["size"], about["cropped_from"]) == (2, 4)
    assert [row["size"] for row in about["sizes"]] == [1, 2]
    assert about["sizes"][1]["metrics"]["mrr"] == 1.0
    loaded, expected = croppable.load(tmp_path / "small"), crop(croppable.load(saved), 2)
    assert torch.equal(loaded.entity, expected.entity.half().float())
    with pytest.raises(FileExistsError, match="overwrite"):
        run("crop", saved, 1, tmp_path / "small")
    run("crop", saved, 1, tmp_path / "small", "--overwrite")
    assert run_json("info", tmp_path / "small")["size"] == 1


def test_predict_answers_by_name_text_and_id(saved: Path) -> None:
    model = croppable.load(saved)
    (asked,) = run_json("predict", saved, "--head", "town 3", "--relation", "next", "-k", 3)
    assert asked["head"] == "town 3"
    expected = predict(model, head="town 3", relation="next", k=3)
    assert [a["name"] for a in asked["answers"]] == [a.name for a in expected]
    assert asked["answers"][0]["name"] == "town 4"
    assert asked["answers"][0]["text"] == "Town number 4"
    assert asked["answers"][0]["probability"] is None
    by_text = run_json("predict", saved, "--head", "Town number 3", "--relation", "next", "-k", 3)
    assert by_text[0]["answers"] == asked["answers"]
    number = model.labels.entity.index("town 3")
    by_id = run_json("predict", saved, "--head", number, "--relation", 1, "-k", 3)
    assert by_id[0]["answers"] == asked["answers"]
    named = run_json("predict", saved, "--tail", "7", "--relation", "next")[0]["answers"][0]
    assert named["name"] == "town 10", "7 is a name here, not an id"


def test_predict_asks_several_questions_at_a_smaller_size(saved: Path) -> None:
    arguments = ["predict", saved, "--tail", "town 3", "--tail", "town 0", "--relation", "far", "--size", 1]
    asked = run_json(*arguments)
    assert [(a["tail"], a["answers"][0]["name"]) for a in asked] == [
        ("town 3", "town 10"),
        ("town 0", "town 7"),
    ]
    small = croppable.load(saved, 1)
    assert asked[0]["answers"][0]["score"] == pytest.approx(
        predict(small, tail="town 3", relation="far")[0].score
    )
    text = run(*arguments)
    assert "? - far -> town 3" in text
    assert text.splitlines()[1].split() == ["rank", "score", "name", "text"]


def test_predict_with_data_drops_or_marks_known_triples_and_gives_probabilities(
    saved: Path, data: Path
) -> None:
    question = ("predict", saved, "--head", "town 3", "--relation", "next", "--data-dir", data, "-k", 12)
    dropped = run_json(*question)[0]["answers"]
    assert "town 4" not in {a["name"] for a in dropped}
    assert len(dropped) == 11
    marked = run_json(*question, "--mark-known")[0]["answers"]
    assert [a["name"] for a in marked if a["known"]] == ["town 4"]
    assert marked[0]["probability"] > 0.5 > marked[-1]["probability"]
    assert "known" in run(*question, "--mark-known")


def test_predict_finds_what_is_near(saved: Path) -> None:
    answers = run_json("predict", saved, "--near", "town 3", "-k", 2)
    assert {a["name"] for a in answers} == {"town 2", "town 4"}
    assert answers[0]["score"] == pytest.approx(nearest(croppable.load(saved), "town 3")[0].score)
    assert run("predict", saved, "--near", "town 3").splitlines()[0].split() == [
        "rank",
        "score",
        "name",
        "text",
    ]


def test_evaluate_equals_the_library_at_trained_and_other_sizes(
    saved: Path, data: Path, graph: KnowledgeGraph, tmp_path: Path
) -> None:
    rows = run_json("evaluate", saved, "--data-dir", data, "--output", tmp_path / "rows.json")
    assert rows == json.loads((tmp_path / "rows.json").read_text())
    model, known = croppable.load(saved), KnownTriples(graph.triples, 12, 2)
    expected = metrics_rows(
        rank_triples(model, graph.test, known), dataset="ring", split="test", relations=graph.relations
    )
    assert rows == expected
    other = run_json("evaluate", saved, "--data-dir", data, "--split", "valid", "--size", 3, "--size", 1)
    overall = [r for r in headline_rows(other) if r["metric"] == "mrr"]
    assert [(r["size"], r["value"], r["split"]) for r in overall] == [(1, 1.0, "valid"), (3, 1.0, "valid")]
    header, *lines = run("evaluate", saved, "--data-dir", data).splitlines()
    assert header.split() == ["size", "mrr", "hits@1", "hits@3", "hits@10", "mean_rank"]
    assert len(lines) == 3


def test_evaluate_takes_any_file_of_triples(saved: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text("town 3\ttown 4\tnext\ntown 0\ttown 2\tnext\n")
    rows = run_json("evaluate", saved, "--triples", path, "--column-order", "htr", "--data-dir", data)
    value = {
        r["metric"]: r["value"] for r in rows if r["side"] == "tail" and r["size"] == 4 and not r["relation"]
    }
    # The second triple is false: of the answers only town 1, which is known and left out, is nearer.
    assert value["hits@1"] == 0.5 or value["hits@3"] == 1.0
    assert {(r["dataset"], r["split"]) for r in rows} == {("ring", "mine.tsv")}
    alone = run_json("evaluate", saved, "--triples", path, "--column-order", "htr")
    assert {r["dataset"] for r in alone} == {str(path)}
    path.write_text("town 3\tnext\tnowhere\n")
    with pytest.raises(ValueError, match=r"1 tail names in .*mine.tsv are unknown to the model: 'nowhere'"):
        run("evaluate", saved, "--triples", path)


def test_evaluate_measures_classification(saved: Path, data: Path) -> None:
    rows = run_json("evaluate", saved, "--data-dir", data, "--classify")
    accuracy = [r for r in rows if r["metric"] == "accuracy" and r["relation"] is None]
    assert [(r["size"], r["value"]) for r in accuracy] == [(1, 1.0), (2, 1.0), (4, 1.0)]
    assert "accuracy" in run("evaluate", saved, "--data-dir", data, "--classify").splitlines()[0]


def vectors(saved: Path, size: int) -> torch.Tensor:
    return torch.Tensor(croppable.load(saved, size).entity.detach().flatten(1))


def test_export_safetensors_and_npy_are_read_by_their_own_libraries(
    saved: Path, tmp_path: Path, graph: KnowledgeGraph
) -> None:
    run("export", saved, tmp_path / "v.safetensors", "--format", "safetensors", "--size", 2)
    tensors = load_file(tmp_path / "v.safetensors")
    assert torch.equal(tensors["vectors"], vectors(saved, 2))
    assert list(StringTable(tensors["names.bytes"], tensors["names.offsets"])) == list(graph.entities)
    run("export", saved, tmp_path / "sub" / "v.npy", "--format", "npy")
    array = np.load(tmp_path / "sub" / "v.npy", allow_pickle=False)
    assert np.array_equal(array, vectors(saved, 4).numpy())
    assert json.loads((tmp_path / "sub" / "v.npy.names.json").read_text()) == list(graph.entities)
    run("export", saved, tmp_path / "r.npy", "--format", "npy", "--kind", "relation")
    assert np.load(tmp_path / "r.npy").shape == (2, 4)


def test_export_word2vec_is_read_by_gensim(saved: Path, tmp_path: Path, graph: KnowledgeGraph) -> None:
    models = pytest.importorskip("gensim.models")
    run("export", saved, tmp_path / "v.txt", "--format", "word2vec", "--size", 2)
    words = models.KeyedVectors.load_word2vec_format(str(tmp_path / "v.txt"))
    assert words.index_to_key == [name.replace(" ", "_") for name in graph.entities]
    assert np.array_equal(words.vectors, vectors(saved, 2).numpy())
    assert words.most_similar("town_3", topn=1)[0][0] in ("town_2", "town_4")


def test_export_parquet_has_ids_names_and_vectors(saved: Path, tmp_path: Path, graph: KnowledgeGraph) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run("export", saved, tmp_path / "v.parquet", "--format", "parquet")
    table = parquet.read_table(tmp_path / "v.parquet")
    assert table["name"].to_pylist() == list(graph.entities)
    assert table["id"].to_pylist() == list(range(12))
    assert torch.equal(torch.tensor(table["vector"].to_pylist()), vectors(saved, 4))


def test_export_faiss_finds_what_is_near(saved: Path, tmp_path: Path, graph: KnowledgeGraph) -> None:
    faiss = pytest.importorskip("faiss", reason="an extra: pip install 'croppable[faiss]'")
    run("export", saved, tmp_path / "v.faiss", "--format", "faiss")
    index = faiss.read_index(str(tmp_path / "v.faiss"))
    query = graph.entities.index("town 3")
    unit = torch.nn.functional.normalize(vectors(saved, 4), dim=1)
    _, ids = index.search(unit[query : query + 1].numpy(), 3)
    assert {graph.entities[i] for i in ids[0]} == {"town 2", "town 3", "town 4"}


def test_export_says_what_a_format_cannot_hold(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = KGEModel(2, 1, (2,))
    croppable.save(model, tmp_path / "m", labels=Labels(["a b", "a_b"], ["r"]))
    with pytest.raises(ValueError, match="the same word 'a_b'"):
        run("export", tmp_path / "m", tmp_path / "v.txt", "--format", "word2vec")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"pip install 'croppable\[faiss\]'"):
        run("export", saved, tmp_path / "v", "--format", "faiss")
    croppable.save(KGEModel(2, 1, (2,)), tmp_path / "nameless")
    run("export", tmp_path / "nameless", tmp_path / "n.npy", "--format", "npy")
    assert json.loads((tmp_path / "n.npy.names.json").read_text()) == ["0", "1"]


def test_wrong_usage_has_status_2_and_says_what_is_missing(saved: Path) -> None:
    assert "--head or --tail" in run("predict", saved, "--relation", "next", status=2)
    assert "--data-dir" in run("evaluate", saved, status=2)
    assert "--format" in run("export", saved, "x", status=2)
    assert "word2vec" in run("export", saved, "x", "--format", "excel", status=2)
    assert "no such command" in run("explode", status=2).lower()
    assert run("--version").startswith("croppable ")
    assert "Usage" in run(status=2)


@pytest.mark.parametrize("command", ["info", "crop", "predict", "evaluate", "export", "push"])
def test_every_command_helps(command: str) -> None:
    assert run(command, "--help").startswith("Usage: ")


def test_failures_are_one_line_and_status_1(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["info", "./nothing"], "there is no folder './nothing'"),
        (["crop", str(saved), "9", str(tmp_path / "x")], "size must be an integer between 1 and 4"),
        (["predict", str(saved), "--head", "tawn 3", "--relation", "next"], "the closest are 'town 3'"),
        (["predict", str(saved), "--head", "town 3", "--relation", "nxt"], "the closest are 'next'"),
        (["push", str(tmp_path / "empty"), "me/x"], "config.json: found no file"),
    ):
        monkeypatch.setattr(sys, "argv", ["croppable", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        error = capsys.readouterr().err
        assert exit_.value.code == 1
        assert error.startswith("error: ")
        assert message in error
        assert len(error.splitlines()) == 1


def test_the_installed_command_pushes_and_reads_the_hub(saved: Path, tmp_path: Path) -> None:
    with Hub() as hub:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            **{"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN},
            **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost"},
        }

        def croppable_command(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", "from croppable.cli import main; main()", *arguments]
            return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

        pushed = croppable_command("push", str(saved), "me/ring", "--license", "mit", "--json")
        assert pushed.returncode == 0, pushed.stderr
        commit = json.loads(pushed.stdout)["commit"]
        assert b"license: mit" in hub.repositories["me/ring"].trees[commit]["README.md"]
        start = len(hub.log)
        about = croppable_command("info", "me/ring", "--json", "--revision", commit)
        assert json.loads(about.stdout)["size"] == 4
        assert not any(name.endswith(".safetensors") for name in hub.files_sent(start))
        answer = croppable_command(
            "predict", "me/ring", "--head", "town 3", "--relation", "next", "--size", "2"
        )
        assert "town 4" in answer.stdout
        missing = croppable_command("info", "me/nothing")
        assert missing.returncode == 1
        assert missing.stderr.startswith("error: there is neither a folder")
        assert "Traceback" not in missing.stderr
