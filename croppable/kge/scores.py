"""Score functions of knowledge-graph embeddings, each written once, per dim.

A score is defined by a *query* (what the known entity and the relation ask for) and a *partial* term per
dim between query and candidate: ``score = finish(sum over dims of partial(query, candidate))``, higher is
truer. An additive score needs no more than that, so all prefixes of the dims come from one pass
(model.py). A score that is not additive maps the whole row first (`prepare`) and is evaluated size by size.

Rows are ``[..., d]``, or ``[..., d, p]`` where a dim has p parts (re and im of a complex dim): the leading
d dims of a row are then always a row of a smaller model. Margins, scales and tables live in model.py.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

__all__ = [
    "SCORES", "ComplEx", "DistMult", "PairRE", "RotatE", "Score", "SimplE", "TransEL1", "TransEL2",
]  # fmt: skip

Side = Literal["head", "tail"]
TINY = 1e-24  # under the root: a zero distance keeps a finite (zero) gradient


class Score:
    """What all score functions share.

    Attributes:
        name: Key in `SCORES`.
        entity_parts: Reals stored per entity and dim.
        relation_parts: Reals stored per relation and dim.
        additive: Whether prefixes are running sums of one pass.
        product: Whether ``partial`` is the plain product of query and candidate (summed over parts), so
            that pools of candidates are scored by a matrix product.
        distance: Whether the score is minus a distance (a margin then makes sense).
        rotatable: Whether one rotation of the dims of all rows leaves every score as it is.
    """

    name: ClassVar[str]
    entity_parts: ClassVar[int] = 1
    relation_parts: ClassVar[int] = 1
    additive: ClassVar[bool] = True
    product: ClassVar[bool] = False
    distance: ClassVar[bool] = False
    rotatable: ClassVar[bool] = False

    def prepare(self, rows: Tensor) -> Tensor:
        """Map whole entity rows before scoring; the identity for additive scores."""
        return rows

    def query(self, anchor: Tensor, relation: Tensor, side: Side) -> Tensor:
        """Combine the known entity with the relation.

        Args:
            anchor: Rows of the known entities (heads for side "tail"), ``[..., d(, p)]``.
            relation: Rows of the relations, ``[..., d(, p)]``.
            side: The side that is asked for.

        Returns:
            Query rows, ``[..., d(, q)]``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define query()")

    def partial(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Return the term of every dim, ``[..., d]``, broadcasting over the leading axes."""
        raise NotImplementedError(f"{type(self).__name__} must define partial()")

    def finish(self, total: Tensor) -> Tensor:
        """Turn the sum over dims into the score."""
        return total


class TransEL1(Score):
    """TransE: -||h + r - t||_1 (Bordes et al., NIPS 2013, Eq. 1), without unit-norm entities, as LibKGE."""

    name = "transe-l1"
    distance = True

    def query(self, anchor: Tensor, relation: Tensor, side: Side) -> Tensor:
        """Ask for t with h + r, for h with t - r."""
        return anchor + relation if side == "tail" else anchor - relation

    def partial(self, query: Tensor, candidate: Tensor) -> Tensor:
        """-|q - c| per dim."""
        return -(query - candidate).abs()


class TransEL2(TransEL1):
    """TransE: -||h + r - t||_2 (Bordes et al., NIPS 2013, Eq. 1); squares add up, `finish` takes the root."""

    name = "transe-l2"
    rotatable = True

    def partial(self, query: Tensor, candidate: Tensor) -> Tensor:
        """-(q - c)^2 per dim."""
        return -((query - candidate) ** 2)

    def finish(self, total: Tensor) -> Tensor:
        """Minus the root of the squared distance."""
        return -(-total).clamp_min(TINY).sqrt()


class DistMult(Score):
    """DistMult: sum_i h_i r_i t_i (Yang et al., arXiv 1412.6575, Eq. 3 with a diagonal relation matrix)."""

    name = "distmult"
    product = True

    def query(self, anchor: Tensor, relation: Tensor, side: Side) -> Tensor:
        """The score is symmetric: both sides ask with the product."""
        return anchor * relation

    def partial(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Product per dim."""
        return query * candidate


def _complex_product(a: Tensor, b: Tensor, *, conjugate_b: bool) -> Tensor:
    (ar, ai), (br, bi) = a.unbind(-1), b.unbind(-1)
    bi = -bi if conjugate_b else bi
    return torch.stack([ar * br - ai * bi, ar * bi + ai * br], -1)


class ComplEx(Score):
    """ComplEx: Re(sum_i h_i r_i conj(t_i)) (Trouillon et al., arXiv 1606.06357, Eq. 9); parts: (re, im)."""

    name = "complex"
    entity_parts = 2
    relation_parts = 2
    product = True

    def query(self, anchor: Tensor, relation: Tensor, side: Side) -> Tensor:
        """Ask for t with h r, for h with conj(r) t."""
        return _complex_product(anchor, relation, conjugate_b=side == "head")

    def partial(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Re(q conj(c)) per dim."""
        return (query * candidate).sum(-1)


class RotatE(Score):
    """RotatE: -sum_i |h_i exp(i theta_i) - t_i| (Sun et al., arXiv 1902.10197, Eq. 3).

    The norm is the sum of moduli, as in the authors' code. Relations store phases in radians, one per dim, so
    nothing about them depends on the width.
    """

    name = "rotate"
    entity_parts = 2
    distance = True

    def query(self, anchor: Tensor, relation: Tensor, side: Side) -> Tensor:
        """Ask for t with h rotated by theta, for h with t rotated back (rotations keep moduli)."""
        rotation = torch.stack([relation.cos(), relation.sin()], -1)
        return _complex_product(anchor, rotation, conjugate_b=side == "head")

    def partial(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Minus the modulus of the difference per dim."""
        return -((query - candidate) ** 2).sum(-1).clamp_min(TINY).sqrt()


class SimplE(Score):
    """SimplE: (<h_H, r, t_T> + <t_H, r', h_T>) / 2 (Kazemi and Poole, arXiv 1802.04868, section 4).

    Two entity tables: part 0 of an entity is its row as a head, part 1 as a tail. Two relation tables: part
    0 is r, part 1 its inverse r'.
    """

    name = "simple"
    entity_parts = 2
    relation_parts = 2
    product = True

    def query(self, anchor: Tensor, relation: Tensor, side: Side) -> Tensor:
        """The factors of the candidate's head row and tail row, halved."""
        (as_head, as_tail), (forward, inverse) = anchor.unbind(-1), relation.unbind(-1)
        if side == "tail":
            return 0.5 * torch.stack([inverse * as_tail, forward * as_head], -1)
        return 0.5 * torch.stack([forward * as_tail, inverse * as_head], -1)

    def partial(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Sum of the two products per dim."""
        return (query * candidate).sum(-1)


class PairRE(Score):
    """PairRE: -||h o r_H - t o r_T||_1, entities on the unit sphere (Chao et al., arXiv 2011.03798, Eq. 2).

    The row normalisation couples all dims: every size normalises its own prefix, so sizes are evaluated
    one by one. Part 0 of a relation is r_H, part 1 r_T.
    """

    name = "pairre"
    relation_parts = 2
    additive = False
    distance = True

    def prepare(self, rows: Tensor) -> Tensor:
        """Scale rows to unit Euclidean length."""
        return rows / (rows**2).sum(-1, keepdim=True).clamp_min(TINY).sqrt()

    def query(self, anchor: Tensor, relation: Tensor, side: Side) -> Tensor:
        """Part 0 is the anchor times its factor, part 1 the candidate's factor."""
        as_head, as_tail = relation.unbind(-1)
        own, other = (as_head, as_tail) if side == "tail" else (as_tail, as_head)
        return torch.stack([anchor * own, other], -1)

    def partial(self, query: Tensor, candidate: Tensor) -> Tensor:
        """-|a r_own - c r_other| per dim."""
        point, factor = query.unbind(-1)
        return -(point - candidate * factor).abs()


SCORES: dict[str, Score] = {
    score.name: score
    for score in (TransEL1(), TransEL2(), DistMult(), ComplEx(), RotatE(), SimplE(), PairRE())
}
