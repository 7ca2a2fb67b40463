"""The link prediction benchmark: cells that run, fail, go on or start from others, and its command line."""

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_results import result, rows, write

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
    from benchmark_kge_lines import Cell

    grid = grids.GRIDS["umls"]
    return [Cell(grid, grid.line(name), 3) for name in ("separate", "nested", "med")]


def test_a_cell_that_fails_is_reported_and_the_others_run(
    bench: ModuleType, fake: Any, cells: list[Any], capfd: Any
) -> None:
    fake.statuses["nested"] = 2
    finished: list[Any] = []
    assert bench.run_cells(fake, cells, finished=finished.append) == 1
    assert finished == [cells[0], cells[2]]
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
    from benchmark_kge_lines import Cell

    write(fake.results, result("separate", {2: 0.9, 8: 0.9}, {2: 0.9, 8: 0.4}))
    write(fake.results, result("separate-weak", {2: 0.1, 8: 0.1}, {2: 0.1, 8: 0.5}))
    folder = fake.scratch / "umls-separate-weak-0"
    for size in (2, 8):
        (folder / f"size-{size}").mkdir(parents=True)
        (folder / f"size-{size}" / "config.json").write_text("{}")
    (folder / "metrics.json").write_text("[]")
    grid = grids.GRIDS["umls"]
    command = bench.Runner.command(fake, Cell(grid, grid.line("ext"), 0), False)
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


def test_without_names_every_table_is_listed(bench: ModuleType, tmp_path: Path, capsys: Any) -> None:
    assert bench.main(["list", "--results", str(tmp_path)]) == 0
    cells = [line.split()[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert len(set(cells)) == sum(len(grid.lines) * len(grid.seeds) for grid in bench.GRIDS.values())
    assert "codex-s-transe-l2-pca-0" in cells


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
