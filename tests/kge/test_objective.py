"""Link prediction as a training step: losses of every kind of negatives, and N3 per segment, by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from croppable.core import crop
from croppable.kge.model import KGEModel
from croppable.kge.n3 import segment_n3
from croppable.kge.objective import LinkPrediction
from croppable.med import MED

SIZES = (2, 4, 8)
OFF: dict[str, Any] = {"mutual": 0.0, "w1": 0.0, "w2": 0.0, "w3": 0.0}
ANCHOR, RELATION, TARGET = torch.tensor([0, 5, 2]), torch.tensor([0, 2, 1]), torch.tensor([4, 1, 3])
NEGATIVES = torch.tensor([[1, 0], [5, 4], [0, 1]])
POOL = torch.tensor([0, 2, 5, 5])  # none of the targets
BATCH = (ANCHOR, RELATION, TARGET)


def step_of(
    score: str = "complex", task: Any = "multiclass", *, n3: float = 0.0, **options: Any
) -> LinkPrediction:
    torch.manual_seed(0)
    tables = {"reciprocal": options.pop("reciprocal", False), "relations": options.pop("relations", "shared")}
    model = KGEModel(6, 3, SIZES, score, **tables)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    balance = options.pop("n3_balance", 1.0)
    more = {name: options.pop(name) for name in ("compiled", "logq_correction") if name in options}
    objective = MED(SIZES, task=task, **{**OFF, **options})
    return LinkPrediction(model, objective, n3=n3, n3_balance=balance, **more)


def nested_mean(step: LinkPrediction, loss: Any) -> Tensor:
    """The mean over sizes of a loss of each crop by itself."""
    return torch.stack([loss(crop(step.model, size)) for size in SIZES]).mean()


def test_softmax_over_all_entities_is_the_cross_entropy_of_every_crop() -> None:
    step = step_of()
    expected = nested_mean(step, lambda model: F.cross_entropy(model(ANCHOR, RELATION), TARGET))
    torch.testing.assert_close(step(*BATCH)["loss"], expected)


@pytest.mark.parametrize("side", ["tail", "head"])
def test_negatives_of_each_query_stand_behind_the_answer(side: Any) -> None:
    candidates = torch.cat([TARGET[:, None], NEGATIVES], 1)
    step = step_of("transe-l1", "binary")

    def loss(model: KGEModel) -> Tensor:
        scores = model(ANCHOR, RELATION, candidates, side)
        return F.softplus(-scores[:, 0]).mean() + F.softplus(scores[:, 1:]).mean()

    torch.testing.assert_close(step(*BATCH, NEGATIVES, side)["loss"], nested_mean(step, loss))


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("score", ["complex", "transe-l1", "pairre"])
def test_a_shared_pool_equals_the_same_negatives_for_each_query(score: str, task: Any) -> None:
    step = step_of(score, task, mutual=0.5, w1=1.0, w2=1.0, w3=1.0)
    shared, own = step(*BATCH, POOL), step(*BATCH, POOL.expand(3, -1))
    for name, value in own.items():
        torch.testing.assert_close(shared[name], value)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize(("score", "relations"), [("complex", "shared"), ("transe-l1", "own")])
def test_pools_of_a_run_of_queries_equal_those_negatives_for_each_query(
    score: str, relations: Any, task: Any
) -> None:
    batch = [ids.repeat(7) for ids in BATCH]  # 21 queries: 16 with the first pool and 5 with the second
    pools = torch.stack([POOL, (POOL + 1) % 5])
    step = step_of(score, task, relations=relations, mutual=0.5, w1=1.0, w2=1.0, w3=1.0)
    own = torch.cat([pools[:1].expand(16, -1), pools[1:].expand(5, -1)])
    scores, expected = (step.scores(*batch, ids)[0] for ids in (pools, own))
    answers = own == batch[2][:, None]  # which are no negatives
    assert 0 < answers.sum() < answers[16:].numel()
    torch.testing.assert_close(scores[..., 1:][:, ~answers], expected[..., 1:][:, ~answers])
    torch.testing.assert_close(scores[..., 0], expected[..., 0])
    assert (scores[..., 1:][:, answers] < -1000).all()


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_answer_in_a_shared_pool_is_no_negative_of_its_own_query(task: Any) -> None:
    pool = torch.tensor([4, 0, 2])  # the answer of the first query, and two that answer nothing
    step = step_of("complex", task)

    def loss(model: KGEModel) -> Tensor:
        true = model(ANCHOR, RELATION, TARGET[:, None])[:, 0]
        false = model(ANCHOR, RELATION, pool)
        if task == "binary":
            terms = F.softplus(false)
            return F.softplus(-true).mean() + (terms.sum() - terms[0, 0]) / terms.numel()
        rows = [torch.cat([true[:1], false[0, 1:]])] + [
            torch.cat([true[i : i + 1], false[i]]) for i in (1, 2)
        ]
        return torch.stack([row.logsumexp(0) - row[0] for row in rows]).mean()

    terms = step(*BATCH, pool)
    torch.testing.assert_close(terms["loss"], nested_mean(step, loss))
    terms["loss"].backward()
    assert all(bool(p.grad.isfinite().all()) for p in step.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("score", ["complex", "transe-l2"])
@pytest.mark.parametrize("relations", ["shared", "own"])
def test_with_the_correction_every_other_entity_once_is_the_softmax_over_all(
    score: str, relations: Any
) -> None:
    others = torch.tensor([[entity for entity in range(6) if entity != answer] for answer in TARGET])
    step = step_of(score, logq_correction=True, relations=relations)
    for negatives in (others, others.repeat(1, 3)):  # how many were sampled does not matter
        found = step(*BATCH, negatives)["loss"]
        torch.testing.assert_close(found, step(*BATCH)["loss"])
        found.backward()
    pool = step(*BATCH, POOL)["loss"]
    torch.testing.assert_close(pool, step(*BATCH, POOL.repeat(2))["loss"])
    assert pool > step_of(score, relations=relations)(*BATCH, POOL)["loss"] + 0.01


def test_the_correction_is_for_the_softmax() -> None:
    with pytest.raises(ValueError, match="logq_correction is for task='multiclass', got 'binary'"):
        step_of(task="binary", logq_correction=True)


@pytest.mark.parametrize("negatives", [None, NEGATIVES, POOL], ids=["all", "own", "shared"])
def test_a_batch_of_both_sides_is_the_mean_of_its_sides(negatives: Tensor | None) -> None:
    step = step_of(reciprocal=True)
    asks_head = torch.tensor([True, False, True])
    both = step(*BATCH, negatives, asks_head)["loss"]
    parts = []
    for side, rows in (("head", asks_head), ("tail", ~asks_head)):
        own = negatives[rows] if negatives is not None and negatives.ndim == 2 else negatives
        loss = step(ANCHOR[rows], RELATION[rows], TARGET[rows], own, side)["loss"]
        parts.append(loss * rows.sum())
    torch.testing.assert_close(both, sum(parts) / 3)


# ----------------------------------------------------------------------------------------------- N3


def test_n3_by_hand() -> None:
    rows = torch.tensor([[1.0, -2.0, 0.0, 1.0], [1.0, 0.0, 3.0, 0.0]])
    assert segment_n3(rows, (1, 2, 4)).tolist() == [1, 4, 14]
    parts = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])  # moduli 5 and 2
    assert segment_n3(parts, (1, 2)).tolist() == pytest.approx([125, 8])


def test_n3_has_a_finite_gradient_at_zero() -> None:
    rows = torch.zeros(2, 3, 2, requires_grad=True)
    segment_n3(rows, (1, 3)).sum().backward()
    assert rows.grad is not None
    assert bool(rows.grad.isfinite().all())


@pytest.mark.parametrize("score", ["complex", "rotate", "pairre"])  # 2 and 2 reals a dim, 2 and 1, 1 and 2
@pytest.mark.parametrize("balance", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("negatives", [None, NEGATIVES, POOL], ids=["all", "own", "shared"])
def test_n3_is_weighed_by_the_sizes_that_reach_a_segment(
    negatives: Tensor | None, balance: float, score: str
) -> None:
    step, plain = step_of(score, n3=0.5, n3_balance=balance), step_of(score)
    tables = (step.model.entity, step.model.relation)
    entity, relation = ((t.norm(dim=-1) if t.ndim == 3 else t.abs()) ** 3 for t in tables)
    weights = torch.tensor([1, 1, 2 / 3, 2 / 3, *[1 / 3] * 4]) ** balance
    rows = (entity[ANCHOR], relation[RELATION], entity[TARGET])
    penalty = 0.5 * sum((cubes.mean(0) * weights).sum() for cubes in rows)
    terms = step(*BATCH, negatives)
    torch.testing.assert_close(terms["n3"], penalty)
    torch.testing.assert_close(terms["loss"], plain(*BATCH, negatives)["loss"] + penalty)


# ------------------------------------------------------------------------------------ the step as a whole


def test_learnable_weights_are_among_the_steps_parameters() -> None:
    step = step_of(task="binary", w1=1.0, w2=1.0, w3=1.0, learnable=True)
    step(*BATCH, NEGATIVES)["loss"].backward()
    learnt = {name for name, p in step.named_parameters() if p.requires_grad}
    assert learnt == {
        "nested.model.entity",
        "nested.model.relation",
        "objective.w1",
        "objective.w2",
        "objective.w3",
    }
    assert all(p.grad is not None for p in step.parameters() if p.requires_grad)


def test_training_lowers_the_loss_at_every_size() -> None:
    step = step_of(mutual=0.1, w1=1.0, w3=1.0)
    optimizer = torch.optim.Adagrad(step.parameters(), lr=0.3)

    def losses() -> list[float]:
        return [
            F.cross_entropy(crop(step.model, size)(ANCHOR, RELATION), TARGET).item()
            for size in step.model.sizes
        ]

    before = losses()
    for _ in range(30):
        step(*BATCH)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(after < 0.2 * start for after, start in zip(losses(), before, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore:The .grad attribute"
)  # the compiler's
def test_the_compiled_loss_equals_the_eager_one() -> None:
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        pytest.skip(f"no C++ compiler: {error}")
    results = []
    for compiled in ("none", "loss"):
        step = step_of("transe-l1", "binary", compiled=compiled, mutual=1.0, w1=1.0, w2=1.0, w3=1.0)
        terms = step(*BATCH, NEGATIVES)
        terms["loss"].backward()
        results.append([terms["loss"].detach(), *(p.grad for p in step.model.parameters())])
    for eager, compiled_value in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled_value)
