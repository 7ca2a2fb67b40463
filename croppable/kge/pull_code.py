"""The gradients of one row and one query by each other, in vector instructions.

Loops over a row's numbers would first spread the weights of segments over them, and check that no arrays
overlap; here weights are permuted into place in registers, and both gradients are changed in one pass. The
file needs numba. A kernel that is kept on disk does not notice a change in this file: empty the cache after
one.

Shapes: W numbers of a row, V = W / PERMUTED rounded up, K' >= PERMUTED segments.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from croppable.kge.ranking_kernels import ABSOLUTE, MODULUS, PRODUCT, SQUARED
from croppable.kge.vector_code import PERMUTED, data_of, permuted, vector_at

__all__ = [
    "TILE", "pull_absolute", "pull_modulus", "pull_product", "pull_squared", "tile_absolute", "tile_modulus",
    "tile_product", "tile_squared",
]  # fmt: skip

TILE = 4  # rows, and queries, whose gradients stay in registers together
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


def _tile_code(kind: int) -> Callable[..., Any]:
    def code(
        _context: Any, rows: Any, queries: Any, by_rows: Any, by_queries: Any, weights: Any, firsts: Any,
        places: Any, row: Any, query: Any, use: Any, width: Any, uses: Any, padded: Any, count: Any,
    ) -> Any:  # fmt: skip
        """As `pull_product` and the like, for TILE rows and TILE queries that all pull at each other.

        Args:
            rows: Flat [C W].
            queries: Flat [B W].
            by_rows: Flat [C W].
            by_queries: Flat [B W].
            weights: Flat.
            firsts: As there.
            places: As there.
            row: The first row.
            query: The first query.
            use: Where the weights of both begin; those of the next row are ``padded`` numbers behind.
            width: W.
            uses: How far the weights of two queries are apart.
            padded: K'.
            count: Number of vectors.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = [data_of(context, builder, signature.args[i], arguments[i]) for i in range(7)]
            row, query, use, width, uses, padded, count = arguments[7:]
            index = ir.IntType(64)

            def apart(start: Any, stride: Any) -> list[Any]:
                steps = (builder.mul(stride, ir.Constant(index, i)) for i in range(TILE))
                return [builder.add(start, step) for step in steps]

            row_starts, query_starts = (apart(builder.mul(first, width), width) for first in (row, query))
            use_starts = [apart(start, padded) for start in apart(use, uses)]
            with cgutils.for_range(builder, count) as loop:
                segment = builder.load(builder.gep(data[5], [loop.index]))
                at = builder.mul(loop.index, ir.Constant(index, PERMUTED))
                starts = (row_starts, query_starts, row_starts, query_starts)
                where = [
                    [vector_at(builder, array, builder.add(start, at), _VECTOR) for start in each]
                    for array, each in zip(data, starts, strict=False)
                ]
                values = [[builder.load(place, align=4) for place in each] for each in where]
                for q, c in itertools.product(range(TILE), repeat=2):
                    first = builder.add(use_starts[q][c], segment)
                    weight = permuted(builder, data[4], first, data[6], at)
                    values[2][c], values[3][q] = _pulled(
                        builder, kind, weight, values[0][c], values[1][q], values[2][c], values[3][q]
                    )
                for place, value in zip(where[2] + where[3], values[2] + values[3], strict=True):
                    builder.store(value, place, align=4)
            return context.get_dummy_value()

        floats = (rows, queries, by_rows, by_queries, weights)
        return types.void(*floats, firsts, places, row, query, use, width, uses, padded, count), generate

    return code


pull_product = cast("Callable[..., None]", intrinsic(_pull_code(PRODUCT)))
pull_absolute = cast("Callable[..., None]", intrinsic(_pull_code(ABSOLUTE)))
pull_squared = cast("Callable[..., None]", intrinsic(_pull_code(SQUARED)))
pull_modulus = cast("Callable[..., None]", intrinsic(_pull_code(MODULUS)))
tile_product = cast("Callable[..., None]", intrinsic(_tile_code(PRODUCT)))
tile_absolute = cast("Callable[..., None]", intrinsic(_tile_code(ABSOLUTE)))
tile_squared = cast("Callable[..., None]", intrinsic(_tile_code(SQUARED)))
tile_modulus = cast("Callable[..., None]", intrinsic(_tile_code(MODULUS)))
