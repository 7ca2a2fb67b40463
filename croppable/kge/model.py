"""A knowledge-graph embedding whose first d dims are a d-dimensional model.

Two tables, entity and relation, their dims on axis 1, and for calibrated models one small row of
parameters per size. Which score joins them is a name in `croppable.kge.scores.SCORES`. Sampling, losses,
ranking and files are elsewhere.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from croppable.core import validate_sizes
from croppable.kge.prefixes import damped, prefix_scores, scores_at
from croppable.kge.scores import SCORES, Score, Side

__all__ = ["KGEModel", "unit_of"]

Calibration = Literal["none", "fixed", "scale", "affine"]
Relations = Literal["shared", "own"]


class KGEModel(nn.Module):
    """Score triples of a knowledge graph at every size.

    score_i(h, r, t) = margin + exp(log_scale_i) * f(h[:d_i], r[:d_i], t[:d_i]) + offset_i

    Scale and offset never change a ranking; they let the losses of different sizes share one scale of
    scores. They belong to their size: a crop keeps those of the sizes up to its own and uses its last.
    With ``relations="own"`` that holds for the relation table as well: every size has one of its own,
    ``[K, R, d(, p)]``, over the entity rows that all sizes share. There are few relations, so it costs little
    memory, and a larger size need not read the leading dims as the smaller one does; but no product is
    shared by sizes then, so a step costs the sum of the sizes.
    The constructor's arguments are attributes of the same name.

    Args:
        num_entities: Rows of the entity table.
        num_relations: Number of relations, inverse ones not counted.
        sizes: Ascending; the last one is the number of dims. A complex dim counts once and stores two
            floats.
        score: A key of `SCORES`.
        margin: Constant added to the scores of distances (gamma of RotatE, arXiv 1902.10197, Eq. 5); frozen
            at every size.
        reciprocal: Keep a second set of relations that answers the head side (Lacroix et al., arXiv
            1806.07297, section 5).
        calibration: Numbers per size: "none"; a "fixed" scale, inverse to the size, which evens out that a
            sum grows with its dims; a learnable "scale"; or "affine" for a learnable scale and offset.
        relations: "shared" by all sizes, or a table of their "own" for each.
        init_scale: Standard deviation of products' tables (default 1e-3, as facebookresearch/kbc), or half
            width of distances' uniform ones (default (margin + 2) / dims, as the authors' RotatE, of the size
            whose scale is 1).
        unit_size: The dims whose distance has a scale of 1 to begin with; default: the geometric mean of the
            sizes for "fixed", else the last. A model of one size has with it the scale of that size among
            others. Ignored without calibration, and by products.

    Raises:
        ValueError: If a count or size is not positive, sizes are not ascending, or a name is unknown.
    """

    entity: Tensor
    relation: Tensor
    log_scale: Tensor

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        sizes: Sequence[int],
        score: str = "transe-l1",
        *,
        margin: float = 0.0,
        reciprocal: bool = False,
        calibration: Calibration = "none",
        relations: Relations = "shared",
        init_scale: float | None = None,
        unit_size: float | None = None,
    ) -> None:
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        if num_entities < 1 or num_relations < 1:
            raise ValueError(
                f"a graph needs at least one entity and one relation, got {num_entities} and {num_relations}"
            )
        if calibration not in get_args(Calibration):
            raise ValueError(
                f"calibration must be one of {', '.join(get_args(Calibration))}, got {calibration!r}"
            )
        if relations not in get_args(Relations):
            raise ValueError(f"relations must be one of {', '.join(get_args(Relations))}, got {relations!r}")
        if unit_size is not None and unit_size <= 0:
            raise ValueError(f"unit_size must be a positive number of dims, got {unit_size}")
        self.num_entities, self.num_relations = num_entities, num_relations
        self.sizes = validate_sizes(sizes, sizes[-1] if sizes else 0)
        self.score, self.margin, self.reciprocal = score, margin, reciprocal
        self.calibration: Calibration = calibration
        self.relations: Relations = relations
        self.init_scale, self.unit_size = init_scale, unit_size
        self.labels: Any = None  # names of entities and relations, for people; set by whoever has them
        function = SCORES[score]
        rows = 2 * num_relations if reciprocal else num_relations
        self.entity = nn.Parameter(torch.empty(_shape(num_entities, self.size, function.entity_parts)))
        shape = _shape(rows, self.size, function.relation_parts)
        own = relations == "own"
        self.relation = nn.Parameter(torch.empty((len(self.sizes), *shape) if own else shape))
        if calibration == "fixed":
            self.register_buffer("log_scale", torch.empty(len(self.sizes)))
        elif calibration != "none":
            self.log_scale = nn.Parameter(torch.empty(len(self.sizes)))
        if calibration == "affine":
            self.offset = nn.Parameter(torch.empty(len(self.sizes)))
        self.reset_parameters()

    @property
    def size(self) -> int:
        """Number of dims."""
        return self.sizes[-1]

    @property
    def function(self) -> Score:
        """The score function."""
        return SCORES[self.score]

    @property
    def ranks_by_rows(self) -> bool:
        """Whether rows alone decide a ranking: sizes share relations, and calibration is ordinary numbers."""
        calibration = [p for name, p in self.named_parameters() if name not in ("entity", "relation")]
        ordinary = all(bool((p.abs() < 80).all()) for p in calibration)  # exp(+-80) is normal in float32
        return self.relations == "shared" and ordinary

    def like(self, sizes: Sequence[int], **changes: Any) -> Self:
        """Build a model of ``sizes`` with the other arguments of this one, but for ``changes``."""
        options = {"margin": self.margin, "reciprocal": self.reciprocal, "calibration": self.calibration,
                   "relations": self.relations, "init_scale": self.init_scale,
                   "unit_size": self.unit_size}  # fmt: skip
        other = type(self)(self.num_entities, self.num_relations, sizes, self.score, **(options | changes))
        other.labels = self.labels
        return other

    def resized(self, size: int) -> Self:
        """Build the model of ``size`` dims, with the sizes below it and itself."""
        return self.like((*(s for s in self.sizes if s < size), size))

    def alone(self, size: int) -> Self:
        """Return the model of ``size`` dims with no sizes below it, on the same memory.

        It ranks as a crop to ``size`` does; calibration, which never changes a ranking, is left out.
        """
        with torch.device("meta"):
            small = self.like((size,), calibration="none", relations="shared")
        place = sum(s < size for s in self.sizes)
        table = self.relation[place] if self.relations == "own" else self.relation
        small.entity = nn.Parameter(self.entity.detach()[:, :size], requires_grad=False)
        small.relation = nn.Parameter(table.detach()[:, :size], requires_grad=False)
        return small.train(self.training)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the tables anew from torch's global generator."""
        given = self.unit_size if self.calibration != "none" else None
        unit = given or unit_of(self.sizes, self.calibration)
        if self.function.distance:
            width = (self.margin + 2) / unit if self.init_scale is None else self.init_scale
            self.entity.uniform_(-width, width)
            angles = self.score == "rotate"
            self.relation.uniform_(-math.pi, math.pi) if angles else self.relation.uniform_(-width, width)
            if self.score == "pairre":
                self.relation.add_(1)  # factors around one: near the identity, as a distance of plain rows
        else:
            scale = 1e-3 if self.init_scale is None else self.init_scale
            self.entity.normal_(0, scale)
            self.relation.normal_(0, scale)
        if self.relations == "own":
            self.relation.copy_(self.relation[-1].expand_as(self.relation))  # sizes differ by training alone
        if self.calibration != "none":
            growth = [math.log(unit / s) if self.function.distance else 0.0 for s in self.sizes]
            self.log_scale.copy_(torch.tensor(growth))
        if self.calibration == "affine":
            self.offset.zero_()

    def forward(
        self, anchor: Tensor, relation: Tensor, candidates: Tensor | None = None, side: Side | Tensor = "tail"
    ) -> Tensor:
        """Score candidates for queries at the full size.

        Args:
            anchor: Ids of the known entities, ``[B]``: heads for side "tail", tails for side "head".
            relation: Ids of the relations, ``[B]``, always below ``num_relations``.
            candidates: Ids ``[B, N]``, or ``[C]`` shared by all queries, or None for every entity.
            side: The side that is asked for. A reciprocal model also takes a bool tensor ``[B]``: which
                queries ask for their head.

        Returns:
            Scores ``[B, N]``, ``[B, C]`` or ``[B, num_entities]``; higher is truer.
        """
        return self.forward_nested((self.size,), anchor, relation, candidates, side)[0]

    def forward_nested(
        self,
        sizes: Sequence[int],
        anchor: Tensor,
        relation: Tensor,
        candidates: Tensor | None = None,
        side: Side | Tensor = "tail",
    ) -> Tensor:
        """Score candidates at ``sizes``, a subset of the model's; arguments as in `forward`.

        Returns:
            ``[K, B, N]``, ``[K, B, C]`` or ``[K, B, num_entities]``.
        """
        rows = self.lookup(anchor, relation, candidates, side, size=sizes[-1])
        return self.score_rows(sizes, *rows, side=side)

    def lookup(
        self,
        anchor: Tensor,
        relation: Tensor,
        candidates: Tensor | None,
        side: Side | Tensor,
        size: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows of anchors, relations and candidates up to ``size`` dims (all if omitted).

        Relations are ``[B, d(, p)]``, or ``[K, B, d(, p)]`` where every size has its own.

        Raises:
            ValueError: If a model that is not reciprocal gets queries of both sides.
        """
        rows = (
            _rows(self.entity, anchor),
            self.relation_rows(relation, side),
            self.entity if candidates is None else _rows(self.entity, candidates),
        )
        if size is None or size == self.size:
            return rows
        parts = (self.function.entity_parts, self.function.relation_parts, self.function.entity_parts)
        return tuple(_span(some, 0, size, p) for some, p in zip(rows, parts, strict=True))  # type: ignore[return-value]

    def relation_rows(self, relation: Tensor, side: Side | Tensor) -> Tensor:
        """Return the rows of relations as they are asked from a side; see `lookup`."""
        if self.reciprocal:
            relation = relation + self.num_relations * (side == "head" if isinstance(side, str) else side)
        elif not isinstance(side, str):
            raise ValueError(
                "queries of both sides in one batch need a reciprocal model: ask for one side at a time, "
                "or build the model with reciprocal=True"
            )
        if self.relations == "own":
            return torch.stack([_rows(table, relation) for table in self.relation])
        return _rows(self.relation, relation)

    def form(self, side: Side | Tensor) -> Side:
        """Return the form of the score function: inverse relations always ask for tails."""
        return side if isinstance(side, str) and not self.reciprocal else "tail"

    def calibrate(self, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return factor and offset of the scores at ``sizes``, ``[K]`` each; the margin is in the offset."""
        shift = self.entity.new_full((len(sizes),), self.margin)
        if self.calibration == "none":
            return torch.ones_like(shift), shift
        index = [self.sizes.index(size) for size in sizes]
        shift = shift + self.offset[index] if self.calibration == "affine" else shift
        return self.log_scale[index].exp(), shift

    def score_rows(
        self,
        sizes: Sequence[int],
        anchor_rows: Tensor,
        relation_rows: Tensor,
        candidate_rows: Tensor,
        *,
        side: Side | Tensor,
        reach: float = 1.0,
        trunk: int | None = None,
    ) -> Tensor:
        """Score rows from `lookup` at ``sizes``, ``[K, B, N]``; separate so that it can be compiled alone.

        ``reach`` multiplies the gradient of a size once for every segment that it goes down (`damped`).
        Sizes above ``trunk`` are scored with their last segment alone.
        """
        form, rows = self.form(side), (anchor_rows, relation_rows, candidate_rows)
        if self.relations == "own" or reach != 1:
            each = (self.rows_at(size, *rows, reach, trunk) for size in sizes)
            raw = torch.stack(
                [scores_at(self.function, s, *some, form) for s, some in zip(sizes, each, strict=True)]
            )
        else:
            raw = prefix_scores(self.function, sizes, *rows, form)
        if self.calibration == "none":
            return raw + self.margin if self.margin else raw
        scale, shift = self.calibrate(sizes)
        return raw * scale[:, None, None] + shift[:, None, None]

    def rows_at(
        self,
        size: int,
        anchor: Tensor,
        relation: Tensor,
        candidates: Tensor,
        reach: float = 1.0,
        trunk: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take rows from `lookup` at one of ``sizes``, the gradient of those that sizes share `damped`.

        Above ``trunk`` they are those of the last segment alone.
        """
        place, function = self.sizes.index(size), self.function
        alone = trunk is not None and size > trunk
        start = self.sizes[place - 1] if alone else 0
        anchor, candidates = (_span(x, start, size, function.entity_parts) for x in (anchor, candidates))
        own = self.relations == "own"
        relation = _span(relation[place] if own else relation, start, size, function.relation_parts)
        if reach != 1 and not alone:
            cuts = self.sizes[: place + 1]
            anchor, candidates = (damped(x, cuts, reach, function.entity_parts) for x in (anchor, candidates))
            relation = relation if own else damped(relation, cuts, reach, function.relation_parts)
        return anchor, relation, candidates


def unit_of(sizes: Sequence[int], calibration: Calibration) -> float:
    """Return the dims whose distance has a scale of 1 to begin with, where nothing else is asked for."""
    return statistics.geometric_mean(sizes) if calibration == "fixed" else sizes[-1]


def _span(rows: Tensor, start: int, size: int, parts: int) -> Tensor:
    """Take the dims from ``start`` up to ``size`` of rows ``[..., d(, p)]``."""
    return rows[..., start:size] if parts == 1 else rows[..., start:size, :]


def _rows(table: Tensor, ids: Tensor) -> Tensor:
    """Gather rows ``[*ids.shape, d(, p)]``; the embedding kernel's backward is faster than indexing's."""
    return F.embedding(ids, table.flatten(1)).reshape(*ids.shape, *table.shape[1:])


def _shape(rows: int, size: int, parts: int) -> tuple[int, ...]:
    return (rows, size) if parts == 1 else (rows, size, parts)
