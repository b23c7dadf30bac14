"""Scalar arithmetic of the expression language, for code that runs in a kernel (and, for tests, in host functions).

Every function takes Int32, Float32 or Boolean values, or Python literals, and gives one of them. Integers wrap at 32
bits;
`floordiv` and `floormod` floor. Float functions use the fast hardware approximations; each one's largest error against
the exact function is stated, measured over the arguments an attention score takes.

Functions with no common lowering for host and device (`divide`, `reciprocal`, `fmin`, `fmax`) ask which of the two
is being
traced, so that expressions can be run on a CPU.
"""

import math as _math

from cutlass import Boolean, Float32, Int32, cute
from cutlass._mlir import ir
from cutlass._mlir.dialects import arith as _arith

LOG2_E = _math.log2(_math.e)
LN_2 = _math.log(2.0)
INF = float("inf")
NAN = float("nan")

_TWO_PI_HIGH = 6.28125
_TWO_PI_MIDDLE = 0.0019353071693331
_TWO_PI_LOW = 2.0 * _math.pi - _TWO_PI_HIGH - _TWO_PI_MIDDLE
_ERF_P = 0.3275911
_ERF_COEFFICIENTS = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def on_device() -> bool:
    """True while a kernel is traced, false in a host function."""
    op = ir.InsertionPoint.current.block.owner
    while op is not None:
        if op.operation.name in ("cuda.kernel", "gpu.module"):
            return True
        op = op.operation.parent
    return False


def select(condition, a, b):
    """`a` where `condition`, else `b`; both are evaluated, neither's NaN reaches the other's result."""
    kind = type(a) if not isinstance(a, (bool, int, float)) else type(b)
    if kind in (bool, int, float):
        kind = {bool: Boolean, int: Int32, float: Float32}[kind]
    values = [kind(x).ir_value() for x in (a, b)]
    return kind(_arith.select(Boolean(condition).ir_value(), *values))


def logical_not(a):
    return Boolean(a) ^ Boolean(True)


def floordiv(a, b):
    """`a // b`, rounded toward minus infinity."""
    if isinstance(b, int) and b > 0:
        if b & (b - 1) == 0:
            return Int32(a) >> (b.bit_length() - 1)
        q, r = _divide_toward_zero(a, b)
        return q + (r >> 31)
    if isinstance(b, int) and b == -1:  # compilers rely on the least number not being divided by -1; a negation wraps
        return Int32(0) - Int32(a)
    q, r = _divide_toward_zero(a, b)
    opposite = (r ^ Int32(b)) < 0
    return q - select((r != 0) & opposite, 1, Int32(0))


def floormod(a, b):
    """`a - b * (a // b)`: zero or of the divisor's sign."""
    if isinstance(b, int) and b > 0:
        if b & (b - 1) == 0:
            return Int32(a) & (b - 1)
        _, r = _divide_toward_zero(a, b)
        return r + ((r >> 31) & b)
    if isinstance(b, int) and b == -1:
        return Int32(a) & 0
    _, r = _divide_toward_zero(a, b)
    opposite = (r ^ Int32(b)) < 0
    return r + select((r != 0) & opposite, Int32(b), Int32(0))


def _divide_toward_zero(a, b):
    """Quotient and remainder. A divisor that is no literal may be 0 where the result goes unused: compilers would conclude from a division
    that it is not, and drop the very condition that guards it; from a dividend that may be the least number, that it is not -1."""
    if isinstance(b, int):
        a, b = Int32(a), Int32(b)
        q = Int32(_arith.divsi(a.ir_value(), b.ir_value()))
        return q, a - q * b
    a, b = Int32(a), Int32(b)
    odd = (b == 0) | (b == -1)
    q = Int32(_arith.divsi(a.ir_value(), select(odd, Int32(1), b).ir_value()))
    q = select(b == -1, Int32(0) - a, q)
    return q, a - q * b


def imin(a, b):
    return Int32(_arith.minsi(Int32(a).ir_value(), Int32(b).ir_value()))


def imax(a, b):
    return Int32(_arith.maxsi(Int32(a).ir_value(), Int32(b).ir_value()))


def iabs(a):
    return imax(Int32(a), -Int32(a))


def fmin(a, b):
    """The smaller; the other one where one is NaN."""
    a, b = Float32(a), Float32(b)
    return cute.arch.fmin(a, b) if on_device() else Float32(_arith.minnumf(a.ir_value(), b.ir_value()))


def fmax(a, b):
    """The larger; the other one where one is NaN."""
    a, b = Float32(a), Float32(b)
    return cute.arch.fmax(a, b) if on_device() else Float32(_arith.maxnumf(a.ir_value(), b.ir_value()))


def fabs(a):
    return cute.math.abs(Float32(a))


def to_float(a):
    return Int32(a).to(Float32)


def to_int(a):
    """Floor, as an Int32."""
    return Float32(cute.math.floor(Float32(a))).to(Int32)


def reciprocal(a):
    """1 / a within 1 ulp; 0 for a denormal result."""
    a = Float32(a)
    return cute.arch.rcp_approx(a) if on_device() else Float32(1.0) / a


def divide(a, b):
    """a / b within 2 ulp over the whole range of float32."""
    a, b = Float32(a), Float32(b)
    return Float32(cute.math.div(a, b, full=True)) if on_device() else a / b


def divide_exactly(a, b):
    """a / b rounded once, as IEEE 754 says: a quotient that is a whole number is that number."""
    return Float32(a) / Float32(b)


def exp2(a):
    """Relative error 2**-22."""
    return Float32(cute.math.exp2(Float32(a), fastmath=True))


def exp(a):
    """Relative error 2**-22 + |a| * 2**-24."""
    return exp2(Float32(a) * LOG2_E)


def log2(a):
    """Absolute error 2**-22 on (0.5, 2), relative error 2**-22 outside."""
    return Float32(cute.math.log2(Float32(a), fastmath=True))


def log(a):
    return log2(a) * LN_2


def sqrt(a):
    """Relative error 2**-23."""
    return Float32(cute.math.sqrt(Float32(a), fastmath=True))


def tanh(a):
    """Relative error 2**-11: one instruction. Enough for bf16 operands."""
    return Float32(cute.math.tanh(Float32(a), fastmath=True))


def tanh_precise(a):
    """Relative error 2**-21: two MUFU operations and a polynomial. For fp16 operands."""
    return Float32(cute.math.tanh(Float32(a)))


def sigmoid(a):
    """Relative error 2**-21, in the far left tail too (a tanh would have an absolute one of 2**-12)."""
    return reciprocal(Float32(1.0) + exp2(Float32(a) * -LOG2_E))


def erf(a):
    """Absolute error 5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, in float32)."""
    a = Float32(a)
    size = fabs(a)
    t = reciprocal(size * _ERF_P + 1.0)
    poly = Float32(_ERF_COEFFICIENTS[-1])
    for coefficient in _ERF_COEFFICIENTS[-2::-1]:
        poly = poly * t + coefficient
    value = Float32(1.0) - poly * t * exp2(size * size * -LOG2_E)
    return Float32(cute.math.copysign(value, a))


def _reduce_angle(a):
    """`a` minus the nearest multiple of 2 pi (Cody and Waite, three terms)."""
    a = Float32(a)
    turns = Float32(cute.math.roundeven(a * (0.5 / _math.pi)))
    for part in (_TWO_PI_HIGH, _TWO_PI_MIDDLE, _TWO_PI_LOW):
        a = Float32(cute.math.fma(turns, Float32(-part), a))
    return a


def sin(a):
    """Absolute error 2**-20 for |a| <= 100000."""
    return Float32(cute.math.sin(_reduce_angle(a), fastmath=True))


def cos(a):
    """Absolute error 2**-20 for |a| <= 100000."""
    return Float32(cute.math.cos(_reduce_angle(a), fastmath=True))


def powi(a, exponent: int):
    """`a` to a literal integer power, by repeated squaring."""
    a = Float32(a)
    out, square, n = None, a, abs(exponent)
    while n:
        if n & 1:
            out = square if out is None else out * square
        square, n = square * square, n >> 1
    out = Float32(1.0) if out is None else out
    return reciprocal(out) if exponent < 0 else out


def power(a, b):
    """`a ** b`; NaN for a negative base and a fractional exponent. Relative error (1 + |b|) * 2**-21."""
    a, b = Float32(a), Float32(b)
    size = exp2(b * log2(fabs(a)))
    whole = Float32(cute.math.floor(b))
    half = b * 0.5
    odd = (whole == b) & (Float32(cute.math.floor(half)) != half)
    negative = select(whole == b, select(odd, -size, size), Float32(NAN))
    return select(b == 0.0, Float32(1.0), select(a < 0.0, negative, size))


def load_float(tensor, index: tuple):
    """Element `index` (a tuple of Int32, one for each dimension) as Float32."""
    return element(tensor, index).to(Float32)


def load_int(tensor, index: tuple):
    """Element `index` as Int32; 64-bit elements are cut to 32 bits."""
    return element(tensor, index).to(Int32)


def load_bool(tensor, index: tuple):
    """Element `index` of a Boolean tensor (stored as bytes) as Boolean."""
    return element(tensor, index) != 0


def element(tensor, index: tuple):
    """Element `index` (a tuple of Int32, one for each dimension) as it is stored."""
    index = index or (0,)  # a tensor without dimensions comes as one of a single element
    return tensor[tuple(Int32(i) for i in index)] if len(index) != 1 else tensor[Int32(index[0])]
