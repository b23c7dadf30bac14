"""Single- and double-precision arithmetic and the approximate functions (PTX ISA 9.7.3, 9.7.5).

Approximate functions are computed in float64 and rounded once, which lies inside every error bound the ISA states;
the GPU's bits may differ within that bound.
"""

from __future__ import annotations

import numpy as np

from attncc.emulator.decode import VIEW, op, put
from attncc.emulator.lanes import FULL, lanes, some
from attncc.emulator.numerics import _round_to_odd, flush, fma_f32, round_f32

ROUND = ("rn", "rz", "rm", "rp", "rna")


def _options(k, m, kind):
    """(rounding, ftz, sat) of an arithmetic instruction."""
    rounding = m.take(*ROUND, default="rn")
    return rounding, m.flag("ftz"), m.flag("sat")


def _finish(value, ftz, sat):
    value = flush(value) if ftz else value
    if sat:
        value = np.where(np.isnan(value), np.float32(0), np.clip(value, np.float32(0), np.float32(1)))
    return value


def _directed(name, rounding):
    """float32 add/sub/mul with a rounding mode other than rn."""

    def run(a, b):
        x, y = a.astype(np.float64), b.astype(np.float64)
        if name == "mul":
            return round_f32(x * y, rounding)
        y = -y if name == "sub" else y
        return round_f32(_round_to_odd(x, y, x + y), rounding)

    return run


def _ieee_max(a, b, pick, nan):
    """max/min: NaN loses unless `.NaN`; +0 is larger than -0."""
    if nan:
        value = pick(a, b)
    else:
        value = np.fmax(a, b) if pick is np.maximum else np.fmin(a, b)
    zero = value == 0
    if some(zero):
        both_zero = (a == 0) & (b == 0)
        sign = np.signbit(a) & np.signbit(b) if pick is np.maximum else np.signbit(a) | np.signbit(b)
        value = np.where(both_zero, np.copysign(np.float32(0), np.where(sign, -1, 1)).astype(a.dtype), value)
    return value


def binary_function(name, rounding, nan, xorsign):
    """The function of a float32/float64 binary instruction."""
    if name in ("min", "max"):
        pick = np.minimum if name == "min" else np.maximum
        if xorsign:
            return lambda a, b: np.copysign(
                _ieee_max(np.abs(a), np.abs(b), pick, nan),
                np.where(np.signbit(a) ^ np.signbit(b), -1, 1).astype(a.dtype),
            )
        return lambda a, b: _ieee_max(a, b, pick, nan)
    if rounding != "rn":
        return _directed(name, rounding)
    return {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name]


def float_binary(k, instr, m, kind, name):
    """add, sub, mul, div, min, max (2 or 3 inputs) on f32/f64."""
    if name == "div":
        mode = m.take("approx", "full", "rn", "rz", "rm", "rp")
        rounding, ftz, sat = "rn", m.flag("ftz"), False
        if mode in ("rz", "rm", "rp"):
            raise k.fail("directed division is not supported")
    else:
        rounding, ftz, sat = _options(k, m, kind)
    nan = m.flag("NaN")
    xorsign = m.flag("xorsign") and m.flag("abs")
    if rounding != "rn" and kind != "f32":
        raise k.fail("directed rounding is only supported for f32")
    function = binary_function(name, rounding, nan, xorsign)
    view = VIEW[kind]
    sources = [k.src(o, kind) for o in instr.ops[1:]]
    d = k.dst(instr.ops[0], kind)
    plain = not ftz and not sat
    if plain and isinstance(function, np.ufunc) and len(sources) == 2:
        return _plain(view, d, *sources, function)

    def run(w):
        table = w.V[view]
        values = [table[i] for i in sources] if not ftz else [flush(table[i]) for i in sources]
        value = function(values[0], values[1])
        for extra in values[2:]:
            value = function(value, extra)
        put(w, view, d, value if plain else _finish(value, ftz, sat))

    return run


def _plain(view, d, a, b, function):
    """A ufunc straight into the destination."""

    def run(w):
        table = w.V[view]
        if w.mi == FULL:
            function(table[a], table[b], out=table[d])
        else:
            function(table[a], table[b], out=table[d], where=lanes(w.mi))

    return run


def float_unary(k, instr, m, kind, name):
    """abs, neg on f32/f64."""
    ftz = m.flag("ftz")
    view = VIEW[kind]
    a, d = k.src(instr.ops[1], kind), k.dst(instr.ops[0], kind)
    function = np.abs if name == "abs" else np.negative

    def run(w):
        x = w.V[view][a]
        put(w, view, d, function(flush(x) if ftz else x))

    return run


def float_fma(k, instr, m, kind):
    """fma/mad: one rounding. f64 fma uses exact rational arithmetic per lane."""
    rounding, ftz, sat = _options(k, m, kind)
    if rounding != "rn":
        raise k.fail("directed rounding of fma is not supported")
    a, b, c = (k.src(o, kind) for o in instr.ops[1:])
    d, view = k.dst(instr.ops[0], kind), VIEW[kind]

    def run(w):
        x, y, z = (w.V[view][i] for i in (a, b, c))
        if kind == "f64":
            put(w, view, d, _fma_f64(x, y, z))
            return
        if ftz:
            x, y, z = flush(x), flush(y), flush(z)
        value = fma_f32(x, y, z)
        put(w, view, d, _finish(value, ftz, sat) if ftz or sat else value)

    return run


def _fma_f64(x, y, z):
    from fractions import Fraction

    plain = x * y + z
    exact = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    values = [
        float(Fraction(a) * Fraction(b) + Fraction(c)) if ok and p != 0 else p
        for a, b, c, p, ok in zip(x.tolist(), y.tolist(), z.tolist(), plain.tolist(), exact)
    ]
    return np.array(values, np.float64)


def float_compare_name(compare, ftz):
    """Comparison on floats: plain names are ordered, `...u` names are true for NaN."""
    base = {
        "eq": np.equal,
        "ne": np.not_equal,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
    }

    def run(a, b):
        if ftz:
            a, b = flush(a), flush(b)
        nan = np.isnan(a) | np.isnan(b)
        if compare == "nan":
            return nan
        if compare == "num":
            return ~nan
        if compare in base:
            return base[compare](a, b) & ~nan
        return base[compare[:2]](a, b) | nan

    return run


_APPROX = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": lambda x: 1.0 / x,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
}


@op("ex2", "lg2", "rcp", "rsqrt", "sqrt", "tanh", "sin", "cos")
def special_function(k, instr, m):
    """ex2 lg2 rcp rsqrt sqrt tanh sin cos; half forms go through float32."""
    kind = m.type()
    m.take("approx", "rn")
    ftz = m.flag("ftz")
    if kind in ("f16", "f16x2", "bf16", "bf16x2"):
        from attncc.emulator.ops_half import half_special

        return half_special(k, instr, kind, _APPROX[instr.opcode])
    a, d, view = k.src(instr.ops[1], kind), k.dst(instr.ops[0], kind), VIEW[kind]
    function = _APPROX[instr.opcode]

    def run(w):
        x = w.V[view][a]
        if kind == "f64":
            put(w, view, d, function(x))
            return
        value = function((flush(x) if ftz else x).astype(np.float64)).astype(np.float32)
        put(w, view, d, flush(value) if ftz else value)

    return run


@op("copysign")
def copy_sign(k, instr, m):
    """d = |b| with the sign of a (PTX order)."""
    kind = m.type()
    a, b = k.src(instr.ops[1], kind), k.src(instr.ops[2], kind)
    d, view = k.dst(instr.ops[0], kind), VIEW[kind]
    return lambda w: put(w, view, d, np.copysign(w.V[view][b], w.V[view][a]))


@op("testp")
def test_property(k, instr, m):
    """testp.finite/infinite/number/notanumber/normal/subnormal."""
    from attncc.emulator.lanes import pack

    kind = m.type()
    what = m.need("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    a, d, view = k.src(instr.ops[1], kind), k.dst(instr.ops[0], "pred"), VIEW[kind]
    tiny = 1.17549435e-38 if kind == "f32" else 2.2250738585072014e-308
    tests = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: ~np.isnan(x),
        "notanumber": np.isnan,
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= tiny),
        "subnormal": lambda x: (x != 0) & (np.abs(x) < tiny),
    }

    def run(w):
        w.pr[d] = (w.pr[d] & ~w.mi) | (pack(tests[what](w.V[view][a])) & w.mi)

    return run
