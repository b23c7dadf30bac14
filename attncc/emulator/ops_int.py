"""Integer, bit and logic instructions, comparisons and selects (PTX ISA 9.7.1, 9.7.6-9.7.8)."""

from __future__ import annotations

import numpy as np

from attncc.emulator.decode import VIEW, op, put
from attncc.emulator.lanes import FULL, lanes, pack
from attncc.emulator.ops_float import float_binary, float_compare_name, float_fma, float_unary
from attncc.emulator.ops_half import half_binary, half_compare, half_fma, half_unary, mixed
from attncc.emulator.ptx_parse import TYPE_BITS

INTS = frozenset(("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64", "b8", "b16", "b32", "b64"))
HALVES = frozenset(("f16", "bf16", "f16x2", "bf16x2", "f32x2"))


def elementwise(k, instr, kind, function):
    """d = function(sources...) on the view of `kind`; function may be a ufunc."""
    view = VIEW[kind]
    sources = [k.src(o, kind) for o in instr.ops[1:]]
    d = k.dst(instr.ops[0], kind)
    if isinstance(function, np.ufunc) and len(sources) == 2:
        a, b = sources

        def run(w):
            table = w.V[view]
            if w.mi == FULL:
                function(table[a], table[b], out=table[d])
            else:
                function(table[a], table[b], out=table[d], where=lanes(w.mi))

        return run

    def run_any(w):
        table = w.V[view]
        put(w, view, d, function(*[table[i] for i in sources]))

    return run_any


@op("add", "sub")
def add_sub(k, instr, m):
    """add, sub for every type; `.sat` on s32 clamps."""
    kind = m.type()
    if kind in ("f16", "bf16") and "f32" in m.left:
        return mixed(k, instr, m, kind, instr.opcode)
    if kind in HALVES:
        return half_binary(k, instr, m, kind, instr.opcode)
    if kind not in INTS:
        return float_binary(k, instr, m, kind, instr.opcode)
    if m.flag("sat"):
        sign = 1 if instr.opcode == "add" else -1
        return elementwise(
            k,
            instr,
            kind,
            lambda a, b: np.clip(a.astype(np.int64) + sign * b.astype(np.int64), -(1 << 31), (1 << 31) - 1).astype(
                np.int32
            ),
        )
    return elementwise(k, instr, kind, np.add if instr.opcode == "add" else np.subtract)


def _wide(a: np.ndarray, b: np.ndarray, kind: str) -> np.ndarray:
    """Full product of two operands of up to 32 bits, as 64-bit integers."""
    wide = np.int64 if kind[0] == "s" else np.uint64
    return a.astype(wide) * b.astype(wide)


def mul_hi(a: np.ndarray, b: np.ndarray, kind: str) -> np.ndarray:
    """Upper half of the product."""
    bits = TYPE_BITS[kind]
    if bits <= 32:
        return (_wide(a, b, kind) >> (np.int64(bits) if kind[0] == "s" else np.uint64(bits))).astype(a.dtype)
    high = [(int(x) * int(y)) >> 64 for x, y in zip(a, b)]
    return np.array([h & 0xFFFFFFFFFFFFFFFF for h in high], np.uint64).view(a.dtype)


@op("mul", "mad")
def mul_mad(k, instr, m):
    """mul/mad .lo .hi .wide on integers; mul on floats."""
    kind = m.type()
    if kind in HALVES:
        return half_binary(k, instr, m, kind, "mul")
    if kind not in INTS:
        return float_binary(k, instr, m, kind, "mul") if instr.opcode == "mul" else float_fma(k, instr, m, kind)
    part = m.need("lo", "hi", "wide")
    out_kind = kind if part != "wide" else kind[0] + str(2 * TYPE_BITS[kind])
    a, b = k.src(instr.ops[1], kind), k.src(instr.ops[2], kind)
    c = k.src(instr.ops[3], out_kind) if instr.opcode == "mad" else None
    d = k.dst(instr.ops[0], out_kind)
    view, out = VIEW[kind], VIEW[out_kind]
    dtype = np.dtype(out_kind[0].replace("s", "i") + str(TYPE_BITS[out_kind] // 8))

    def run(w):
        x, y = w.V[view][a], w.V[view][b]
        value = x * y if part == "lo" else mul_hi(x, y, kind) if part == "hi" else _wide(x, y, kind).astype(dtype)
        put(w, out, d, value if c is None else value + w.V[out][c])

    return run


@op("mul24", "mad24")
def mul24(k, instr, m):
    """24-bit products, low half."""
    kind = m.type()
    m.need("lo")
    a, b = k.src(instr.ops[1], kind), k.src(instr.ops[2], kind)
    c = k.src(instr.ops[3], kind) if instr.opcode == "mad24" else None
    d, view = k.dst(instr.ops[0], kind), VIEW[kind]

    def run(w):
        x, y = ((w.V[view][i] << 8) >> 8 for i in (a, b))
        put(w, view, d, x * y if c is None else x * y + w.V[view][c])

    return run


@op("div", "rem")
def div_rem(k, instr, m):
    """Integer division truncates; a zero divisor gives all ones (the ISA leaves it open)."""
    kind = m.type()
    if kind not in INTS:
        return float_binary(k, instr, m, kind, "div")
    quotient = instr.opcode == "div"

    def run(a, b):
        safe = np.where(b == 0, 1, b).astype(a.dtype)
        q = np.abs(a.astype(object)) // np.abs(safe.astype(object)) * np.where((a < 0) != (safe < 0), -1, 1)
        r = q if quotient else a.astype(object) - q * safe.astype(object)
        mask = (1 << (8 * a.dtype.itemsize)) - 1
        bits = np.array([int(x) & mask for x in r], f"u{a.dtype.itemsize}").view(a.dtype)
        return np.where(b == 0, np.array(mask, f"u{a.dtype.itemsize}").view(a.dtype), bits)

    return elementwise(k, instr, kind, run)


@op("min", "max")
def min_max(k, instr, m):
    """min, max; floats have NaN rules of their own."""
    kind = m.type()
    if kind in HALVES:
        return half_binary(k, instr, m, kind, instr.opcode)
    if kind not in INTS:
        return float_binary(k, instr, m, kind, instr.opcode)
    relu = m.flag("relu")
    base = np.minimum if instr.opcode == "min" else np.maximum
    return elementwise(k, instr, kind, (lambda a, b: np.maximum(base(a, b), 0)) if relu else base)


@op("abs", "neg")
def abs_neg(k, instr, m):
    """abs, neg."""
    kind = m.type()
    if kind in HALVES:
        return half_unary(k, instr, m, kind, instr.opcode)
    if kind not in INTS:
        return float_unary(k, instr, m, kind, instr.opcode)
    return elementwise(k, instr, kind, np.abs if instr.opcode == "abs" else (lambda a: (0 - a).astype(a.dtype)))


@op("and", "or", "xor", "not", "cnot")
def logic(k, instr, m):
    """Bitwise logic, on predicates as lane masks."""
    kind = m.type()
    name = instr.opcode
    if kind == "pred":
        return _pred_logic(k, instr)
    functions = {
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "not": lambda a: ~a,
        "cnot": lambda a: (a == 0).astype(a.dtype),
    }
    return elementwise(k, instr, kind, functions[name])


def _pred_logic(k, instr):
    sources = [k.pred(o) for o in instr.ops[1:]]
    d, name = k.dst(instr.ops[0], "pred"), instr.opcode

    def run(w):
        values = [~w.pr[i] if n else w.pr[i] for i, n in sources]
        v = ~values[0] if name == "not" else values[0]
        if name == "and":
            v &= values[1]
        elif name == "or":
            v |= values[1]
        elif name == "xor":
            v ^= values[1]
        w.pr[d] = (w.pr[d] & ~w.mi) | (v & w.mi)

    return run


@op("shl", "shr")
def shift(k, instr, m):
    """Shifts clamp the amount to the width; shr on signed types copies the sign."""
    kind = m.type()
    bits = TYPE_BITS[kind]
    a, n = k.src(instr.ops[1], kind), k.src(instr.ops[2], "u32")
    d, view, left = k.dst(instr.ops[0], kind), VIEW[kind], instr.opcode == "shl"
    signed = kind[0] == "s"

    def run(w):
        x, amount = w.V[view][a], w.V["u32"][n]
        safe = np.minimum(amount, bits - 1).astype(x.dtype)
        value = x << safe if left else x >> safe
        if not signed or left:
            value = np.where(amount >= bits, 0, value)
        put(w, view, d, value)

    return run


@op("shf")
def funnel(k, instr, m):
    """Funnel shift of {b, a}."""
    left, clamp = m.need("l", "r") == "l", m.need("clamp", "wrap") == "clamp"
    kind = m.type()
    a, b, c = (k.src(o, kind) for o in instr.ops[1:])
    d = k.dst(instr.ops[0], kind)

    def run(w):
        u = w.V["u32"]
        both = (u[b].astype(np.uint64) << np.uint64(32)) | u[a]
        n = (np.minimum(u[c], 32) if clamp else u[c] & 31).astype(np.uint64)
        value = (both << n) >> np.uint64(32) if left else both >> n
        put(w, "u32", d, (value & np.uint64(0xFFFFFFFF)).astype(np.uint32))

    return run


@op("popc", "clz", "brev", "bfind")
def bit_count(k, instr, m):
    """popc, clz, brev, bfind (highest set bit, sign-aware, all ones if none)."""
    shiftamt = m.flag("shiftamt")
    kind = m.type()
    bits, name = TYPE_BITS[kind], instr.opcode
    a = k.src(instr.ops[1], kind)
    out = kind if name == "brev" else "u32"
    d = k.dst(instr.ops[0], out)
    view = "u64" if bits == 64 else "u32"

    def one(x: int) -> int:
        if name == "popc":
            return x.bit_count()
        if name == "clz":
            return bits - x.bit_length()
        if name == "brev":
            return int(f"{x:0{bits}b}"[::-1], 2)
        if kind[0] == "s" and x >> (bits - 1):
            x ^= (1 << bits) - 1
        top = x.bit_length() - 1
        return 0xFFFFFFFF if top < 0 else bits - 1 - top if shiftamt else top

    def run(w):
        put(
            w,
            VIEW[out] if name != "brev" else view,
            d,
            np.array([one(int(x)) for x in w.V[view][a]], f"u{4 if out == 'u32' else bits // 8}"),
        )

    return run


@op("bfe")
def bit_field_extract(k, instr, m):
    """Extract `len` bits at `pos`, sign-extended for signed types."""
    kind = m.type()
    bits, signed = TYPE_BITS[kind], kind[0] == "s"
    a, b, c = k.src(instr.ops[1], kind), k.src(instr.ops[2], "u32"), k.src(instr.ops[3], "u32")
    d, view = k.dst(instr.ops[0], kind), VIEW[kind]

    def one(x, pos, length):
        pos, length = pos & 0xFF, length & 0xFF
        sign = (x >> min(pos + length - 1, bits - 1)) & 1 if signed and length else 0
        field = (x >> pos) & ((1 << length) - 1)
        have = max(0, min(length, bits - pos))
        return (field | (((1 << bits) - 1) ^ ((1 << have) - 1) if sign else 0)) & ((1 << bits) - 1)

    def run(w):
        u = "u64" if bits == 64 else "u32"
        value = [one(int(x), int(p), int(n)) for x, p, n in zip(w.V[u][a], w.V["u32"][b], w.V["u32"][c])]
        put(w, view, d, np.array(value, f"u{bits // 8}").view(w.V[view][a].dtype))

    return run


@op("bfi")
def bit_field_insert(k, instr, m):
    """Insert the low `len` bits of a into b at `pos`."""
    kind = m.type()
    bits = TYPE_BITS[kind]
    a, b = k.src(instr.ops[1], kind), k.src(instr.ops[2], kind)
    c, e = k.src(instr.ops[3], "u32"), k.src(instr.ops[4], "u32")
    d, view = k.dst(instr.ops[0], kind), VIEW[kind]

    def run(w):
        pos = (w.V["u32"][c] & 255).astype(object)
        length = (w.V["u32"][e] & 255).astype(object)
        field = np.array([(((1 << int(n)) - 1) << int(p)) & ((1 << bits) - 1) for p, n in zip(pos, length)], object)
        value = (w.V[view][b].astype(object) & ~field) | ((w.V[view][a].astype(object) << pos) & field)
        put(w, view, d, value.astype(f"u{bits // 8}"))

    return run


@op("prmt")
def permute(k, instr, m):
    """Byte permute; also the f4e, b4e, rc8, ecl, ecr, rc16 modes."""
    mode = m.take("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    kind = m.type()
    a, b, c = (k.src(o, kind) for o in instr.ops[1:])
    d = k.dst(instr.ops[0], kind)
    tables = {
        "f4e": ["3210", "4321", "5432", "6543"],
        "b4e": ["5670", "6701", "7012", "0123"],
        "rc8": ["0000", "1111", "2222", "3333"],
        "ecl": ["3210", "3211", "3222", "3333"],
        "ecr": ["0000", "1110", "2210", "3210"],
        "rc16": ["1010", "3232", "1010", "3232"],
    }

    def run(w):
        u = w.V["u32"]
        data = np.concatenate([u[a].view(np.uint8).reshape(32, 4), u[b].view(np.uint8).reshape(32, 4)], axis=1)
        select = u[c]
        if mode:
            select = np.array([int(s, 16) for s in tables[mode]], np.uint32)[select & 3]
        nibbles = (select[:, None] >> np.arange(0, 16, 4, dtype=np.uint32)) & 15
        picked = np.take_along_axis(data, (nibbles & 7).astype(np.int64), 1)
        picked = np.where(nibbles & 8, np.where(picked & 0x80, 255, 0), picked).astype(np.uint8)
        put(w, "u32", d, picked.view(np.uint32)[:, 0])

    return run


@op("lop3")
def lop3(k, instr, m):
    """Three-input logic by truth table."""
    if m.take("BoolOp", "or", "and"):
        raise k.fail("lop3 with a predicate result is not supported")
    kind = m.type()
    a, b, c = (k.src(o, kind) for o in instr.ops[1:4])
    table = instr.ops[4].value
    d = k.dst(instr.ops[0], kind)

    def run(w):
        x, y, z = (w.V["u32"][i] for i in (a, b, c))
        value = np.zeros(32, np.uint32)
        for i in range(8):
            if table >> i & 1:
                value |= (x if i & 4 else ~x) & (y if i & 2 else ~y) & (z if i & 1 else ~z)
        put(w, "u32", d, value)

    return run


@op("sad")
def sum_abs_diff(k, instr, m):
    """c + |a - b|."""
    kind = m.type()
    return elementwise(k, instr, kind, lambda a, b, c: c + (np.maximum(a, b) - np.minimum(a, b)))


@op("dp4a", "dp2a")
def dot_accumulate(k, instr, m):
    """Byte dot product with accumulate (dp4a)."""
    if instr.opcode == "dp2a":
        raise k.fail("dp2a is not supported")
    btype, atype = m.type(), m.type()
    a, b = k.src(instr.ops[1], "b32"), k.src(instr.ops[2], "b32")
    c, d = k.src(instr.ops[3], "b32"), k.dst(instr.ops[0], "b32")
    dt = {"s32": np.int8, "u32": np.uint8}

    def run(w):
        u = w.V["u32"]
        x = u[a].view(dt[atype]).reshape(32, 4).astype(np.int64)
        y = u[b].view(dt[btype]).reshape(32, 4).astype(np.int64)
        put(w, "u32", d, ((x * y).sum(1) + u[c]).astype(np.uint32))

    return run


@op("selp")
def select(k, instr, m):
    """d = p ? a : b."""
    kind = m.type()
    a, b = k.src(instr.ops[1], kind), k.src(instr.ops[2], kind)
    p, negated = k.pred(instr.ops[3])
    d = k.dst(instr.ops[0], kind)
    view = VIEW[kind]

    def run(w):
        table = w.V[view]
        bits = (~w.pr[p] if negated else w.pr[p]) & FULL
        put(w, view, d, np.where(lanes(bits), table[a], table[b]))

    return run


_COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


@op("setp", "set")
def set_predicate(k, instr, m):
    """setp.cmp[.bool][.ftz].type p[|q], a, b[, c]."""
    if instr.opcode == "set":
        raise k.fail("set is not supported")
    kind = m.type()
    compare = m.need(*_COMPARE, "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
    combine = m.take("and", "or", "xor")
    first, second = k.pair(instr.ops[0])
    a, b = k.src(instr.ops[1], kind), k.src(instr.ops[2], kind)
    c = k.pred(instr.ops[3]) if len(instr.ops) > 3 else None
    p = k.dst(first, "pred")
    q = k.dst(second, "pred") if second is not None else None
    view = VIEW[kind]
    if kind in HALVES:
        test = half_compare(k, kind, compare, m.flag("ftz"))
    elif kind not in INTS:
        test = float_compare_name(compare, m.flag("ftz"))
    else:
        test = _COMPARE[compare]

    def run(w):
        table = w.V[view]
        bits = pack(test(table[a], table[b]))
        other = ~bits
        if combine:
            extra = ~w.pr[c[0]] if c[1] else w.pr[c[0]]
            bits, other = (
                x & extra if combine == "and" else x | extra if combine == "or" else x ^ extra for x in (bits, other)
            )
        mi = w.mi
        w.pr[p] = (w.pr[p] & ~mi) | (bits & mi)
        if q is not None:
            w.pr[q] = (w.pr[q] & ~mi) | (other & mi)

    return run


@op("fma")
def fused(k, instr, m):
    """fma for every float type."""
    kind = m.type()
    if kind in ("f16", "bf16") and "f32" in m.left:
        return mixed(k, instr, m, kind, "fma")
    return half_fma(k, instr, m, kind) if kind in HALVES else float_fma(k, instr, m, kind)
