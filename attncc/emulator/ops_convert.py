"""mov, cvt, cvta and pack/unpack (PTX ISA 9.7.9)."""

from __future__ import annotations

import numpy as np

from attncc.emulator import numerics as nm
from attncc.emulator.decode import TYPES, VIEW, op, put
from attncc.emulator.memory import windows
from attncc.emulator.ptx_parse import TYPE_BITS, Special, Sym, Vec

SMALL = ("e4m3x2", "e5m2x2", "e2m1x2", "ue8m0x2")


@op("mov")
def mov(k, instr, m):
    """mov, with pack and unpack of vectors, predicates, symbols and special registers."""
    kind = m.type()
    target, source = instr.ops
    if kind == "pred":
        return _mov_pred(k, target, source)
    if isinstance(target, Vec) or isinstance(source, Vec):
        return _mov_pack(k, kind, target, source)
    if isinstance(source, Special) and source.name in ("%clock", "%clock64", "%globaltimer", "%clock_hi"):
        d = k.dst(target, kind)
        return lambda w: put(w, VIEW[kind], d, w.machine.now())
    view = VIEW[kind].replace("f", "u") if kind not in ("b128",) else "b128"
    a, d = k.src(source, kind), k.dst(target, kind)
    if view == "b128":
        return lambda w: np.copyto(w.V[view][d], w.V[view][a])
    return lambda w: put(w, view, d, w.V[view][a])


def _mov_pred(k, target, source):
    p, negated = k.pred(source)
    d = k.dst(target, "pred")

    def run(w):
        value = ~w.pr[p] if negated else w.pr[p]
        w.pr[d] = (w.pr[d] & ~w.mi) | (value & w.mi)

    return run


def _mov_pack(k, kind, target, source):
    """Pack: first element goes to the low bits. Unpack likewise."""
    parts = source.items if isinstance(source, Vec) else target.items
    bits = TYPE_BITS[kind] // len(parts)
    part = {8: "b8", 16: "b16", 32: "b32", 64: "b64"}[bits]
    pv, wide = f"u{bits}" if bits > 8 else "u16", VIEW[kind].replace("f", "u")
    if isinstance(source, Vec):
        rows, d = k.srcs(source, part), k.dst(target, kind)

        def pack_run(w):
            both = np.stack([w.V[pv][r].astype(f"u{bits // 8}") for r in rows], axis=1)
            put_wide(w, wide, d, both)

        return pack_run
    a = k.src(source, kind)
    outs = [None if isinstance(o, Sym) else k.dst(o, part) for o in parts]

    def unpack_run(w):
        pieces = w.V[wide][a].reshape(32, -1).view(f"u{bits // 8}").reshape(32, -1)
        values = [pieces[:, i].copy() for i in range(len(outs))]
        for out, value in zip(outs, values):
            if out is not None:
                put(w, pv, out, value)

    return unpack_run


def put_wide(w, view, index, pieces):
    """Store [32, n] small integers as one wide register."""
    data = np.ascontiguousarray(pieces)
    if view == "b128":
        w.V[view][index][:] = data.view(np.uint64)
    else:
        put(w, view, index, data.view(view.replace("u", "uint"))[:, 0])


@op("cvta")
def cvta(k, instr, m):
    """Generic address <-> state-space address: the windows of memory.py."""
    to = m.flag("to")
    space = m.need("shared", "shared::cta", "shared::cluster", "global", "local", "param", "const")
    m.flag("entry") or m.flag("param::entry")
    kind = m.type()
    a, d = k.src(instr.ops[1], kind), k.dst(instr.ops[0], kind)
    base = np.uint64(windows[space.split("::")[0]])

    def run(w):
        x = w.V["u64"][a]
        put(w, "u64", d, x - base if to else x + base)

    return run


@op("isspacep")
def is_space(k, instr, m):
    """Which window a generic address lies in."""
    from attncc.emulator.lanes import pack
    from attncc.emulator.memory import space_of

    space = m.need("shared", "shared::cta", "shared::cluster", "global", "local", "param", "const").split("::")[0]
    a, d = k.src(instr.ops[1], "u64"), k.dst(instr.ops[0], "pred")

    def run(w):
        bits = pack(np.array([space_of(int(x)) == space for x in w.V["u64"][a]]))
        w.pr[d] = (w.pr[d] & ~w.mi) | (bits & w.mi)

    return run


@op("cvt", "cvt.pack")
def cvt(k, instr, m):
    """cvt between integer, float, half and small formats."""
    types = [t for t in m.left if t in TYPES]
    if len(types) < 2:
        raise k.fail("cvt needs two types")
    out, kind = types[0], types[1]
    for t in types[:2]:
        m.left.remove(t)
    rounding = m.take("rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi", "rs")
    opts = {name: m.flag(name) for name in ("ftz", "sat", "satfinite", "relu")}
    if rounding == "rs":
        raise k.fail("stochastic rounding is not supported")
    if out.endswith("x2") and kind == "f32":
        return _cvt_pair(k, instr, out, rounding or "rn", opts)
    if out in SMALL or kind in SMALL:
        return _cvt_small(k, instr, out, kind, opts)
    return _cvt_scalar(k, instr, out, kind, rounding, opts)


def _narrow(out, x, rounding, opts):
    """float32 -> bits of a 16-bit or smaller format."""
    if opts["ftz"]:
        x = nm.flush(x)
    if opts["relu"]:
        x = np.where(x > 0, x, np.where(np.isnan(x), x, np.float32(0)))
    base = out.removesuffix("x2")
    if base == "bf16":
        bits = nm.f32_to_bf16(x, rounding)
    elif base == "f16":
        bits = nm.f32_to_f16(x, rounding)
    else:
        return nm.f32_to_small(base, x)
    if opts["satfinite"]:
        big = np.uint16(0x7F7F if base == "bf16" else 0x7BFF)
        inf = (bits & 0x7FFF) == (0x7F80 if base == "bf16" else 0x7C00)
        bits = np.where(inf, (bits & 0x8000) | big, bits)
    return bits


def _cvt_pair(k, instr, out, rounding, opts):
    """cvt.<pair>.f32 d, a, b: a becomes the upper element, b the lower."""
    a, b = k.src(instr.ops[1], "f32"), k.src(instr.ops[2], "f32")
    kind = {"f16x2": "b32", "bf16x2": "b32", "e2m1x2": "b8"}.get(out, "b16")
    d = k.dst(instr.ops[0], kind, loose=True)
    view = "u32" if kind == "b32" else "u16"
    shift = {"b32": 16, "b16": 8, "b8": 4}[kind]
    if out == "ue8m0x2":
        raise k.fail("cvt to ue8m0x2 is not supported")

    if out == "bf16x2" and rounding == "rn" and not any(opts.values()):
        return lambda w: put(w, "u32", d, nm.bf16_pair(w.V["u32"][a], w.V["u32"][b]))

    def run(w):
        high = _narrow(out, w.V["f32"][a], rounding, opts).astype(np.uint32)
        low = _narrow(out, w.V["f32"][b], rounding, opts).astype(np.uint32)
        put(w, view, d, (high << np.uint32(shift)) | low)

    return run


def _cvt_small(k, instr, out, kind, opts):
    """fp8/fp4/ue8m0 pairs <-> f16x2/bf16x2."""
    if kind in SMALL:
        a, d = k.src(instr.ops[1], "b8" if kind == "e2m1x2" else "b16", loose=True), k.dst(instr.ops[0], "b32")
        bits = 4 if kind == "e2m1x2" else 8

        def widen(w):
            x = w.V["u16"][a]
            both = np.stack([x & ((1 << bits) - 1), (x >> bits) & ((1 << bits) - 1)], axis=1)
            values = nm.small_to_f32(kind[:-2], both)
            half = nm.f32_to_bf16(values) if out == "bf16x2" else nm.f32_to_f16(values)
            if opts["relu"]:
                half = np.where(half & 0x8000, np.uint16(0), half)
            put(w, "u32", d, np.ascontiguousarray(half).view(np.uint32)[:, 0])

        return widen
    from attncc.emulator.ops_half import unpack

    a, d = k.src(instr.ops[1], "b32"), k.dst(instr.ops[0], "b8" if out == "e2m1x2" else "b16", loose=True)
    shift = 4 if out == "e2m1x2" else 8

    def shrink(w):
        values = _narrow(out, unpack(kind, w.V["u32"][a]), "rn", opts).astype(np.uint16)
        put(w, "u16", d, (values[:, 1] << np.uint16(shift)) | values[:, 0])

    return shrink


def _read(w, kind, index):
    """A source row as a numpy array of the natural type (narrow integers take the low bits)."""
    if kind == "f16":
        return nm.f16_to_f32(w.V["u16"][index])
    if kind == "bf16":
        return nm.bf16_to_f32(w.V["u16"][index])
    if kind in ("u8", "s8", "b8"):
        return w.V[f"u{w.prog.widths[index]}"][index].astype(np.uint8).view(np.int8 if kind == "s8" else np.uint8)
    width, bits = w.prog.widths[index], TYPE_BITS[kind]
    if width != bits:  # a wider register: its low bits
        return w.V[f"u{width}"][index].astype(f"u{bits // 8}").view(f"{'i' if kind[0] == 's' else 'u'}{bits // 8}")
    return w.V[VIEW[kind]][index]


def _cvt_scalar(k, instr, out, kind, rounding, opts):
    """Everything with one element on both sides."""
    a = k.src(instr.ops[1], kind, loose=True)
    d = k.dst(instr.ops[0], out, loose=True)
    width = max(k.program.widths[d], 16)
    isfloat_out, isfloat_in = out[0] in "ft" or out == "bf16", kind[0] == "f" or kind == "bf16"

    def run(w):
        x = _read(w, kind, a)
        if isfloat_in and opts["ftz"] and kind == "f32":
            x = nm.flush(x)
        if isfloat_out:
            value = _to_float(x, out, kind, rounding or "rn", opts)
        else:
            value = _float_to_int(x, out, rounding) if isfloat_in else _int_to_int(x, out, opts["sat"])
            value = value.astype(f"{'i' if out[0] == 's' else 'u'}{width // 8}")
        put(w, f"u{width}", d, value.view(f"u{width // 8}"))

    return run


def _to_float(x, out, kind, rounding, opts):
    """Any value -> bits of a float format (as an array whose itemsize is the format's)."""
    if rounding.endswith("i"):
        x = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding](x)
        rounding = "rn"
    if opts["sat"]:
        x = np.where(np.isnan(x), 0, np.clip(x, 0, 1)).astype(x.dtype)
    if out == "tf32":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        add = np.uint32(0x1000) if rounding == "rna" else np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
        bits = np.where(np.isfinite(x), (bits + add) & np.uint32(0xFFFFE000), bits)
        return bits
    if out == "f64":
        return x.astype(np.float64)
    if out == "f32":
        value = x if x.dtype == np.float32 else _wide_to_f32(x, rounding)
        return nm.flush(value) if opts["ftz"] else value
    single = x if x.dtype == np.float32 else x.astype(np.float64).astype(np.float32)
    return _narrow(out, single, rounding, opts)


def _wide_to_f32(x, rounding):
    """Integers and float64 to float32; 64-bit integers go through Python so that nothing rounds twice."""
    if x.dtype.kind in "iu" and x.dtype.itemsize == 8:
        values = x.astype(np.longdouble)
        return values.astype(np.float32) if rounding == "rn" else nm.round_f32(values.astype(np.float64), rounding)
    return nm.round_f32(x.astype(np.float64), rounding)


def _float_to_int(x, out, rounding):
    """Round, clamp to the range; NaN gives 0 (the ISA: 0, or 0x8... for 64-bit)."""
    if rounding is None:
        rounding = "rzi"
    wide = x.astype(np.float64)
    whole = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding](wide)
    bits = TYPE_BITS[out]
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if out[0] == "s" else (0, (1 << bits) - 1)
    if bits == 64:
        return np.array(
            [
                0 if np.isnan(v) else min(max(int(v) if np.isfinite(v) else (high if v > 0 else low), low), high)
                for v in whole
            ],
            np.int64 if out[0] == "s" else np.uint64,
        )
    return np.where(np.isnan(whole), 0, np.clip(whole, low, high)).astype(np.int64)


def _int_to_int(x, out, sat):
    """Truncate or extend; `.sat` clamps."""
    bits = TYPE_BITS[out]
    if sat:
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if out[0] == "s" else (0, (1 << bits) - 1)
        return np.array([min(max(int(v), low), high) for v in x])
    return x.astype(f"{'i' if out[0] == 's' else 'u'}{bits // 8}")
