"""Results as the link prediction benchmark and its studies keep them, made up for tests."""

import json
from pathlib import Path
from typing import Any


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


def write(folder: Path, *results: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for one in results:
        name = one.get("study") or f"{one['grid']}-{one['line']}-{one['seed']}"
        (folder / f"{name}.json").write_text(json.dumps(one))
