"""The code in the documents runs: every ```python block, in order, in one namespace per page."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/your-own-module.md")
FENCE = re.compile(r"^```(.*)$")


def blocks(page: Path) -> Iterator[tuple[str, int, str]]:
    """Yield (info string, line of the fence, code) of every fenced block."""
    info, start, lines = "", 0, None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if fence and lines is None:
            info, start, lines = fence[1].strip(), number, []
        elif fence:
            yield info, start, "\n".join(lines or [])
            lines = None
        elif lines is not None:
            lines.append(line)
    assert lines is None, f"{page} line {start}: this block is not closed"


@pytest.mark.parametrize("name", PAGES)
def test_the_code_on_the_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "page"}
    ran = 0
    for info, line, code in blocks(ROOT / name):
        if info == "python":
            # The empty lines in front make a traceback point at the page's own line.
            exec(compile("\n" * line + code, str(ROOT / name), "exec"), namespace)
            ran += 1
    assert ran, f"{name} shows no code"


@pytest.mark.parametrize("name", PAGES)
def test_blocks_of_python_are_marked_as_we_know_them(name: str) -> None:
    known = {"python", "python no-run", "sh", "json", "text", ""}
    assert {info for info, _, _ in blocks(ROOT / name)} <= known


def test_the_readmes_own_module_takes_about_fifteen_lines() -> None:
    code = next(
        code for info, _, code in blocks(ROOT / "README.md") if info == "python" and "resized" in code
    )
    module = code[code.index("class ") : code.index("\n\n\n", code.index("class "))]
    assert len([line for line in module.splitlines() if line.strip()]) <= 15
    assert "check_croppable(" in code
