"""The embedding model: croppable in every form, its parameters per size, its forms of a question."""

import inspect
import json
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from croppable.checks import check_croppable
from croppable.core import Nested, crop
from croppable.kge.model import KGEModel, unit_of
from croppable.kge.scores import SCORES

SIZES = (2, 4, 8)
CALIBRATIONS: tuple[Any, ...] = ("none", "fixed", "scale", "affine")
ANCHOR, RELATION = torch.tensor([0, 5, 2, 2]), torch.tensor([0, 2, 2, 1])
CANDIDATES = torch.tensor([[1, 0, 4], [5, 4, 0], [3, 3, 1], [0, 1, 2]])
ASKS_HEAD = torch.tensor([True, False, False, True])


def model_of(score: str = "complex", sizes: tuple[int, ...] = SIZES, **options: Any) -> KGEModel:
    torch.manual_seed(0)
    model = KGEModel(6, 3, sizes, score, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("options", "side"),
    [
        ({}, "tail"),
        ({"margin": 3.0, "calibration": "scale"}, "head"),
        ({"margin": 3.0, "calibration": "affine", "reciprocal": True}, ASKS_HEAD),
    ],
    ids=["plain", "scale", "affine-reciprocal"],
)
def test_every_form_of_the_model_keeps_every_law(score: str, options: dict[str, Any], side: Any) -> None:
    model = model_of(score, **options)
    check_croppable(
        model,
        {"anchor": ANCHOR, "relation": RELATION, "candidates": CANDIDATES, "side": side},
        SIZES,
    )


@pytest.mark.parametrize("candidates", [None, torch.tensor([3, 0, 0])], ids=["all", "shared"])
@pytest.mark.parametrize("score", SCORES)
def test_shared_candidates_equal_those_of_each_query(score: str, candidates: Tensor | None) -> None:
    model = model_of(score, calibration="affine", margin=1.0)
    listed = (torch.arange(6) if candidates is None else candidates).expand(4, -1)
    for side in ("tail", "head"):
        shared = model.forward_nested(SIZES, ANCHOR, RELATION, candidates, side)
        own = model.forward_nested(SIZES, ANCHOR, RELATION, listed, side)
        torch.testing.assert_close(shared, own)


@pytest.mark.parametrize("score", SCORES)
def test_any_of_the_sizes_can_be_asked_for(score: str) -> None:
    model = model_of(score, calibration="affine")
    nested = model.forward_nested(SIZES, ANCHOR, RELATION, CANDIDATES)
    for chosen in ((2,), (4,), (2, 8), (4, 8), (2, 4)):
        index = [SIZES.index(size) for size in chosen]
        some = model.forward_nested(chosen, ANCHOR, RELATION, CANDIDATES)
        torch.testing.assert_close(some, nested[index])
    torch.testing.assert_close(model(ANCHOR, RELATION, CANDIDATES), nested[-1])


# ---------------------------------------------------------------------------------- parameters per size


def test_scale_margin_and_offset_by_hand() -> None:
    model = model_of("distmult", calibration="affine", margin=3.0)
    plain = model_of("distmult")
    plain.entity, plain.relation = model.entity, model.relation
    with torch.no_grad():
        model.log_scale.copy_(torch.tensor([0.0, math.log(2), math.log(3)]))
        model.offset.copy_(torch.tensor([10.0, 20.0, 30.0]))
    raw = plain.forward_nested(SIZES, ANCHOR, RELATION)
    scores = model.forward_nested(SIZES, ANCHOR, RELATION)
    for k, (scale, offset) in enumerate([(1, 10), (2, 20), (3, 30)]):
        torch.testing.assert_close(scores[k], scale * raw[k] + 3 + offset)


def test_a_crop_keeps_the_rows_of_the_sizes_up_to_its_own() -> None:
    model = model_of(calibration="affine")
    assert crop(model, 4).log_scale.tolist() == model.log_scale[:2].tolist()
    between = crop(model, 3)  # its last row is that of the next size
    assert (between.sizes, between.offset.tolist()) == ((2, 3), model.offset[:2].tolist())
    below = crop(model, 1)
    assert (below.sizes, below.offset.tolist()) == ((1,), model.offset[:1].tolist())


def test_calibration_never_changes_a_ranking() -> None:
    model, plain = model_of("transe-l1", calibration="affine", margin=7.0), model_of("transe-l1")
    plain.entity, plain.relation = model.entity, model.relation
    orders = [m.forward_nested(SIZES, ANCHOR, RELATION).argsort(-1) for m in (model, plain)]
    assert torch.equal(*orders)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_only_calibrated_models_have_parameters_per_size(calibration: Any) -> None:
    names = {name for name, _ in model_of(calibration=calibration).named_parameters()}
    expected = {"scale": {"log_scale"}, "affine": {"log_scale", "offset"}}.get(calibration, set())
    assert names == {"entity", "relation"} | expected


def test_a_fixed_scale_is_inverse_to_the_size_and_does_not_learn() -> None:
    model = KGEModel(3000, 4, (10, 40, 160), "rotate", margin=6.0, calibration="fixed")
    assert model.log_scale.exp().tolist() == pytest.approx([4, 1, 0.25])
    assert model.entity.abs().max().item() == pytest.approx((6 + 2) / 40, rel=0.01)
    model.forward_nested((10, 160), torch.arange(5), torch.zeros(5, dtype=torch.long)).sum().backward()
    assert model.entity.grad is not None
    assert not model.log_scale.requires_grad
    assert crop(model, 40).log_scale.exp().tolist() == pytest.approx([4, 1])


def test_a_fixed_scale_of_one_size_is_none() -> None:
    models = []
    for calibration in CALIBRATIONS[:2]:
        torch.manual_seed(0)
        models.append(KGEModel(6, 3, (40,), "rotate", margin=6.0, calibration=calibration))
    plain, fixed = models
    torch.testing.assert_close(fixed(ANCHOR, RELATION), plain(ANCHOR, RELATION))


# ------------------------------------------------------------------------------- tables and their start


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_tables_have_their_dims_on_axis_one(score: str, reciprocal: bool) -> None:
    model, function = model_of(score, reciprocal=reciprocal), SCORES[score]
    parts = [() if n == 1 else (n,) for n in (function.entity_parts, function.relation_parts)]
    assert model.entity.shape == (6, 8, *parts[0])
    assert model.relation.shape == (6 if reciprocal else 3, 8, *parts[1])


@pytest.mark.parametrize("score", SCORES)
def test_initial_tables_have_the_documented_spread(score: str) -> None:
    torch.manual_seed(0)
    for init_scale in (None, 0.3):
        model = KGEModel(2000, 500, (5, 10), score, margin=8.0, init_scale=init_scale)
        if not SCORES[score].distance:
            expected = 1e-3 if init_scale is None else init_scale
            for table in (model.entity, model.relation):
                assert table.std().item() == pytest.approx(expected, rel=0.05)
            continue
        width = (8 + 2) / 10 if init_scale is None else init_scale
        centre, spread = {"rotate": (0, math.pi), "pairre": (1, width)}.get(score, (0, width))
        assert model.entity.abs().max().item() == pytest.approx(width, rel=0.01)
        assert (model.relation - centre).abs().max().item() == pytest.approx(spread, rel=0.01)
        assert (model.relation - centre).mean().item() == pytest.approx(0, abs=0.05 * spread)


def test_scores_of_distances_start_on_one_scale() -> None:
    model = KGEModel(3000, 4, (10, 40, 160), "transe-l1", calibration="affine")
    assert model.log_scale.tolist() == pytest.approx([math.log(16), math.log(4), 0])
    assert model.offset.tolist() == [0, 0, 0]
    scores = model.forward_nested((10, 40, 160), torch.arange(50), torch.zeros(50, dtype=torch.long))
    means = scores.mean((1, 2))
    assert (means / means[-1]).tolist() == pytest.approx([1, 1, 1], abs=0.1)
    assert KGEModel(3, 1, SIZES, "distmult", calibration="scale").log_scale.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("calibration", "unit"), [("fixed", 40), ("scale", 160), ("affine", 160)])
def test_one_size_alone_can_start_as_it_does_among_others(calibration: Any, unit: float) -> None:
    some = {"margin": 6.0, "calibration": calibration}
    together = KGEModel(3000, 4, (10, 40, 160), "rotate", **some)
    alone = KGEModel(3000, 4, (10,), "rotate", **some, unit_size=unit)
    assert unit_of((10, 40, 160), calibration) == pytest.approx(unit)
    torch.testing.assert_close(alone.log_scale, together.log_scale[:1])
    for model in (together, alone):
        assert model.entity.abs().max().item() == pytest.approx(8 / unit, rel=0.01)
    assert KGEModel(3, 1, (10,), "rotate", **some).log_scale.item() == pytest.approx(0)


def test_the_same_seed_gives_the_same_tables() -> None:
    tables = []
    for _ in range(2):
        torch.manual_seed(3)
        tables.append(KGEModel(6, 3, SIZES, "rotate").entity)
    assert torch.equal(*tables)


# ---------------------------------------------------------------------------------- questions and sides


def test_a_reciprocal_model_asks_for_heads_by_its_second_relations() -> None:
    model = model_of(reciprocal=True)
    plain = model_of()
    plain.entity, plain.relation = model.entity, torch.nn.Parameter(model.relation[3:].detach().clone())
    asked = model(ANCHOR, RELATION, None, "head")
    torch.testing.assert_close(asked, plain(ANCHOR, RELATION, None, "tail"))
    assert not torch.allclose(asked, model(ANCHOR, RELATION, None, "tail"))


@pytest.mark.parametrize("score", SCORES)
def test_one_batch_may_ask_for_both_sides_where_relations_are_reciprocal(score: str) -> None:
    model = model_of(score, reciprocal=True)
    both = model(ANCHOR, RELATION, None, ASKS_HEAD)
    for side, rows in (("head", ASKS_HEAD), ("tail", ~ASKS_HEAD)):
        torch.testing.assert_close(both[rows], model(ANCHOR[rows], RELATION[rows], None, side))


def test_both_sides_in_one_batch_need_reciprocal_relations() -> None:
    with pytest.raises(ValueError, match="both sides in one batch need a reciprocal model: ask for one side"):
        model_of()(ANCHOR, RELATION, None, ASKS_HEAD)


def test_rows_can_be_looked_up_before_they_are_scored() -> None:
    model = model_of(calibration="scale")
    for candidates in (CANDIDATES, CANDIDATES[0], None):
        rows = model.lookup(ANCHOR, RELATION, candidates, "head", size=4)
        assert [row.shape[-2] for row in rows] == [4, 4, 4]
        scores = model.score_rows((2, 4), *rows, side="head")
        torch.testing.assert_close(scores, model.forward_nested((2, 4), ANCHOR, RELATION, candidates, "head"))


# ------------------------------------------------------------------------------- the constructor's manners


def test_arguments_are_attributes_and_plain_values() -> None:
    model = KGEModel(6, 3, [2, 4], "rotate", margin=2.5, reciprocal=True, calibration="scale", init_scale=0.1,
                     unit_size=3.0)  # fmt: skip
    settings = {name: getattr(model, name) for name in inspect.signature(KGEModel).parameters}
    again = KGEModel(**json.loads(json.dumps(settings)))
    assert {name: getattr(again, name) for name in settings} == settings
    assert (model.sizes, model.size, model.function) == ((2, 4), 4, SCORES["rotate"])


def test_resized_passes_every_argument_on_and_labels_too() -> None:
    model = KGEModel(6, 3, SIZES, "rotate", margin=2.5, reciprocal=True, calibration="scale", init_scale=0.1,
                     unit_size=3.0)  # fmt: skip
    model.labels = "names"
    small = crop(model, 4)
    for name in set(inspect.signature(KGEModel).parameters) - {"sizes"}:
        assert getattr(small, name) == getattr(model, name), name
    assert (small.sizes, small.labels) == ((2, 4), "names")


def test_the_margin_stays_the_same_at_every_size() -> None:
    model, plain = model_of("transe-l1", margin=9.0), model_of("transe-l1")
    difference = Nested(model, SIZES)(ANCHOR, RELATION) - Nested(plain, SIZES)(ANCHOR, RELATION)
    torch.testing.assert_close(difference, torch.full_like(difference, 9.0))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((6, 3, SIZES, "conve"), {}, f"score must be one of {', '.join(SCORES)}, got 'conve'"),
        ((0, 3, SIZES), {}, "at least one entity and one relation, got 0 and 3"),
        ((6, 0, SIZES), {}, "at least one entity and one relation, got 6 and 0"),
        ((6, 3, ()), {}, "sizes must be positive integers, strictly increasing"),
        ((6, 3, (4, 2)), {}, "sizes must be positive integers, strictly increasing"),
        ((6, 3, (2, 2)), {}, "got (2, 2)"),
        ((6, 3, (0, 2)), {}, "got (0, 2)"),
        ((6, 3, SIZES), {"unit_size": 0}, "unit_size must be a positive number of dims, got 0"),
        (
            (6, 3, SIZES),
            {"calibration": "log"},
            "calibration must be one of none, fixed, scale, affine, got 'log'",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        KGEModel(*arguments, **options)
