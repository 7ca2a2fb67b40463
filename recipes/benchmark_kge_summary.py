"""The summary of link prediction in docs/results.md: every kind of line against separate training.

Of every kind a table has one line, what validation has chosen where there are several. Published values stand
below, of models trained elsewhere and with other budgets.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmark_kge_lines import NAMES
from benchmark_kge_render import Result, cell_text, heading, headlines, values

MARKS = ("<!-- summary: written by the renderer -->", "<!-- end of summary -->")

# Filtered test MRR by size. kbc: each rank its own run, github.com/facebookresearch/kbc. The paper: MED from
# one run of 64 sizes, the others one by one, arXiv 2407.02779.
KBC = "published: facebookresearch/kbc, each rank trained alone"
KBC_WN18RR = {KBC: {5: 0.26, 16: 0.42, 25: 0.44, 50: 0.46, 100: 0.47, 500: 0.49}}
KBC_FB15K_237 = {KBC: {5: 0.28, 25: 0.33, 50: 0.34, 100: 0.35, 500: 0.36}}
PAPER_ROTATE = {
    "published: separate training of the paper": {10: 0.131, 40: 0.447, 160: 0.470, 640: 0.508},
    "published: DualDE of the paper": {10: 0.179, 40: 0.441, 160: 0.465, 640: 0.476},
    "published: MED of the paper": {10: 0.324, 40: 0.466, 160: 0.471, 640: 0.476},
}
PUBLISHED: Mapping[str, Mapping[str, Mapping[int, float]]] = {
    "wn18rr-curve": KBC_WN18RR,
    "wn18rr-curve-gpu": KBC_WN18RR,
    "fb15k-237-curve": KBC_FB15K_237,
    "fb15k-237-curve-gpu": KBC_FB15K_237,
    "wn18rr-rotate-paper-small": PAPER_ROTATE,
    "wn18rr-rotate-paper-gpu": PAPER_ROTATE,
    "wn18rr-rotate-paper": PAPER_ROTATE,
}


def summary(found: Mapping[str, Mapping[str, Sequence[Result]]]) -> str:
    """Write the MRR of every grid that has separate training, a table each."""
    out = []
    for grid, by_line in found.items():
        lines, (title, shown) = headlines(by_line), heading(grid)
        if "separate" in lines:
            out += [f"### {title}\n", *summary_table(lines, shown, PUBLISHED.get(grid, {})), ""]
    return "\n".join(out).rstrip()


def summary_table(
    lines: Mapping[str, Sequence[Result]], shown: Sequence[int], published: Mapping[str, Mapping[int, float]]
) -> list[str]:
    """Write one table: MRR at every size, and in brackets how far it is above separate training.

    Args:
        lines: ``{family: results}``, of which "separate" is what the others are compared with.
        shown: Sizes of the table; those of separate training if empty.
        published: ``{title: {size: MRR}}``.
    """
    separate = lines["separate"]
    sizes = list(shown) or list(values(separate, "mrr"))
    out = [f"| test MRR | seeds | {' | '.join(map(str, sizes))} | not below separate training |",
           f"| --- | ---: |{' ---: |' * len(sizes)} --- |"]  # fmt: skip
    for family, results in lines.items():
        mrr = values(results, "mrr")
        gains = {} if family == "separate" else differences(results, separate, sizes)
        cells = [
            cell_text(mrr.get(size, ())) + (f" ({gains[size]:+.4f})" if size in gains else "")
            for size in sizes
        ]
        verdict = f"{sum(gain >= 0 for gain in gains.values())} of {len(gains)} sizes" if gains else ""
        name = NAMES.get(family, family) + (", best on validation" if "chosen" in results[0] else "")
        out.append(row(name, len(results), *cells, verdict))
    for title, known in published.items():
        out.append(row(title, "", *(known.get(size, "") for size in sizes), ""))
    return out


def row(*cells: object) -> str:
    """Write one row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def differences(
    results: Sequence[Result], others: Sequence[Result], sizes: Iterable[int]
) -> dict[int, float]:
    """Return how far the mean MRR is above that of other results, by size, over the seeds of both."""
    seeds = {result["seed"] for result in results} & {result["seed"] for result in others}
    mine, theirs = (values([r for r in x if r["seed"] in seeds], "mrr") for x in (results, others))
    return {
        size: round(statistics.mean(mine[size]) - statistics.mean(theirs[size]), 4) + 0.0  # no -0.0
        for size in sizes
        if size in mine and size in theirs
    }


def replace_between(text: str, marks: tuple[str, str], content: str) -> str:
    """Return the text with new content between two marks.

    Raises:
        ValueError: If the marks are not there.
    """
    before, start, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (start and end):
        raise ValueError(f"the page must have the lines {marks[0]} and {marks[1]}")
    return f"{before}{start}\n\n{content}\n\n{end}{after}"


def write_summary(found: Mapping[str, Mapping[str, Sequence[Result]]], overview: Path) -> None:
    """Write the summary into a page that has the marks, if there is one."""
    if overview.exists():
        text = overview.read_text(encoding="utf-8")
        overview.write_text(replace_between(text, MARKS, summary(found)), encoding="utf-8")
        print(f"wrote {overview}")
