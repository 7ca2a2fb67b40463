"""Losses of one row of scores and their gradients, in vector instructions.

What croppable/kge/loss_kernels.py computes for every objective is here for the usual one: evolutionary
improvement in its linear form and Huber losses of sigmas. A score costs one exponential and one logarithm
forward; the weight of a loss is exp(w error) with an error from 0 to 1, a polynomial in the error. The file
needs numba. A kernel that is kept on disk does not notice a change in this file: empty the cache after one.

Shapes: N scores of a row, at least SQUARE; K sizes, K' the next multiple of SQUARE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from croppable.kge.vector_code import (
    SQUARE,
    VECTOR,
    WHOLE,
    Vector,
    data_of,
    fetched,
    load,
    spread,
    transposed,
    variable,
    vector_at,
)  # fmt: skip

__all__ = ["EXP_NEAR", "SUMS", "judge_fixed_row", "judge_row", "weigh_columns", "weigh_columns_past"]

SUMS = 5  # vectors that `judge_row` adds to: total, lost, huber, moment, both
# Minimax in relative error: 2^x on [-1/2, 1/2] to 8e-8, log(1 + t) / t on [0, 1] to 2e-7, exp on
# [-1/2, 1/2] to 3e-8
EXP2 = (1.00000007, 0.693146967, 0.240221197, 0.0555071327, 0.00967554133, 0.00132764715)
LOG = (
    0.999999806, -0.499974054, 0.332754796, -0.244954616, 0.177452381, -0.107681664, 0.0440895963,
    -0.00853919842,
)  # fmt: skip
EXP_NEAR = (1.00000001, 1.00000032, 0.499999293, 0.166656173, 0.0416733895, 0.00841917257, 0.00137807689)
LOG2_E = 1.4426950408889634
LOWEST = -87.0  # exp of less is not a normal number: 1e-38 stands for zero
ROUND = 1.5 * 2.0**23  # adding it leaves a whole number in the low bits

_INDEX = ir.IntType(64)


def _exp_of_negative(x: Vector) -> Vector:
    """exp(x) for x <= 0, with a relative error below 1e-7 (3 + |x| / 4); NaN stays NaN."""
    builder, bounded = x.builder, x.of(LOWEST).where(x.below(LOWEST), x)
    shifted = bounded.times(LOG2_E, x.of(ROUND))
    series = bounded.times(LOG2_E, x.of(ROUND) - shifted).polynomial(EXP2)
    exponent = builder.shl(shifted.bits(), ir.Constant(WHOLE, [23] * SQUARE))
    return Vector(builder, builder.bitcast(builder.add(series.bits(), exponent), VECTOR))


def _coefficients(builder: Any, pointer: Any) -> list[Vector]:
    """Load the polynomial of weights."""
    at = (builder.gep(pointer, [ir.Constant(_INDEX, i)]) for i in range(len(EXP_NEAR)))
    return [spread(builder, builder.load(place)) for place in at]


def _weight(error: Vector, coefficients: list[Vector]) -> Vector:
    """exp(w error - top): the fourth power of a polynomial around an error of one half."""
    root = (error - 0.5).polynomial(coefficients)
    square = root * root
    return square * square


def _judged(score: Vector, error: Vector, coefficients: list[Vector]) -> tuple[Vector, list[Vector]]:
    """Return sigma, and what is added to the sums."""
    t = _exp_of_negative(score.negative_magnitude())
    large = (t + 1.0).inverse()
    sigma = (t * large).where(score.below(0.0), large)
    positive = score.of(0.0).where(score.below(0.0), score)
    loss = t * t.polynomial(LOG) + positive  # log(1 + exp(score))
    weight, difference = _weight(error, coefficients), sigma - error
    lost = weight * loss
    return sigma, [weight, lost, difference * difference, weight * error, lost * error]


def _judge_row_code(sums_kept: int) -> Callable[..., Any]:
    """Make the code that judges the scores of a row as negatives.

    Arguments of the code:
        scores: [N].
        error: Sigma of the size before, or zeros [N].
        sigma: Filled [N].
        count: N.
        sign: 1, or -1 to judge targets.
        coefficients: Polynomial of weights, around an error of one half [7].
        sums: Added to [SUMS, SQUARE], the first ``sums_kept`` of them.
    """

    def code(
        _context: Any, scores: Any, error: Any, sigma: Any, count: Any, sign: Any, coefficients: Any,
        sums: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            row, before, out = (data_of(context, builder, signature.args[i], arguments[i]) for i in range(3))
            factors, total = (data_of(context, builder, signature.args[i], arguments[i]) for i in (5, 6))
            polynomial = _coefficients(builder, factors)
            signs, side = spread(builder, arguments[4]), ir.Constant(_INDEX, SQUARE)
            places = [ir.Constant(_INDEX, i * SQUARE) for i in range(sums_kept)]
            running = [variable(builder, load(builder, total, at)) for at in places]

            def block(at: Any, counts: Any) -> None:
                score, error = load(builder, row, at) * signs, load(builder, before, at)
                now, terms = _judged(score, error, polynomial)
                builder.store(now.value, vector_at(builder, out, at, VECTOR), align=4)
                for place, term in zip(running, terms, strict=False):
                    more = term if counts is None else term.where(counts, 0.0)
                    builder.store((Vector(builder, builder.load(place)) + more).value, place)

            blocks, rest = builder.udiv(arguments[3], side), builder.urem(arguments[3], side)
            with cgutils.for_range(builder, blocks) as loop:
                block(builder.mul(loop.index, side), None)
            with builder.if_then(builder.icmp_unsigned("!=", rest, ir.Constant(_INDEX, 0))):
                # the last SQUARE scores, of which the first were judged before
                lanes = ir.Constant(WHOLE, list(range(SQUARE)))
                done = builder.trunc(builder.sub(side, rest), ir.IntType(32))
                one = builder.insert_element(ir.Constant(WHOLE, ir.Undefined), done, ir.Constant(_INDEX, 0))
                first = builder.shuffle_vector(one, one, ir.Constant(WHOLE, [0] * SQUARE))
                block(builder.sub(arguments[3], side), builder.icmp_unsigned(">=", lanes, first))
            for place, at in zip(running, places, strict=True):
                builder.store(builder.load(place), vector_at(builder, total, at, VECTOR), align=4)
            return context.get_dummy_value()

        return types.void(scores, error, sigma, count, sign, coefficients, sums), generate

    return code


def _weigh_columns_code(past: bool) -> Callable[..., Any]:
    """Make the code that writes, for SQUARE scores, gradients summed over the sizes that hold a segment.

    Arguments of the code:
        sigma: Flat, of all sizes of a query [K N].
        at: Where the first of the scores lies in it.
        count: N.
        sizes: K.
        coefficients: As in `judge_row`.
        slopes: For every size the factor of its weighted loss, and of its Huber losses with the size
            before and after [3, K'], zero behind the last size.
        out: Flat, aligned to 64 bytes, filled (where ``past``, past the cache) at start + n stride + k for
            the SQUARE scores n and K' sizes k.
        start: See there.
        stride: See there.
    """

    def code(
        _context: Any, sigma: Any, at: Any, count: Any, sizes: Any, coefficients: Any, slopes: Any, out: Any,
        start: Any, stride: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source, factors, slope, target = (
                data_of(context, builder, signature.args[i], arguments[i]) for i in (0, 4, 5, 6)
            )
            _, at, count, sizes, *_, start, stride = arguments
            polynomial, side = _coefficients(builder, factors), ir.Constant(_INDEX, SQUARE)
            one, zero = ir.Constant(_INDEX, 1), ir.Constant(_INDEX, 0)
            last, whole = builder.sub(sizes, one), builder.mul(sizes, count)

            def row(k: Any) -> Vector:
                inside = builder.select(builder.icmp_signed("<", k, last), k, last)
                place = builder.add(at, builder.mul(inside, count))
                fetched(builder, builder.gep(source, [builder.add(place, whole)]))
                return load(builder, source, place)

            zeros = Vector(builder, ir.Constant(VECTOR, [0.0] * SQUARE))
            now = variable(builder, row(last))
            change, total = (variable(builder, zeros) for _ in range(2))
            blocks = builder.udiv(builder.add(last, side), side)
            with cgutils.for_range(builder, blocks) as loop:
                first = builder.mul(builder.sub(builder.sub(blocks, one), loop.index), side)
                sums: list[Any] = [None] * SQUARE
                p, after, running = (Vector(builder, builder.load(place)) for place in (now, change, total))
                for i in reversed(range(SQUARE)):
                    k = builder.add(first, ir.Constant(_INDEX, i))
                    before = row(builder.sub(k, one) if i else builder.select(
                        builder.icmp_signed("==", k, zero), zero, builder.sub(k, one)))  # fmt: skip
                    if not i:
                        before = before.where(builder.icmp_signed("!=", k, zero), 0.0)
                    padded = builder.mul(blocks, side)
                    places = (builder.add(builder.mul(padded, ir.Constant(_INDEX, j)), k) for j in range(3))
                    by_loss, to_before, to_after = (
                        spread(builder, builder.load(builder.gep(slope, [place]))) for place in places
                    )
                    difference = p - before
                    pull = to_before * difference - to_after * after
                    running = (by_loss * _weight(before, polynomial) + pull * (p.of(1.0) - p)) * p + running
                    sums[i], p, after = running.value, before, difference
                for place, value in ((now, p), (change, after), (total, running)):
                    builder.store(value.value, place)
                for j, column in enumerate(transposed(builder, sums)):
                    place = builder.add(start, builder.mul(stride, ir.Constant(_INDEX, j)))
                    place = builder.add(place, first)
                    kept = builder.store(column, vector_at(builder, target, place, VECTOR), align=64)
                    if past:
                        once = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
                        kept.set_metadata("nontemporal", once)
            return context.get_dummy_value()

        arguments = (sigma, at, count, sizes, coefficients, slopes, out, start, stride)
        return types.void(*arguments), generate

    return code


judge_row = cast("Callable[..., None]", intrinsic(_judge_row_code(SUMS)))
judge_fixed_row = cast("Callable[..., None]", intrinsic(_judge_row_code(3)))  # w is not trained
weigh_columns = cast("Callable[..., None]", intrinsic(_weigh_columns_code(past=False)))
weigh_columns_past = cast("Callable[..., None]", intrinsic(_weigh_columns_code(past=True)))  # the cache
