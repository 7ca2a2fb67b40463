"""Is a triple true? Thresholds per relation and calibrated probabilities, at all sizes.

Both learn from validation data: true and false triples that training has not seen. Where a
graph brings no false ones, they are made by replacing one end of a true triple. The score of a triple is
that of its tail among tails (side "tail").

Shape legend: K sizes, T triples, R relations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from croppable.kge.known import KnownTriples, validate_triples
from croppable.kge.model import KGEModel
from croppable.kge.triples import KnowledgeGraph

__all__ = [
    "Calibration", "Thresholds", "classification_rows", "fit_calibration", "fit_thresholds", "negatives",
    "score_triples",
]  # fmt: skip

_TRIPLES_AT_ONCE = 8192


def score_triples(model: KGEModel, triples: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Score given triples at several sizes in one pass.

    Args:
        model: A model.
        triples: Ids ``[T, 3]``, (head, relation, tail).
        sizes: Ascending, out of the model's; default all of them.

    Returns:
        Scores ``[K, T]`` on the CPU.

    Raises:
        ValueError: If an id is out of range, or a score is not finite (names the triple).
    """
    wanted = tuple(model.sizes if sizes is None else sizes)
    validate_triples(triples, model.num_entities, model.num_relations)
    parts = []
    with torch.inference_mode():
        for batch in torch.split(triples, _TRIPLES_AT_ONCE):
            head, relation, tail = batch.to(model.entity.device).unbind(1)
            parts.append(model.forward_nested(wanted, head, relation, tail[:, None], "tail")[..., 0].cpu())
    scores_KT = torch.cat(parts, 1) if parts else torch.empty(len(wanted), 0)
    if not bool(scores_KT.isfinite().all()):
        k, t = (~scores_KT.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"the score of triple {tuple(triples[t].tolist())} is {scores_KT[k, t].item()} at size "
            f"{wanted[k]}: the weights have diverged or are damaged"
        )
    return scores_KT


def negatives(triples: Tensor, known: KnownTriples, seed: int = 0) -> Tensor:
    """Return one false triple per triple: a random other head or tail that makes no known triple.

    Args:
        triples: Ids ``[T, 3]``.
        known: All true triples.
        seed: The same seed gives the same triples, on every machine.

    Returns:
        Ids ``[T', 3]``; a triple whose two sides have no false answer at all is left out.
    """
    generator = torch.Generator().manual_seed(seed)
    sides = torch.rand(len(triples), generator=generator) < 0.5
    draws = torch.rand(len(triples), generator=generator, dtype=torch.float64)
    result = triples.clone()
    kept = torch.ones(len(triples), dtype=torch.bool)
    for side, column, chosen in (("tail", 2, sides), ("head", 0, ~sides)):
        anchor, relation = triples[chosen, 2 - column], triples[chosen, 1]
        free = known.num_entities - known.counts(anchor, relation, side)
        ranks = (draws[chosen] * free).long().minimum((free - 1).clamp_min(0))
        result[chosen, column] = known.unknown(anchor, relation, side, ranks[:, None])[:, 0]
        kept[chosen] = free > 0
    return result[kept]


@dataclass(frozen=True)
class Thresholds:
    """From which score on a triple counts as true.

    Attributes:
        sizes: The K sizes.
        values_KR: One threshold per size and relation, ``[K, R]``.
    """

    sizes: tuple[int, ...]
    values_KR: Tensor

    def classify(self, model: KGEModel, triples: Tensor) -> Tensor:
        """Return which triples count as true at every size, bool ``[K, T]``."""
        return score_triples(model, triples, self.sizes) >= self.values_KR[:, triples[:, 1]]


def fit_thresholds(
    model: KGEModel, true: Tensor, false: Tensor, sizes: Sequence[int] | None = None
) -> Thresholds:
    """Choose per size and relation the threshold of the best accuracy (Socher et al., NIPS 2013).

    They lie midway between two scores (section 4.2 there). A relation that is in neither set takes the
    threshold that is best over all relations.

    Args:
        model: A model.
        true: True validation triples ``[T, 3]``.
        false: False validation triples ``[T', 3]``.
        sizes: Ascending, out of the model's; default all of them.

    Raises:
        ValueError: If one of the sets is empty or the ids do not fit.
    """
    if not len(true) or not len(false):
        raise ValueError(f"thresholds need true and false triples, got {len(true)} and {len(false)}")
    wanted = tuple(model.sizes if sizes is None else sizes)
    triples = torch.cat([true, false])
    truth_T = torch.arange(len(triples)) < len(true)
    scores_KT = score_triples(model, triples, wanted)
    values_KR = _best_threshold(scores_KT, truth_T)[:, None].repeat(1, model.num_relations)
    for relation in triples[:, 1].unique().tolist():  # type: ignore[no-untyped-call]
        own = triples[:, 1] == relation
        values_KR[:, relation] = _best_threshold(scores_KT[:, own], truth_T[own])
    return Thresholds(wanted, values_KR)


def _best_threshold(scores_KT: Tensor, truth_T: Tensor) -> Tensor:
    """Return ``[K]`` thresholds t such that "score >= t" is right most often; midway between two scores."""
    ordered_KT, order_KT = scores_KT.double().sort(dim=1, descending=True)
    truth_KT = truth_T[order_KT].long()
    zeros = truth_KT.new_zeros(len(truth_KT), 1)
    # Column j: how many decisions are right when the j highest scores count as true.
    right = torch.cat([zeros, (2 * truth_KT - 1).cumsum(1)], 1)
    # No threshold separates equal scores.
    tied = torch.nn.functional.pad(ordered_KT[:, 1:] == ordered_KT[:, :-1], (1, 1))
    cut = right.masked_fill(tied, -len(truth_T) - 1).argmax(1)
    edges = torch.cat([ordered_KT[:, :1] + 1, ordered_KT, ordered_KT[:, -1:] - 1], 1)
    above, below = edges.gather(1, cut[:, None]), edges.gather(1, cut[:, None] + 1)
    return ((above + below) / 2)[:, 0]  # in double: rounded to a score it would decide that score


@dataclass(frozen=True)
class Calibration:
    """Turns a score into a probability: sigmoid(scale * score + offset).

    The probability supposes as many false triples as the calibration has seen per true one.
    """

    scale: float
    offset: float

    def probability(self, scores: Tensor) -> Tensor:
        """Return the probabilities that triples of these scores are true."""
        return torch.sigmoid(self.scale * scores.double() + self.offset)


def fit_calibration(true_scores: Tensor, false_scores: Tensor) -> Calibration:
    """Fit scale and offset by maximum likelihood (Platt, 1999, with his smoothed targets).

    Args:
        true_scores: Scores of true validation triples, ``[T]``.
        false_scores: Scores of false validation triples, ``[T']``.

    Raises:
        ValueError: If one of them is empty, or true triples do not score higher than false ones.
    """
    n_true, n_false = len(true_scores), len(false_scores)
    if not n_true or not n_false:
        raise ValueError(f"a calibration needs true and false triples, got {n_true} and {n_false}")
    scores = torch.cat([true_scores, false_scores]).double()
    target = torch.full_like(scores, 1 / (n_false + 2))
    target[:n_true] = (n_true + 1) / (n_true + 2)
    center, spread = scores.mean(), scores.std(correction=0).clamp_min(1e-12)
    design = torch.stack([(scores - center) / spread, torch.ones_like(scores)], 1)

    def loss(weights: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(design @ weights, target)

    weights = design.new_zeros(2)
    for _ in range(100):
        probability = torch.sigmoid(design @ weights)
        gradient = design.T @ (probability - target) / len(scores)
        curvature = (design.T * (probability * (1 - probability))) @ design / len(scores)
        step = torch.linalg.solve(curvature + 1e-12 * torch.eye(2, dtype=torch.float64), gradient)
        length = 1.0
        while loss(weights - length * step) > loss(weights) and length > 1e-6:
            length /= 2
        weights = weights - length * step
        if float(step.abs().max()) < 1e-10:
            break
    scale = float(weights[0] / spread)
    if not scale > 0:
        raise ValueError(
            f"true triples do not score higher than false ones (slope {scale:g}): the model has learnt "
            f"nothing that a probability could be read from"
        )
    return Calibration(scale, float(weights[1]) - scale * float(center))


def classification_rows(
    model: KGEModel,
    graph: KnowledgeGraph,
    sizes: Sequence[int] | None = None,
    *,
    known: KnownTriples | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measure triple classification on the test split at all sizes; thresholds come from validation.

    Args:
        model: A model of the graph.
        graph: The graph; false triples are its own, else made by `negatives`.
        sizes: Ascending, out of the model's; default all of them.
        known: All true triples, where they are indexed already.
        seed: For made false triples.

    Returns:
        Rows for metrics.json, metric "accuracy": over all relations (relation null) and for each of them.
    """
    made = {split: getattr(graph, f"{split}_negatives") for split in ("valid", "test")}
    if None in made.values():
        known = known or KnownTriples(graph.triples, graph.num_entities, graph.num_relations)
        made = {s: negatives(getattr(graph, s), known, seed) if n is None else n for s, n in made.items()}
    thresholds = fit_thresholds(model, graph.valid, made["valid"], sizes)
    triples = torch.cat([graph.test, made["test"]])
    truth_T = torch.arange(len(triples)) < len(graph.test)
    right_KT = thresholds.classify(model, triples) == truth_T
    own = "own" if graph.test_negatives is not None else "random"
    common = {"dataset": graph.name, "split": "test", "metric": "accuracy", "side": "both", "negatives": own}
    rows: list[dict[str, Any]] = []
    groups: list[tuple[str | None, Tensor]] = [(None, torch.ones_like(truth_T))]
    groups += [(name, triples[:, 1] == i) for i, name in enumerate(graph.relations)]
    for name, chosen in groups:
        if bool(chosen.any()):
            values = right_KT[:, chosen].double().mean(1).tolist()
            rows += [
                {**common, "size": size, "value": value, "relation": name, "num_triples": int(chosen.sum())}
                for size, value in zip(thresholds.sizes, values, strict=True)
            ]
    return rows
