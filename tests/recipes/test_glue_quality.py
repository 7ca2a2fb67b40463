"""The grid of the GLUE benchmark: what it runs, what it refuses, and numbers of its report by hand."""

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from transformers import BertConfig, BertModel, BertTokenizerFast

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def report() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("glue_report")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def quality(report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("glue_quality")
    for owner in (report, module):
        monkeypatch.setattr(owner, "RESULTS", tmp_path / "results")
    return module


def cell(task: str, line: str, seed: int, values: dict[int, float], **changes: Any) -> dict[str, Any]:
    metric = {"cola": "matthews_correlation"}.get(task, "accuracy")
    rows = [{"size": size, "metric": metric, "value": value} for size, value in values.items()]
    return {
        "task": task, "line": line, "seed": seed, "budget": "cpu", "model": "tiny", "flags": f"--seed {seed}",
        "learning_rate": "3e-4", "examples": 100, "batch": 4, "steps": 25, "seconds": 60.0, "rows": rows,
        "machine": {"cpu": "abacus", "cores": 2, "threads": 1, "torch": "2"}, **changes,
    }  # fmt: skip


def write(folder: Path, *cells: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in cells:
        name = f"{one['task']}.{one['line']}.{one['learning_rate']}.seed{one['seed']}.json"
        (folder / name).write_text(json.dumps(one))


def grid(task: str) -> list[dict[str, Any]]:
    """Two seeds of three lines: MED is 10 points above BERT-HAT and 2 above separate, but for size 12."""
    return [
        cell(task, line, seed, {size: base + seed / 100 + size / 100 for size in (3, 6, 9)} | {12: large})
        for seed in (0, 1)
        for line, base, large in (("separate", 0.58, 0.80), ("random", 0.50, 0.70), ("med", 0.60, 0.79))
    ]


def line_of(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [part.strip() for part in line.strip("|").split("|")][1:]


def test_the_report_by_hand(report: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "cells", *grid("rte"), *grid("cola"))
    text = report.render(tmp_path / "glue.md", tmp_path / "cells").read_text()
    assert (tmp_path / "glue.png").stat().st_size > 1000
    assert line_of(text, "rte: largest size within 0.5 of plain fine-tuning") == ["-1.0", "no"]
    assert line_of(text, "cola: smaller sizes above separate fine-tuning") == [
        "3: +2.0, 6: +2.0, 9: +2.0",
        "yes",
    ]
    # MED: 66 and 67, BERT-HAT: 56 and 57; 66 / 56 - 1 = 17.9 %, 67 / 57 - 1 = 17.5 %
    claim = "mean over tasks and smaller sizes 16 % above random sub-networks (BERT-HAT)"
    assert line_of(text, claim) == ["66.5 ± 0.7 against 56.5 ± 0.7: +17.7 %", "yes"]
    med = [row for row in text.splitlines() if row.startswith("| MED |")]
    assert med[0] == "| MED | 2 | 66.5 ± 0.7 | +17.7 ± 0.2 | +2.0 ± 0.0 | 79.0 ± 0.0 | -1.0 ± 0.0 |"
    assert med[1] == ("| MED | 2 | 63.5 ± 0.7 | 66.5 ± 0.7 | 69.5 ± 0.7 | 79.0 ± 0.0 | 3e-4 | 25 | 1.0 |")
    assert med[2] == "| MED | +2.0 ± 0.0 | +2.0 ± 0.0 | +2.0 ± 0.0 | -1.0 ± 0.0 |"
    assert "100 training examples, batches of 4" in text
    assert "abacus, 1 of 2 threads, torch 2" in text
    assert "Seeds: 0, 1." in text
    assert "All lines have the learning rate of their task" in text


def test_plain_fine_tuning_may_have_a_rate_of_its_own(report: ModuleType, tmp_path: Path) -> None:
    own = cell("rte", "full", 0, {12: 0.85}, learning_rate="1e-4")
    tuned = cell("rte", "full", 0, {12: 0.9}, learning_rate="1e-4")
    write(tmp_path / "cells", *grid("rte"), own)
    write(tmp_path / "cells" / "tune", tuned)
    text = report.render(tmp_path / "glue.md", tmp_path / "cells").read_text()
    assert line_of(text, "rte: largest size within 0.5 of plain fine-tuning") == ["-6.0", "no"]
    assert "every fifth training example, held out" in text
    assert "| rte | plain fine-tuning of the full model | 90.0 |" in text


def test_the_cost_of_a_step_is_told_if_measured(report: ModuleType, tmp_path: Path) -> None:
    measured = {
        "settings": {"sizes": [3, 12], "batch": 32, "length": 24, "threads": 1, "rounds": 8},
        "step": {"flop_ratio": 1.5, "step_ratio": {"med": 1.59}, "step_over_flops": {"med": 1.06}},
        "crops": {
            "3": {"ms": 16.78, "forward_over_stock": 0.99, "bytes": 14_652_640, "bytes_over_stock": 1.0}
        },
    }
    write(tmp_path / "cells", *grid("rte"))
    (tmp_path / "cells" / "step_cost.json").write_text(json.dumps(measured))
    text = report.render(tmp_path / "glue.md", tmp_path / "cells").read_text()
    assert "so the step costs 1.06 times its FLOPs" in text
    assert line_of(text, "3 heads") == ["16.8", "0.990", "14.7", "1.000"]


def test_a_task_without_every_line_takes_no_part_in_the_means(report: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "cells", *grid("rte"), *grid("cola")[:2])
    text = report.render(tmp_path / "glue.md", tmp_path / "cells").read_text()
    assert "## Over rte\n" in text
    assert "## cola" in text
    assert "cola: largest" not in text


def test_nothing_is_so_many_percent_above_zero(report: ModuleType, tmp_path: Path) -> None:
    zero = cell("cola", "random", 0, dict.fromkeys((3, 6, 9, 12), 0.0))
    part = cell("cola", "med-hidden", 0, dict.fromkeys((3, 6, 9, 12), 0.3))
    write(tmp_path / "cells", *grid("rte"), *(c for c in grid("cola") if c["line"] != "random"), zero, part)
    text = report.render(tmp_path / "glue.md", tmp_path / "cells").read_text()
    rows = [
        row for row in text.splitlines() if row.startswith("| MED + hidden-state distillation | 1 | 30.0")
    ]
    assert rows[0].split("|")[4].strip() == ""


def test_unequal_budgets_are_not_compared(report: ModuleType, tmp_path: Path) -> None:
    long = cell("rte", "random-long", 0, dict.fromkeys((3, 6, 9, 12), 0.5), steps=100)
    write(tmp_path / "cells", *grid("rte"), long)
    report.render(tmp_path / "glue.md", tmp_path / "cells")
    write(tmp_path / "cells", cell("rte", "nested", 0, {12: 0.5}, steps=26))
    with pytest.raises(SystemExit, match=r"cells of rte differ in .*nested.seed0: \(26, 4, 100\)"):
        report.render(tmp_path / "glue.md", tmp_path / "cells")
    with pytest.raises(SystemExit, match="no results in"):
        report.render(tmp_path / "glue.md", tmp_path / "nowhere")


def settings(quality: ModuleType, *arguments: str) -> argparse.Namespace:
    return quality.parser().parse_args([*arguments, "--model_name_or_path", "tiny", "--threads", "1"])


def test_all_lines_take_the_same_steps_but_the_long_one(quality: ModuleType, report: ModuleType) -> None:
    args = settings(quality, "run", "--epochs", "2", "--max_steps", "10", "--flags", "--max_length 16")
    flags = {line: quality.flags_of(args, "rte", line, 1, "1e-4") for line in report.LINES}
    for line, text in flags.items():
        times = 4 if line == "random-long" else 1
        assert f"--num_train_epochs {2 * times} --max_train_steps {10 * times} " in text
        assert text.endswith("--max_length 16")
    assert "--sizes 12 " in flags["full"]
    assert f"--sizes 3 6 9 12 {report.LINES['med'].flags} " in flags["med"]


def test_the_best_rate_on_the_held_out_examples_is_taken(quality: ModuleType) -> None:
    assert quality.best_rate("rte", "med") is None
    for rate, value in (("1e-4", 0.6), ("3e-4", 0.7), ("1e-3", 0.5)):
        write(quality.RESULTS / "tune", cell("rte", "med", 0, {3: value, 12: 0.6}, learning_rate=rate))
    assert quality.best_rate("rte", "med") == "3e-4"
    assert quality.best_rate("rte", "nested") is None


def test_cells_are_compared_by_what_their_flags_say(quality: ModuleType) -> None:
    kept = "--sizes 3 6 --max_length 32 --learning_rate 3e-4 --max_length 64"
    assert quality.settings(kept) == quality.settings("--max_length 64 --sizes 3 6 --learning_rate 3e-4")
    assert quality.settings(kept) != quality.settings("--max_length 32 --sizes 3 6 --learning_rate 3e-4")
    assert quality.settings(kept) != quality.settings("--max_length 64 --sizes 6 3 --learning_rate 3e-4")


@pytest.mark.parametrize("task", ["sst2", "mrpc", "rte"])
def test_chance_is_the_share_of_the_most_frequent_label(
    report: ModuleType, data_dir: Path, task: str
) -> None:
    labels = pa.parquet.read_table(data_dir / "glue" / task / "validation.parquet")["label"].to_pylist()
    most = max(labels.count(label) for label in set(labels))
    assert report.CHANCE[task] == pytest.approx(100 * most / len(labels), abs=0.05)


def test_holding_out_takes_from_training_only(quality: ModuleType, tmp_path: Path) -> None:
    table = pa.table({"sentence": [str(i) for i in range(12)], "label": [0, 1] * 6})
    source = tmp_path / "data" / "sst2"
    source.mkdir(parents=True)
    pa.parquet.write_table(table, source / "train.parquet")
    quality.hold_out(str(tmp_path / "data"), "sst2", tmp_path)
    train, held = (
        pa.parquet.read_table(tmp_path / "sst2" / f"{split}.parquet").column("sentence").to_pylist()
        for split in ("train", "validation")
    )
    assert held == ["0", "5", "10"]
    assert sorted(train + held, key=int) == table.column("sentence").to_pylist()


@pytest.mark.slow
def test_a_cell_is_run_once_and_not_mixed_with_other_flags(quality: ModuleType, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n")
    config = BertConfig(vocab_size=len(words), hidden_size=24, num_attention_heads=12, intermediate_size=48,
                        num_hidden_layers=1, max_position_embeddings=64)  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "tiny")
    BertTokenizerFast(vocab=str(tmp_path / "words.txt"), model_max_length=64).save_pretrained(
        tmp_path / "tiny"
    )
    table = pa.table({"sentence": ["good", "bad"] * 10, "label": [1, 0] * 10})
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    for split in ("train", "validation"):
        pa.parquet.write_table(table, tmp_path / "data" / "sst2" / f"{split}.parquet")
    where = ["--data_dir", str(tmp_path / "data"), "--model_name_or_path", str(tmp_path / "tiny")]
    common = ["--tasks", "sst2", "--lines", "random", "--max_steps", "2", "--threads", "1", *where]

    def start(*arguments: str) -> None:
        args = quality.parser().parse_args([*arguments, *common])
        args.action(args)

    start("tune", "--learning_rates", "1e-3")
    start("run")
    path = quality.RESULTS / "sst2.random.seed0.json"
    found = json.loads(path.read_text())
    assert (found["learning_rate"], found["examples"], found["steps"]) == ("1e-3", 20, 2)
    assert {row["size"] for row in found["rows"]} == {3, 6, 9, 12}
    before = path.stat().st_mtime_ns
    start("run")
    assert path.stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match=r"sst2\.random\.seed0\.json was run with other flags"):
        start("run", "--learning_rate", "1e-4")
    assert not list(quality.RESULTS.glob("**/*.[0-9]*"))
