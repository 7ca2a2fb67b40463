"""The terms of one query and LANES candidates, added up in vector registers.

A loop over arrays would check at every segment that none overlap, and keep sums in memory. The file needs
numba. A kernel that is kept on disk does not notice a change in this file: empty the cache after one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from croppable.kge.ranking_kernels import ABSOLUTE, MODULUS, PRODUCT, SQUARED
from croppable.kge.vector_code import (
    SQUARE,
    VECTOR,
    Vector,
    data_of,
    load,
    spread,
    variable,
    vector_at,
)

__all__ = [
    "LANES", "add_absolute", "add_modulus", "add_product", "add_squared", "score_absolute", "score_modulus",
    "score_product",
]  # fmt: skip

LANES = 64  # candidates summed together
TINY = 1e-24  # as in scores.py


def _term(kind: int, sums: Vector, xs: list[Vector], rows: list[Vector]) -> Vector:
    """Return the sums with one more term."""
    if kind == PRODUCT:
        return xs[0] * rows[0] + sums
    u = xs[0] - rows[0]
    if kind == ABSOLUTE:
        return sums + u.negative_magnitude()
    if kind == SQUARED:
        return sums - u * u
    v = xs[1] - rows[1]
    square = u * u + v * v
    return sums - square.of(TINY).where(square.below(TINY), square).root()


def _add_numbers(
    builder: Any, kind: int, running: list[Any], numbers: Any, columns: Any, start: Any, stop: Any, first: Any
) -> None:
    """Add the numbers start..stop of a query to running totals; see `add_product` and the like."""
    index, step = ir.IntType(64), 2 if kind == MODULUS else 1
    width = ir.Constant(index, LANES)
    with cgutils.for_range_slice(builder, start, stop, ir.Constant(index, step)) as (i, _):
        at = [builder.add(i, ir.Constant(index, j)) for j in range(step)]
        xs = [spread(builder, builder.load(builder.gep(numbers, [place]))) for place in at]
        begins = [builder.mul(builder.sub(place, first), width) for place in at]
        for n, place in enumerate(running):
            lane = ir.Constant(index, n * SQUARE)
            rows = [load(builder, columns, builder.add(begin, lane)) for begin in begins]
            total = Vector(builder, builder.load(place))
            builder.store(_term(kind, total, xs, rows).value, place)


def _add_code(kind: int) -> Callable[..., Any]:
    def code(_context: Any, sums: Any, query: Any, tile: Any, start: Any, stop: Any, first: Any) -> Any:
        """Add the numbers start..stop of a query to the totals of LANES candidates.

        Args:
            sums: [LANES].
            query: [W].
            tile: Numbers of the candidates, one column each.
            start: First number.
            stop: One more than the last.
            first: The number that the tile begins with.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            index = ir.IntType(64)
            totals, numbers, columns = (
                data_of(context, builder, signature.args[i], arguments[i]) for i in range(3)
            )
            start, stop, first = arguments[3:]
            parts = [ir.Constant(index, n) for n in range(0, LANES, SQUARE)]
            running = [variable(builder, load(builder, totals, n)) for n in parts]
            _add_numbers(builder, kind, running, numbers, columns, start, stop, first)
            for n, place in zip(parts, running, strict=True):
                builder.store(builder.load(place), vector_at(builder, totals, n, VECTOR), align=4)
            return context.get_dummy_value()

        return types.void(sums, query, tile, start, stop, first), generate

    return code


def _score_code(kind: int) -> Callable[..., Any]:
    def code(
        _context: Any, sums: Any, query: Any, tile: Any, first: Any, end: Any, bounds: Any, calibration: Any,
        k: Any, out: Any, place: Any, apart: Any, sizes: Any,
    ) -> Any:  # fmt: skip
        """Add the numbers first..end of a tile to the totals of LANES candidates; write complete sizes.

        Between segments the totals stay in registers.

        Args:
            sums: [LANES].
            query: [W].
            tile: Numbers of the candidates from ``first`` on, one column each.
            first: First number.
            end: One more than the last.
            bounds: Where segments begin and end in a row [K + 1], from 0.
            calibration: Factor and offset of each size [2, K].
            k: The size in work.
            out: Flat, filled at place + k apart for each size k that is complete.
            place: See there.
            apart: See there.
            sizes: K.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            index = ir.IntType(64)
            totals, numbers, columns, ends, affine, target = (
                data_of(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 2, 5, 6, 8)
            )
            first, end, from_size, place, apart = (arguments[i] for i in (3, 4, 7, 9, 10))
            sizes = arguments[11]
            parts = [ir.Constant(index, n) for n in range(0, LANES, SQUARE)]
            running = [variable(builder, load(builder, totals, n)) for n in parts]
            one = ir.Constant(index, 1)
            with cgutils.for_range_slice(builder, from_size, sizes, one) as (k, _):
                bound = [builder.load(builder.gep(ends, [at])) for at in (k, builder.add(k, one))]
                late = builder.icmp_signed("<", bound[0], first)
                complete = builder.icmp_signed("<=", bound[1], end)
                start, stop = builder.select(late, first, bound[0]), builder.select(complete, bound[1], end)
                _add_numbers(builder, kind, running, numbers, columns, start, stop, first)
                with builder.if_then(complete):
                    factor, offset = (
                        spread(builder, builder.load(builder.gep(affine, [number])))
                        for number in (k, builder.add(sizes, k))
                    )
                    begin = builder.add(place, builder.mul(k, apart))
                    for n, kept in zip(parts, running, strict=True):
                        score = Vector(builder, builder.load(kept)) * factor + offset
                        where = vector_at(builder, target, builder.add(begin, n), VECTOR)
                        builder.store(score.value, where, align=4)
            for n, kept in zip(parts, running, strict=True):
                builder.store(builder.load(kept), vector_at(builder, totals, n, VECTOR), align=4)
            return context.get_dummy_value()

        floats = (sums, query, tile)
        return types.void(*floats, first, end, bounds, calibration, k, out, place, apart, sizes), generate

    return code


add_product = cast("Callable[..., None]", intrinsic(_add_code(PRODUCT)))
add_absolute = cast("Callable[..., None]", intrinsic(_add_code(ABSOLUTE)))
add_squared = cast("Callable[..., None]", intrinsic(_add_code(SQUARED)))
add_modulus = cast("Callable[..., None]", intrinsic(_add_code(MODULUS)))
score_product = cast("Callable[..., None]", intrinsic(_score_code(PRODUCT)))
score_absolute = cast("Callable[..., None]", intrinsic(_score_code(ABSOLUTE)))
score_modulus = cast("Callable[..., None]", intrinsic(_score_code(MODULUS)))
