"""Half, bf16 and packed arithmetic: f16, bf16, f16x2, bf16x2, f32x2 (PTX ISA 9.7.4 and the f32x2 forms of 9.7.3).

Each operation is computed exactly (float32, or float64 rounded to odd for fma) and rounded once: float32 keeps more
than 2p+2 bits of every half format, so add, sub and mul do not round twice.
"""

from __future__ import annotations

import numpy as np

from attncc.emulator.decode import VIEW, put
from attncc.emulator.numerics import _round_to_odd, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, flush, fma_f32
from attncc.emulator.ops_float import _finish, binary_function, float_compare_name


def unpack(kind, row):
    """Register row -> float32 elements, shape [32] or [32, 2]."""
    if kind == "f32x2":
        return row.view(np.float32).reshape(32, 2)
    half = row.view(np.uint16)
    half = half.reshape(32, 2) if kind.endswith("x2") else half
    return bf16_to_f32(half) if kind.startswith("bf16") else f16_to_f32(half)


def repack(kind, values):
    """float32 elements -> register row bits."""
    if kind == "f32x2":
        return np.ascontiguousarray(values, np.float32).view(np.uint64)[:, 0]
    bits = f32_to_bf16(values) if kind.startswith("bf16") else f32_to_f16(values)
    return np.ascontiguousarray(bits).view(np.uint32)[:, 0] if kind.endswith("x2") else bits


def raw_view(kind):
    """The unsigned view a packed type is stored in."""
    return "u16" if kind in ("f16", "bf16") else VIEW[kind]


def half_binary(k, instr, m, kind, name):
    """add sub mul min max."""
    rounding = m.take("rn", "rz", "rm", "rp", default="rn")
    ftz, sat = m.flag("ftz"), m.flag("sat")
    relu = m.flag("relu")
    nan = m.flag("NaN")
    xorsign = m.flag("xorsign") and m.flag("abs")
    if rounding != "rn" and kind != "f32x2":
        raise k.fail("directed rounding is only supported for f32x2")
    function = binary_function(name, rounding, nan, xorsign)
    sources = [k.src(o, kind) for o in instr.ops[1:]]
    d, view = k.dst(instr.ops[0], kind), raw_view(kind)

    def run(w):
        values = [unpack(kind, w.V[view][i]) for i in sources]
        if ftz:
            values = [flush(v) for v in values]
        value = function(values[0], values[1])
        for extra in values[2:]:
            value = function(value, extra)
        value = _finish(value, ftz, sat)
        put(w, view, d, repack(kind, np.maximum(value, 0) if relu else value))

    return run


def half_unary(k, instr, m, kind, name):
    """abs, neg: sign-bit operations."""
    m.flag("ftz")
    a, d, view = k.src(instr.ops[1], kind), k.dst(instr.ops[0], kind), raw_view(kind)
    sign = {"f16": 0x8000, "bf16": 0x8000, "f16x2": 0x80008000, "bf16x2": 0x80008000, "f32x2": 0x8000000080000000}[kind]

    def run(w):
        x = w.V[view][a]
        s = x.dtype.type(sign)
        put(w, view, d, x & ~s if name == "abs" else x ^ s)

    return run


def half_fma(k, instr, m, kind):
    """fma with one rounding."""
    rounding = m.take("rn", "rz", "rm", "rp", default="rn")
    if rounding != "rn":
        raise k.fail("directed rounding of packed fma is not supported")
    ftz, sat, relu = m.flag("ftz"), m.flag("sat"), m.flag("relu")
    sources = [k.src(o, kind) for o in instr.ops[1:]]
    d, view = k.dst(instr.ops[0], kind), raw_view(kind)

    def run(w):
        a, b, c = (unpack(kind, w.V[view][i]) for i in sources)
        if ftz:
            a, b, c = flush(a), flush(b), flush(c)
        value = fma_f32(a, b, c) if kind == "f32x2" else _odd_f32(a, b, c)
        value = _finish(value, ftz, sat)
        put(w, view, d, repack(kind, np.maximum(value, 0) if relu else value))

    return run


def mixed(k, instr, m, kind, name):
    """add/sub/fma.f32.{f16,bf16}: half operands, a float32 addend and result, one rounding (PTX ISA, mixed precision)."""
    m.need("f32")
    rounding = m.take("rn", "rz", "rm", "rp", default="rn")
    if rounding != "rn":
        raise k.fail("directed rounding of mixed-precision arithmetic is not supported")
    sat = m.flag("sat")
    halves = [k.src(o, kind) for o in instr.ops[1 : len(instr.ops) - 1]]
    c, d = k.src(instr.ops[-1], "f32"), k.dst(instr.ops[0], "f32")

    def run(w):
        values = [unpack(kind, w.V["u16"][i]) for i in halves]
        last = w.V["f32"][c]
        if name == "fma":
            value = fma_f32(values[0], values[1], last)
        else:
            value = values[0] + last if name == "add" else values[0] - last
        put(w, "f32", d, _finish(value, False, sat))

    return run


def _odd_f32(a, b, c):
    """a*b+c rounded to odd in float32, so that the next rounding to a half format is the only one."""
    p, z = a.astype(np.float64) * b, c.astype(np.float64)
    exact = _round_to_odd(p, z, p + z)
    near = exact.astype(np.float32)
    wide = near.astype(np.float64)
    below = np.where(np.abs(wide) > np.abs(exact), np.nextafter(near, np.float32(0)), near)
    inexact = np.isfinite(wide) & (wide != exact)
    return np.where(inexact, (below.view(np.uint32) | np.uint32(1)).view(np.float32), near)


def half_compare(k, kind, compare, ftz):
    """setp on f16/bf16 scalars."""
    if kind not in ("f16", "bf16"):
        raise k.fail("packed setp is not supported")
    test = float_compare_name(compare, ftz)
    return lambda a, b: test(unpack(kind, np.ascontiguousarray(a)), unpack(kind, np.ascontiguousarray(b)))


def half_special(k, instr, kind, function):
    """ex2/tanh on half types."""
    a, d, view = k.src(instr.ops[1], kind), k.dst(instr.ops[0], kind), raw_view(kind)

    def run(w):
        value = function(unpack(kind, w.V[view][a]).astype(np.float64)).astype(np.float32)
        put(w, view, d, repack(kind, value))

    return run
