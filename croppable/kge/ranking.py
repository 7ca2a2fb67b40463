"""Filtered ranks of every test triple, on both sides, at every size of a model, in one pass.

For a test triple (h, r, t) and the side "tail", all entities e are ranked by the score of (h, r, e); the
side "head" ranks (e, r, t). The *filtered* rank (Bordes et al., 2013) leaves out the other entities known to
be true. Nothing is masked in the hot loop: everything is ranked, then the known true answers that won or
tied are subtracted. The target is left out by its id, and its score is read from the same table of scores as
the candidates', so rounding can neither rank it above nor below itself.

Ties: the *optimistic* rank puts the target first among its equals, the *pessimistic* one last, the
*realistic* rank is their mean (Berrendorf et al., 2020, arXiv 2002.06914). This file knows ranks only;
croppable/kge/metrics.py makes MRR and Hits@k of them.

Shape legend: K sizes, T triples, B queries of a batch, E entities, S the two sides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from croppable.compiling import import_gpu_kernels
from croppable.core import Nested, validate_sizes
from croppable.kge.known import SIDES, KnownTriples

__all__ = ["TIES", "Ranks", "rank_triples"]

TIES = ("realistic", "optimistic", "pessimistic")
_log = logging.getLogger(__name__)

# Scores held at once by the reference, in numbers: 2**26 float32 are 256 MiB.
_SCORES_AT_ONCE = 2**26
_TERMS_IN_CACHE = 2**20  # of a distance, one for every query, candidate and dim; more are slower on a CPU


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Filtered ranks of triples against all entities, at every size.

    Attributes:
        sizes: The K sizes, ascending.
        triples: The ranked triples [T, 3], int64 (head, relation, tail).
        num_entities: Number of candidates of every query before filtering.
        optimistic_SKT: Ranks [2, K, T], int64, best is 1; the first axis follows `SIDES`.
        pessimistic_SKT: The same with the target behind its equals.
    """

    sizes: tuple[int, ...]
    triples: Tensor
    num_entities: int
    optimistic_SKT: Tensor
    pessimistic_SKT: Tensor

    def by_ties(self, ties: str) -> Tensor:
        """Return the float64 ranks [2, K, T] under a tie policy: realistic, optimistic or pessimistic.

        Raises:
            ValueError: If the policy is none of the three.
        """
        if ties not in TIES:
            raise ValueError(f"ties must be one of {TIES}, got {ties!r}")
        if ties == "realistic":
            return (self.optimistic_SKT + self.pessimistic_SKT).double() / 2
        return (self.optimistic_SKT if ties == "optimistic" else self.pessimistic_SKT).double()


def rank_triples(
    model: nn.Module,
    triples: Tensor,
    known: KnownTriples,
    *,
    sizes: Sequence[int] | None = None,
    batch_size: int | None = None,
    candidate_chunk: int = 4096,
    compiled: bool = True,
    progress: bool = False,
) -> Ranks:
    """Rank the tail and the head of every triple against all entities, filtered, at every size.

    The reference runs the model's own forward. Additive scores in float32 are ranked by compiled kernels
    instead, on the CPU (numba, extra "kge"), much faster, and on CUDA devices (Triton, which torch brings
    along); ranks are equal but where scores differ by rounding.

    Memory beside the model and the result. Reference: 4 * K * batch_size * E bytes of scores, and what the
    forward needs for batch_size queries against candidate_chunk entities. Compiled, with W numbers in a row:
    4 * W * (4 * batch_size + 2 * candidate_chunk) bytes, 20 * K for every triple that asks a query of the
    batch, and 32 for every known answer of the batch; on CUDA devices batch_size * candidate_chunk more.
    Both count the result in 16 * K * T bytes more.

    Args:
        model: A `KGEModel`, or any croppable module with its forward and counts.
        triples: The triples to rank [T, 3], integers, (head, relation, tail).
        known: All true triples, those of train, valid and test, on the CPU: the filter.
        sizes: Ascending sizes to rank at; default ``model.sizes``.
        batch_size: Queries held at once; default: compiled 2048, reference as many as keep the scores within
            256 MiB, and the terms of a distance (one for every query, candidate and dim) within 4 MiB on
            the CPU and 256 MiB elsewhere.
        candidate_chunk: Candidate entities held at once.
        compiled: Whether the compiled kernel may be used.
        progress: Show a progress bar; ask for it on the main process only.

    Raises:
        ValueError: If there are no triples, or ids do not fit, or a score is not finite (the error names the
            triple).
    """
    full = int(model.size)  # type: ignore[arg-type]
    wanted = tuple(model.sizes if sizes is None else sizes)  # type: ignore[arg-type]
    wanted = validate_sizes(wanted, wanted[-1] if wanted and wanted[-1] <= full else full)
    triples = _checked(triples, model, known)
    count = (_compiled_count(model) if compiled else None) or count_reference
    if compiled and getattr(model, "relations", "shared") == "own":
        count = _count_each
    with torch.no_grad(), _evaluating(model), _progress_bar(progress, 2 * len(triples)) as bar:
        task = (wanted, known, batch_size, candidate_chunk, bar.update)
        counts = [count(model, triples, side, *task) for side in SIDES]
    greater_SKT, equal_SKT = (torch.stack(both) for both in zip(*counts, strict=True))
    return Ranks(
        sizes=wanted,
        triples=triples,
        num_entities=int(model.num_entities),  # type: ignore[arg-type]
        optimistic_SKT=1 + greater_SKT,
        pessimistic_SKT=1 + greater_SKT + equal_SKT,
    )


def count_reference(
    model: nn.Module,
    triples: Tensor,
    side: str,
    sizes: tuple[int, ...],
    known: KnownTriples,
    batch_size: int | None,
    candidate_chunk: int,
    advance: Callable[[int], object],
) -> tuple[Tensor, Tensor]:
    """Count by the model's own forward how many unknown entities beat and equal each target, both [K, T].

    Arguments as in `rank_triples`; ``advance`` is called with the number of triples done.
    """
    full = int(model.size)  # type: ignore[arg-type]
    score_at = getattr(model, "forward_nested", None) or Nested(model, sorted({*sizes, full})).at
    batch_size = batch_size or _queries_at_once(model, sizes, candidate_chunk)
    counts: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(triples), batch_size):
        batch = triples[start : start + batch_size]
        counts.append(
            _count(_scores(model, score_at, sizes, batch, side, candidate_chunk), batch, side, known)
        )
        advance(len(batch))
    greater_KT, equal_KT = (torch.cat(batches, 1) for batches in zip(*counts, strict=True))
    return greater_KT, equal_KT


def _queries_at_once(model: nn.Module, sizes: tuple[int, ...], candidate_chunk: int) -> int:
    """As many queries as keep the scores bounded, and the terms of every dim where a forward makes them."""
    most = _SCORES_AT_ONCE // (len(sizes) * int(model.num_entities))  # type: ignore[arg-type]
    function = getattr(model, "function", None)
    if function is not None and not function.product:
        cached = next(model.parameters()).device.type == "cpu"
        terms = _TERMS_IN_CACHE if cached else _SCORES_AT_ONCE
        most = min(most, terms // (candidate_chunk * sizes[-1]))
    return max(1, most)


def _count_each(
    model: Any, triples: Tensor, side: str, sizes: tuple[int, ...], *task: Any
) -> tuple[Tensor, Tensor]:
    """Count size by size, where sizes share no sums: each alone is a model that the kernel may rank."""
    *options, advance = task
    counts = []
    for size in sizes:
        alone = model.alone(size)
        count: Callable[..., tuple[Tensor, Tensor]] = _compiled_count(alone) or count_reference
        counts.append(count(alone, triples, side, (size,), *options, lambda _: None))
    advance(len(triples))
    greater_KT, equal_KT = (torch.cat(each) for each in zip(*counts, strict=True))
    return greater_KT, equal_KT


def _compiled_count(model: nn.Module) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """Return the compiled form of `count_reference` if there are kernels that can rank the model."""
    kernels = _kernels(next(model.parameters()).device)
    if kernels is None or not kernels.supports(model):
        return None

    def count(model: Any, triples: Tensor, *task: Any) -> tuple[Tensor, Tensor]:
        greater_KT, equal_KT, broken_T = kernels.count_compiled(model, triples, *task)
        if broken_T.any():  # the reference says which score it is, or ranks what only the kernel's sums lost
            again = count_reference(model, triples[broken_T], *task)
            greater_KT[:, broken_T], equal_KT[:, broken_T] = again
        return greater_KT, equal_KT

    return count


def _kernels(device: torch.device) -> ModuleType | None:
    """Return the module of kernels that ranks on a device, if there is one."""
    if device.type != "cpu":
        return import_gpu_kernels("croppable.kge.ranking_triton", device)
    if find_spec("numba") is None:
        _say_once("ranking without the compiled kernel, many times slower: pip install numba")
        return None
    from croppable.kge import ranking_compiled

    return ranking_compiled


@cache
def _say_once(message: str) -> None:
    _log.warning(message)


def split_query(triples: Tensor, side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return (anchor, relation, target) of triples [B, 3] for a side: the target is what is asked for."""
    heads, relations, tails = triples.unbind(1)
    return (heads, relations, tails) if side == "tail" else (tails, relations, heads)


def _scores(
    model: nn.Module,
    score_at: Callable[..., Tensor],
    sizes: tuple[int, ...],
    batch: Tensor,
    side: str,
    chunk: int,
) -> Tensor:
    """Return the scores [K, B, E] of every entity, computed ``chunk`` candidates at a time."""
    num_entities = int(model.num_entities)  # type: ignore[arg-type]
    device, dtype = next((p.device, p.dtype) for p in model.parameters())
    anchor, relation, _ = (ids.to(device) for ids in split_query(batch, side))
    scores_KBE = torch.empty(len(sizes), len(batch), num_entities, device=device, dtype=dtype)
    for start in range(0, num_entities, chunk):
        candidates = torch.arange(start, min(start + chunk, num_entities), device=device)
        scores_KBE[:, :, candidates] = score_at(sizes, anchor, relation, candidates, side)
    require_finite(scores_KBE, sizes, batch, side)
    return scores_KBE


def _count(scores_KBE: Tensor, batch: Tensor, side: str, known: KnownTriples) -> tuple[Tensor, Tensor]:
    """Return how many unknown entities beat the target and how many tie with it, both [K, B]."""
    anchor, relation, target = split_query(batch, side)
    rows, entities = known.targets(anchor, relation, side)
    others = entities != target[rows]
    device = scores_KBE.device
    # The target is one of its own equals: listing it among the known ones leaves it out by its id.
    rows = torch.cat([rows[others], torch.arange(len(batch))]).to(device)
    entities = torch.cat([entities[others], target]).to(device)
    target = target.to(device)
    won: list[Tensor] = []
    tied: list[Tensor] = []
    for scores_BE in scores_KBE:  # size by size: the comparisons of all sizes together would need K*B*E bytes
        own_B = scores_BE.gather(1, target[:, None]).squeeze(1)
        known_scores = scores_BE[rows, entities]
        for counts, compare in ((won, torch.gt), (tied, torch.eq)):
            everyone_B = compare(scores_BE, own_B[:, None]).sum(1)
            filtered = compare(known_scores, own_B[rows]).long()
            counts.append(everyone_B.index_add(0, rows, filtered, alpha=-1))
    return torch.stack(won).cpu(), torch.stack(tied).cpu()


def require_finite(scores_KBE: Tensor, sizes: Sequence[int], batch: Tensor, side: str) -> None:
    """Raise for the first score that is not finite.

    Raises:
        ValueError: Naming the triple and the size.
    """
    if scores_KBE.isfinite().all():
        return
    k, b, entity = (~scores_KBE.isfinite()).nonzero()[0].tolist()
    triple = batch[b].tolist()
    triple[2 if side == "tail" else 0] = entity
    raise ValueError(
        f"the score of triple (head {triple[0]}, relation {triple[1]}, tail {triple[2]}) is "
        f"{scores_KBE[k, b, entity].item()} at size {sizes[k]}: ranking needs finite scores; the weights "
        f"have diverged, train with a lower learning rate or clip the gradients"
    )


def _checked(triples: Tensor, model: nn.Module, known: KnownTriples) -> Tensor:
    """Return the triples as int64 on the CPU, once they are known to be rankable."""
    if triples.ndim != 2 or triples.shape[1] != 3 or len(triples) == 0:
        raise ValueError(f"triples must be a non-empty [T, 3] tensor, got shape {tuple(triples.shape)}")
    triples = triples.detach().to("cpu", torch.int64)
    for name, ids, count in (
        ("entity", triples[:, [0, 2]], model.num_entities),
        ("relation", triples[:, 1], model.num_relations),
    ):
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= int(count):  # type: ignore[arg-type]
            raise ValueError(
                f"{name} ids must lie in 0..{int(count) - 1}, those of the model, "  # type: ignore[arg-type]
                f"got {low}..{high}: index the triples with the model's own graph"
            )
    if known.num_entities != model.num_entities or known.num_relations != model.num_relations:
        raise ValueError(
            f"the known triples must have the model's {model.num_entities} entities and "
            f"{model.num_relations} relations, got {known.num_entities} and {known.num_relations}: build "
            f"both from one graph"
        )
    return triples


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule into eval mode, and back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _progress_bar(show: bool, total: int) -> Iterator[Any]:
    from tqdm import tqdm  # part of the kge extra

    with tqdm(total=total, desc="ranking", unit="query", disable=not show) as bar:
        yield bar
