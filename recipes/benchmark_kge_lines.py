"""Grids, lines and cells of the link prediction benchmark, and the names that its pages give them.

Nothing here runs or reads anything. A cell is one line of a grid with one seed.
"""

from __future__ import annotations

from dataclasses import dataclass

NAMES = {
    "separate": "separate training",
    "nested": "plain nested sum",
    "long": "plain nested sum, twice the epochs",
    "weighed": "nested sum, small sizes weighed up, twice the epochs",
    "ext": "Ext, first dims of a full model",
    "ext-l": "Ext-L, dims by loss contribution",
    "ext-v": "Ext-V, dims by magnitude",
    "pca": "PCA of a full model",
    "bkd": "basic distillation",
    "ta": "teacher assistant",
    "dualde": "DualDE",
    "med": "MED, our settings",
    "med-paper": "MED, settings of the paper",
    "ours": "relations of their own per size, reach 1/4",
    "together": "relations of their own, taught by all sizes together",
    "trunk": "taught together up to a trunk, branches above",
    "taught": "the same, taught by the full model of separate training",
}
CUTS = ("ext", "ext-l", "ext-v", "pca")  # of a full model, without training
STUDENTS = ("bkd", "ta", "dualde")  # one trained student per size
PER_SIZE = ("separate", *STUDENTS)  # a run of their own for every size: each size may have its own settings
# Objective of the recipe, where a line has another name.
RUN_AS = {"long": "nested", "weighed": "nested", "ours": "nested", "taught": "nested", "together": "med",
          "trunk": "med"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table.

    Attributes:
        name: Part of the file name of its results.
        title: What the table calls it.
        flags: Flags for recipes/kge.py.
        family: Lines of one family differ in settings only, between which validation may choose.
        needs_teacher: Whether it starts from the full-size model of the family "separate".
    """

    name: str
    title: str
    flags: tuple[str, ...]
    family: str
    needs_teacher: bool = False


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One table.

    Attributes:
        name: Part of the file name of its results.
        title: Heading of its section.
        graph: Folder under the data root.
        lines: The lines, those that others start from first.
        seeds: Every line runs with each of them.
        shown: Sizes of the table; all of them if empty.
    """

    name: str
    title: str
    graph: str
    lines: tuple[Line, ...]
    seeds: tuple[int, ...] = (0,)
    shown: tuple[int, ...] = ()

    def line(self, name: str) -> Line | None:
        """Return the line of a name, or None."""
        return next((line for line in self.lines if line.name == name), None)


@dataclass(frozen=True)
class Cell:
    """One run: a line of a grid and a seed."""

    grid: Grid
    line: Line
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.grid.name}-{self.line.name}-{self.seed}"


def line(objective: str, *flags: str, name: str = "", title: str = "", family: str = "") -> Line:
    """Make a line of an objective; further flags come behind ``--objective`` and so win."""
    return Line(
        name=name or objective,
        title=title or NAMES[objective],
        flags=("--objective", RUN_AS.get(objective, objective), *flags),
        family=family or objective,
        needs_teacher=objective in (*CUTS, *STUDENTS, "taught"),
    )


def searched(objective: str, flags: tuple[str, ...], n3: dict[str, float]) -> list[Line]:
    """Make one line per weight of N3: the search space, the same for every objective that trains."""
    return [
        line(objective, *flags, "--n3", f"{weight:g}", name=f"{objective}{suffix}",
             title=f"{NAMES[objective]}, N3 {weight:g}")
        for suffix, weight in n3.items()
    ]  # fmt: skip
