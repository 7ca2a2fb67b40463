"""Tables and pictures for people."""

from math import nan
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from croppable.report import plot_history, plot_lines, plot_sizes, print_table, size_table

ROWS = [
    {"size": 8, "metric": "mrr", "value": 0.5},
    {"size": 2, "metric": "mrr", "value": 0.25},
    {"size": 2, "metric": "hits@10", "value": 0.75},
    {"size": 2, "metric": "mean_rank", "value": 3.0},
]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, tuple[list[float], list[float]]]]:
    """What each axes of the next pictures shows, by label."""
    axes: list[dict[str, tuple[list[float], list[float]]]] = []
    save = Figure.savefig

    def look(figure: Figure, *arguments: Any, **options: Any) -> None:
        for one in figure.axes:
            lines = {line.get_label(): map(np.asarray, line.get_data()) for line in one.get_lines()}
            axes.append({label: tuple(data.tolist() for data in pair) for label, pair in lines.items()})
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", look)
    return axes


def test_a_table_has_one_line_per_size_ascending() -> None:
    table = size_table(ROWS, ("mrr", "hits@10"))
    assert table == {2: {"mrr": 0.25, "hits@10": 0.75}, 8: {"mrr": 0.5}}
    assert list(table) == [2, 8]


def test_two_rows_for_one_cell_are_refused() -> None:
    with pytest.raises(ValueError, match="two rows for mrr at size 8: pass one slice of the metrics"):
        size_table([*ROWS, ROWS[0]], ("mrr",))


def test_a_printed_table_shows_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(
        "results",
        {2: {"mrr": 0.25, "bytes": 1234567, "rank": 1234.5}, 8: {"mrr": 0.5, "note": "full"}},
        columns=("mrr", "bytes", "rank", "note"),
    )
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["results"] in lines
    assert ["2", "0.2500", "1,234,567", "1,234.5"] in lines
    assert ["8", "0.5000", "full"] in lines


def test_columns_are_those_that_occur(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", {2: {"mrr": 0.25}, 8: {"hits": 0.5}})
    output = capsys.readouterr().out
    assert "mrr" in output
    assert "hits" in output


def test_sizes_are_drawn_with_their_cost(tmp_path: Path, drawn: list[Any]) -> None:
    table = {2: {"mrr": 0.25}, 8: {"mrr": 0.5}}
    plot_sizes(tmp_path / "a.png", table, ("mrr",), cost={2: 8.0, 8: 32.0}, cost_label="bytes", title="t")
    assert drawn == [{"mrr": ([2, 8], [0.25, 0.5])}, {"bytes": ([2, 8], [8, 32])}]
    plot_sizes(tmp_path / "b.png", table, ("mrr",))
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


def test_64_sizes_leave_a_readable_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[list[float]] = []
    monkeypatch.setattr(Figure, "savefig", lambda f, *_, **__: ticks.append(list(f.axes[0].get_xticks())))
    plot_sizes(tmp_path / "a.png", {size: {"mrr": 0.1} for size in range(10, 641, 10)}, ("mrr",))
    assert ticks == [[10, 20, 40, 80, 160, 320, 640]]


def test_history_has_losses_and_scores(tmp_path: Path, drawn: list[Any]) -> None:
    history = [
        {"step": 1, "loss": 3.0},
        {"step": 1, "score": 0.15, "score_2": 0.1, "score_8": 0.2},
        {"step": 2, "loss": 2.0},
    ]
    plot_history(tmp_path / "a.png", history, title="t")
    assert drawn == [{"loss": ([1, 2], [3, 2])}, {"score_2": ([1], [0.1]), "score_8": ([1], [0.2])}]
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_history_without_sizes_or_without_scores(tmp_path: Path, drawn: list[Any]) -> None:
    plot_history(tmp_path / "a.png", [{"step": 1, "loss": 3.0}, {"step": 1, "score": 0.5}])
    assert drawn == [{"loss": ([1], [3])}, {"score": ([1], [0.5])}]
    drawn.clear()
    plot_history(tmp_path / "a.png", [{"step": 1, "loss": 3.0}])
    assert drawn == [{"loss": ([1], [3])}]
    drawn.clear()
    plot_history(tmp_path / "a.png", [])
    assert drawn == [{"loss": ([], [])}]


def test_runs_one_after_the_other_are_separate_curves(tmp_path: Path, drawn: list[Any]) -> None:
    runs = [
        [
            {"step": 1, "loss": 3.0 * size},
            {"step": 2, "loss": 2.0},
            {"step": 2, "score": 0.5, f"score_{size}": 0.5},
        ]
        for size in (2, 8)
    ]
    plot_history(tmp_path / "a.png", runs[0] + runs[1])
    losses, scores = drawn
    assert repr(losses["loss"]) == repr(([1.0, 2.0, nan, 1.0, 2.0], [6.0, 2.0, nan, 24.0, 2.0]))
    assert scores == {"score_2": ([2], [0.5]), "score_8": ([2], [0.5])}


def test_a_legend_names_at_most_eight_sizes(tmp_path: Path, drawn: list[Any]) -> None:
    row = {"step": 1, "score": 0.5, **{f"score_{size}": 0.5 for size in range(10, 641, 10)}}
    plot_history(tmp_path / "a.png", [row])
    assert list(drawn[1]) == [f"score_{size}" for size in range(80, 641, 80)]


def test_lines_over_sizes_may_differ_in_their_sizes(tmp_path: Path, drawn: list[Any]) -> None:
    plot_lines(tmp_path / "a.png", {"ours": {2: 0.1, 8: 0.2}, "theirs": {8: 0.3}}, ylabel="mrr", title="t")
    assert drawn == [{"ours": ([2, 8], [0.1, 0.2]), "theirs": ([8], [0.3])}]


def test_pictures_leave_the_callers_backend_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mpl.rcParams, "backend", "svg")
    plot_history(tmp_path / "a.png", [])
    assert mpl.rcParams["backend"] == "svg"
