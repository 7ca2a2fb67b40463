"""Sparse and dense gradients train the same model, and the rule between them."""

import math

import pytest
import torch

from croppable.kge.model import KGEModel
from croppable.kge.objective import LinkPrediction
from croppable.kge.optimizing import CROSSOVER, RowAdagrad, make_optimizer, prefers_sparse
from croppable.med import MED

ENTITIES, SIZES = 50, (2, 4, 8)


def step_of(compiled: str = "auto", n3: float = 0.0) -> LinkPrediction:
    torch.manual_seed(0)
    model = KGEModel(ENTITIES, 3, SIZES, "transe-l1", margin=2.0, calibration="scale")
    return LinkPrediction(model, MED(SIZES), compiled=compiled, n3=n3)  # type: ignore[arg-type]


@pytest.mark.parametrize("backwards", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_sparse_and_dense_adagrad_train_the_same_model(shared: bool, backwards: int) -> None:
    trained = []
    for sparse in (False, True):
        step = step_of()
        optimizer = make_optimizer(step, "adagrad", 0.1, touched_rows=1, sparse=sparse)
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            for _ in range(backwards):
                anchor, target, relation = (torch.randint(3, (4,), generator=generator) for _ in range(3))
                negatives = torch.randint(ENTITIES, (6,) if shared else (4, 6), generator=generator)
                step(anchor, relation, target, negatives)["loss"].backward()
            assert step.model.entity.grad is not None
            assert step.model.entity.grad.is_sparse == sparse
            optimizer.step()
            optimizer.zero_grad()
        trained.append({name: p.detach() for name, p in step.named_parameters()})
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (40, 2)])
def test_the_state_is_that_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows, values = torch.tensor([[1, 4]]), torch.randn(2, *shape, dtype=dtype)
    parameters = [torch.nn.Parameter(torch.ones(6, *shape, dtype=dtype)) for _ in range(2)]
    dense, sparse = torch.optim.Adagrad(parameters[:1], lr=0.1), RowAdagrad(parameters[1:], lr=0.1)
    for _ in range(3):
        gradient = torch.sparse_coo_tensor(rows, values, (6, *shape), check_invariants=False)
        parameters[0].grad, parameters[1].grad = gradient.to_dense(), gradient
        loss = sparse.step(lambda: 7.0)
        dense.step()
        assert loss == 7.0
        assert parameters[1].grad is gradient
    torch.testing.assert_close(*parameters)
    assert sparse.state_dict()["state"].keys() == dense.state_dict()["state"].keys()
    for name, value in dense.state_dict()["state"][0].items():
        torch.testing.assert_close(sparse.state_dict()["state"][0][name], value)


def test_a_dense_table_moves_as_by_torch() -> None:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.ones(6, 40)) for _ in range(2)]
    optimizers = [torch.optim.Adagrad(parameters[:1], lr=0.1), RowAdagrad(parameters[1:], lr=0.1)]
    for _ in range(3):
        gradient = torch.randn(6, 40)
        gradient[2] = 0
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
            assert torch.equal(parameter.grad, gradient)
    torch.testing.assert_close(*parameters)
    states = [optimizer.state_dict()["state"][0] for optimizer in optimizers]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value)


def test_rows_move_alike_on_one_thread_and_on_two() -> None:
    threads, trained = torch.get_num_threads(), []
    generator = torch.Generator().manual_seed(0)
    rows, values = torch.randperm(500, generator=generator)[:300].sort()[0], torch.randn(300, 320)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            parameter = torch.nn.Parameter(torch.ones(500, 320))
            parameter.grad = torch.sparse_coo_tensor(
                rows[None], values, parameter.shape, is_coalesced=True, check_invariants=False
            )
            RowAdagrad([parameter], lr=0.1).step()
            trained.append(parameter.detach())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*trained)


def test_the_rule_is_that_of_the_measured_crossover() -> None:
    boundary = math.ceil(10_000 / CROSSOVER)
    assert prefers_sparse(10_000, boundary - 1)
    assert not prefers_sparse(10_000, boundary)


@pytest.mark.parametrize(
    ("kind", "touched", "compiled", "n3", "sparse"),
    [
        ("adagrad", 5, "auto", 0.0, True),
        ("adagrad", 45, "auto", 0.0, False),
        ("adagrad", 5, "none", 0.0, False),
        ("adagrad", 5, "auto", 0.1, False),
        ("adam", 5, "auto", 0.0, False),
    ],
)
def test_auto_is_sparse_where_that_is_faster_and_possible(
    kind: str, touched: int, compiled: str, n3: float, sparse: bool
) -> None:
    step = step_of(compiled, n3)
    make_optimizer(step, kind, 0.1, touched_rows=touched)  # type: ignore[arg-type]
    assert step.sparse == sparse


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="takes no sparse gradient: use 'adagrad'"):
        make_optimizer(step_of(), "adam", 0.1, touched_rows=1, sparse=True)
    with pytest.raises(ValueError, match="kind must be one of adam, adagrad, got 'sgd'"):
        make_optimizer(step_of(), "sgd", 0.1, touched_rows=1)  # type: ignore[arg-type]
