"""Batches of queries and their negatives, exact under resume and data parallelism.

An epoch is a permutation of the queries that is cut by indexing, no DataLoader: what step s of rank k sees
is a function of (seed, s, k, world) alone, so a run can start at any step, and the same global step has the
same rows however many processes share them. Negatives draw from a generator of (seed, step, rank).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from croppable.kge.known import SIDES, KnownTriples

__all__ = [
    "RUN",
    "Batch",
    "batches",
    "filtered_negatives",
    "known_mask",
    "runs_of_pools",
    "shared_negatives",
    "step_generator",
    "steps_per_epoch",
    "uniform_negatives",
]

RUN = 8  # queries; kernels take a pool's queries by so many
_MASK = 2**64 - 1


@dataclass(frozen=True, eq=False)
class Batch:
    """Queries of one side with one true answer each.

    Attributes:
        anchor: ``[B]`` long: heads where the side is "tail", tails where it is "head".
        relation: ``[B]`` long.
        target: ``[B]`` long, the true answer.
        side: What is asked for, "tail" or "head"; in a batch of both, a bool tensor ``[B]``: which ask for
            the head.
        step: The global step, counted over epochs from 0.
    """

    anchor: Tensor
    relation: Tensor
    target: Tensor
    side: str | Tensor
    step: int


def _splitmix(state: int) -> int:
    """Mix 64 bits (Steele, Lea and Flood 2014, SplitMix64's output function)."""
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def step_generator(
    seed: int, step: int, rank: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a generator for one step of one rank: the same numbers whenever and wherever that step runs.

    Args:
        seed: The run's seed.
        step: The global step.
        rank: The process.
        device: Where the numbers are drawn. The streams of CPU and GPU differ.
    """
    mixed = 0
    for part in (seed, step, rank):
        mixed = _splitmix(mixed ^ (part & _MASK))
    return torch.Generator(device).manual_seed(mixed)


def _rows_per_step(num_triples: int, batch_size: int, world: int) -> int:
    """Rows of a global batch: ``batch_size`` per rank, or fewer where the triples are fewer."""
    for name, value in (("the number of triples", num_triples), ("batch_size", batch_size), ("world", world)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return min(batch_size, -(-num_triples // world)) * world


def steps_per_epoch(num_triples: int, batch_size: int, world: int = 1) -> int:
    """Return how many steps ask every query (both sides of every triple) once.

    Args:
        num_triples: T.
        batch_size: Rows per process.
        world: How many processes there are.

    Raises:
        ValueError: If an argument is smaller than 1.
    """
    return 2 * -(-num_triples // _rows_per_step(num_triples, batch_size, world))


def batches(
    triples: Tensor,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    *,
    mixed: bool = False,
) -> Iterator[Batch]:
    """Yield one epoch: every triple asked once for its tail and once for its head.

    Each side is permuted by itself; a batch has one side, and the sides alternate at random. Every batch has
    the same number of rows: ``batch_size``, or T shared among the processes where T is smaller. The last
    batch of a side is filled up from the start of its permutation: every query is asked at least once.

    Args:
        triples: ``[T, 3]`` long, columns head, relation, tail; the batches are on its device.
        batch_size: Rows per process.
        seed: The run's seed.
        epoch: Counted from 0.
        rank: This process.
        world: How many processes there are; each takes a contiguous share of every global batch.
        mixed: Permute the queries of both sides together, for reciprocal models, which can score such a
            batch: its gradient then speaks for both sides.
        start_step: Leave out the global steps before this one; nothing is yielded for an epoch that ends
            before it.

    Raises:
        ValueError: If a number is out of range.
    """
    rows = _rows_per_step(len(triples), batch_size, world)
    if not 0 <= rank < world:
        raise ValueError(f"rank must be 0 to {world - 1} with world {world}, got {rank}")
    if epoch < 0:
        raise ValueError(f"epoch must be at least 0, got {epoch}")
    per_epoch = steps_per_epoch(len(triples), batch_size, world)
    first = epoch * per_epoch
    if start_step >= first + per_epoch:
        return
    generator = step_generator(seed, epoch, -1)
    if mixed:
        yield from _mixed(triples, rows, rank, world, first, start_step, generator)
        return
    permutations = {
        side: torch.randperm(len(triples), generator=generator).to(triples.device) for side in SIDES
    }
    sides = [SIDES[place % 2] for place in torch.randperm(per_epoch, generator=generator).tolist()]
    done = dict.fromkeys(SIDES, 0)
    share = rows // world
    for step, side in enumerate(sides, first):
        begin = done[side] * rows + rank * share
        done[side] += 1
        if step < start_step:
            continue
        places = torch.arange(begin, begin + share, device=triples.device) % len(triples)
        head, relation, tail = triples[permutations[side][places]].unbind(1)
        anchor, target = (head, tail) if side == "tail" else (tail, head)
        yield Batch(anchor, relation, target, side, step)


def _mixed(
    triples: Tensor, rows: int, rank: int, world: int, first: int, start_step: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Yield an epoch of batches that ask for both sides, as `batches` does."""
    total = 2 * len(triples)
    permutation = torch.randperm(total, generator=generator).to(triples.device)
    share = rows // world
    for i in range(2 * -(-len(triples) // rows)):
        if first + i < start_step:
            continue
        begin = i * rows + rank * share
        query = permutation[torch.arange(begin, begin + share, device=triples.device) % total]
        asks_head = query >= len(triples)
        head, relation, tail = triples[query % len(triples)].unbind(1)
        anchor, target = torch.where(asks_head, tail, head), torch.where(asks_head, head, tail)
        yield Batch(anchor, relation, target, asks_head, first + i)


def _by_side(batch: Batch) -> Iterator[tuple[Tensor, str]]:
    """Yield the rows of each side that the batch has, and the side."""
    everything = torch.arange(len(batch.anchor), device=batch.anchor.device)
    if isinstance(batch.side, str):
        yield everything, batch.side
        return
    for side, asked in (("tail", ~batch.side), ("head", batch.side)):
        yield everything[asked], side


def _draw(high: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(high, shape, generator=generator, device=generator.device).to(device)


def uniform_negatives(
    batch: Batch, num_negatives: int, num_entities: int, generator: torch.Generator
) -> Tensor:
    """Draw entities uniformly for each query, ``[B, N]`` long.

    Known answers are not left out, the target included, as in most papers; `filtered_negatives` leaves
    them out.

    Args:
        batch: B queries.
        num_negatives: N.
        num_entities: E.
        generator: See `step_generator`.
    """
    return _draw(num_entities, (len(batch.anchor), num_negatives), generator, batch.anchor.device)


def filtered_negatives(
    batch: Batch, num_negatives: int, known: KnownTriples, generator: torch.Generator
) -> Tensor:
    """Draw entities uniformly among those that are not known answers of the query, ``[B, N]`` long.

    Exact and without rejection: draw a rank below the number of non-answers, look up the entity of that rank.

    Args:
        batch: B queries.
        num_negatives: N.
        known: True triples; usually those of train.
        generator: See `step_generator`.

    Raises:
        ValueError: If every entity is a known answer of some query; the query is named.
    """
    # 2**63 is so much larger than any number of entities that the remainder is uniform to 1e-10.
    negatives = _draw(2**63 - 1, (len(batch.anchor), num_negatives), generator, batch.anchor.device)
    for rows, side in _by_side(batch):
        anchor, relation = batch.anchor[rows], batch.relation[rows]
        free = known.num_entities - known.counts(anchor, relation, side)
        if (free < 1).any():
            row = int((free < 1).nonzero()[0, 0])
            raise ValueError(
                f"the query anchor={int(anchor[row])}, relation={int(relation[row])}, side={side!r} has all "
                f"{known.num_entities} entities as known answers, so it has no filtered negative: use "
                f"uniform negatives, or leave that relation out"
            )
        negatives[rows] = known.unknown(anchor, relation, side, negatives[rows] % free[:, None])
    return negatives


def shared_negatives(
    num_negatives: int, num_entities: int, generator: torch.Generator, *, pools: int = 1
) -> Tensor:
    """Draw pools of entities uniformly, on the generator's device.

    Scoring a shared pool is a matrix product instead of a gather per row. With several pools a batch sees
    more entities at the same cost; `runs_of_pools` says which queries share one. Repetitions are possible;
    `known_mask` says which of a pool for the whole batch answer a query.

    Args:
        num_negatives: C.
        num_entities: E.
        generator: See `step_generator`.
        pools: G.

    Returns:
        ``[C]`` long for one pool, else ``[G, C]``.
    """
    shape = (num_negatives,) if pools == 1 else (pools, num_negatives)
    return _draw(num_entities, shape, generator, generator.device)


def runs_of_pools(queries: int, pools: int) -> list[tuple[int, int]]:
    """Return the queries begin..end of each pool: runs of one length, a multiple of RUN, but for the last.

    There may be fewer runs than pools, where so many queries do not need them.
    """
    length = RUN * -(-queries // (RUN * pools))
    return [(begin, min(begin + length, queries)) for begin in range(0, queries, length)]


def known_mask(batch: Batch, pool: Tensor, known: KnownTriples) -> Tensor:
    """Return which entities of a shared pool are known answers of each query, bool ``[B, C]``.

    Args:
        batch: B queries.
        pool: ``[C]`` long.
        known: True triples; usually those of train.
    """
    distinct, inverse = pool.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    column = torch.full((known.num_entities,), -1, device=pool.device)
    column[distinct] = torch.arange(len(distinct), device=pool.device)
    mask = torch.zeros(len(batch.anchor), len(distinct), dtype=torch.bool, device=pool.device)
    for rows, side in _by_side(batch):
        places, entities = known.targets(batch.anchor[rows], batch.relation[rows], side)
        columns = column[entities]
        mask[rows[places[columns >= 0]], columns[columns >= 0]] = True
    return mask[:, inverse]
