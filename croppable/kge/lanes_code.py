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
from croppable.kge.vector_code import SQUARE, Vector, data_of, load, spread, variable, vector_at

__all__ = ["LANES", "add_absolute", "add_modulus", "add_product", "add_squared"]

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
        step = 2 if kind == MODULUS else 1

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            index = ir.IntType(64)
            totals, numbers, columns = (
                data_of(context, builder, signature.args[i], arguments[i]) for i in range(3)
            )
            start, stop, first = arguments[3:]
            parts = [ir.Constant(index, n) for n in range(0, LANES, SQUARE)]
            running = [variable(builder, load(builder, totals, n)) for n in parts]
            width, stride = ir.Constant(index, LANES), ir.Constant(index, step)
            with cgutils.for_range_slice(builder, start, stop, stride) as (i, _):
                at = [builder.add(i, ir.Constant(index, j)) for j in range(step)]
                xs = [spread(builder, builder.load(builder.gep(numbers, [place]))) for place in at]
                begins = [builder.mul(builder.sub(place, first), width) for place in at]
                for n, place in zip(parts, running, strict=True):
                    rows = [load(builder, columns, builder.add(begin, n)) for begin in begins]
                    total = Vector(builder, builder.load(place))
                    builder.store(_term(kind, total, xs, rows).value, place)
            for n, place in zip(parts, running, strict=True):
                builder.store(builder.load(place), vector_at(builder, totals, n, total.value.type), align=4)
            return context.get_dummy_value()

        return types.void(sums, query, tile, start, stop, first), generate

    return code


add_product = cast("Callable[..., None]", intrinsic(_add_code(PRODUCT)))
add_absolute = cast("Callable[..., None]", intrinsic(_add_code(ABSOLUTE)))
add_squared = cast("Callable[..., None]", intrinsic(_add_code(SQUARED)))
add_modulus = cast("Callable[..., None]", intrinsic(_add_code(MODULUS)))
