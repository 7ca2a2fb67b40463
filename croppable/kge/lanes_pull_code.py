"""The gradients of one query and LANES candidates by each other, in vector instructions.

As in croppable/kge/lanes_code.py, a lane is a candidate: then the weight of a segment is the same vector for
all of its numbers and stays in a register, in the order in which losses are judged. The file needs numba. A
kernel that is kept on disk does not notice a change in this file: empty the cache after one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from croppable.kge.lanes_code import LANES
from croppable.kge.ranking_kernels import ABSOLUTE, MODULUS, PRODUCT, SQUARED
from croppable.kge.vector_code import HAS_PERMUTE, PERMUTED, data_of, vector_at

__all__ = ["lanes_absolute", "lanes_modulus", "lanes_product", "lanes_squared"]

TINY = 1e-24  # as in scores.py
HAS_SIGN = HAS_PERMUTE and PERMUTED == 8  # an instruction that multiplies by a sign, zero included
_VECTOR, _WHOLE = ir.VectorType(ir.FloatType(), PERMUTED), ir.VectorType(ir.IntType(32), PERMUTED)
_INDEX = ir.IntType(64)
_FUSED = ("contract",)


def _all(value: float) -> Any:
    return ir.Constant(_VECTOR, [value] * PERMUTED)


def _spread(builder: Any, pointer: Any, at: Any) -> Any:
    """Return a number of an array in all places."""
    number = builder.load(builder.gep(pointer, [at]))
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_WHOLE, [0] * PERMUTED))


def _call(builder: Any, name: str, *given: Any) -> Any:
    kind = ir.FunctionType(given[0].type, [each.type for each in given])
    return builder.call(builder.module.declare_intrinsic(name, (), kind), given)


def _plus(builder: Any, total: Any, factor: Any, other: Any) -> Any:
    """Return total + factor other, one instruction where there is one."""
    return _call(builder, f"llvm.fmuladd.v{PERMUTED}f32", factor, other, total)


def _sign(builder: Any, difference: Any) -> Any:
    """Return 2, 0 or -2; a difference of equal numbers is +0 where the first is not -0."""
    bits = builder.bitcast(difference, _WHOLE)
    if HAS_SIGN:  # the bits of 2, as a whole number, are those of -2 negated
        twos = ir.Constant(_WHOLE, [0x40000000] * PERMUTED)
        return builder.bitcast(_call(builder, "llvm.x86.avx2.psign.d", twos, bits), _VECTOR)
    sign = builder.and_(bits, ir.Constant(_WHOLE, [0x80000000] * PERMUTED))
    two = builder.bitcast(builder.or_(sign, ir.Constant(_WHOLE, [0x40000000] * PERMUTED)), _VECTOR)
    return builder.select(builder.fcmp_ordered("!=", difference, _all(0.0)), two, _all(0.0))


def _pulls(
    builder: Any, kind: int, weight: Any, rows: list[Any], queries: list[Any]
) -> tuple[Any, list[Any], list[Any]]:
    """Return a factor, and what it is to be multiplied by for rows and for queries (of a pair, for each)."""
    if kind == PRODUCT:
        return weight, queries, rows
    differences = [builder.fsub(q, r) for q, r in zip(queries, rows, strict=True)]
    if kind == ABSOLUTE:
        differences = [_sign(builder, each) for each in differences]
    elif kind == MODULUS:
        square = builder.fmul(differences[0], differences[0], _FUSED)
        square = _plus(builder, square, differences[1], differences[1])
        factor = builder.fdiv(weight, _call(builder, f"llvm.sqrt.v{PERMUTED}f32", square))
        large = builder.fcmp_ordered(">=", square, _all(TINY))
        weight = builder.select(large, factor, _all(0.0))
    return weight, differences, differences


def _total(builder: Any, vector: Any) -> Any:
    """Return the sum of a vector's numbers."""
    width = PERMUTED
    while width > 1:
        width //= 2
        low, high = (
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), width), places))
            for places in (list(range(width)), list(range(width, 2 * width)))
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, ir.Constant(_INDEX, 0))


def _lanes_code(kind: int) -> Callable[..., Any]:
    step = 2 if kind == MODULUS else 1
    before = {ABSOLUTE: 0.5, SQUARED: 2.0}.get(kind, 1.0)  # a sign is 2; a square's slope has a factor of 2

    def code(
        _context: Any, weights: Any, query: Any, tile: Any, by_query: Any, by_tile: Any, start: Any, stop: Any
    ) -> Any:
        """Add to both gradients, in the numbers start..stop of a segment.

        Args:
            weights: Of the segment, for each candidate [LANES].
            query: Without -0 [W].
            tile: Numbers of the candidates, one column each [W, LANES], flat.
            by_query: [W].
            by_tile: [W, LANES], flat.
            start: First number.
            stop: One more than the last.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = [data_of(context, builder, signature.args[i], arguments[i]) for i in range(5)]
            places = [ir.Constant(_INDEX, n) for n in range(0, LANES, PERMUTED)]

            def loaded(array: Any, at: Any) -> Any:
                return builder.load(vector_at(builder, array, at, _VECTOR), align=4)

            weight = [builder.fmul(loaded(data[0], at), _all(before)) for at in places]
            width, stride = ir.Constant(_INDEX, LANES), ir.Constant(_INDEX, step)
            with cgutils.for_range_slice(builder, arguments[5], arguments[6], stride) as (i, _):
                numbers = [builder.add(i, ir.Constant(_INDEX, j)) for j in range(step)]
                queries = [_spread(builder, data[1], number) for number in numbers]
                begins = [builder.mul(number, width) for number in numbers]
                halves = [[_all(0.0)] * step for _ in range(2)]  # two sums wait less for each other
                for n, (at, by_loss) in enumerate(zip(places, weight, strict=True)):
                    where = [builder.add(begin, at) for begin in begins]
                    rows = [loaded(data[2], place) for place in where]
                    factor, of_rows, of_queries = _pulls(builder, kind, by_loss, rows, queries)
                    for j, pull in enumerate(of_queries):
                        halves[n % 2][j] = _plus(builder, halves[n % 2][j], factor, pull)
                    for place, pull in zip(where, of_rows, strict=True):
                        more = _plus(builder, loaded(data[4], place), factor, pull)
                        builder.store(more, vector_at(builder, data[4], place, _VECTOR), align=4)
                for number, *both in zip(numbers, *halves, strict=True):
                    total = builder.fadd(*both)
                    place = builder.gep(data[3], [number])
                    change = builder.fadd if kind == PRODUCT else builder.fsub
                    builder.store(change(builder.load(place), _total(builder, total)), place)
            return context.get_dummy_value()

        return types.void(weights, query, tile, by_query, by_tile, start, stop), generate

    return code


lanes_product = cast("Callable[..., None]", intrinsic(_lanes_code(PRODUCT)))
lanes_absolute = cast("Callable[..., None]", intrinsic(_lanes_code(ABSOLUTE)))
lanes_squared = cast("Callable[..., None]", intrinsic(_lanes_code(SQUARED)))
lanes_modulus = cast("Callable[..., None]", intrinsic(_lanes_code(MODULUS)))
