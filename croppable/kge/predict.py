"""Ask an embedding: which entities complete a triple, which are alike, and what are the vectors.

Entities and relations are given by name, by text where it is unambiguous, or by id; answers carry all
three. The model's own size is used: load it at another one for another. Whether a given triple is true, and
with which probability, is croppable/kge/classify.py's affair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from croppable.kge.classify import Calibration
from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.labels import StringTable, closest

__all__ = ["Answer", "embeddings", "find", "nearest", "predict"]

Key = str | int
Keys = list[str] | list[int] | list[Key]
_SCORES_AT_ONCE = 2**26  # numbers: 256 MiB of float32, as in ranking.py


@dataclass(frozen=True)
class Answer:
    """One entity that answers a question.

    Attributes:
        rank: Place among the answers, from 1.
        id: Row in the entity table.
        name: The entity's name, or its id as a string where the model has no labels.
        text: The entity's text for people, or None.
        score: Score of the triple (`predict`) or similarity (`nearest`); higher is better.
        known: Whether the triple is one of the known ones; None where none were given.
        probability: That the triple is true, where a calibration was given.
    """

    rank: int
    id: int
    name: str
    text: str | None
    score: float
    known: bool | None = None
    probability: float | None = None


def find(model: KGEModel, key: Key, kind: Literal["entity", "relation"] = "entity") -> int:
    """Return the id of an entity or relation.

    Args:
        model: A model; names need its ``labels``.
        key: A name, else a text that only one entity (or relation) has, or an id.
        kind: "entity" or "relation".

    Raises:
        ValueError: If there is no such name or id, or the text is ambiguous; the closest names are told.
    """
    count = model.num_entities if kind == "entity" else model.num_relations
    if isinstance(key, int):
        if not 0 <= key < count:
            raise ValueError(f"{kind} ids go from 0 to {count - 1}, got {key}")
        return key
    if model.labels is None:
        raise ValueError(f"the model has no labels: give the {kind} as an id (an integer), got {key!r}")
    names: StringTable = getattr(model.labels, kind)
    texts: StringTable | None = getattr(model.labels, f"{kind}_text")
    found = names.find(key) or (texts.find(key) if texts is not None else [])
    if len(found) == 1:
        return found[0]
    if found:
        among = ", ".join(repr(names[place]) for place in found[:5])
        raise ValueError(f"{len(found)} {kind} names have the text {key!r}: give one of the names {among}")
    near = [*closest(key, names), *(closest(key, texts) if texts is not None else [])]
    hint = f"the closest are {', '.join(map(repr, dict.fromkeys(near)))}" if near else "nothing is similar"
    raise ValueError(f"no {kind} is called {key!r}: {hint}")


@overload
def predict(  # type: ignore[overload-overlap]  # neither head nor tail: an error either way
    model: KGEModel,
    *,
    head: Key | None = ...,
    relation: Key,
    tail: Key | None = ...,
    k: int = ...,
    known: KnownTriples | None = ...,
    drop_known: bool = ...,
    calibration: Calibration | None = ...,
) -> list[Answer]: ...


@overload
def predict(
    model: KGEModel,
    *,
    head: Key | Keys | None = ...,
    relation: Key | Keys,
    tail: Key | Keys | None = ...,
    k: int = ...,
    known: KnownTriples | None = ...,
    drop_known: bool = ...,
    calibration: Calibration | None = ...,
) -> list[list[Answer]]: ...


def predict(
    model: KGEModel,
    *,
    head: Key | Keys | None = None,
    relation: Key | Keys,
    tail: Key | Keys | None = None,
    k: int = 10,
    known: KnownTriples | None = None,
    drop_known: bool = True,
    calibration: Calibration | None = None,
) -> list[Answer] | list[list[Answer]]:
    """Return the ``k`` entities that complete a triple best.

    ``predict(model, head="Berlin", relation="capital of")`` asks for tails, with ``tail=`` for heads. Lists
    ask many questions at once; one relation may serve them all.

    Args:
        model: A model; names need its ``labels``.
        head: The known entity when asking for tails: name, text or id, or a list of them.
        relation: The relation, or one per question.
        tail: The known entity when asking for heads.
        k: How many answers; there are fewer where there are fewer candidates.
        known: True triples. They are dropped from the answers, or marked.
        drop_known: Whether known answers are dropped rather than marked.
        calibration: Turns scores into probabilities (`croppable.kge.classify.fit_calibration`).

    Returns:
        The answers, best first; a list of such lists for a list of questions.

    Raises:
        ValueError: If not exactly one of head and tail is given, the lists differ in length, ``k`` is not
            positive, a name is unknown, or a score is not finite.
    """
    if (head is None) == (tail is None):
        raise ValueError("give either head= (asks for tails) or tail= (asks for heads), and not both")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    side: Literal["head", "tail"] = "tail" if tail is None else "head"
    given = head if tail is None else tail
    single = isinstance(given, str | int) and isinstance(relation, str | int)
    anchors, relations = _queries(given, relation)
    anchor_ids = torch.tensor([find(model, key) for key in anchors])
    relation_ids = torch.tensor([find(model, key, "relation") for key in relations])
    answers = [
        _answer(model, scores, ids, is_known, calibration)
        for scores, ids, is_known in _best(model, anchor_ids, relation_ids, side, k, known, drop_known)
    ]
    return answers[0] if single else answers


def _queries(given: Key | Keys | None, relation: Key | Keys) -> tuple[list[Key], list[Key]]:
    anchors = [given] if isinstance(given, str | int) else list(given or ())
    relations = [relation] if isinstance(relation, str | int) else list(relation)
    if len(relations) == 1 and not isinstance(given, str | int):
        relations *= len(anchors)
    if len(anchors) == 1 and isinstance(given, str | int):
        anchors *= len(relations)
    if not anchors or len(anchors) != len(relations):
        raise ValueError(
            f"there must be at least one question and one relation per entity, got {len(anchors)} entities "
            f"and {len(relations)} relations"
        )
    return anchors, relations


def _best(
    model: KGEModel,
    anchor: Tensor,
    relation: Tensor,
    side: Literal["head", "tail"],
    k: int,
    known: KnownTriples | None,
    drop_known: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield each question's best scores, entities, and whether they are known; a few questions at a time."""
    device = model.entity.device
    step = max(1, _SCORES_AT_ONCE // model.num_entities)
    for low in range(0, len(anchor), step):
        some_anchor, some_relation = anchor[low : low + step], relation[low : low + step]
        with torch.no_grad():
            scores_BE = model(some_anchor.to(device), some_relation.to(device), None, side).cpu()
        if not bool(scores_BE.isfinite().all()):
            raise ValueError("some scores are not finite: the weights have diverged or are damaged")
        mask = None
        if known is not None:
            mask = torch.zeros(scores_BE.shape, dtype=torch.bool)
            mask[known.targets(some_anchor, some_relation, side)] = True
            if drop_known:
                scores_BE.masked_fill_(mask, -torch.inf)
        best, ids = scores_BE.topk(min(k, model.num_entities))
        for row in range(len(ids)):
            kept = best[row] > -torch.inf
            marks = None if mask is None else mask[row, ids[row]][kept]
            yield best[row][kept], ids[row][kept], marks


def _answer(
    model: KGEModel,
    scores: Tensor,
    ids: Tensor,
    known: Tensor | None = None,
    calibration: Calibration | None = None,
) -> list[Answer]:
    labels = model.labels
    texts = None if labels is None else labels.entity_text
    probabilities = None if calibration is None else calibration.probability(scores).tolist()
    return [
        Answer(
            rank=place + 1,
            id=entity,
            name=str(entity) if labels is None else labels.entity[entity],
            text=None if texts is None else texts[entity],
            score=score,
            known=None if known is None else bool(known[place]),
            probability=None if probabilities is None else probabilities[place],
        )
        for place, (entity, score) in enumerate(zip(ids.tolist(), scores.tolist(), strict=True))
    ]


def nearest(
    model: KGEModel, entity: Key, k: int = 10, metric: Literal["cosine", "euclidean"] = "cosine"
) -> list[Answer]:
    """Return the entities whose vectors are most like one entity's, itself left out.

    Args:
        model: A model; names need its ``labels``.
        entity: Name, text or id.
        k: How many.
        metric: "cosine" similarity, or "euclidean" for minus the Euclidean distance.

    Raises:
        ValueError: If the entity is unknown, ``k`` is not positive or the metric is no such name.
    """
    if k < 1 or metric not in ("cosine", "euclidean"):
        raise ValueError(f"k must be at least 1 and metric 'cosine' or 'euclidean', got {k} and {metric!r}")
    place = find(model, entity)
    with torch.inference_mode():
        rows = model.entity.flatten(1)
        if metric == "cosine":
            similarity = torch.nn.functional.cosine_similarity(rows, rows[place][None])
        else:
            similarity = -torch.linalg.vector_norm(rows - rows[place], dim=1)
        similarity[place] = -torch.inf
        best, ids = similarity.cpu().topk(min(k, model.num_entities - 1))
    return _answer(model, best, ids)


def embeddings(
    model: KGEModel, kind: Literal["entity", "relation"] = "entity", *, labels: bool = False
) -> Tensor | tuple[list[str], Tensor]:
    """Return the vectors, and on request their names.

    Args:
        model: A model.
        kind: "entity" or "relation" (of a reciprocal model the inverse relations come last).
        labels: Whether to return the names too.

    Returns:
        A copy on the CPU, ``[n, d * parts]``: the parts of a dim (such as re and im) stand side by side, so
        leading columns are leading dims. With ``labels`` first the ``n`` names.

    Raises:
        ValueError: If ``kind`` is unknown, or names are asked for and the model has none.
    """
    if kind not in ("entity", "relation"):
        raise ValueError(f"kind must be 'entity' or 'relation', got {kind!r}")
    table: Tensor = getattr(model, kind)
    if kind == "relation" and model.relations == "own":
        table = table[-1]
    rows = table.detach().flatten(1).cpu().clone()
    if not labels:
        return rows
    if model.labels is None:
        raise ValueError(
            "the model has no labels: call embeddings(model) and count rows, or save with labels="
        )
    names = list(getattr(model.labels, kind))
    if kind == "relation" and model.reciprocal:
        names += [f"{name} (inverse)" for name in names]
    return names, rows
