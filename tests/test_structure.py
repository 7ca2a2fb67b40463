"""The house rules that a machine can hold: layers, budgets, exports, and that nothing public is untested."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import croppable
import croppable.kge
from croppable.kge.scores import SCORES

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "croppable").rglob("*.py"))
SOURCES = [*LIBRARY, *(path for folder in ("recipes", "benchmarks") for path in (ROOT / folder).glob("*.py"))]
LONGEST_FILE, LONGEST_FUNCTION = 350, 60

# Files outside the families that may know them: the table of kinds, and the command line.
KNOW_FAMILIES = {"croppable.kinds", "croppable.cli"}
# Packages that cost seconds or hundreds of megabytes, and the only files that may import them.
OWNERS = {
    "accelerate": {"croppable.training"},
    "datasets": {
        "croppable.kge.triples",
        "croppable.kge.ranking_metric",
        "croppable.text.glue",
        "croppable.text.metrics",
    },
    "evaluate": {"croppable.kge.ranking_metric", "croppable.text.metrics"},
    "faiss": {"croppable.kge.export"},
    "huggingface_hub": {"croppable.hub", "croppable.card", "croppable.text.card"},
    "matplotlib": {"croppable.report"},
    "onnxruntime": {"croppable.text.export"},
    "rich": {"croppable.report"},
    "sklearn": {"croppable.text.metrics"},
    "scipy": {"croppable.text.metrics"},
    "typer": {"croppable.cli"},
}  # fmt: skip
OWNED_BY_FOLDER = {
    "transformers": "croppable.text.",
    "numba": "croppable.kge.",
    "triton": "croppable.kge.",
    "pyarrow": ("croppable.kge.", "croppable.text."),
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, *, lazy: bool = True) -> Iterator[str]:
    """Yield what a file imports; without ``lazy`` only what importing it imports."""
    for node in ast.walk(tree(path)):
        if not lazy and getattr(node, "col_offset", 0):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield str(node.module)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


# --------------------------------------------------------------------------------------------- layers


def test_core_and_med_stand_on_torch_alone() -> None:
    for name in ("core", "losses", "med"):
        modules = set(imports(ROOT / "croppable" / f"{name}.py"))
        if name == "med":
            modules -= {"croppable.losses"}
        roots = {module.partition(".")[0] for module in modules}
        assert roots - set(sys.stdlib_module_names) == {"torch"}, name


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_families_are_known_only_to_themselves(path: Path) -> None:
    name = name_of(path)
    families = ("croppable.kge", "croppable.text")
    own = next((family for family in families if inside(name, family)), None)
    for module in imports(path):
        met = next((family for family in families if inside(module, family)), None)
        assert met in (None, own) or name in KNOW_FAMILIES, f"{name} imports {module}"
        assert module.partition(".")[0] not in ("recipes", "benchmarks", "tests"), f"{name} imports {module}"


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_heavy_packages_are_imported_by_their_owners_only(path: Path) -> None:
    name = name_of(path)
    for module in imports(path):
        package = module.partition(".")[0]
        assert name in OWNERS.get(package, {name}), f"{name} imports {module}"
        assert name.startswith(OWNED_BY_FOLDER.get(package, "")), f"{name} imports {module}"


def test_imports_point_down() -> None:
    names = {name_of(path): path for path in LIBRARY}
    graph = {
        name: {module for module in imports(path, lazy=False) if module in names and module != name}
        for name, path in names.items()
    }
    while removable := {name for name, below in graph.items() if not below}:
        graph = {name: below - removable for name, below in graph.items() if name not in removable}
    assert not graph, f"these import each other in a circle: {sorted(graph)}"


LIGHT = """
import sys, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
before = set(sys.modules)
import croppable
end = time.perf_counter()
heavy = {name.partition(".")[0] for name in set(sys.modules) - before} & set(sys.argv[1:])
print(sorted(heavy), middle - start, end - middle)
"""


def test_importing_croppable_is_light_and_fast() -> None:
    heavy = [*OWNERS, *OWNED_BY_FOLDER, "tqdm", "safetensors"]
    process = subprocess.run(
        [sys.executable, "-c", LIGHT, *heavy], capture_output=True, text=True, check=True
    )
    found, torch_seconds, own_seconds = process.stdout.rsplit(maxsplit=2)
    assert found == "[]"
    assert float(own_seconds) < 0.5 * float(torch_seconds) + 0.2


# -------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_keep_their_budgets(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, (
        f"{path.name} has {lines} lines: find the second idea in it and move that out"
    )
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node) is not None
            text = first.end_lineno - first.lineno + 1 if documented and first.end_lineno else 0
            length = (node.end_lineno or 0) - node.lineno + 1 - text  # a docstring costs nothing
            assert length <= LONGEST_FUNCTION, f"{node.name} in {path.name} has {length} lines"


# -------------------------------------------------------------------------------------------- exports


def exported(path: Path) -> list[str] | None:
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def defined(path: Path) -> set[str]:
    """The names that a file binds at its top level."""
    names: set[str] = set()
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {
                leaf.id for target in node.targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)
            }
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def kind_then_name(name: str) -> tuple[int, str]:
    """The order of ``__all__``: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_all_is_sorted_and_true(path: Path) -> None:
    names = exported(path)
    if names is None:
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree(path).body)
        return
    assert names == sorted(set(names), key=kind_then_name)
    assert set(names) <= defined(path)
    assert not any(name.startswith("_") for name in names)


@pytest.mark.parametrize("package", [croppable, croppable.kge])
def test_a_package_exports_its_public_names(package: object) -> None:
    path = Path(str(package.__file__))  # type: ignore[attr-defined]
    assert exported(path) == sorted(defined(path) - {"__all__"}, key=kind_then_name)


# ----------------------------------------------------------------------------------------- what is tested


@cache
def words_of_tests() -> set[str]:
    texts = (p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__))
    return set(re.findall(r"[\w-]+", " ".join(texts)))


@cache
def documented() -> dict[str, set[str]]:
    """The public names: those of the packages, and those of each module in the reference."""
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    entry = re.compile(r"^::: (croppable[\w.]*)(?:\n +options:\n +members: \[([^\]]*)\])?", re.MULTILINE)
    listed = {module: set(re.findall(r"\w+", members)) for module, members in entry.findall(page)}
    exports = {name_of(path): set(exported(path) or ()) for path in LIBRARY}
    names = {module: members or exports[module] for module, members in listed.items()}
    return names | {package: exports[package] for package in ("croppable", "croppable.kge")}


@pytest.mark.parametrize("module", documented())
def test_every_public_name_occurs_in_a_test(module: str) -> None:
    missing = documented()[module] - words_of_tests()
    assert not missing, f"no test mentions {sorted(missing)} of {module}"


@pytest.mark.parametrize("score", SCORES)
def test_every_score_occurs_in_a_test(score: str) -> None:
    assert score in words_of_tests()


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"{name_of(path)} has no docstring"


def test_no_pickle_and_no_code_from_strings() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    calls = {"eval", "exec", "torch.load"}
    for path in SOURCES:
        assert not {module.partition(".")[0] for module in imports(path)} & forbidden, path
        called = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
        assert not called & calls, path
