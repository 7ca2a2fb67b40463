"""Compare training objectives for link prediction, one run of recipes/kge.py per cell.

python recipes/benchmark_kge.py run --grid codex-s --data_root ../shared/data/kg
python recipes/benchmark_kge.py run --grid codex-s --results /tmp/try -- --num_train_epochs 2
python recipes/benchmark_kge.py render

A cell is a line of a grid (recipes/benchmark_kge_grids.py) with a seed. Its result is one JSON file in
docs/results/kge/; a cell whose file exists is not run again, and one that was interrupted goes on, so a grid
can be stopped at any time. A cell that fails is reported at the end and the others run. ``render``, which
follows every cell for its grid, writes docs/results/kge.md, its pictures and the summary in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from benchmark_kge_grids import GRIDS
from benchmark_kge_lines import Cell
from benchmark_kge_render import NOT_SETTINGS, draw, read_results, render, validation
from benchmark_kge_summary import write_summary
from kge_presets import parse_config
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "kge"
DATA = ROOT.parent / "shared" / "data" / "kg"
SCRATCH = ROOT / "runs" / "benchmark"
INTERRUPTED = 130  # exit status of recipes/kge.py
PRIVATE = ("output_dir", "overwrite_output_dir", "data_dir", "resume_from_checkpoint")  # of this machine
ROW = ("size", "metric", "value", "side", "dataset", "split")
KEPT_WEIGHTS = 60  # values of learnable w1, w2, w3 over time


class CellError(Exception):
    """A cell gave no result."""


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs cells.

    Attributes:
        results: Folder of the results, one file per cell.
        scratch: Folder where runs write; holds their checkpoints afterwards.
        data_root: Holds one folder per graph.
        extra: Flags for every run, behind those of its line.
    """

    results: Path = RESULTS
    scratch: Path = SCRATCH
    data_root: Path = DATA
    extra: tuple[str, ...] = ()

    def result_path(self, cell: Cell) -> Path:
        """Where the result of a cell is kept."""
        return self.results / f"{cell.name}.json"

    def folder(self, cell: Cell) -> Path:
        """Where the run of a cell writes."""
        return self.scratch / cell.name

    def run(self, cell: Cell, *, fresh: bool = False) -> None:
        """Run one cell, or go on with it where it was interrupted, and keep its result.

        Raises:
            CellError: If the run fails.
            KeyboardInterrupt: If the run was interrupted.
        """
        output = self.folder(cell)
        clock = self.scratch / f"{cell.name}.seconds"  # what interrupted runs of the cell have taken
        if fresh and output.exists():
            shutil.rmtree(output)
        resumed = any(output.glob("training_states/**/step-*"))
        earlier = float(clock.read_text()) if resumed and clock.exists() else 0.0
        start = time.perf_counter()
        process = subprocess.Popen(self.command(cell, resumed))
        try:
            status = process.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the run as well: it saves its state
            status = process.wait()
        seconds = earlier + time.perf_counter() - start
        if status == INTERRUPTED:
            clock.write_text(str(seconds))
            raise KeyboardInterrupt
        if status:
            raise CellError(f"recipes/kge.py ended with status {status}")
        clock.unlink(missing_ok=True)
        write_result(self.result_path(cell), self.result(cell, seconds))

    def command(self, cell: Cell, resumed: bool) -> list[str]:
        """Return the command line of a cell."""
        how = ("--resume_from_checkpoint", "latest") if resumed else ("--overwrite_output_dir",)
        teacher = ("--teacher", str(self.teacher(cell))) if cell.line.needs_teacher else ()
        return [
            sys.executable, str(ROOT / "recipes" / "kge.py"), *cell.line.flags, *self.extra, *teacher,
            "--data_dir", str(self.data_root / cell.grid.graph), "--seed", str(cell.seed),
            "--output_dir", str(self.folder(cell)), *how,
        ]  # fmt: skip

    def teacher(self, cell: Cell) -> Path:
        """Return the full-size model of separate training that is best on validation, of the cell's seed.

        It is trained first where there is none.
        """
        lines = [line for line in cell.grid.lines if line.family == "separate"]
        cells = [Cell(cell.grid, line, cell.seed) for line in lines]
        measured = [c for c in cells if self.full_score(c) is not None]
        best = max(measured, key=lambda c: self.full_score(c) or 0.0) if measured else cells[0]
        return max(self.models(best), key=lambda folder: int(folder.name.removeprefix("size-")))

    def models(self, cell: Cell) -> list[Path]:
        """Return the folders of the models of a cell, one or one per size; trains them where they are gone.

        Raises:
            CellError: If the run fails or leaves no model.
        """
        output = self.folder(cell)
        for attempt in range(2):
            every = sorted(output.glob("size-*/config.json")) or list(output.glob("config.json"))
            if every and (output / "metrics.json").exists():  # which is written last
                return [path.parent for path in every]
            if not attempt:
                print(f"the models of {cell.name} are needed and trained first", flush=True)
                self.run(cell)
        raise CellError(f"{cell.name} left no model in {output}")

    def outdated(self, cell: Cell) -> list[str]:
        """Return the settings in which the kept result of a cell differs from what would run now."""
        kept = json.loads(self.result_path(cell).read_text(encoding="utf-8"))["config"]
        flags = [*cell.line.flags, *self.extra, "--seed", str(cell.seed), "--output_dir", str(self.scratch),
                 "--overwrite_output_dir"]  # fmt: skip
        now = json.loads(json.dumps(asdict(parse_config(flags, ""))))
        keys = [key for key in kept if key in now and key not in {*PRIVATE, *NOT_SETTINGS}]
        return [f"{key} {kept[key]}, now {now[key]}" for key in keys if kept[key] != now[key]]

    def state(self, cell: Cell) -> str:
        """Say whether a cell is missing, or kept, and if so whether its settings have changed since."""
        if not self.result_path(cell).exists():
            return "missing"
        changed = self.outdated(cell)
        return f"kept, with other settings ({'; '.join(changed)})" if changed else "kept"

    def full_score(self, cell: Cell) -> float | None:
        """Return the validation MRR of a cell at its largest size, None where it is not known."""
        path = self.result_path(cell)
        scores = validation(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        return scores[max(scores)] if scores else None

    def result(self, cell: Cell, seconds: float) -> dict[str, Any]:
        """Collect what is kept of a finished run."""
        output = self.folder(cell)
        rows = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        overall = [r for r in rows if r["relation"] is None and r["category"] is None
                   and r["ties"] == "realistic" and r["side"] == "both"]  # fmt: skip
        config = json.loads((output / "training_config.json").read_text(encoding="utf-8"))
        config = {key: value for key, value in config.items() if key not in PRIVATE}
        if config.get("teacher"):
            config["teacher"] = "/".join(Path(config["teacher"]).parts[-2:])
        history = json.loads((output / "history.json").read_text(encoding="utf-8"))
        scores = [
            {k: v for k, v in row.items() if k == "step" or k.startswith("score")}
            for row in history if "score" in row
        ]  # fmt: skip
        weights = [
            {k: row[k] for k in ("step", "w1", "w2", "w3") if k in row} for row in history if "w3" in row
        ]
        return {
            "grid": cell.grid.name, "line": cell.line.name, "seed": cell.seed, "seconds": round(seconds),
            "machine": machine(), "config": config,
            "rows": [{key: row[key] for key in ROW} for row in overall], "validations": scores,
            "weights": weights[:: -(-len(weights) // KEPT_WEIGHTS) or 1],
        }  # fmt: skip


def machine() -> dict[str, Any]:
    """Describe where a result was made."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "gpu": gpu,
            "python": platform.python_version(), "cpu": _cpu_name()}  # fmt: skip


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result, one row a line; a reader sees the old file or the new one."""
    parts = []
    for key, value in result.items():
        rows = isinstance(value, list) and value and isinstance(value[0], dict)
        text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]" if rows else json.dumps(value)
        parts.append(f" {json.dumps(key)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    temporary.replace(path)


def run_cells(
    runner: Runner,
    cells: Iterable[Cell],
    *,
    overwrite: bool = False,
    finished: Callable[[Cell], None] = lambda cell: None,
) -> int:
    """Run the cells that have no result yet; return the exit status, 1 if any failed.

    Args:
        runner: Runs them.
        cells: In this order.
        overwrite: Run those that have a result as well, from scratch.
        finished: Called with every cell that ran to its end.
    """
    cells, failed = list(cells), []
    for i, cell in enumerate(cells, 1):
        kept = runner.result_path(cell).exists() and not overwrite
        print(f"[{i}/{len(cells)}] {cell.name}: {runner.state(cell) if kept else 'running'}", flush=True)
        if kept:
            continue
        try:
            runner.run(cell, fresh=overwrite)
        except (CellError, OSError, ValueError) as error:
            failed.append(cell.name)
            print(f"{cell.name} failed: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return INTERRUPTED
        else:
            finished(cell)
    if failed:
        print(f"{len(failed)} of {len(cells)} cells failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where and how cells run."""
    parser.add_argument("--data_root", type=Path, default=DATA, help="holds one folder per graph")
    parser.add_argument("--scratch", type=Path, help="where runs write their checkpoints")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of those of the grid")
    parser.add_argument("--overwrite", action="store_true", help="run again what has a result, from scratch")


def parse_run_flags(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse the flags; what stands behind ``--`` becomes "extra", flags of recipes/kge.py for every cell."""
    given = sys.argv[1:] if arguments is None else arguments
    end = given.index("--") if "--" in given else len(given)
    parser.epilog = "Behind --: flags for recipes/kge.py in every cell."
    return parser.parse_args(given[:end], argparse.Namespace(extra=given[end + 1 :]))


def make_runner(options: argparse.Namespace, results: Path, scratch: Path = SCRATCH) -> Runner:
    """Make the runner that the flags ask for; other results have other checkpoints."""
    if results.parent != RESULTS.parent:
        scratch = results / "runs"
    return Runner(results=results, scratch=options.scratch or scratch, data_root=options.data_root,
                  extra=tuple(options.extra))  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("run", "list", "render"))
    which = "which tables: `list` shows all (default: codex-s to run, all to list)"
    parser.add_argument("--grid", nargs="+", choices=tuple(GRIDS), metavar="GRID", help=which)
    parser.add_argument("--lines", nargs="+", help="which lines, by name; `list` shows them")
    parser.add_argument("--results", type=Path, default=RESULTS, help="one JSON per cell")
    add_run_flags(parser)
    options = parse_run_flags(parser, arguments)

    def write_page(cell: Cell | None = None) -> None:
        found = read_results(options.results)
        render(found, options.results)
        write_summary(found, options.results.parent.with_suffix(".md"))
        for grid in [cell.grid.name] if cell else tqdm(found, desc="pictures", unit="picture"):
            draw(grid, found[grid], options.results)

    if options.action == "render":
        write_page()
        return 0
    if options.extra and options.results == RESULTS and options.action == "run":
        parser.error("flags for every cell make other tables: give them another --results")
    grids = [GRIDS[name] for name in options.grid or (GRIDS if options.action == "list" else ("codex-s",))]
    known = {line.name for grid in grids for line in grid.lines}
    if unknown := sorted(set(options.lines or ()) - known):
        parser.error(f"no line {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    runner = make_runner(options, options.results)
    cells = [
        Cell(grid, line, seed)
        for grid in grids
        for seed in (grid.seeds if options.seeds is None else options.seeds)
        for line in grid.lines
        if options.lines is None or line.name in options.lines
    ]
    if options.action == "list":
        for cell in cells:
            print(f"{cell.name:<44} {' '.join(cell.line.flags)}\n    {runner.state(cell)}")
        return 0
    return run_cells(runner, cells, overwrite=options.overwrite, finished=write_page)


if __name__ == "__main__":
    sys.exit(main())
