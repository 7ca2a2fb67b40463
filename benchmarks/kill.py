"""Kill a training run again and again, and see whether anything is lost.

    python benchmarks/kill.py --kills 30 --output docs/results/kill.json

recipes/kge.py trains a random graph and writes a state after every step. A SIGKILL strikes at a random
moment, the run is resumed, and so on; at last it may finish. Lost is a state that was complete before a kill
and cannot be loaded after it; mixed is a state under its final name that is not all of one step. The weights
in the end must be those of a run that nobody touched, bit for bit. Every attempt is forked from one process
that has imported everything but trained nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from machine import describe

from croppable.state import StateFolder

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
ENTITIES, RELATIONS, TRIPLES = 300, 5, 2000
STEPS_PER_KILL = 30
LONGEST_DELAY = 0.15  # seconds from the first new state to the kill: some ten states
PATIENCE = 120  # seconds until the first new state


def write_graph(folder: Path) -> None:
    """Write a random graph that is large enough for a state to take a while."""
    generator = random.Random(0)
    folder.mkdir()
    for split, count in (("train", TRIPLES), ("valid", 50), ("test", 50)):
        rows = [
            f"e{generator.randrange(ENTITIES)}\tr{generator.randrange(RELATIONS)}\te{generator.randrange(ENTITIES)}"
            for _ in range(count)
        ]
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")


def load_recipe() -> ModuleType:
    """Import recipes/kge.py."""
    sys.path.insert(0, str(RECIPES))
    spec = importlib.util.spec_from_file_location("kge_recipe", RECIPES / "kge.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe
    spec.loader.exec_module(recipe)
    return recipe


def start(recipe: ModuleType, log: Path, arguments: list[str]) -> int:
    """Run the recipe in a forked process and return its id; what it prints goes to ``log``."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["kge.py", *arguments]
        status = recipe.main()
    finally:
        os._exit(status)


def finish(pid: int, log: Path) -> None:
    """Wait for a run to end well."""
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"a run ended with status {status}:\n{log.read_text()}")


def named_steps(states: Path) -> set[int]:
    """Return the steps of the states that are under their final name."""
    return {int(path.name.removeprefix("step-")) for path in states.glob("step-*")}


def strike(pid: int, states: Path, delay: float) -> int:
    """Kill a run some time after its first new state; return the newest state seen before."""
    before, deadline = named_steps(states), time.monotonic() + PATIENCE
    while not named_steps(states) - before:
        if os.waitpid(pid, os.WNOHANG)[0] or time.monotonic() > deadline:
            raise RuntimeError("the run ended, or wrote no state in time: raise --kills or look at its log")
        time.sleep(0.001)
    time.sleep(delay)
    seen = max(named_steps(states))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise RuntimeError("the run ended before the kill: it needs more steps")
    return seen


def inspect(states: Path, seen: int) -> dict[str, int]:
    """Look at what a kill left behind."""
    folder = StateFolder(states)
    complete = {int(path.name.removeprefix("step-")) for path in folder.complete()}
    newest = max(complete, default=0)
    mixed = len(named_steps(states) - complete)
    if complete:
        tree = folder.read()
        mixed += tree["progress"]["step"] != newest
    return {
        "step": newest,
        "lost": int(newest < seen),
        "mixed": mixed,
        "while_writing": int(any(states.glob(".step-*.writing"))),
    }


def same_files(a: Path, b: Path) -> bool:
    """Whether two runs wrote the same model, metrics and history, byte for byte."""
    names = sorted(path.name for path in [*a.glob("*.safetensors"), a / "metrics.json", a / "history.json"])
    return len(names) > 3 and all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def measure(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run the whole experiment in ``folder``."""
    write_graph(folder / "graph")
    recipe, log = load_recipe(), folder / "log"
    steps = STEPS_PER_KILL * (kills + 2)
    flags = (
        f"--data_dir {folder / 'graph'} --sizes 8 16 32 --max_train_steps {steps} --eval_epochs 1 "
        f"--per_device_train_batch_size 128 --seed {seed}"
    )
    untouched, killed = (flags + f" --output_dir {folder / name}" for name in ("untouched", "killed"))
    finish(start(recipe, log, untouched.split()), log)
    killed += " --checkpointing_steps 1"
    states, moments = folder / "killed" / sys.modules["kge_config"].STATES, random.Random(seed)
    outcomes = []
    for number in range(kills):
        resume = " --resume_from_checkpoint latest" if number else ""
        pid = start(recipe, log, (killed + resume).split())
        outcomes.append(inspect(states, strike(pid, states, moments.uniform(0, LONGEST_DELAY))))
        print(f"kill {number + 1}: {outcomes[-1]}", flush=True)
    finish(start(recipe, log, f"{killed} --resume_from_checkpoint latest".split()), log)
    return {
        "kills": kills,
        "steps": steps,
        "lost": sum(outcome["lost"] for outcome in outcomes),
        "mixed": sum(outcome["mixed"] for outcome in outcomes),
        "struck_while_writing": sum(outcome["while_writing"] for outcome in outcomes),
        "resumed_at": [outcome["step"] for outcome in outcomes],
        "bit_identical": same_files(folder / "untouched", folder / "killed"),
    }


def main() -> int:
    """Run from the command line; 1 if anything was lost, mixed or different."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # no pool of threads that a fork would not have
    with tempfile.TemporaryDirectory() as folder:
        result = {"machine": describe("torch"), **measure(arguments.kills, arguments.seed, Path(folder))}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return int(bool(result["lost"] or result["mixed"] or not result["bit_identical"]))


if __name__ == "__main__":
    sys.exit(main())
