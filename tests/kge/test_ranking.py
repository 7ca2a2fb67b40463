"""Ranks against a brute-force oracle, worked examples, and the two ways of counting against each other."""

import logging

import pytest
import torch
from torch import Tensor

from croppable.core import crop
from croppable.kge import ranking
from croppable.kge.known import SIDES, KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.ranking import Ranks, rank_triples
from croppable.kge.ranking_compiled import supports
from croppable.kge.scores import SCORES

ADDITIVE = [name for name, score in SCORES.items() if score.additive]
WAYS = pytest.mark.parametrize("compiled", [False, True], ids=["reference", "compiled"])


def random_triples(num_entities: int, num_relations: int, count: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    highs = (num_entities, num_relations, num_entities)
    columns = [torch.randint(high, (count,), generator=random) for high in highs]
    triples = torch.stack(columns, 1).unique(dim=0)
    return triples[torch.randperm(len(triples), generator=random)]


def integer_model(score: str, sizes: tuple[int, ...], num_entities: int, **kwargs: object) -> KGEModel:
    """A model whose sums are exact in float32 in any order, so that every tie is a true one."""
    model = KGEModel(num_entities, 4, sizes, score, **kwargs)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for table in (model.entity, model.relation):
            table.copy_(torch.randint(-2, 3, table.shape, generator=random))
        if score == "rotate":  # no rotation, and points on the real axis: moduli are integers
            model.relation.zero_()
            model.entity[..., 1] = 0
    return model


def brute_force(
    model: KGEModel, size: int, triple: list[int], side: str, true: set[tuple[int, ...]]
) -> list[int]:
    """Return the optimistic and the pessimistic rank by the definition, one entity after the other."""
    h, r, t = triple
    anchor, target = (h, t) if side == "tail" else (t, h)
    with torch.no_grad():
        scores = crop(model, size)(torch.tensor([anchor]), torch.tensor([r]), None, side)[0].tolist()
    optimistic = pessimistic = 1
    for entity, score in enumerate(scores):
        other = (h, r, entity) if side == "tail" else (entity, r, t)
        if entity == target or other in true:
            continue
        optimistic += score > scores[target]
        pessimistic += score >= scores[target]
    return [optimistic, pessimistic]


def assert_equal_ranks(a: Ranks, b: Ranks) -> None:
    assert torch.equal(a.optimistic_SKT, b.optimistic_SKT)
    assert torch.equal(a.pessimistic_SKT, b.pessimistic_SKT)


@WAYS
@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_equals_brute_force(score: str, reciprocal: bool, compiled: bool) -> None:
    sizes = (1, 2, 5, 8)
    model = integer_model(score, sizes, 23, reciprocal=reciprocal)
    triples = random_triples(23, 4, 150)
    true = {tuple(triple) for triple in triples.tolist()}
    test = triples[:30]
    ranks = rank_triples(model, test, KnownTriples(triples, 23, 4), compiled=compiled)
    assert ranks.sizes == sizes
    assert ranks.num_entities == 23
    assert (ranks.pessimistic_SKT > ranks.optimistic_SKT).any(), "the example must have ties"
    for s, side in enumerate(SIDES):
        for k, size in enumerate(sizes):
            both = torch.stack([ranks.optimistic_SKT[s, k], ranks.pessimistic_SKT[s, k]], 1)
            expected = [brute_force(model, size, triple, side, true) for triple in test.tolist()]
            assert both.tolist() == expected, (side, size)


def valued_model(values: list[float]) -> KGEModel:
    """DistMult of one dim whose only relation and entity 0 are 1: the score of entity e is values[e]."""
    model = KGEModel(len(values), 1, (1,), "distmult")
    with torch.no_grad():
        model.entity.copy_(torch.tensor(values)[:, None])
        model.relation.fill_(1)
    return model


@WAYS
def test_worked_ties(compiled: bool) -> None:
    # From entity 0: entity 1 and 2 lead, 3 to 6 tie, 7 is last. Asked for: 0 -> 3.
    model = valued_model([1, 9, 8, 5, 5, 5, 5, 0])
    asked = torch.tensor([[0, 0, 3]])
    nothing_else = rank_triples(model, asked, KnownTriples(asked, 8, 1), compiled=compiled)
    assert nothing_else.optimistic_SKT[0].tolist() == [[3]]  # behind 1 and 2
    assert nothing_else.pessimistic_SKT[0].tolist() == [[6]]  # and behind 4, 5, 6
    assert nothing_else.by_ties("realistic")[0].tolist() == [[4.5]]
    # 0 -> 1 leads but is true, 0 -> 4 ties but is true, 0 -> 7 is true and changes nothing.
    true = torch.tensor([[0, 0, 3], [0, 0, 1], [0, 0, 4], [0, 0, 7]])
    filtered = rank_triples(model, asked, KnownTriples(true, 8, 1), compiled=compiled)
    assert filtered.by_ties("optimistic")[0].tolist() == [[2]]
    assert filtered.by_ties("pessimistic")[0].tolist() == [[4]]
    assert filtered.by_ties("realistic")[0].tolist() == [[3]]


@WAYS
def test_target_is_left_out_even_where_the_filter_does_not_know_it(compiled: bool) -> None:
    ranks = rank_triples(
        valued_model([1, 5, 5, 9]),
        torch.tensor([[0, 0, 1]]),
        KnownTriples(torch.tensor([[0, 0, 3]]), 4, 1),
        compiled=compiled,
    )
    assert ranks.optimistic_SKT[0].tolist() == [[1]]
    assert ranks.pessimistic_SKT[0].tolist() == [[2]]


@WAYS
def test_all_equal_scores_rank_in_the_middle(compiled: bool) -> None:
    asked = torch.tensor([[0, 0, 2]])
    ranks = rank_triples(valued_model([1.0] * 9), asked, KnownTriples(asked, 9, 1), compiled=compiled)
    assert ranks.by_ties("realistic").unique().tolist() == [5.0]


@WAYS
def test_filter_has_what_it_is_given(compiled: bool) -> None:
    model = valued_model([1, 9, 8, 7, 6])
    train, valid, test = (torch.tensor([[0, 0, tail]]) for tail in (1, 2, 3))
    best = [
        rank_triples(model, test, KnownTriples(torch.cat(known), 5, 1), compiled=compiled)
        .optimistic_SKT[0]
        .item()
        for known in ([test], [train, test], [train, valid, test])
    ]
    assert best == [3, 2, 1]


@WAYS
def test_entities_without_any_known_triple_are_ranked_and_are_candidates(compiled: bool) -> None:
    model = valued_model([1, 3, 2, 4])  # no triple is known of entities 2 and 3
    ranks = rank_triples(
        model,
        torch.tensor([[0, 0, 2], [3, 0, 2]]),
        KnownTriples(torch.tensor([[0, 0, 1]]), 4, 1),
        compiled=compiled,
    )
    assert ranks.optimistic_SKT[0].tolist() == [[2, 3]]  # 3 wins; from 3 on, 1 and 3 itself win


@pytest.mark.parametrize("score", ADDITIVE)
def test_compiled_equals_reference_over_many_tiles(score: str) -> None:
    sizes = (3, 4, 9, 16)
    triples = random_triples(1400, 4, 9000)
    known, test = KnownTriples(triples, 1400, 4), triples[:150]
    integers = integer_model(score, sizes, 1400)
    assert supports(integers)
    assert_equal_ranks(
        rank_triples(integers, test, known, compiled=False), rank_triples(integers, test, known)
    )
    floats = KGEModel(1400, 4, sizes, score, init_scale=1.0, calibration="affine")
    slow, fast = rank_triples(floats, test, known, compiled=False), rank_triples(floats, test, known)
    # Rounding may swap neighbours in a few of 1,200 ranks, by one place each.
    for a, b in ((slow.optimistic_SKT, fast.optimistic_SKT), (slow.pessimistic_SKT, fast.pessimistic_SKT)):
        assert (a - b).abs().max() <= 1
        assert (a != b).sum() <= 12


@pytest.mark.parametrize("score", ADDITIVE)
def test_copies_of_a_target_tie_with_it_at_every_size(score: str) -> None:
    torch.manual_seed(0)
    model = KGEModel(1100, 1, (1, 4, 7, 33, 64), score, init_scale=1.0)
    copies = torch.arange(5, 1100, 97)  # at all places of a tile, in all tiles
    with torch.no_grad():
        model.entity[copies] = model.entity[5].clone()
    asked = torch.tensor([[0, 0, 5]])
    ranks = rank_triples(model, asked, KnownTriples(asked, 1100, 1))
    ties = ranks.pessimistic_SKT[0] - ranks.optimistic_SKT[0]
    assert ties.tolist() == [[len(copies) - 1]] * 5


@WAYS
@pytest.mark.parametrize("score", SCORES)
def test_chunks_change_nothing(score: str, compiled: bool) -> None:
    model = integer_model(score, (2, 7), 600)
    triples = random_triples(600, 4, 3000)
    known, test = KnownTriples(triples, 600, 4), triples[:60]
    whole = rank_triples(model, test, known, compiled=compiled)
    for batch_size, candidate_chunk in ((1, 600), (7, 100), (1000, 1)):
        some = rank_triples(
            model, test, known, batch_size=batch_size, candidate_chunk=candidate_chunk, compiled=compiled
        )
        assert_equal_ranks(whole, some)


@WAYS
def test_some_sizes_only(compiled: bool) -> None:
    model = integer_model("complex", (2, 4, 8), 40)
    triples = random_triples(40, 4, 200)
    known = KnownTriples(triples, 40, 4)
    whole = rank_triples(model, triples[:20], known, compiled=compiled)
    part = rank_triples(model, triples[:20], known, sizes=(2, 4), compiled=compiled)
    assert part.sizes == (2, 4)
    assert torch.equal(part.optimistic_SKT, whole.optimistic_SKT[:, :2])
    assert torch.equal(part.pessimistic_SKT, whole.pessimistic_SKT[:, :2])


def test_a_sum_that_overflows_in_the_kernel_alone_is_ranked_by_the_reference() -> None:
    model = KGEModel(3, 1, (1, 4), "distmult")
    with torch.no_grad():
        model.relation.fill_(1)
        model.entity.copy_(1e19 * torch.tensor([[0.9, 0.9, 0.9, 0.9], [3, 3, -3, 0], [1, 0, 0, 0]]))
    asked = torch.tensor([[0, 0, 2]])
    ranks = rank_triples(model, asked, KnownTriples(asked, 3, 1))
    # Scores of entities 0, 1, 2 in 1e38: 0.81, 2.7, 0.9, then 3.24, 2.7 (by way of 5.4), 0.9.
    assert ranks.by_ties("pessimistic")[0].tolist() == [[2], [3]]


def test_what_the_kernel_cannot_rank_goes_to_the_reference() -> None:
    assert not supports(torch.nn.Linear(2, 2))
    assert not supports(KGEModel(5, 1, (2,), "pairre"))
    assert not supports(KGEModel(5, 1, (2,), "distmult").double())
    assert supports(KGEModel(5, 1, (2,), "distmult", calibration="affine"))


def test_reference_ranks_in_the_models_own_precision() -> None:
    model = valued_model([1, 1 + 1e-12, 1]).double()
    with torch.no_grad():
        model.entity[1] += 1e-12
    asked = torch.tensor([[0, 0, 1]])
    ranks = rank_triples(model, asked, KnownTriples(asked, 3, 1))
    assert ranks.by_ties("pessimistic")[0].tolist() == [[1]]


def test_without_numba_the_reference_ranks_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = integer_model("distmult", (2, 4), 30)
    triples = random_triples(30, 4, 100)
    known = KnownTriples(triples, 30, 4)
    fast = rank_triples(model, triples[:20], known)
    monkeypatch.setattr(ranking, "find_spec", lambda name: None)
    ranking._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_equal_ranks(fast, rank_triples(model, triples[:20], known))
    assert [record.message for record in caplog.records] == [
        "ranking without the compiled kernel, many times slower: pip install numba"
    ]


def test_any_croppable_module_with_the_same_forward_is_ranked() -> None:
    class Plain(torch.nn.Module):
        """The scores of a model, without its fast path for all sizes."""

        def __init__(self, inner: KGEModel) -> None:
            super().__init__()
            self.inner, self.sizes, self.size = inner, inner.sizes, inner.size
            self.num_entities, self.num_relations = inner.num_entities, inner.num_relations

        def resized(self, size: int) -> "Plain":
            return Plain(self.inner.resized(size))

        def forward(self, *query: Tensor) -> Tensor:
            return self.inner(*query)

    model = integer_model("complex", (2, 4, 8), 40)
    triples = random_triples(40, 4, 200)
    known = KnownTriples(triples, 40, 4)
    assert_equal_ranks(
        rank_triples(Plain(model), triples[:20], known), rank_triples(model, triples[:20], known)
    )


def test_modes_of_modules_are_put_back() -> None:
    model = valued_model([1, 2, 3])
    model.register_module("part", torch.nn.Dropout().eval())
    model.train(True)
    model.get_submodule("part").eval()
    asked = torch.tensor([[0, 0, 1]])
    rank_triples(model, asked, KnownTriples(asked, 3, 1))
    assert model.training
    assert not model.get_submodule("part").training


def test_progress_bar_only_on_demand(capfd: pytest.CaptureFixture[str]) -> None:
    asked = torch.tensor([[0, 0, 1], [1, 0, 2]])
    for progress in (False, True):
        rank_triples(valued_model([1, 2, 3]), asked, KnownTriples(asked, 3, 1), progress=progress)
        shown = capfd.readouterr().err
        assert ("4/4" in shown) is progress, shown


@pytest.mark.parametrize(("score", "together"), [("pairre", 2), ("complex", 30)])
def test_a_distance_asks_few_queries_at_once(
    monkeypatch: pytest.MonkeyPatch, score: str, together: int
) -> None:
    monkeypatch.setattr(ranking, "_TERMS_IN_CACHE", 2 * 25 * 8)  # two queries of 25 candidates and 8 dims
    test = random_triples(30, 4, 30)
    model = integer_model(score, (4, 8), 30)
    asked: list[int] = []
    score_all = model.forward_nested
    monkeypatch.setattr(model, "forward_nested", lambda *a: asked.append(len(a[1])) or score_all(*a))
    rank_triples(model, test, KnownTriples(test, 30, 4), candidate_chunk=25, compiled=False)
    assert max(asked) == together
    assert sum(asked) == 2 * 2 * len(test)  # two chunks of candidates, two sides
