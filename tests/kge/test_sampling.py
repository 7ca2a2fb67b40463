"""Batches: every query, exactly resumable, exactly shared. Negatives: uniform, or filtered and still so."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from croppable.kge.known import SIDES, KnownTriples
from croppable.kge.sampling import (
    Batch,
    batches,
    filtered_negatives,
    known_mask,
    runs_of_pools,
    shared_negatives,
    step_generator,
    steps_per_epoch,
    uniform_negatives,
)


def numbered(count):
    """``count`` triples whose slots tell which triple they are from."""
    place = torch.arange(count)
    return torch.stack((place, 1000 + place, 2000 + place), 1)


def rows(batch):
    """The batch as (side, place of the triple), checking that the slots are where they belong."""
    place = batch.relation - 1000
    head = torch.full_like(place, batch.side == "head") if isinstance(batch.side, str) else batch.side
    assert torch.equal(batch.anchor, place + 2000 * head)
    assert torch.equal(batch.target, place + 2000 * (1 - head.long()))
    return [(SIDES[h], p) for h, p in zip(head.tolist(), place.tolist(), strict=True)]


sizes = st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4))


@given(sizes, st.integers(0, 3), st.booleans())
def test_an_epoch_asks_every_query_with_equal_batches(size, epoch, mixed):
    count, batch_size, world = size
    triples = numbered(count)
    epochs = [list(batches(triples, batch_size, 7, epoch, rank, world, mixed=mixed)) for rank in range(world)]
    steps = steps_per_epoch(count, batch_size, world)
    asked = Counter()
    for rank_batches in epochs:
        assert [batch.step for batch in rank_batches] == list(range(epoch * steps, (epoch + 1) * steps))
        assert {len(batch.anchor) for batch in rank_batches} == {min(batch_size, -(-count // world))}
        for batch in rank_batches:
            asked.update(rows(batch))
    assert set(asked) == {(side, place) for side in SIDES for place in range(count)}
    # Only the last batch of a side is filled up, so the surplus of a side is less than one global batch.
    assert asked.total() - 2 * count < 2 * batch_size * world
    if mixed:
        return
    for side in SIDES:
        assert sum(n for (s, _), n in asked.items() if s == side) - count < batch_size * world
        assert [batch.side for batch in epochs[0]].count(side) == steps // 2


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 4), st.booleans())
def test_processes_share_what_one_process_with_the_larger_batch_sees(extra, batch_size, world, mixed):
    triples = numbered(batch_size * world + extra)
    whole = batches(triples, batch_size * world, 3, 1, mixed=mixed)
    ranks = (batches(triples, batch_size, 3, 1, rank, world, mixed=mixed) for rank in range(world))
    for one, *parts in zip(whole, *ranks, strict=True):
        assert [row for part in parts for row in rows(part)] == rows(one)
        assert mixed or {part.side for part in parts} == {one.side}


@given(sizes, st.booleans(), st.data())
def test_a_run_may_start_at_any_step(size, mixed, data):
    count, batch_size, world = size
    steps = steps_per_epoch(count, batch_size, world)
    start = data.draw(st.integers(0, 3 * steps))

    def run(start_step):
        return [
            (batch.step, rows(batch))
            for epoch in range(3)
            for batch in batches(
                numbered(count), batch_size, 5, epoch, world - 1, world, start_step, mixed=mixed
            )
        ]

    assert run(start) == run(0)[start:]


def test_epochs_and_seeds_differ_and_repeat_exactly():
    def order(seed, epoch):
        return [row for batch in batches(numbered(30), 4, seed, epoch) for row in rows(batch)]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_sides_are_mixed():
    sides = [batch.side for batch in batches(numbered(400), 2, 0, 0)]
    changes = sum(a != b for a, b in pairwise(sides))
    assert 160 < changes < 240  # of 399, about half in a random order


def test_batches_leave_the_global_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batch = next(iter(batches(numbered(30), 4, 0, 0)))
    uniform_negatives(batch, 5, 10, step_generator(0, 0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"world": 0}, "world must be at least 1, got 0"),
        ({"rank": 2, "world": 2}, "rank must be 0 to 1 with world 2, got 2"),
        ({"rank": -1}, "rank must be 0 to 0 with world 1, got -1"),
        ({"triples": numbered(0)}, "the number of triples must be at least 1, got 0"),
        ({"epoch": -1}, "epoch must be at least 0, got -1"),
    ],
)
def test_bad_numbers_are_refused(arguments, message):
    given = {"triples": numbered(5), "batch_size": 2, "seed": 0, "epoch": 0} | arguments
    with pytest.raises(ValueError, match=message):
        list(batches(**given))


# Generators


def test_generators_repeat_and_differ_by_seed_step_and_rank():
    def first(*key):
        return torch.randint(2**62, (2,), generator=step_generator(*key)).tolist()

    assert first(1, 2, 3) == first(1, 2, 3)
    keys = [(seed, step, rank) for seed in range(8) for step in range(8) for rank in range(8)]
    assert len({tuple(first(*key)) for key in keys}) == len(keys)
    assert first(2**70, 0, 0) == first(2**70, 0, 0)
    assert first(-1, 0, 0) != first(0, 0, 0)


# Negatives

ENTITIES = 50
TRIPLES = torch.randint(0, ENTITIES, (600, 3), generator=torch.Generator().manual_seed(0)) % torch.tensor(
    [ENTITIES, 3, ENTITIES]
)
KNOWN = KnownTriples(TRIPLES, ENTITIES, 3)


def batch_of(side, count=40):
    head, relation, tail = TRIPLES[:count].unbind(1)
    if side == "mixed":
        asks_head = torch.arange(count) % 3 == 0
        anchor, target = torch.where(asks_head, tail, head), torch.where(asks_head, head, tail)
        return Batch(anchor, relation, target, asks_head, 0)
    return Batch(*((head, relation, tail) if side == "tail" else (tail, relation, head)), side, 0)


def side_of(batch, row):
    return batch.side if isinstance(batch.side, str) else SIDES[batch.side[row]]


def test_uniform_negatives_are_uniform_over_all_entities():
    drawn = uniform_negatives(batch_of("tail"), 5_000, ENTITIES, step_generator(0, 0))
    assert drawn.shape == (40, 5_000)
    assert drawn.dtype == torch.long
    expected = drawn.numel() / ENTITIES
    square = ((torch.bincount(drawn.flatten(), minlength=ENTITIES) - expected) ** 2 / expected).sum()
    assert square < 85  # the 99.9% point of chi-square with 49 degrees of freedom


@pytest.mark.parametrize("side", [*SIDES, "mixed"])
def test_filtered_negatives_are_never_known_and_uniform_over_the_rest(side):
    batch = batch_of(side)
    drawn = filtered_negatives(batch, 20_000, KNOWN, step_generator(0, 0))
    assert drawn.shape == (40, 20_000)
    for row, negatives in enumerate(drawn):
        counts = torch.bincount(negatives, minlength=ENTITIES)
        _, answers = KNOWN.targets(
            batch.anchor[row : row + 1], batch.relation[row : row + 1], side_of(batch, row)
        )
        free = [entity for entity in range(ENTITIES) if entity not in answers.tolist()]
        assert counts[answers].sum() == 0
        expected = 20_000 / len(free)
        square = ((counts[free] - expected) ** 2 / expected).sum()
        assert square < 100  # beyond the 99.99% point for at most 49 degrees of freedom


def test_filtered_negatives_with_one_entity_left():
    head = torch.zeros(4, dtype=torch.long)
    known = KnownTriples(torch.stack((head, head, torch.tensor([0, 1, 3, 4])), 1), 5, 1)
    batch = Batch(head[:1], head[:1], head[:1], "tail", 0)
    assert filtered_negatives(batch, 6, known, step_generator(0, 0)).tolist() == [[2] * 6]


def test_filtered_negatives_without_an_entity_left_name_the_query():
    known = KnownTriples(torch.tensor([[1, 0, 0], [1, 0, 1], [1, 0, 2], [0, 0, 1]]), 3, 1)
    batch = Batch(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([1, 0]), "tail", 0)
    message = r"anchor=1, relation=0, side='tail' has all 3 entities .* use uniform negatives"
    for side in ("tail", torch.tensor([True, False])):
        with pytest.raises(ValueError, match=message):
            filtered_negatives(replace(batch, side=side), 2, known, step_generator(0, 0))


@given(st.integers(2, 12), st.integers(0, 200))
@settings(max_examples=50)
def test_filtered_negatives_reach_every_free_entity(num_entities, seed):
    generator = torch.Generator().manual_seed(seed)
    triples = torch.randint(num_entities, (num_entities, 3), generator=generator) % torch.tensor(
        [num_entities, 1, num_entities]
    )
    known = KnownTriples(triples, num_entities, 1)
    anchor = torch.arange(num_entities)
    batch = Batch(anchor, torch.zeros_like(anchor), anchor, "head", 0)
    free = num_entities - known.counts(anchor, batch.relation, "head")
    if (free < 1).any():
        return
    drawn = filtered_negatives(batch, 600, known, generator)
    for row in range(num_entities):
        assert len(drawn[row].unique()) == free[row]


@pytest.mark.parametrize("side", [*SIDES, "mixed"])
def test_a_shared_pool_and_its_mask(side):
    batch = batch_of(side)
    pool = shared_negatives(80, ENTITIES, step_generator(1, 0))
    assert pool.shape == (80,)
    assert len(pool.unique()) < 80  # repetitions happen, and the mask bears them
    mask = known_mask(batch, pool, KNOWN)
    for row in range(len(batch.anchor)):
        for column, entity in enumerate(pool.tolist()):
            anchor, relation = int(batch.anchor[row]), int(batch.relation[row])
            asks_tail = side_of(batch, row) == "tail"
            triple = (anchor, relation, entity) if asks_tail else (entity, relation, anchor)
            assert bool(mask[row, column]) == bool(KNOWN.contains(torch.tensor(triple)))


@pytest.mark.parametrize(
    ("queries", "pools", "runs"),
    [
        (512, 4, [(0, 128), (128, 256), (256, 384), (384, 512)]),
        (20, 2, [(0, 16), (16, 20)]),
        (9, 4, [(0, 8), (8, 9)]),  # two pools are left over
        (5, 1, [(0, 5)]),
    ],
)
def test_which_queries_share_a_pool(queries, pools, runs):
    assert runs_of_pools(queries, pools) == runs
    drawn = shared_negatives(6, ENTITIES, step_generator(0, 0), pools=pools)
    assert drawn.shape == ((6,) if pools == 1 else (pools, 6))


def test_negatives_repeat_with_the_generator():
    batch = batch_of("tail")
    for draw in (
        lambda g: uniform_negatives(batch, 7, ENTITIES, g),
        lambda g: filtered_negatives(batch, 7, KNOWN, g),
        lambda g: shared_negatives(7, ENTITIES, g),
    ):
        assert torch.equal(draw(step_generator(0, 4, 1)), draw(step_generator(0, 4, 1)))
        assert not torch.equal(draw(step_generator(0, 4, 1)), draw(step_generator(0, 5, 1)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_and_negatives_on_the_gpu():
    triples, known = TRIPLES.cuda(), KNOWN.to("cuda")
    here, there = next(batches(TRIPLES, 16, 0, 0)), next(batches(triples, 16, 0, 0))
    assert torch.equal(here.anchor, there.anchor.cpu())
    drawn = filtered_negatives(there, 64, known, step_generator(0, 0, device="cuda"))
    assert drawn.is_cuda
    assert not known.contains(
        torch.stack(
            torch.broadcast_tensors(there.anchor[:, None], there.relation[:, None], drawn)[
                :: 1 if there.side == "tail" else -1
            ],
            -1,
        )
    ).any()
    same = filtered_negatives(there, 64, known, step_generator(0, 0))
    assert torch.equal(same.cpu(), filtered_negatives(here, 64, KNOWN, step_generator(0, 0)))
