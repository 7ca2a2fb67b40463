"""The summary of the link prediction benchmark, and what docs/results.md says of it in words."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_results import result, write

ROOT = Path(__file__).resolve().parents[2]
LEVEL = 0.006  # as docs/results.md says
SCORES = ("transe", "simple", "rotate", "pairre")
Gains = Callable[[str, str], list[float]]


@pytest.fixture(scope="module")
def summary(recipes: None) -> ModuleType:
    import benchmark_kge_summary

    return benchmark_kge_summary


def test_the_summary_compares_every_line_with_separate_training(
    tables: ModuleType, summary: ModuleType, tmp_path: Path
) -> None:
    write(
        tmp_path / "kge",
        result("separate", {2: 0.1, 4: 0.9}, {2: 0.5, 4: 0.3}),
        result("separate-weak", {2: 0.8, 4: 0.2}, {2: 0.4, 4: 0.6}, n3=0.001),
        result("med", {2: 0.6, 4: 0.15}, {2: 0.6, 4: 0.7}),
    )
    overview = tmp_path / "results.md"
    overview.write_text(f"# Results\n{summary.MARKS[0]}\nold\n{summary.MARKS[1]}\nend\n")
    summary.write_summary(tables.read_results(tmp_path / "kge"), overview)
    assert overview.read_text() == "\n".join([
        "# Results", summary.MARKS[0], "",
        "### umls, ComplEx", "",
        "| test MRR | seeds | 2 | 4 | not below separate training |",
        "| --- | ---: | ---: | ---: | --- |",
        "| separate training, best on validation | 1 | 0.1000 | 0.2000 |  |",
        "| MED, our settings | 1 | 0.6000 (+0.5000) | 0.1500 (-0.0500) | 1 of 2 sizes |",
        "", summary.MARKS[1], "end", "",
    ])  # fmt: skip


def test_published_values_stand_below_the_lines(summary: ModuleType) -> None:
    lines = {"separate": [result("separate", {2: 0.1, 4: 0.9})]}
    table = summary.summary_table(lines, (2, 4), {"published: elsewhere": {4: 0.95}})
    assert table[-1] == "| published: elsewhere |  |  | 0.95 |  |"


def test_published_values_are_of_grids_and_sizes_that_there_are(
    summary: ModuleType, grids: ModuleType
) -> None:
    from kge_presets import parse_config

    for name, lines in summary.PUBLISHED.items():
        sizes = parse_config([*grids.GRIDS[name].lines[0].flags, "--output_dir", "out"], "").sizes
        for title, known in lines.items():
            assert set(known) & set(sizes), (name, title)


def test_differences_are_of_the_seeds_that_both_have(summary: ModuleType) -> None:
    ours = [result("med", {2: 0.5, 4: 0.5}, seed=0), result("med", {2: 0.7, 4: 0.9}, seed=1)]
    assert summary.differences(ours, [result("separate", {2: 0.6}, seed=1)], (2, 4)) == {2: 0.1}
    assert summary.differences(ours, [], (2, 4)) == {}


def test_a_page_without_marks_is_refused(summary: ModuleType) -> None:
    with pytest.raises(ValueError, match="the page must have the lines"):
        summary.replace_between("no marks", summary.MARKS, "text")


def test_an_overview_that_is_not_there_is_not_written(summary: ModuleType, tmp_path: Path) -> None:
    summary.write_summary({}, tmp_path / "results.md")
    assert not (tmp_path / "results.md").exists()


# --------------------------------------------------------------------------------- the words of the overview


@pytest.fixture(scope="module")
def gains(tables: ModuleType, summary: ModuleType) -> Gains:
    found = tables.read_results(ROOT / "docs" / "results" / "kge")

    def of(grid: str, family: str) -> list[float]:
        """How far a line of the committed tables is above separate training, smallest size first."""
        lines = tables.headlines(found[grid])
        sizes = tables.heading(grid)[1] or tables.values(lines["separate"], "mrr")
        return list(summary.differences(lines[family], lines["separate"], sizes).values())

    return of


def small(graph: str, scores: Iterable[str]) -> list[str]:
    return [f"{graph}-{score}-paper-small" for score in scores]


@pytest.mark.parametrize(
    ("grid", "family"),
    [
        ("codex-s-tuned", "trunk"),
        ("fb15k-237-rotate-paper-small", "long"),
        ("wn18rr-simple-paper-small", "weighed"),
    ],
)
def test_what_is_called_above_separate_training_is_above_at_every_size(
    gains: Gains, grid: str, family: str
) -> None:
    assert min(gains(grid, family)) > 0


@pytest.mark.parametrize(
    ("grid", "family"),
    [
        *((f"{graph}-curve{scale}", "trunk") for graph in ("wn18rr", "fb15k-237") for scale in ("", "-gpu")),
        *((grid, "long") for grid in small("wn18rr", ("transe", "rotate"))),
        *((grid, "weighed") for grid in small("fb15k-237", ("transe", "simple"))),
        ("wn18rr-pairre-paper-small", "nested"),
        ("fb15k-237-pairre-paper-small", "nested"),
    ],
)
def test_what_is_called_level_or_above_is_nowhere_further_below(gains: Gains, grid: str, family: str) -> None:
    assert min(gains(grid, family)) > -LEVEL


@pytest.mark.parametrize(
    "grid", [grid for graph in ("wn18rr", "fb15k-237") for grid in small(graph, SCORES[:3])]
)
def test_with_equal_epochs_the_nested_sum_is_level_or_above_from_40_dims_on(gains: Gains, grid: str) -> None:
    assert min(gains(grid, "nested")[2:]) > -LEVEL


@pytest.mark.parametrize(
    "grid",
    ["codex-s-tuned", *(f"{g}-curve{scale}" for g in ("wn18rr", "fb15k-237") for scale in ("", "-gpu"))],
)
def test_the_nested_sum_of_complex_is_below_at_every_size(gains: Gains, grid: str) -> None:
    assert max(gains(grid, "nested")) < 0


def test_the_overview_says_how_near_level_is() -> None:
    assert f'"level" is within {LEVEL:.3f}'.replace("0.", ".") in (ROOT / "docs" / "results.md").read_text()
