"""The Triton kernels: interpreted on the CPU, compiled for a GPU without one, and run where there is one."""

import importlib.util
import json
import logging
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from packaging.version import Version
from triton_cases import CASES

from croppable import compiling
from croppable.kge import prefixes
from croppable.kge.scores import SCORES

TESTS = Path(__file__).resolve().parents[1]
INTERPRETS = Version("3.9")  # the oldest that was tried and does; the interpreter of 3.5 fails
KINDS = ("product", "absolute", "squared", "modulus")
POINTERS = {
    **dict.fromkeys(("queries", "candidates", "answers", "own", "terms"), "*fp32"),
    **dict.fromkeys(("rows", "others", "weights", "gradient"), "*fp32"),
    **dict.fromkeys(("bounds", "greater", "equal", "finite"), "*i32"),
    "mask": "*i8",
}
# What rounds. Without ".rn" the assembler may fuse a product and a sum in one kernel and not in the other.
ARITHMETIC = re.compile(r"\b((?:add|sub|mul|fma|sqrt|rsqrt|div)(?:\.(?!f)\w+)?)(?:\.ftz)?\.f32\b")


@pytest.fixture(scope="module")
def needs_triton() -> None:
    """Skip where triton is missing, which is an error where continuous integration has installed it."""
    reason = "triton is missing: pip install triton (Linux)"
    if importlib.util.find_spec("triton") is not None:
        found = Version(version("triton"))
        if found >= INTERPRETS:
            return
        if torch.version.cuda:  # the build pins its triton
            pytest.skip(f"triton {found} does not interpret these kernels, {INTERPRETS} does")
        reason = f"triton {INTERPRETS} or newer interprets these kernels, got {found}: pip install -U triton"
    if os.environ.get("CI") == "true" and (sys.platform, platform.machine()) == ("linux", "x86_64"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def interpreted(needs_triton: None) -> dict[str, str | None]:
    """The outcome of every case in one process, in which triton was imported as an interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, "-W", "error", str(TESTS / "triton_cases.py")]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    outcomes: dict[str, str | None] = json.loads(process.stdout)
    return outcomes


@pytest.mark.parametrize("name", CASES)
def test_interpreted(name: str, interpreted: dict[str, str | None]) -> None:
    assert interpreted[name] is None, interpreted[name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name: str, needs_triton: None) -> None:
    CASES[name](torch.device("cuda", 0))


def code_for(function: Any, capability: int, constants: dict[str, Any], warps: int) -> dict[str, Any]:
    """Compile a kernel as far as machine code, which takes no device; return its stages by name."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    signature = {n: "constexpr" if n in constants else POINTERS.get(n, "i32") for n in names}
    aligned = [n for n in names if n in POINTERS or n in ("padded", "chunk")]
    source = ASTSource(
        function, signature, constants, {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    )
    options = {"num_warps": warps, "enable_fp_fusion": False}
    stages: dict[str, Any] = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options=options
    ).asm
    return stages


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_compiles_for_a_gpu_and_rounds_as_it_is_written(
    kind: str, needs_triton: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from croppable.kge import pool_triton, ranking_triton

    ranks = {"kind": kind, "tile": ranking_triton.QUERIES}
    pools = {"kind": kind, "tile": pool_triton.QUERIES, "width": pool_triton.CANDIDATES}
    pulls = {"kind": kind, "parts": 1 + (kind == "modulus"), "tile": pool_triton.ROWS, "dims": 16}
    wins = {**ranks, "width": ranking_triton.CANDIDATES}
    kernels = [(ranking_triton.target_totals, ranks, 2), (ranking_triton.count_wins, wins, 8)]
    if kind != "product":
        kernels += [(pool_triton.sum_segments, pools, 1), (pool_triton.pull_rows, pulls, 4)]
    for function, constants, warps in kernels:
        stages = code_for(function, 80, constants, warps)
        assert stages["cubin"]
        if function is pool_triton.pull_rows:
            continue
        assert (
            set(ARITHMETIC.findall(stages["ptx"]))
            == {
                "product": {"fma.rn"},
                "absolute": {"sub.rn"},
                "squared": {"sub.rn", "fma.rn"},
                "modulus": {"sub.rn", "mul.rn", "fma.rn", "sqrt.rn"},
            }[kind]
        )


# -------------------------------------------------------------------------------------------- dispatch


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Forget what has been imported, said and checked, before and after."""
    cached = (compiling.import_kernels, compiling._say_missing, compiling._passes)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_kernels_are_for_cuda_devices_alone() -> None:
    for device in ("cpu", "meta"):
        assert compiling.import_gpu_kernels("croppable.no_such_module", torch.device(device)) is None


def test_a_check_that_fails_is_said_once_and_pytorch_goes_on(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = ModuleType("some_kernels")

    def fail(device: torch.device) -> None:
        raise OSError("no linker\nand many lines more")

    monkeypatch.setattr(kernels, "check", fail, raising=False)
    monkeypatch.setitem(sys.modules, "some_kernels", kernels)
    device = torch.device("cuda", 0)
    with caplog.at_level(logging.WARNING):
        found = [compiling.import_gpu_kernels("some_kernels", device) for _ in range(2)]
    assert found == [None, None]
    assert [record.message for record in caplog.records] == [
        "no Triton kernels on cuda:0: some_kernels failed its check (OSError: no linker); "
        "results are the same, slower"
    ]


def test_a_check_runs_once_for_each_device(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = ModuleType("some_kernels")
    checked: list[torch.device] = []
    monkeypatch.setattr(kernels, "check", checked.append, raising=False)
    monkeypatch.setitem(sys.modules, "some_kernels", kernels)
    devices = [torch.device("cuda", index) for index in (0, 1)]
    for device in devices * 2:
        assert compiling.import_gpu_kernels("some_kernels", device) is kernels
    assert checked == devices


def test_without_triton_one_line_says_so(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    modules = ("croppable.kge.ranking_triton", "croppable.kge.pool_triton")
    for name in (*modules, "croppable.kge.triton_code"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with caplog.at_level(logging.WARNING):
        found = [compiling.import_gpu_kernels(name, torch.device("cuda", 0)) for name in modules]
    assert found == [None, None]
    assert [record.message for record in caplog.records] == [
        "no compiled kernels: triton is missing; pip install triton (torch's CUDA builds for Linux have it)"
    ]


def test_pools_are_left_to_pytorch_where_it_is_the_better_one(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = ModuleType("kernels")
    kernels.supports = lambda score: True  # type: ignore[attr-defined]
    monkeypatch.setattr(prefixes, "import_gpu_kernels", lambda module, device: kernels)
    query = torch.zeros(2, 3)
    assert prefixes.gpu_pool_kernels(SCORES["transe-l1"], query) is kernels
    assert prefixes.gpu_pool_kernels(SCORES["distmult"], query) is None
    assert prefixes.gpu_pool_kernels(SCORES["transe-l1"], query.double()) is None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert prefixes.gpu_pool_kernels(SCORES["transe-l1"], query) is None
