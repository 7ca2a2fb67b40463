"""Cases for the Triton kernels, each a function of a device, and a program that interprets them on the CPU.

    TRITON_INTERPRET=1 python tests/triton_cases.py

Triton reads the variable when it is imported, so tests/kge/test_triton.py runs this in a process of its own.
It prints one JSON object: the name of each case, and its traceback or null. Where there is a GPU, the same
cases run on it.
"""

import copy
import importlib
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from croppable.compiling import import_gpu_kernels
from croppable.core import crop
from croppable.kge import prefixes, ranking
from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.objective import LinkPrediction
from croppable.kge.ranking import Ranks, rank_triples
from croppable.kge.scores import SCORES
from croppable.med import MED

ADDITIVE = [name for name, score in SCORES.items() if score.additive]
DISTANCES = [name for name in ADDITIVE if not SCORES[name].product]
RANKING, POOL = "croppable.kge.ranking_triton", "croppable.kge.pool_triton"

Case = Callable[[torch.device], None]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def for_each(names: Sequence[str]) -> Callable[[Callable[[str, torch.device], None]], None]:
    """Make a case of a function for each name."""

    def make(function: Callable[[str, torch.device], None]) -> None:
        CASES.update({f"{function.__name__}-{name}": partial(function, name) for name in names})

    return make


@contextmanager
def kernels_on(device: torch.device) -> Iterator[None]:
    """Have the kernels used: a GPU takes them by itself, the interpreter where they are put in its way."""
    if device.type == "cuda":
        assert import_gpu_kernels(RANKING, device)
        assert import_gpu_kernels(POOL, device)
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(patch.object(ranking, "_kernels", lambda _: importlib.import_module(RANKING)))
        plug = lambda module, _: importlib.import_module(module)  # noqa: E731
        stack.enter_context(patch.object(prefixes, "import_gpu_kernels", plug))
        yield


def integer_model(score: str, sizes: tuple[int, ...], num_entities: int, **kwargs: object) -> KGEModel:
    """A model whose sums are exact in float32 in any order, so that every tie is a true one."""
    model = KGEModel(num_entities, 4, sizes, score, **kwargs)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for table in (model.entity, model.relation):
            table.copy_(torch.randint(-2, 3, table.shape, generator=random))
        if score == "rotate":  # no rotation, and differences that are multiples of (3, 4)
            model.relation.zero_()
            model.entity.copy_(model.entity[..., :1] * torch.tensor([3.0, 4.0]))
    return model


def some_triples(num_entities: int, count: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    columns = [torch.randint(high, (count,), generator=random) for high in (num_entities, 4, num_entities)]
    return torch.stack(columns, 1).unique(dim=0)[torch.randperm(count // 2, generator=random)]


def by_kernels(model: KGEModel, triples: Tensor, device: torch.device, **options: object) -> Ranks:
    known = options.pop("known", None) or KnownTriples(triples, model.num_entities, model.num_relations)
    with kernels_on(device):
        return rank_triples(copy.deepcopy(model).to(device), triples, known, **options)  # type: ignore[arg-type]


def assert_equal_ranks(a: Ranks, b: Ranks) -> None:
    assert torch.equal(a.optimistic_SKT, b.optimistic_SKT)
    assert torch.equal(a.pessimistic_SKT, b.pessimistic_SKT)


# ------------------------------------------------------------------------------------------------ ranks


@for_each(ADDITIVE)
def ranks_equal_the_reference(score: str, device: torch.device) -> None:
    """Odd numbers of everything: no tile is full, triples and entities take two chunks each."""
    model = integer_model(score, (1, 2, 5), 203, calibration="affine")
    triples = some_triples(203, 400)
    known, test = KnownTriples(triples, 203, 4), triples[:70]
    found = by_kernels(model, test, device, known=known, batch_size=65, candidate_chunk=150)
    expected = rank_triples(model, test, known, compiled=False)
    assert (expected.pessimistic_SKT > expected.optimistic_SKT).any(), "the example must have ties"
    assert_equal_ranks(found, expected)


@for_each(ADDITIVE)
def ranks_of_floats_differ_by_rounding_alone(score: str, device: torch.device) -> None:
    torch.manual_seed(0)
    model = KGEModel(90, 4, (3, 7), score, init_scale=1.0)
    triples = some_triples(90, 100)
    expected = rank_triples(model, triples, KnownTriples(triples, 90, 4), compiled=False)
    found = by_kernels(model, triples, device)
    apart = (found.pessimistic_SKT - expected.pessimistic_SKT).abs()
    assert apart.max() <= 1
    assert (apart > 0).sum() <= 2


@for_each(ADDITIVE)
def copies_of_a_target_tie_with_it(score: str, device: torch.device) -> None:
    torch.manual_seed(0)
    model = KGEModel(300, 1, (1, 4, 9), score, init_scale=1.0)
    copies = torch.arange(5, 300, 37)  # at all places of a tile, in all tiles
    with torch.no_grad():
        model.entity[copies] = model.entity[5].clone()
    ranks = by_kernels(model, torch.tensor([[0, 0, 5]]), device)
    ties = ranks.pessimistic_SKT[0] - ranks.optimistic_SKT[0]
    assert ties.tolist() == [[len(copies) - 1]] * 3


@case
def reciprocal_relations_and_some_sizes_are_ranked(device: torch.device) -> None:
    model = integer_model("complex", (2, 4, 8), 40, reciprocal=True)
    triples = some_triples(40, 100)
    expected = rank_triples(model, triples, KnownTriples(triples, 40, 4), compiled=False, sizes=(2, 4))
    assert_equal_ranks(by_kernels(model, triples, device, sizes=(2, 4)), expected)


@case
def relations_of_each_size_are_ranked_size_by_size(device: torch.device) -> None:
    model = integer_model("transe-l1", (2, 3), 40, relations="own")
    triples = some_triples(40, 100)
    expected = rank_triples(model, triples, KnownTriples(triples, 40, 4), compiled=False)
    assert_equal_ranks(by_kernels(model, triples, device), expected)


@case
def the_target_is_left_out_even_where_the_filter_does_not_know_it(device: torch.device) -> None:
    model = KGEModel(4, 1, (1,), "distmult")
    with torch.no_grad():
        model.entity.copy_(torch.tensor([[1.0], [5], [5], [9]]))
        model.relation.fill_(1)
    known = KnownTriples(torch.tensor([[0, 0, 3]]), 4, 1)
    ranks = by_kernels(model, torch.tensor([[0, 0, 1]]), device, known=known)
    assert ranks.optimistic_SKT[0].tolist() == [[1]]
    assert ranks.pessimistic_SKT[0].tolist() == [[2]]


@for_each(ADDITIVE)
def scores_that_are_not_finite_are_an_error(score: str, device: torch.device) -> None:
    for bad in (math.nan, math.inf):
        for entity in (7, 3):  # a candidate, the target
            model = KGEModel(9, 1, (2, 4), score)
            with torch.no_grad():
                model.entity[entity, 3] = bad
            named = rf"\(head 2, relation 0, tail {entity}\) is \S+ at size 4"
            with pytest.raises(ValueError, match=named):
                by_kernels(model, torch.tensor([[2, 0, 3]]), device)


@case
def a_sum_that_overflows_in_the_kernel_alone_is_ranked_by_the_reference(device: torch.device) -> None:
    model = KGEModel(3, 1, (1, 4), "distmult")
    with torch.no_grad():
        model.relation.fill_(1)
        model.entity.copy_(1e19 * torch.tensor([[0.9, 0.9, 0.9, 0.9], [3, 3, -3, 0], [1, 0, 0, 0]]))
    # Scores of entities 0, 1, 2 in 1e38: 0.81, 2.7, 0.9, then 3.24, 2.7 (by way of 5.4), 0.9.
    asked = torch.tensor([[0, 0, 2]])
    kernels = importlib.import_module(RANKING)
    known = KnownTriples(asked, 3, 1)
    task = ("tail", (1, 4), known, None, 4096, lambda _: None)
    broken = kernels.count_compiled(copy.deepcopy(model).to(device), asked, *task)[2]
    assert broken.tolist() == [True]
    if device.type == "cpu":  # the order of a GPU's own sums is not known
        assert by_kernels(model, asked, device).by_ties("pessimistic")[0].tolist() == [[2], [3]]


@case
def the_kernels_say_what_they_rank(device: torch.device) -> None:
    supports = importlib.import_module(RANKING).supports
    assert all(supports(KGEModel(5, 1, (2,), score, calibration="affine")) for score in ADDITIVE)
    steep = KGEModel(5, 1, (2,), "distmult", calibration="scale")
    with torch.no_grad():
        steep.log_scale.fill_(100)
    for other in (torch.nn.Linear(2, 2), KGEModel(5, 1, (2,), "pairre"), steep,
                  KGEModel(5, 1, (2,), "distmult").double()):  # fmt: skip
        assert not supports(other)


# ---------------------------------------------------------------------------------------- shared pools


def shared_scores(
    score: str, sizes: tuple[int, ...], rows: Sequence[Tensor], weights: Tensor, at: Callable[..., Tensor]
) -> tuple[Tensor, ...]:
    """Return the scores of a pool at all sizes, and the gradients by anchors, relations and pool."""
    leaves = [x.detach().requires_grad_() for x in rows]
    scores = at(SCORES[score], sizes, *leaves, "head")
    return scores.detach(), *torch.autograd.grad(scores, leaves, weights)


def size_by_size(score: object, sizes: Sequence[int], *rows: object) -> Tensor:
    """The specification of all sizes."""
    return torch.stack([prefixes.scores_at(score, size, *rows) for size in sizes])  # type: ignore[arg-type]


def rows_of(model: KGEModel, batch: int, pool: int) -> tuple[Tensor, Tensor, Tensor]:
    anchor, relation = torch.arange(batch) % model.num_entities, torch.arange(batch) % 4
    return model.lookup(anchor, relation, torch.arange(pool) % model.num_entities, "head")


@for_each(DISTANCES)
def pools_have_the_values_and_gradients_of_the_specification(score: str, device: torch.device) -> None:
    """Odd shapes, over tiles of 16, 64 and 32; a candidate in place of its own query has no difference."""
    torch.manual_seed(0)
    for sizes, batch, pool in (((1, 3, 6), 17, 65), ((35,), 3, 2)):
        rows = rows_of(KGEModel(40, 4, sizes, score, init_scale=1.0), batch, pool)
        weights = torch.randn(len(sizes), batch, pool)
        expected = shared_scores(score, sizes, [x.double() for x in rows], weights.double(), size_by_size)
        with kernels_on(device):
            moved = [x.to(device) for x in rows]
            found = shared_scores(score, sizes, moved, weights.to(device), prefixes.prefix_scores)
        for own, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(own.cpu(), theirs.float(), rtol=1e-4, atol=1e-5)


@for_each(DISTANCES)
def pools_of_integers_are_exact(score: str, device: torch.device) -> None:
    """Anchors are among the candidates, so that some differences are zero."""
    model = integer_model(score, (2, 5), 20)
    rows = rows_of(model, 18, 20)
    terms = importlib.import_module(POOL).segment_sums
    query = SCORES[score].query(rows[0], torch.zeros_like(rows[1]), "head")
    leaves = [[x.detach().to(d).requires_grad_() for x in (query, rows[2])] for d in ("cpu", device)]
    found = terms(SCORES[score], (2, 5), *leaves[1])
    with patch.object(prefixes, "gpu_pool_kernels", lambda *_: None):
        expected = prefixes.segment_terms(SCORES[score], (2, 5), *leaves[0])
        plain = prefixes._shared_totals(SCORES[score], (2, 5), *leaves[0])
    assert torch.equal(found.detach().cpu(), expected)
    weights = torch.randint(-3, 4, found.shape).float()
    by_found = torch.autograd.grad(found.cumsum(0), leaves[1], weights.to(device))
    by_plain = torch.autograd.grad(plain, leaves[0], weights)
    for own, theirs in zip(by_found, by_plain, strict=True):
        torch.testing.assert_close(own.cpu(), theirs, rtol=1e-6, atol=1e-6 if score == "rotate" else 0)


@case
def dims_behind_the_last_size_are_left_alone(device: torch.device) -> None:
    kernels, rows = importlib.import_module(POOL), [torch.randn(n, 6, device=device) for n in (3, 4)]
    with torch.no_grad():
        cut = [x[:, :4].clone().requires_grad_() for x in rows]
    whole = [x.requires_grad_() for x in rows]
    found = [kernels.segment_sums(SCORES["transe-l2"], (1, 4), *x) for x in (whole, cut)]
    assert torch.equal(*found)
    gradients = [torch.autograd.grad(f.sum(), x) for f, x in zip(found, (whole, cut), strict=True)]
    for wide, narrow in zip(*gradients, strict=True):
        assert torch.equal(wide[:, :4], narrow)
        assert not wide[:, 4:].any()


@case
def what_is_frozen_gets_no_gradient(device: torch.device) -> None:
    kernels, (query, pool) = importlib.import_module(POOL), torch.randn(2, 3, 4, device=device)
    kernels.segment_sums(SCORES["transe-l1"], (4,), query.requires_grad_(), pool).sum().backward()
    assert query.grad is not None
    assert pool.grad is None


@for_each(DISTANCES)
def losses_are_those_of_the_specification(score: str, device: torch.device) -> None:
    """A step with a pool, and one against all entities, tile by tile."""
    batch = [torch.tensor(ids) for ids in ([0, 5, 9], [0, 3, 1], [4, 2, 8])]
    for negatives, task in ((torch.arange(3, 12), "binary"), (None, "multiclass")):
        losses = []
        for there in (torch.device("cpu"), device):
            torch.manual_seed(0)
            model = KGEModel(12, 4, (2, 4), score, margin=2.0)
            step = LinkPrediction(
                model, MED((2, 4), task=task, mutual_form="huber" if negatives is not None else "kl"),
                compiled="none" if negatives is not None else "auto",
            ).to(there)  # fmt: skip
            pool = None if negatives is None else negatives.to(there)
            with ExitStack() as stack:
                if len(losses):
                    stack.enter_context(kernels_on(device))
                loss = step(*(ids.to(there) for ids in batch), pool)["loss"]
                loss.backward()
            losses.append((loss.detach().cpu(), model.entity.grad.cpu()))  # type: ignore[union-attr]
        for own, theirs in zip(*losses, strict=True):
            torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-6)


@case
def crops_score_as_the_model_does_at_their_size(device: torch.device) -> None:
    model = integer_model("transe-l1", (2, 5), 20).to(device)
    query = [torch.arange(3, device=device)] * 2
    with kernels_on(device), torch.no_grad():
        small = crop(model, 2)(*query)
        assert torch.equal(model.forward_nested((2, 5), *query)[0], small)


@for_each([RANKING, POOL])
def the_check_on_first_use_passes(module: str, device: torch.device) -> None:
    importlib.import_module(module).check(device)


@case
def the_check_on_first_use_finds_a_wrong_kernel(device: torch.device) -> None:
    ranks, pools = (importlib.import_module(name) for name in (RANKING, POOL))
    swapped = {**ranks.KINDS, type(SCORES["transe-l1"]): "squared"}
    for module in (ranks, pools):
        with patch.object(module, "KINDS", swapped), pytest.raises(RuntimeError, match="transe-l1"):
            module.check(device)


def main() -> None:
    outcomes = {}
    for name, run in CASES.items():
        try:
            run(torch.device("cpu"))
            outcomes[name] = None
        except (Exception, pytest.fail.Exception):
            outcomes[name] = traceback.format_exc()
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
