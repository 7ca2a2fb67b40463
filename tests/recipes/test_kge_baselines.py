"""The baselines of the link prediction recipe as its users run them: who teaches whom, outputs, bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import croppable
from croppable.kge.baselines import extract, magnitude, reordered
from croppable.kge.distillation import DistilledLinkPrediction
from croppable.kge.model import KGEModel

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "kge.py"
SIZES = [2, 4, 8]
EXTRACTED = ["ext", "ext-l", "ext-v", "pca"]
DISTILLED = ["bkd", "ta", "dualde"]
Run = Callable[..., int]
Overall = Callable[[Path], dict[tuple[int, str], float]]


@pytest.fixture(scope="module")
def trained(
    kge: ModuleType, arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model of the largest size, trained alone."""
    output = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["kge.py", *arguments(output / "out", objective="separate", sizes=[8])])
        assert kge.main() == 0
    return output / "out" / "size-8"


def errors(text: str) -> str:
    assert text.count("error: ") == 1
    return text.splitlines()[-1]


def equal(a: KGEModel, b: KGEModel) -> bool:
    return torch.equal(a.entity, b.entity) and torch.equal(a.relation, b.relation)


def rows_of(output: Path) -> Any:
    return json.loads((output / "metrics.json").read_text())


# ------------------------------------------------------------------------------------ every objective runs


@pytest.mark.parametrize("objective", [*EXTRACTED, *DISTILLED])
def test_every_baseline_measures_all_sizes(
    objective: str, run: Run, overall: Overall, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    settings: dict[str, Any] = {"num_train_epochs": 2, "rotate_anyway": True if objective == "pca" else None}
    assert run(output, objective=objective, **settings) == 0
    assert {size for size, _ in overall(output)} == set(SIZES)
    assert {row["objective"] for row in rows_of(output)} == {objective}
    if objective in EXTRACTED:
        assert croppable.load(output).sizes == tuple(SIZES)
        assert not list(output.glob("size-*"))
    else:
        for size in SIZES:
            assert croppable.load(output / f"size-{size}").sizes == (size,)


@pytest.mark.parametrize("negatives", ["uniform", "shared"])
@pytest.mark.parametrize("loss", ["bce", "softmax"])
@pytest.mark.parametrize("reciprocal", [True, False])
def test_distillation_takes_every_kind_of_negatives(
    negatives: str, loss: str, reciprocal: bool, run: Run, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "negatives": negatives, "loss": loss, "reciprocal": str(reciprocal), "num_negatives": 5,
        "optimizer": "adam", "learning_rate": 0.01, "lr_scheduler_type": "linear", "sizes": [2, 4],
    }  # fmt: skip
    for objective in ("bkd", "dualde"):
        assert run(tmp_path / objective, objective=objective, num_train_epochs=1, **settings) == 0


# ---------------------------------------------------------------------------------------------- extraction


def test_ext_is_the_model_that_separate_training_gives(trained: Path, run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "out", objective="ext") == 0
    assert equal(croppable.load(tmp_path / "out"), croppable.load(trained))


@pytest.mark.parametrize("objective", EXTRACTED)
def test_a_given_model_is_made_smaller_without_training(
    objective: str, trained: Path, run: Run, kge: ModuleType, overall: Overall, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(kge, "train")
        anyway = True if objective == "pca" else None
        assert run(tmp_path / "out", objective=objective, teacher=trained, rotate_anyway=anyway) == 0
    found, whole = overall(tmp_path / "out"), overall(trained)
    if objective != "pca":
        assert found[8, "mrr"] == pytest.approx(whole[8, "mrr"], abs=1e-6)
    assert json.loads((tmp_path / "out" / "history.json").read_text()) == []
    assert before == {path.name: path.read_bytes() for path in trained.iterdir()}
    model, own = croppable.load(tmp_path / "out"), croppable.load(trained)
    if objective == "ext-v":
        assert equal(model, reordered(own, magnitude(own)))
    assert equal(model, own) == (objective == "ext")


def test_a_larger_model_gives_its_leading_dims(trained: Path, run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "out", objective="ext", teacher=trained, sizes=[2, 5]) == 0
    model = croppable.load(tmp_path / "out")
    assert model.sizes == (2, 5)
    assert equal(model, extract(croppable.load(trained), (5,)))


# -------------------------------------------------------------------------------------------- distillation


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str]]:
    """Note (size of the student, size of the teacher, kind) of every distillation."""
    seen = []
    build = DistilledLinkPrediction.__init__

    def note(self: Any, student: Any, teacher: KGEModel, kind: Any, **options: Any) -> None:
        seen.append((student.model.size, teacher.size, kind))
        build(self, student, teacher, kind, **options)

    monkeypatch.setattr(DistilledLinkPrediction, "__init__", note)
    return seen


@pytest.mark.parametrize(
    ("objective", "chain"),
    [
        ("bkd", [(4, 8, "bkd"), (2, 8, "bkd")]),
        ("ta", [(4, 8, "bkd"), (2, 4, "bkd")]),
        ("dualde", [(4, 8, "dualde"), (2, 8, "dualde")]),
    ],
)
def test_who_teaches_whom(
    objective: str, chain: list[Any], lessons: list[Any], trained: Path, run: Run, tmp_path: Path
) -> None:
    assert run(tmp_path / "own", objective=objective, num_train_epochs=4) == 0
    assert lessons == chain
    lessons.clear()
    assert run(tmp_path / "given", objective=objective, num_train_epochs=4, teacher=trained) == 0
    assert lessons == chain
    for size in SIZES:  # the teacher was trained with these very flags: it makes no difference who did
        a, b = (croppable.load(tmp_path / name / f"size-{size}") for name in ("own", "given"))
        assert equal(a, b), size
    assert equal(croppable.load(tmp_path / "own" / "size-8"), croppable.load(trained))
    alone = croppable.load(tmp_path / "own" / "size-2")
    assert not equal(alone, extract(croppable.load(trained), (2,)))


def test_a_larger_teacher_teaches_the_largest_student_too(
    lessons: list[Any], trained: Path, run: Run, tmp_path: Path
) -> None:
    assert run(tmp_path / "out", objective="ta", teacher=trained, sizes=[2, 4], num_train_epochs=1) == 0
    assert lessons == [(4, 8, "bkd"), (2, 4, "bkd")]


@pytest.mark.parametrize("objective", ["nested", "med"])
def test_a_given_teacher_teaches_all_sizes_of_a_nested_run(
    objective: str, lessons: list[Any], trained: Path, run: Run, tmp_path: Path
) -> None:
    settings = {"objective": objective, "sizes": [2, 4], "relations": "own", "reach": 0.5}
    for name, more in (("alone", {}), ("taught", {"teacher": trained})):
        assert run(tmp_path / name, num_train_epochs=1, **settings, **more) == 0
    assert lessons == [(4, 8, "bkd")]
    alone, taught = (croppable.load(tmp_path / name) for name in ("alone", "taught"))
    assert taught.sizes == (2, 4)
    assert not equal(alone, taught)


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_a_taught_trunk_and_its_branch_are_joined(
    optimizer: str, trained: Path, run: Run, tmp_path: Path
) -> None:
    settings = {"relations": "own", "trunk": 4, "optimizer": optimizer, "num_train_epochs": 1}
    assert run(tmp_path / "out", teacher=trained, **settings) == 0
    relation = croppable.load(tmp_path / "out").relation
    torch.testing.assert_close(relation[2, :, :4], relation[1, :, :4])  # 4 dims of either


@pytest.mark.parametrize("objective", ["ext", "bkd"])
def test_weights_of_sizes_are_those_of_the_sizes_that_are_trained(
    objective: str, run: Run, tmp_path: Path
) -> None:
    assert run(tmp_path / "out", objective=objective, size_weights=[1, 2, 3], num_train_epochs=1) == 0


def test_the_weight_of_the_soft_labels_counts(trained: Path, run: Run, tmp_path: Path) -> None:
    settings = {"objective": "bkd", "teacher": trained, "sizes": [2, 8]}
    assert run(tmp_path / "off", distill_weight=0, **settings) == 0
    assert run(tmp_path / "on", distill_temperature=2, **settings) == 0
    assert run(tmp_path / "alone", objective="separate", sizes=[2]) == 0
    alone, off, on = (croppable.load(tmp_path / name / "size-2") for name in ("alone", "off", "on"))
    torch.testing.assert_close(off.entity, alone.entity, atol=1e-4, rtol=0)
    assert not torch.allclose(on.entity, alone.entity, atol=1e-2)


def test_dualde_says_what_the_teacher_loses_in_its_second_stage(
    trained: Path, run: Run, tmp_path: Path
) -> None:
    settings = {"objective": "dualde", "teacher": trained, "sizes": [2], "max_train_steps": 200}
    assert run(tmp_path / "out", **settings) == 0
    logged = [row for row in json.loads((tmp_path / "out" / "history.json").read_text()) if "loss" in row]
    assert [("teacher_loss" in row) for row in logged] == [row["step"] > 100 for row in logged]


@pytest.mark.parametrize("objective", ["ta", "dualde"])
def test_distillation_goes_on_where_it_stopped(
    objective: str, run: Run, kge: ModuleType, tmp_path: Path, capsys: Any
) -> None:
    """The states hold the teacher of the second stage; finished sizes are not trained again."""
    assert run(tmp_path / "whole", objective=objective) == 0
    output, trained_again = tmp_path / "out", []
    batches, train = kge.training_batches, kge.train

    def interrupted(config: Any, task: Any, accelerator: Any, start: int) -> Iterator[dict[str, Any]]:
        for i, batch in enumerate(batches(config, task, accelerator, start), start + 1):
            if i == 21 and (output / "size-8").exists():  # in the second half of size 4
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    def note(config: Any, task: Any, accelerator: Any, sizes: tuple[int, ...]) -> Any:
        trained_again.append(sizes)
        return train(config, task, accelerator, sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kge, "training_batches", interrupted)
        assert run(output, objective=objective) == 130
    assert {path.name for path in output.glob("size-*")} == {"size-8"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kge, "train", note)
        assert run(output, objective=objective, resume_from_checkpoint="latest") == 0
    assert trained_again == [(4,), (2,)]
    assert "size 8 is finished already" in capsys.readouterr().out
    for name in ("metrics.json", "history.json"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ------------------------------------------------------------------------------------------------ bad input


def test_a_teacher_that_does_not_fit_is_one_clear_line_and_leaves_nothing(
    trained: Path, run: Run, graph_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    renamed = tmp_path / "renamed"
    shutil.copytree(graph_folder, renamed)
    for path in renamed.glob("*.tsv"):
        path.write_text(path.read_text().replace("n07", "m07"))
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    for split in ("train", "valid", "test"):
        (smaller / f"{split}.tsv").write_text("a\tlikes\tb\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"data_dir": smaller}, r"another graph \(24 entities, 3 relations\) than smaller \(2 and 1\)"),
        ({"data_dir": renamed}, "its names must be the same, in the same order"),
        ({"model": "distmult"}, "has --model complex --reciprocal True, and this run distmult and True"),
        ({"reciprocal": False}, "and this run complex and False: give both the same"),
        ({"sizes": [2, 16]}, "has 8 dims, fewer than the largest of --sizes"),
        ({"teacher": tmp_path / "none"}, "none is no folder with a checkpoint"),
        ({"output_dir": trained.parent, "overwrite_output_dir": True}, "lies in --output_dir"),
        ({"objective": "separate"}, "--teacher is for --objective ext, ext-l, .*, got separate"),
    ]
    for settings, message in cases:
        given = {"objective": "bkd", "teacher": trained, **settings}
        assert run(given.pop("output_dir", tmp_path / "out"), **given) == 2
        assert re.search(message, errors(capsys.readouterr().err)), message
        assert not (tmp_path / "out").exists()
    assert croppable.load(trained).size == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"objective": "pca"},
            "--objective pca changes the scores of --model complex, and only those of transe",
        ),
        ({"distill_weight": -1}, "--distill_weight must not be negative, got -1"),
        ({"distill_temperature": 0}, "--distill_temperature must be positive, got 0"),
        (
            {"objective": "ta", "push_to_hub": True, "hub_model_id": "a/b"},
            "--objective ta makes one per size",
        ),
    ],
)
def test_contradictions_are_one_clear_line(
    run: Run, tmp_path: Path, capsys: Any, settings: dict[str, Any], message: str
) -> None:
    assert run(tmp_path / "out", **settings) == 2
    assert message in errors(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_pca_needs_no_permission_where_the_scores_stay(run: Run, overall: Overall, tmp_path: Path) -> None:
    settings = {"model": "transe-l2", "reciprocal": "False", "negatives": "uniform", "loss": "bce"}
    assert run(tmp_path / "ext", objective="ext", **settings) == 0
    assert run(tmp_path / "pca", objective="pca", **settings) == 0
    ext, pca = overall(tmp_path / "ext"), overall(tmp_path / "pca")
    assert pca[8, "mrr"] == pytest.approx(ext[8, "mrr"], abs=1e-3)
    assert pca[2, "mrr"] != ext[2, "mrr"]


@pytest.mark.slow
def test_two_processes_train_a_teacher_in_its_second_stage(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    given = arguments(tmp_path / "out", objective="dualde", per_device_train_batch_size=8)
    launch = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*launch, str(RECIPE), *given], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert {row["size"] for row in rows_of(tmp_path / "out")} == set(SIZES)
