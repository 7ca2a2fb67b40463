"""The link prediction benchmark: its grids, its choices on validation, and its tables."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_results import result, write

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., dict[str, Any]]


# --------------------------------------------------------------------------------------------- the grids


def test_every_cell_is_a_command_that_the_recipe_takes(grids: ModuleType, tmp_path: Path) -> None:
    from benchmark_kge_lines import Cell
    from kge_presets import parse_config
    from study_kge_grids import STUDY_GRIDS

    names = set()
    for grid in {**grids.GRIDS, **STUDY_GRIDS}.values():
        for line in grid.lines:
            config = parse_config([*line.flags, "--output_dir", str(tmp_path / "out")], "")
            assert set(grid.shown) <= set(config.sizes) or grid.name == "gap"
            names.add(Cell(grid, line, 0).name)
    assert len(names) == sum(len(grid.lines) for grid in {**grids.GRIDS, **STUDY_GRIDS}.values())


def test_all_lines_of_a_table_have_one_budget(grids: ModuleType, tmp_path: Path) -> None:
    from kge_presets import parse_config

    budget = ("num_train_epochs", "per_device_train_batch_size", "negatives", "num_negatives", "eval_epochs",
              "optimizer", "learning_rate", "lr_scheduler_type", "early_stopping_patience", "model", "loss",
              "margin")  # fmt: skip
    for grid in grids.GRIDS.values():
        configs = [
            parse_config([*line.flags, "--output_dir", str(tmp_path / "out")], "") for line in grid.lines
        ]
        factors = [4 if "rate / 4" in line.title else 0.25 if "rate x 4" in line.title else 1
                   for line in grid.lines]  # fmt: skip
        spans = [2 if "twice the epochs" in line.title else 1 for line in grid.lines]
        assert all((line.family in ("long", "weighed")) == (span == 2)
                   for line, span in zip(grid.lines, spans, strict=True))  # fmt: skip
        configs = [
            dataclasses.replace(config, learning_rate=factor * config.learning_rate,
                                num_train_epochs=config.num_train_epochs / span,
                                eval_epochs=config.eval_epochs / span)
            for factor, span, config in zip(factors, spans, configs, strict=True)
        ]  # fmt: skip
        tuning = grid.name == "codex-s-tuning"  # of every score for itself
        compared = {"negatives", "num_negatives"} if "-pool" in grid.name else set()
        compared |= {"margin", "learning_rate"} if tuning else set()
        compared |= {"lr_scheduler_type", "learning_rate"} if grid.name == "codex-s-tuned" else set()
        found = {
            (line.family if tuning else "", *(getattr(config, key) for key in budget if key not in compared))
            for line, config in zip(grid.lines, configs, strict=True)
        }
        assert len(found) == (len({line.family for line in grid.lines}) if tuning else 1), grid.name
        searched: dict[str, set[float]] = {}
        for config in configs:
            searched.setdefault(config.objective, set()).add(config.n3)
        trained = [searched[name] for name in ("separate", "nested", "med") if name in searched]
        assert all(space == trained[0] for space in trained), grid.name


def test_separate_training_is_searched_over_the_rates_of_the_others(
    grids: ModuleType, tmp_path: Path
) -> None:
    from kge_presets import parse_config

    rates: dict[str, dict[str, set[tuple[float, str]]]] = {}
    for grid in grids.GRIDS.values():
        of_grid = rates.setdefault(grid.name, {})
        for line in grid.lines:
            config = parse_config([*line.flags, "--output_dir", str(tmp_path / "out")], "")
            of_grid.setdefault(line.family, set()).add((config.learning_rate, config.lr_scheduler_type))
    three = {(0.2, "constant"), (0.2, "linear"), (0.5, "linear")}
    assert rates["codex-s-tuned"] == dict.fromkeys(("separate", "nested", "med", "trunk"), three) | {
        "together": {(0.2, "linear")}
    }
    for of_grid in rates.values():
        assert of_grid.get("separate") == of_grid.get("nested")
    distances = {(0.0025, "linear"), (0.01, "linear"), (0.04, "linear")}
    assert rates["wn18rr-transe-paper-small"]["separate"] == distances


def test_the_grids_hold_what_the_paper_compares(grids: ModuleType) -> None:
    from benchmark_kge_lines import NAMES

    families = {line.family for line in grids.GRIDS["codex-s"].lines}
    assert families == set(NAMES) - {"med-paper", "long", "weighed", "together", "trunk"}
    tuned = grids.GRIDS["codex-s-tuned"]
    assert {line.family for line in tuned.lines} == {"separate", "nested", "med", "together", "trunk"}
    assert grids.GRIDS["codex-s"].seeds == (0, 1)
    assert tuned.seeds == (0, 1, 2, 3)
    for graph in ("wn18rr", "fb15k-237"):
        for score in ("transe", "simple", "rotate", "pairre"):
            for scale in ("paper", "paper-gpu", "paper-small"):
                names = {line.name for line in grids.GRIDS[f"{graph}-{score}-{scale}"].lines}
                assert names >= {"med-paper", "separate", "ext", "dualde", "med", "nested",
                                 "nested-paper", "long", "weighed"}  # fmt: skip
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


def test_lines_without_validation_are_not_in_its_table(tables: ModuleType) -> None:
    lines = {"known": [result("med", {2: 0.9}, {2: 0.5})], "unknown": [result("med", {2: 0.9})]}
    table = tables.validation_table(lines)
    assert table[2:] == ["| known | 1 | 0.5000 | 1.5 |", ""]
    assert tables.validation_table({"unknown": lines["unknown"]}) == []


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


def test_the_page_holds_every_line(tables: ModuleType, tmp_path: Path) -> None:
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
    found = tables.read_results(folder)
    tables.render(found, folder)
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
        "| validation mrr | seeds | 2 | 4 | minutes |",
        "| separate training, N3 0.01 | 1 | 0.5000 | 0.3000 | 1.5 |",
        "- separate training, best on validation, per size, seed 0: 2: separate, 4: separate-weak\n",
    ):
        assert text in page, text
    assert page.count("best on validation, one run") == 0  # one setting: nothing to choose
    tables.draw("umls", found["umls"], folder)
    assert (folder / "umls.png").read_bytes().startswith(b"\x89PNG")


def test_the_committed_pages_are_what_their_files_give(tables: ModuleType, tmp_path: Path) -> None:
    import benchmark_kge_summary as summary

    committed = ROOT / "docs" / "results" / "kge"
    folder = tmp_path / "results" / "kge"
    folder.mkdir(parents=True)
    (tmp_path / "results.md").write_text((ROOT / "docs" / "results.md").read_text())
    found = tables.read_results(committed)
    tables.render(found, folder)
    summary.write_summary(found, tmp_path / "results.md")
    again = "run `python recipes/benchmark_kge.py render`"
    assert (tmp_path / "results" / "kge.md").read_text() == committed.with_suffix(".md").read_text(), again
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs" / "results.md").read_text(), again


def test_cells_and_lines_cannot_be_changed_by_accident(grids: ModuleType) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        grids.GRIDS["umls"].name = "other"
