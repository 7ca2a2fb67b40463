"""How the kernels of a training step are compiled, and the vector instructions that loops do not produce.

Each instruction is a few lines of LLVM that the compiler lowers to what the processor has. The file needs
numba. A kernel that is kept on disk does not notice a change in this file: empty the cache after one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

__all__ = [
    "HAS_PERMUTE",
    "PERMUTED",
    "SQUARE",
    "VECTOR",
    "WHOLE",
    "Vector",
    "cached",
    "data_of",
    "fetched",
    "load",
    "part",
    "permuted",
    "prefetch",
    "spread",
    "sum_part",
    "transposed",
    "turn",
    "two_to_the",
    "variable",
    "vector_at",
]

SQUARE = 16  # side of the squares that are transposed
_FEATURES = binding.get_host_cpu_features()
HAS_PERMUTE = bool(_FEATURES.get("avx2"))
PERMUTED = 16 if _FEATURES.get("avx512f") else 8  # numbers that one `permute` moves

VECTOR, WHOLE = ir.VectorType(ir.FloatType(), SQUARE), ir.VectorType(ir.IntType(32), SQUARE)

F = TypeVar("F", bound=Callable[..., Any])
_log = logging.getLogger(__name__)


def part(function: F) -> F:
    """Compile as a part of a kernel; a product and a sum may be one rounded operation."""
    return cast("F", njit(nogil=True, error_model="numpy", fastmath={"contract"})(function))


def sum_part(function: F) -> F:
    """Compile as a part whose sums may be reordered."""
    return cast("F", njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})(function))


def part_without_nan(function: F) -> F:
    """Compile as a part whose result does not matter where a number is NaN."""
    return cast("F", njit(nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc"})(function))


def cached(function: F) -> F:
    """Compile on the first call and keep the result, in the user's cache where this folder is read-only."""
    try:
        return cast("F", njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})(function))
    except RuntimeError as error:  # there is no folder that numba may write to
        _log.info("compiled in every process anew; set NUMBA_CACHE_DIR to keep the result (%s)", error)
        return part(function)


def data_of(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Return the pointer to an array's numbers."""
    return cgutils.create_struct_proxy(kind)(context, builder, value).data  # type: ignore[no-untyped-call]


def vector_at(builder: Any, pointer: Any, index: Any, vector: Any) -> Any:
    """Return the place of a number as that of a vector which begins there."""
    return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())


class Vector:
    """SQUARE numbers in a register, with the operators of arithmetic; a product and a sum may be fused."""

    def __init__(self, builder: ir.IRBuilder, value: Any) -> None:
        self.builder, self.value = builder, value

    def of(self, value: float) -> Vector:
        """Return a constant."""
        return Vector(self.builder, ir.Constant(VECTOR, [value] * SQUARE))

    def _with(self, name: str, other: Vector | float) -> Vector:
        other = other if isinstance(other, Vector) else self.of(other)
        operation = getattr(self.builder, name)
        return Vector(self.builder, operation(self.value, other.value, flags=("contract",)))

    def __add__(self, other: Vector | float) -> Vector:
        return self._with("fadd", other)

    def __sub__(self, other: Vector | float) -> Vector:
        return self._with("fsub", other)

    def __mul__(self, other: Vector | float) -> Vector:
        return self._with("fmul", other)

    def below(self, bound: Vector | float) -> Any:
        """Return where a number is less than the bound; false for NaN."""
        bound = bound if isinstance(bound, Vector) else self.of(bound)
        return self.builder.fcmp_ordered("<", self.value, bound.value)

    def where(self, condition: Any, other: Vector | float) -> Vector:
        """Return this where the condition holds, else the other."""
        other = other if isinstance(other, Vector) else self.of(other)
        return Vector(self.builder, self.builder.select(condition, self.value, other.value))

    def negative_magnitude(self) -> Vector:
        """Return -|x|."""
        signs = ir.Constant(WHOLE, [0x80000000] * SQUARE)
        bits = self.builder.or_(self.builder.bitcast(self.value, WHOLE), signs)
        return Vector(self.builder, self.builder.bitcast(bits, VECTOR))

    def inverse(self, one: Vector) -> Vector:
        """Return 1 / x, given 1; by an estimate of 14 bits and one step of Newton's where there is one."""
        if PERMUTED < SQUARE:
            return one._with("fdiv", self)
        mask = ir.IntType(16)
        kind = ir.FunctionType(VECTOR, [VECTOR, VECTOR, mask])
        estimate = self.builder.module.declare_intrinsic("llvm.x86.avx512.rcp14.ps.512", (), kind)
        given = [self.value, self.value, ir.Constant(mask, 2**16 - 1)]
        near = Vector(self.builder, self.builder.call(estimate, given))
        return near * (one - self * near) + near

    def times(self, factor: Vector, more: Vector) -> Vector:
        """Return factor x + more, rounded once where the processor can."""
        kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
        name = f"llvm.fmuladd.v{SQUARE}f32"
        given = [self.value, factor.value, more.value]
        fused = self.builder.module.declare_intrinsic(name, (), kind)
        return Vector(self.builder, self.builder.call(fused, given))

    def polynomial(self, coefficients: Sequence[Any]) -> Vector:
        """Evaluate by Horner's rule; the constant comes first."""
        *rest, last = coefficients
        result = last if isinstance(last, Vector) else self.of(last)
        for coefficient in reversed(rest):
            result = result * self + coefficient
        return result

    def bits(self) -> Any:
        """Return the numbers as integers."""
        return self.builder.bitcast(self.value, WHOLE)

    def root(self) -> Vector:
        """Return the square root."""
        kind = ir.FunctionType(VECTOR, [VECTOR])
        root = self.builder.module.declare_intrinsic(f"llvm.sqrt.v{SQUARE}f32", (), kind)
        return Vector(self.builder, self.builder.call(root, [self.value]))


def load(builder: Any, pointer: Any, at: Any) -> Vector:
    """Return SQUARE numbers of an array."""
    return Vector(builder, builder.load(vector_at(builder, pointer, at, VECTOR), align=4))


def spread(builder: Any, number: Any) -> Vector:
    """Return a number in all places of a vector."""
    first = ir.Constant(ir.IntType(32), 0)
    one = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, first)
    return Vector(builder, builder.shuffle_vector(one, one, ir.Constant(WHOLE, [0] * SQUARE)))


def variable(builder: Any, value: Vector) -> Any:
    """Return the place of a variable with a first value; the compiler keeps it in a register."""
    return cgutils.alloca_once_value(builder, value.value)  # type: ignore[no-untyped-call]


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of SQUARE vectors."""
    rows, step = list(rows), 1
    while step < SQUARE:  # swap blocks of 1, 2, 4, 8 across the diagonal
        low = [j + SQUARE - step if j & step else j for j in range(SQUARE)]
        high = [j + SQUARE if j & step else j + step for j in range(SQUARE)]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), SQUARE), mask) for mask in (low, high)]
        for i in range(SQUARE):
            if not i & step:
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = (builder.shuffle_vector(a, b, mask) for mask in masks)
        step *= 2
    return rows


def _span_code(_context: Any, array: Any, start: Any, count: Any) -> Any:
    """Return ``count`` numbers of a contiguous array from the flat index ``start`` on, without owning them.

    A slice of an array counts its owners, by an atomic operation that costs as much as half a row's work.
    """
    kind = types.Array(array.dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = data_of(context, builder, signature.args[0], arguments[0])
        size = context.get_constant(types.intp, array.dtype.bitwidth // 8)
        result = context.make_array(kind)(context, builder)
        populate_array(  # type: ignore[no-untyped-call]
            result, builder.gep(data, [arguments[1]]), shape=[arguments[2]], strides=[size], itemsize=size,
            meminfo=None,
        )  # fmt: skip
        return result._getvalue()

    return kind(array, start, count), generate


def _turn_code(
    _context: Any, source: Any, offsets: Any, column: Any, target: Any, start: Any, stride: Any
) -> Any:
    """Copy a square transposed: target[start + j stride + i] = source[offsets[i] + column + j]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, index = ir.VectorType(ir.FloatType(), SQUARE), ir.IntType(64)
        data = [data_of(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 3)]
        rows = []
        for i in range(SQUARE):
            offset = builder.load(builder.gep(data[1], [ir.Constant(index, i)]))
            row = builder.load(vector_at(builder, data[0], builder.add(offset, arguments[2]), vector))
            row.align = 4
            rows.append(row)
        rows = transposed(builder, rows)
        for j, row in enumerate(rows):
            place = builder.add(arguments[4], builder.mul(arguments[5], ir.Constant(index, j)))
            builder.store(row, vector_at(builder, data[2], place, vector)).align = 4
        return context.get_dummy_value()

    return types.void(source, offsets, column, target, start, stride), generate


def permuted(builder: Any, source: Any, first: Any, places: Any, at: Any) -> Any:
    """Return source[first + places[at + i]] for PERMUTED i as a vector; places are below PERMUTED."""
    vector, indices = ir.VectorType(ir.FloatType(), PERMUTED), ir.VectorType(ir.IntType(32), PERMUTED)
    values = builder.load(vector_at(builder, source, first, vector), align=4)
    chosen = builder.load(vector_at(builder, places, at, indices), align=4)
    if HAS_PERMUTE:
        kind = ir.FunctionType(vector, [vector, indices])
        name = "llvm.x86.avx512.permvar.sf.512" if PERMUTED == 16 else "llvm.x86.avx2.permps"
        return builder.call(builder.module.declare_intrinsic(name, (), kind), [values, chosen])
    result = ir.Constant(vector, ir.Undefined)
    for i in range(PERMUTED):
        place = ir.Constant(ir.IntType(32), i)
        value = builder.extract_element(values, builder.extract_element(chosen, place))
        result = builder.insert_element(result, value, place)
    return result


def fetched(builder: Any, pointer: Any) -> None:
    """Ask for the cache line at a pointer; it may lie anywhere."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    read, keep, is_data = (ir.Constant(number, value) for value in (0, 3, 1))
    builder.call(fetch, [builder.bitcast(pointer, byte), read, keep, is_data])


def _prefetch_code(_context: Any, source: Any, index: Any) -> Any:
    """Ask for the cache line of source[index]; it may lie anywhere."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = data_of(context, builder, signature.args[0], arguments[0])
        fetched(builder, builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(source, index), generate


def _two_to_the_code(_context: Any, shifted: Any) -> Any:
    """Return 2**n for the whole number n, given n + 1.5 * 2**23, whose low bits are n."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        whole = ir.IntType(32)
        exponent = builder.shl(builder.bitcast(arguments[0], whole), ir.Constant(whole, 23))
        return builder.bitcast(builder.add(exponent, ir.Constant(whole, 0x3F800000)), ir.FloatType())

    return types.float32(shifted), generate


span = cast("Callable[..., Any]", intrinsic(_span_code))
turn = cast("Callable[..., None]", intrinsic(_turn_code))
prefetch = cast("Callable[..., None]", intrinsic(_prefetch_code))
two_to_the = cast("Callable[..., Any]", intrinsic(_two_to_the_code))
