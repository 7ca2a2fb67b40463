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

__all__ = ["EXP_NEAR", "FIXED", "SUMS", "judge_fixed_row", "judge_row", "weigh_columns", "weigh_row"]

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
FIXED = (*EXP2, *LOG, LOG2_E, LOWEST, ROUND, 1.0, 0.5)
_EXP2, _LOG = 0, len(EXP2)  # places in it
_LOG2_E, _LOWEST, _ROUND, _ONE, _HALF = range(len(EXP2) + len(LOG), len(FIXED))

_INDEX = ir.IntType(64)


class _Constants:
    """The numbers of `FIXED` and a polynomial of weights, each a vector in memory.

    An instruction can take one of its numbers from memory. A constant of the code would be loaded through an
    address of its own and spread, in three instructions that cost more than the one that uses it.
    """

    def __init__(self, builder: Any, pointer: Any) -> None:
        self.builder, self.pointer = builder, pointer

    def __getitem__(self, place: int) -> Vector:
        return load(self.builder, self.pointer, ir.Constant(_INDEX, place * SQUARE))

    def some(self, first: int, count: int) -> list[Vector]:
        return [self[first + i] for i in range(count)]

    def weight(self, error: Vector) -> Vector:
        """exp(w error - top): the fourth power of a polynomial around an error of one half."""
        root = (error - self[_HALF]).polynomial(self.some(len(FIXED), len(EXP_NEAR)))
        square = root * root
        return square * square


def _exp_of_negative(x: Vector, constants: _Constants) -> Vector:
    """exp(x) for x <= 0, with a relative error below 1e-7 (3 + |x| / 4); NaN stays NaN."""
    builder, lowest = x.builder, constants[_LOWEST]
    bounded = lowest.where(x.below(lowest), x)
    shifted = bounded.times(constants[_LOG2_E], constants[_ROUND])
    series = bounded.times(constants[_LOG2_E], constants[_ROUND] - shifted)
    series = series.polynomial(constants.some(_EXP2, len(EXP2)))
    exponent = builder.shl(shifted.bits(), ir.Constant(WHOLE, [23] * SQUARE))
    return Vector(builder, builder.bitcast(builder.add(series.bits(), exponent), VECTOR))


def _judged(score: Vector, error: Vector, constants: _Constants) -> tuple[Vector, list[Vector]]:
    """Return sigma, and what is added to the sums."""
    t = _exp_of_negative(score.negative_magnitude(), constants)
    large = (t + constants[_ONE]).inverse(constants[_ONE])
    sigma = (t * large).where(score.below(0.0), large)
    positive = score.of(0.0).where(score.below(0.0), score)
    loss = t.times(t.polynomial(constants.some(_LOG, len(LOG))), positive)  # log(1 + exp(score))
    weight, difference = constants.weight(error), sigma - error
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
        constants: `FIXED` and the polynomial of weights, around an error of one half [26, SQUARE].
        sums: Added to [SUMS, SQUARE], the first ``sums_kept`` of them.
    """

    def code(
        _context: Any, scores: Any, error: Any, sigma: Any, count: Any, sign: Any, constants: Any,
        sums: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            row, before, out = (data_of(context, builder, signature.args[i], arguments[i]) for i in range(3))
            factors, total = (data_of(context, builder, signature.args[i], arguments[i]) for i in (5, 6))
            numbers = _Constants(builder, factors)
            signs, side = spread(builder, arguments[4]), ir.Constant(_INDEX, SQUARE)
            places = [ir.Constant(_INDEX, i * SQUARE) for i in range(sums_kept)]
            running = [variable(builder, load(builder, total, at)) for at in places]

            def block(at: Any, counts: Any) -> None:
                score, error = load(builder, row, at) * signs, load(builder, before, at)
                now, terms = _judged(score, error, numbers)
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

        return types.void(scores, error, sigma, count, sign, constants, sums), generate

    return code


def _by_total(
    before: Vector, now: Vector, after: Vector, slopes: list[Vector], constants: _Constants
) -> Vector:
    """Return the gradient by a total, of its weighted loss and its Huber losses with both neighbours."""
    by_loss, to_before, to_after = slopes
    pull = to_before * (now - before) - to_after * (after - now)
    return (by_loss * constants.weight(before) + pull * (constants[_ONE] - now)) * now


def _weigh_row_code(
    _context: Any, before: Any, now: Any, after: Any, count: Any, by_loss: Any, to_before: Any, to_after: Any,
    constants: Any, out: Any,
) -> Any:  # fmt: skip
    """Write the gradients by the totals of one size.

    Args:
        before: Sigma of the size before, or zeros [N].
        now: Sigma [N].
        after: Sigma of the size after [N].
        count: N.
        by_loss: Factor of the weighted losses.
        to_before: Factor of the Huber losses with the size before.
        to_after: The same with the size after; 0 for the last size.
        constants: As in `judge_row`.
        out: Filled [N].
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *rows, numbers, target = (
            data_of(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 2, 7, 8)
        )
        slopes = [spread(builder, each) for each in arguments[4:7]]
        count, side = arguments[3], ir.Constant(_INDEX, SQUARE)
        last = builder.sub(count, side)
        blocks = builder.udiv(builder.add(count, ir.Constant(_INDEX, SQUARE - 1)), side)
        with cgutils.for_range(builder, blocks) as loop:
            at = builder.mul(loop.index, side)
            at = builder.select(builder.icmp_signed("<", at, last), at, last)  # the last two may overlap
            p, q, r = (load(builder, row, at) for row in rows)
            value = _by_total(p, q, r, slopes, _Constants(builder, numbers))
            builder.store(value.value, vector_at(builder, target, at, VECTOR), align=4)
        return context.get_dummy_value()

    floats = (by_loss, to_before, to_after)
    return types.void(before, now, after, count, *floats, constants, out), generate


def _weigh_columns_code(
    _context: Any, sigma: Any, at: Any, count: Any, sizes: Any, constants: Any, slopes: Any, out: Any,
    start: Any, stride: Any,
) -> Any:  # fmt: skip
    """Write, for SQUARE scores, the gradients by totals, summed over the sizes that hold a segment.

    Args:
        sigma: Flat, of all sizes of a query [K N].
        at: Where the first of the scores lies in it.
        count: N.
        sizes: K.
        constants: As in `judge_row`.
        slopes: For every size ``by_loss``, ``to_before`` and ``to_after`` of `weigh_row` [3, K'], zero
            behind the last size.
        out: Flat, aligned to 64 bytes, filled past the cache at start + n stride + k for the SQUARE scores
            n and K' sizes k.
        start: See there.
        stride: See there.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, numbers, slope, target = (
            data_of(context, builder, signature.args[i], arguments[i]) for i in (0, 4, 5, 6)
        )
        _, at, count, sizes, *_, start, stride = arguments
        constants, side = _Constants(builder, numbers), ir.Constant(_INDEX, SQUARE)
        one, zero = ir.Constant(_INDEX, 1), ir.Constant(_INDEX, 0)
        last, whole = builder.sub(sizes, one), builder.mul(sizes, count)

        def row(k: Any) -> Vector:
            inside = builder.select(builder.icmp_signed("<", k, last), k, last)
            place = builder.add(at, builder.mul(inside, count))
            fetched(builder, builder.gep(source, [builder.add(place, whole)]))
            return load(builder, source, place)

        zeros = Vector(builder, ir.Constant(VECTOR, [0.0] * SQUARE))
        now = variable(builder, row(last))
        behind, total = (variable(builder, zeros) for _ in range(2))
        blocks = builder.udiv(builder.add(last, side), side)
        padded = builder.mul(blocks, side)
        with cgutils.for_range(builder, blocks) as loop:
            first = builder.mul(builder.sub(builder.sub(blocks, one), loop.index), side)
            sums: list[Any] = [None] * SQUARE
            p, after, running = (Vector(builder, builder.load(place)) for place in (now, behind, total))
            for i in reversed(range(SQUARE)):
                k = builder.add(first, ir.Constant(_INDEX, i))
                is_first = builder.icmp_signed("==", k, zero)
                before = row(builder.select(is_first, zero, builder.sub(k, one)))
                before = before if i else zeros.where(is_first, before)
                places = (builder.add(builder.mul(padded, ir.Constant(_INDEX, j)), k) for j in range(3))
                by = [spread(builder, builder.load(builder.gep(slope, [place]))) for place in places]
                running = _by_total(before, p, after, by, constants) + running
                sums[i], p, after = running.value, before, p
            for place, value in ((now, p), (behind, after), (total, running)):
                builder.store(value.value, place)
            once = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
            for j, column in enumerate(transposed(builder, sums)):
                place = builder.add(start, builder.mul(stride, ir.Constant(_INDEX, j)))
                place = vector_at(builder, target, builder.add(place, first), VECTOR)
                builder.store(column, place, align=64).set_metadata("nontemporal", once)
        return context.get_dummy_value()

    arguments = (sigma, at, count, sizes, constants, slopes, out, start, stride)
    return types.void(*arguments), generate


judge_row = cast("Callable[..., None]", intrinsic(_judge_row_code(SUMS)))
judge_fixed_row = cast("Callable[..., None]", intrinsic(_judge_row_code(3)))  # w is not trained
weigh_row = cast("Callable[..., None]", intrinsic(_weigh_row_code))
weigh_columns = cast("Callable[..., None]", intrinsic(_weigh_columns_code))
