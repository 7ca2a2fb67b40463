"""The link prediction benchmark: its grids, its choices on validation, its tables, and cells that fail."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def recipes() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / "recipes"))
    yield
    sys.path.remove(str(ROOT / "recipes"))


@pytest.fixture(scope="module")
def bench(recipes: None) -> ModuleType:
    import benchmark_kge

    return benchmark_kge


@pytest.fixture(scope="module")
def grids(recipes: None) -> ModuleType:
    import benchmark_kge_grids

    return benchmark_kge_grids


@pytest.fixture(scope="module")
def tables(recipes: None) -> ModuleType:
    import benchmark_kge_render

    return benchmark_kge_render


def rows(values: dict[int, float], metric: str = "mrr", side: str = "both") -> list[dict[str, Any]]:
    return [{"size": size, "metric": metric, "value": value, "side": side, "dataset": "toy", "split": "test"}
            for size, value in values.items()]  # fmt: skip


def result(
    line: str, test: dict[int, float], valid: dict[int, float] | None = None, seed: int = 0, **config: Any
) -> dict[str, Any]:
    """A kept result of the grid umls; with validation as the recipe writes it."""
    own = {"objective": line.partition("-")[0], "seed": seed, "num_train_epochs": 2, "n3": 0.01, **config}
    scores = [{f"score_{size}": value for size, value in (valid or {}).items()}]
    if own["objective"] == "separate":  # a history per size
        scores = [{key: value} for key, value in scores[0].items()]
    validations = [{"step": 22, "score": sum(row.values()) / len(row), **row} for row in scores if row]
    every = [row for metric in ("mrr", "hits@1", "hits@3", "hits@10") for row in rows(test, metric)]
    return {"grid": "umls", "line": line, "seed": seed, "seconds": 90, "config": own, "rows": every,
            "machine": {"gpu": None, "cpu": "abacus", "threads": 1, "torch": "2"},
            "validations": validations}  # fmt: skip


# --------------------------------------------------------------------------------------------- the grids


def test_every_cell_is_a_command_that_the_recipe_takes(grids: ModuleType, tmp_path: Path) -> None:
    from kge_presets import parse_config
    from study_kge_grids import STUDY_GRIDS

    names = set()
    for grid in {**grids.GRIDS, **STUDY_GRIDS}.values():
        for line in grid.lines:
            config = parse_config([*line.flags, "--output_dir", str(tmp_path / "out")], "")
            assert set(grid.shown) <= set(config.sizes) or grid.name == "gap"
            names.add(grids.Cell(grid, line, 0).name)
    assert len(names) == sum(len(grid.lines) for grid in {**grids.GRIDS, **STUDY_GRIDS}.values())


def test_all_lines_of_a_table_have_one_budget(grids: ModuleType, tmp_path: Path) -> None:
    from kge_presets import parse_config

    budget = ("num_train_epochs", "per_device_train_batch_size", "negatives", "num_negatives", "eval_epochs",
              "optimizer", "learning_rate", "lr_scheduler_type", "early_stopping_patience", "model", "loss",
              "margin")  # fmt: skip
    for grid in grids.GRIDS.values():
        if grid.name == "codex-s-tuning":  # compares settings, not lines
            continue
        configs = [
            parse_config([*line.flags, "--output_dir", str(tmp_path / "out")], "") for line in grid.lines
        ]
        compared = {"negatives", "num_negatives"} if "-pool" in grid.name else set()
        found = {tuple(getattr(config, key) for key in budget if key not in compared) for config in configs}
        assert len(found) == 1, grid.name
        searched: dict[str, set[float]] = {}
        for config in configs:
            searched.setdefault(config.objective, set()).add(config.n3)
        trained = [searched[name] for name in ("separate", "nested", "med") if name in searched]
        assert all(space == trained[0] for space in trained), grid.name


def test_the_grids_hold_what_the_paper_compares(grids: ModuleType) -> None:
    assert {line.family for line in grids.GRIDS["codex-s"].lines} == set(grids.NAMES)
    assert grids.GRIDS["codex-s"].seeds == (0, 1)
    for graph in ("wn18rr", "fb15k-237"):
        for score in ("transe", "simple", "rotate", "pairre"):
            for scale in ("paper", "paper-small"):
                names = {line.name for line in grids.GRIDS[f"{graph}-{score}-{scale}"].lines}
                assert names >= {"med-paper", "separate", "ext", "dualde", "med", "nested"}
            assert grids.GRIDS[f"{graph}-{score}-paper"].shown == (10, 20, 40, 80, 160, 320, 640)


# ------------------------------------------------------------------------------------ choosing, and tables


def test_validation_is_that_of_the_weights_which_were_kept(tables: ModuleType) -> None:
    nested = [{"step": 1, "score": 0.3, "score_2": 0.2, "score_4": 0.4},
              {"step": 2, "score": 0.5, "score_2": 0.1, "score_4": 0.9},
              {"step": 3, "score": 0.4, "score_2": 0.3, "score_4": 0.5}]  # fmt: skip
    assert tables.validation({"validations": nested}) == {2: 0.1, 4: 0.9}
    values = [(1, 2, 0.3), (2, 2, 0.2), (1, 4, 0.1), (2, 4, 0.6)]
    separate = [{"step": step, "score": score, f"score_{size}": score} for step, size, score in values]
    assert tables.validation({"validations": separate}) == {2: 0.3, 4: 0.6}
    assert tables.validation({}) == {}


def test_every_size_takes_its_best_run_by_validation_and_not_by_test(tables: ModuleType) -> None:
    strong = result("separate", {2: 0.10, 4: 0.90}, {2: 0.5, 4: 0.3})
    weak = result("separate-weak", {2: 0.80, 4: 0.20}, {2: 0.4, 4: 0.6})
    best = tables.choose([strong, weak], per_size=True)
    assert best["chosen"] == {2: "separate", 4: "separate-weak"}
    assert tables.values([best], "mrr") == {2: [0.10], 4: [0.20]}
    assert best["seconds"] == 180


def test_nested_runs_are_chosen_whole_by_the_mean_of_validation(tables: ModuleType) -> None:
    one = result("med", {2: 0.9, 4: 0.9}, {2: 0.5, 4: 0.3})
    other = result("med-weak", {2: 0.1, 4: 0.2}, {2: 0.4, 4: 0.6})
    best = tables.choose([one, other], per_size=False)
    assert best["chosen"] == {2: "med-weak", 4: "med-weak"}
    assert tables.values([best], "mrr") == {2: [0.1], 4: [0.2]}


def test_a_size_that_nobody_validated_is_taken_from_the_first_run(tables: ModuleType) -> None:
    one = result("dualde", {2: 0.1, 4: 0.7}, {2: 0.5})
    other = result("dualde-weak", {2: 0.3, 4: 0.7}, {2: 0.6})
    assert tables.values([tables.choose([one, other], per_size=True)], "mrr") == {2: [0.3], 4: [0.7]}


def test_a_run_without_validation_is_not_chosen_from(tables: ModuleType) -> None:
    old = result("separate", {2: 0.9})
    assert tables.choose([old, result("separate-weak", {2: 0.5}, {2: 0.5})], per_size=True) is None


def test_the_cells_of_a_table_are_mean_and_deviation_over_seeds(tables: ModuleType) -> None:
    found = [result("med", {2: 0.25, 4: 0.5}, seed=0), result("med", {2: 0.35, 4: 0.5}, seed=1)]
    assert tables.metric_table({"MED": found}, "mrr") == [
        "| mrr | seeds | 2 | 4 | minutes |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| MED | 2 | 0.3000 ± 0.0707 | 0.5000 ± 0.0000 | 1.5 |",
        "",
    ]
    assert tables.metric_table({"MED": found[:1]}, "hits@3", (4, 8))[2] == "| MED | 1 | 0.5000 |  | 1.5 |"


def write(folder: Path, *results: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for one in results:
        path = folder / f"{one['grid']}-{one['line']}-{one['seed']}.json"
        path.write_text(json.dumps(one))


def test_the_page_and_the_summary_hold_every_line(tables: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "kge"
    folder.parent.mkdir()
    write(
        folder,
        result("separate", {2: 0.1, 4: 0.9}, {2: 0.5, 4: 0.3}),
        result("separate-weak", {2: 0.8, 4: 0.2}, {2: 0.4, 4: 0.6}, n3=0.001),
        result("nested", {2: 0.3, 4: 0.4}, {2: 0.3, 4: 0.4}),
        result("med", {2: 0.6, 4: 0.7}, {2: 0.6, 4: 0.7}, num_train_epochs=5),
        result("ext", {2: 0.2, 4: 0.9}, teacher="umls-separate-0/size-4"),
    )
    overview = tmp_path / "results.md"
    overview.write_text(f"# Results\n{tables.MARKS[0]}\nold\n{tables.MARKS[1]}\nend\n")
    tables.render(tables.read_results(folder), folder)
    page = (tmp_path / "results" / "kge.md").read_text()
    for text in (
        "## umls, ComplEx",
        "Filtered test metrics on toy, realistic ties",
        "torch 2, abacus, 1 thread(s)",
        "- separate training, N3 0.01: num_train_epochs 2, n3 0.01\n",
        "- separate training, N3 0.001: n3 0.001\n",
        "- MED, our settings, N3 0.01: num_train_epochs 5\n",
        "- Ext, first dims of a full model: starts from umls-separate-0/size-4\n",
        "| separate training, N3 0.01 | 1 | 0.1000 | 0.9000 | 1.5 |",
        "| **separate training, best on validation, per size** | 1 | 0.1000 | 0.2000 | 3.0 |",
        "| MED, our settings, N3 0.01 | 1 | 0.6000 | 0.7000 | 1.5 |",
        "- separate training, best on validation, per size, seed 0: 2: separate, 4: separate-weak\n",
    ):
        assert text in page, text
    assert page.count("best on validation, one run") == 0  # one setting: nothing to choose
    assert (folder / "umls.png").read_bytes().startswith(b"\x89PNG")
    summary = overview.read_text()
    assert "old" not in summary
    assert summary.endswith("\nend\n")
    assert "| umls, ComplEx | separate training, best on validation | 2: 0.1000, 4: 0.2000 |" in summary
    assert "| umls, ComplEx | MED, our settings | 2: 0.6000, 4: 0.7000 |" in summary


def test_a_page_without_marks_is_refused(tables: ModuleType) -> None:
    with pytest.raises(ValueError, match="the page must have the lines"):
        tables.replace_between("no marks", tables.MARKS, "text")


def test_the_committed_page_is_what_its_files_give(tables: ModuleType, tmp_path: Path) -> None:
    committed = ROOT / "docs" / "results" / "kge"
    folder = tmp_path / "results" / "kge"
    folder.mkdir(parents=True)
    (tmp_path / "results.md").write_text((ROOT / "docs" / "results.md").read_text())
    tables.render(tables.read_results(committed), folder)
    again = "run `python recipes/benchmark_kge.py render`"
    assert (tmp_path / "results" / "kge.md").read_text() == committed.with_suffix(".md").read_text(), again
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs" / "results.md").read_text(), again


# ------------------------------------------------------------------------------------------ running cells

FAKE = """
import json, pathlib, sys
output, status = pathlib.Path(sys.argv[1]), int(sys.argv[2])
output.mkdir(parents=True, exist_ok=True)
if status == 130:
    (output / "training_states" / "size-2" / "step-00000001").mkdir(parents=True)
if status:
    sys.exit(status)
row = {"size": 2, "metric": "mrr", "value": 0.5, "side": "both", "relation": None, "category": None,
       "ties": "realistic", "dataset": "toy", "split": "test"}
others = [row | {"relation": "r"}, row | {"side": "tail"}, row | {"ties": "optimistic"}]
(output / "metrics.json").write_text(json.dumps([row, *others]))
(output / "training_config.json").write_text(json.dumps({"objective": "med", "output_dir": str(output)}))
history = [{"step": 1, "loss": 3.0, "w1": 1.0, "w3": 0.9}, {"step": 1, "score": 0.4, "score_2": 0.4}]
(output / "history.json").write_text(json.dumps(history))
(output / "config.json").write_text("{}")
"""


@pytest.fixture
def fake(bench: ModuleType, tmp_path: Path) -> Any:
    """A runner whose cells end with the statuses it is given, by line; others end well."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Fake(bench.Runner):  # type: ignore[name-defined, misc]
        statuses: dict[str, int] = dataclasses.field(default_factory=dict)
        commands: list[list[str]] = dataclasses.field(default_factory=list)

        def command(self, cell: Any, resumed: bool) -> list[str]:
            self.commands.append([cell.name, *bench.Runner.command(self, cell, resumed)])
            status = self.statuses.get(cell.line.name, 0)
            return [sys.executable, "-c", FAKE, str(self.folder(cell)), str(status)]

    return Fake(results=tmp_path / "results", scratch=tmp_path / "runs", data_root=tmp_path)


@pytest.fixture
def cells(grids: ModuleType) -> list[Any]:
    grid = grids.GRIDS["umls"]
    return [grids.Cell(grid, grid.line(name), 3) for name in ("separate", "nested", "med")]


def test_a_cell_that_fails_is_reported_and_the_others_run(
    bench: ModuleType, fake: Any, cells: list[Any], capfd: Any
) -> None:
    fake.statuses["nested"] = 2
    finished: list[int] = []
    assert bench.run_cells(fake, cells, finished=lambda: finished.append(1)) == 1
    assert len(finished) == 2
    kept = {path.name for path in fake.results.iterdir()}
    assert kept == {"umls-separate-3.json", "umls-med-3.json"}
    assert "umls-nested-3 failed: recipes/kge.py ended with status 2" in capfd.readouterr().err
    fake.statuses["nested"] = 0
    fake.commands.clear()
    assert bench.run_cells(fake, cells) == 0
    assert [command[0] for command in fake.commands] == ["umls-nested-3"]  # the others are kept
    assert bench.run_cells(fake, cells, overwrite=True) == 0
    assert len(fake.commands) == 1 + len(cells)


def test_a_result_holds_test_rows_validation_config_and_machine(fake: Any, cells: list[Any]) -> None:
    fake.run(cells[2])
    kept = json.loads(fake.result_path(cells[2]).read_text())
    assert kept["rows"] == rows({2: 0.5})
    assert kept["validations"] == [{"step": 1, "score": 0.4, "score_2": 0.4}]
    assert kept["weights"] == [{"step": 1, "w1": 1.0, "w3": 0.9}]
    assert kept["config"] == {"objective": "med"}
    assert (kept["grid"], kept["line"], kept["seed"]) == ("umls", "med", 3)
    assert {"threads", "torch", "cpu", "gpu", "python"} == set(kept["machine"])


def test_an_interrupted_cell_stops_the_grid_and_is_gone_on_with(
    bench: ModuleType, fake: Any, cells: list[Any]
) -> None:
    fake.statuses["separate"] = 130
    assert bench.run_cells(fake, cells) == 130
    assert [command[0] for command in fake.commands] == ["umls-separate-3"]
    taken = float((fake.scratch / "umls-separate-3.seconds").read_text())
    (fake.scratch / "umls-separate-3.seconds").write_text(str(taken + 1000))
    fake.statuses["separate"] = 0
    fake.commands.clear()
    assert bench.run_cells(fake, cells[:1]) == 0
    assert fake.commands[0][-2:] == ["--resume_from_checkpoint", "latest"]
    assert json.loads(fake.result_path(cells[0]).read_text())["seconds"] >= 1000
    assert not (fake.scratch / "umls-separate-3.seconds").exists()


def test_a_student_starts_from_the_full_model_that_is_best_on_validation(
    bench: ModuleType, grids: ModuleType, fake: Any
) -> None:
    write(fake.results, result("separate", {2: 0.9, 8: 0.9}, {2: 0.9, 8: 0.4}))
    write(fake.results, result("separate-weak", {2: 0.1, 8: 0.1}, {2: 0.1, 8: 0.5}))
    folder = fake.scratch / "umls-separate-weak-0"
    for size in (2, 8):
        (folder / f"size-{size}").mkdir(parents=True)
        (folder / f"size-{size}" / "config.json").write_text("{}")
    (folder / "metrics.json").write_text("[]")
    grid = grids.GRIDS["umls"]
    command = bench.Runner.command(fake, grids.Cell(grid, grid.line("ext"), 0), False)
    assert command[command.index("--teacher") + 1] == str(folder / "size-8")
    assert not fake.commands  # nothing had to be trained


def test_bad_flags_are_one_clear_line(bench: ModuleType, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        bench.main(["run", "--grid", "umls", "--lines", "mad"])
    assert "no line mad; there are dualde, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.main(["run", "--grid", "umls", "--", "--num_train_epochs", "1"])
    assert "give them another --results" in capsys.readouterr().err


def test_cells_are_listed_with_their_flags(bench: ModuleType, tmp_path: Path, capsys: Any) -> None:
    assert bench.main(["list", "--grid", "umls", "--lines", "med", "--results", str(tmp_path)]) == 0
    line = " ".join(capsys.readouterr().out.split())
    assert line.startswith("umls-med-0 --objective med --preset codex-s-complex-med --sizes 2 4 8")
    assert line.endswith("--n3 0.01 missing")
    write(tmp_path, result("med", {2: 0.5}, mutual=0.7, teacher=None))
    bench.main(["list", "--grid", "umls", "--lines", "med", "--results", str(tmp_path)])
    now = bench.parse_config(
        ["--preset", "codex-s-complex-med", "--output_dir", str(tmp_path / "x")], ""
    ).mutual
    assert capsys.readouterr().out.endswith(f"kept, with other settings (mutual 0.7, now {now})\n")


@pytest.mark.slow
def test_a_real_grid_runs_from_data_to_page(bench: ModuleType, data_dir: Path, tmp_path: Path) -> None:
    where = ["--grid", "umls", "--results", str(tmp_path / "kge"), "--data_root", str(data_dir / "kg")]
    chosen = [*where, "--lines", "separate", "med", "ext", "--", "--num_train_epochs", "1"]
    assert bench.main(["run", *chosen]) == 0
    kept = {name: json.loads((tmp_path / "kge" / f"umls-{name}-0.json").read_text())
            for name in ("separate", "med", "ext")}  # fmt: skip
    assert kept["ext"]["config"]["teacher"] == "umls-separate-0/size-8"
    mrr = {name: {row["size"]: row["value"] for row in one["rows"] if row["metric"] == "mrr"}
           for name, one in kept.items()}  # fmt: skip
    assert mrr["ext"][8] == pytest.approx(mrr["separate"][8])  # the same model at its full size
    assert mrr["ext"][2] < mrr["separate"][2]  # a full model cut to its first two dims
    assert {row["step"] for row in kept["med"]["validations"]} == {22}
    assert kept["med"]["config"]["num_train_epochs"] == 1
    assert bench.main(["render", "--results", str(tmp_path / "kge")]) == 0
    assert f"| 1 | {mrr['med'][2]:.4f} | {mrr['med'][4]:.4f} |" in (tmp_path / "kge.md").read_text()


def test_cells_and_lines_cannot_be_changed_by_accident(grids: ModuleType) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        grids.GRIDS["umls"].name = "other"
