"""A graph of a few numbers, the link prediction recipe and its benchmark as modules, and a plain run."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from recipes_helpers import RECIPE, RECIPES, Arguments, in_processes

COUNT = 24


@pytest.fixture(scope="session")
def graph_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbers below 24 with their successors, doubles and parities; three splits and labels."""
    folder = tmp_path_factory.mktemp("numbers")
    facts = [(i, "next", (i + 1) % COUNT) for i in range(COUNT)]
    facts += [(i, "double", 2 * i % COUNT) for i in range(COUNT)]
    facts += [(i, "same_parity", (i + 2) % COUNT) for i in range(COUNT)]
    lines = [f"n{h:02d}\t{r}\tn{t:02d}" for h, r, t in facts]
    for split, own in (("valid", lines[::9]), ("test", lines[4::9])):
        (folder / f"{split}.tsv").write_text("\n".join(own) + "\n")
    held_out = {*lines[::9], *lines[4::9]}
    (folder / "train.tsv").write_text("\n".join(line for line in lines if line not in held_out) + "\n")
    (folder / "entity_labels.tsv").write_text("".join(f"n{i:02d}\tnumber {i}\n" for i in range(COUNT)))
    return folder


@pytest.fixture(scope="session")
def kge() -> Iterator[ModuleType]:
    """recipes/kge.py, imported under a name of its own: tests/kge/ is on the path as well."""
    sys.path.insert(0, str(RECIPES))
    spec = importlib.util.spec_from_file_location("kge_recipe", RECIPES / "kge.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(RECIPES))


def flags(**settings: Any) -> list[str]:
    """Write settings as flags; True is the bare flag."""
    out = []
    for name, value in settings.items():
        out += [
            f"--{name}",
            *([] if value is True else map(str, value if isinstance(value, list) else [value])),
        ]
    return out


@pytest.fixture(scope="session")
def arguments(graph_folder: Path) -> Callable[..., list[str]]:
    """The flags of a run of a second; given ones replace or add to them, None leaves one out."""
    defaults = {
        "data_dir": graph_folder, "sizes": [2, 4, 8], "num_train_epochs": 4, "eval_epochs": 2,
        "per_device_train_batch_size": 16, "n3": 0.001, "compile": "none",
    }  # fmt: skip

    def build(output: Path, **settings: Any) -> list[str]:
        chosen = {**defaults, "output_dir": output, **settings}
        return flags(**{name: value for name, value in chosen.items() if value is not None})

    return build


@pytest.fixture(scope="session")
def plain(arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The output folder and the process of a plain run."""
    output = tmp_path_factory.mktemp("plain") / "out"
    return output, in_processes(1, [str(RECIPE), *arguments(output)])


@pytest.fixture
def run(
    kge: ModuleType, arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Run the recipe's main in this process and return its exit status."""

    def start(output: Path, **settings: Any) -> int:
        AcceleratorState._reset_state(reset_partial_state=True)  # each run is a process of its own to users
        monkeypatch.setattr(sys, "argv", ["kge.py", *arguments(output, **settings)])
        try:
            return int(kge.main())
        except SystemExit as stop:  # of argparse
            return int(stop.code or 0)

    return start


@pytest.fixture(scope="session")
def overall() -> Callable[[Path], dict[tuple[int, str], float]]:
    """Read the headline rows of metrics.json as {(size, metric): value}."""

    def read(output: Path) -> dict[tuple[int, str], float]:
        rows = json.loads((output / "metrics.json").read_text())
        chosen = [
            row
            for row in rows
            if (row["side"], row["relation"], row["category"], row["ties"])
            == ("both", None, None, "realistic")
        ]
        table = {(row["size"], row["metric"]): row["value"] for row in chosen}
        assert len(table) == len(chosen), "a headline is there twice"
        return table

    return read


@pytest.fixture(scope="module")
def recipes() -> Iterator[None]:
    sys.path.insert(0, str(RECIPES))
    yield
    sys.path.remove(str(RECIPES))


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
