"""The gradients of one row and one query by each other, in vector instructions.

Loops over a row's numbers would first spread the weights of segments over them, and check that no arrays
overlap; here weights are permuted into place in registers, and both gradients are changed in one pass. The
file needs numba. A kernel that is kept on disk does not notice a change in this file: empty the cache after
one.

Shapes: W numbers of a row, V = W / PERMUTED rounded up, K' >= PERMUTED segments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from croppable.kge.ranking_kernels import ABSOLUTE, MODULUS, PRODUCT, SQUARED
from croppable.kge.vector_code import PERMUTED, data_of, permuted, vector_at

__all__ = ["pull_absolute", "pull_modulus", "pull_product", "pull_squared"]

TINY = 1e-24  # as in scores.py
_VECTOR, _WHOLE = ir.VectorType(ir.FloatType(), PERMUTED), ir.VectorType(ir.IntType(32), PERMUTED)
_FUSED = ("contract",)


def _all(value: float) -> Any:
    return ir.Constant(_VECTOR, [value] * PERMUTED)


def _absolute(builder: Any, weight: Any, difference: Any) -> Any:
    """Weight times the sign of the difference, zero at zero."""
    sign = builder.and_(builder.bitcast(difference, _WHOLE), ir.Constant(_WHOLE, [0x80000000] * PERMUTED))
    signed = builder.bitcast(builder.xor(builder.bitcast(weight, _WHOLE), sign), _VECTOR)
    return builder.select(builder.fcmp_ordered("!=", difference, _all(0.0)), signed, _all(0.0))


def _squared(builder: Any, weight: Any, difference: Any) -> Any:
    return builder.fmul(builder.fmul(_all(2.0), weight), difference)


def _modulus(builder: Any, weight: Any, difference: Any) -> Any:
    """Weight times the difference over the modulus of its pair, zero at zero."""
    square = builder.fmul(difference, difference)
    swap = ir.Constant(_WHOLE, [i ^ 1 for i in range(PERMUTED)])
    total = builder.fadd(square, builder.shuffle_vector(square, square, swap))
    name, kind = f"llvm.sqrt.v{PERMUTED}f32", ir.FunctionType(_VECTOR, [_VECTOR])
    root = builder.module.declare_intrinsic(name, (), kind)
    factor = builder.fdiv(weight, builder.call(root, [total]))
    large = builder.fcmp_ordered(">=", total, _all(TINY))
    return builder.fmul(builder.select(large, factor, _all(0.0)), difference)


_PULLS = {ABSOLUTE: _absolute, SQUARED: _squared, MODULUS: _modulus}


def _pulled(
    builder: Any, kind: int, weight: Any, row: Any, query: Any, by_row: Any, by_query: Any
) -> tuple[Any, Any]:
    """Return one vector of both gradients with their pull at each other added."""
    if kind == PRODUCT:
        by_row = builder.fadd(by_row, builder.fmul(weight, query, _FUSED), _FUSED)
        return by_row, builder.fadd(by_query, builder.fmul(weight, row, _FUSED), _FUSED)
    pull = _PULLS[kind](builder, weight, builder.fsub(query, row))
    return builder.fadd(by_row, pull), builder.fsub(by_query, pull)


def _pull_code(kind: int) -> Callable[..., Any]:
    def code(
        _context: Any, row: Any, query: Any, by_row: Any, by_query: Any, weights: Any, firsts: Any,
        places: Any, count: Any,
    ) -> Any:  # fmt: skip
        """Add to both gradients, in the first vectors of a row.

        Args:
            row: [W].
            query: [W].
            by_row: [W].
            by_query: [W].
            weights: Of segments [K'].
            firsts: The first segment of every vector [V], at most K' - PERMUTED.
            places: Segment of each number, counted from there [V PERMUTED].
            count: Number of vectors.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = [data_of(context, builder, signature.args[i], arguments[i]) for i in range(7)]
            width = ir.Constant(ir.IntType(64), PERMUTED)
            with cgutils.for_range(builder, arguments[7]) as loop:
                first = builder.load(builder.gep(data[5], [loop.index]))
                at = builder.mul(loop.index, width)
                weight = permuted(builder, data[4], first, data[6], at)
                places = [vector_at(builder, array, at, _VECTOR) for array in data[:4]]
                values = [builder.load(place, align=4) for place in places]
                for place, value in zip(places[2:], _pulled(builder, kind, weight, *values), strict=True):
                    builder.store(value, place, align=4)
            return context.get_dummy_value()

        return types.void(row, query, by_row, by_query, weights, firsts, places, count), generate

    return code


pull_product = cast("Callable[..., None]", intrinsic(_pull_code(PRODUCT)))
pull_absolute = cast("Callable[..., None]", intrinsic(_pull_code(ABSOLUTE)))
pull_squared = cast("Callable[..., None]", intrinsic(_pull_code(SQUARED)))
pull_modulus = cast("Callable[..., None]", intrinsic(_pull_code(MODULUS)))
