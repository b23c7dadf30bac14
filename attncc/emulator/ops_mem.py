"""ld, st, atom, red, prefetch and address mapping (PTX ISA 9.7.9)."""

from __future__ import annotations

import numpy as np

from attncc.emulator import memory as mem
from attncc.emulator.decode import VIEW, op, put
from attncc.emulator.numerics import bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16
from attncc.emulator.ptx_parse import TYPE_BITS

SPACES = ("global", "shared", "shared::cta", "shared::cluster", "local", "param", "param::entry", "const")
SEMANTICS = ("weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "mmio")
SCOPES = ("cta", "cluster", "gpu", "sys")
CACHE = (
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "nc",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_last",
    "L2::evict_normal",
    "L2::evict_first",
    "L2::cache_hint",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "unified",
)


def _modifiers(k, m):
    """(space, semantics, scope, vector length, type) of a memory instruction."""
    space = (m.take(*SPACES) or "generic").split("::")[0]
    semantics, scope = m.take(*SEMANTICS, default="weak"), m.take(*SCOPES)
    while m.take(*CACHE):
        pass
    vector = int((m.take("v2", "v4", "v8") or "v1")[1:])
    return space, semantics, scope, vector, m.type()


def _row(values: np.ndarray, kind: str, width: int) -> np.ndarray:
    """uint8[32, n] -> a register row of `width` bits, sign-extended for signed types."""
    bits = TYPE_BITS[kind]
    if kind == "b128":
        return values.view(np.uint64)
    raw = np.ascontiguousarray(values).view(f"{'i' if kind[0] == 's' else 'u'}{bits // 8}")[:, 0]
    return raw.astype(f"{'i' if kind[0] == 's' else 'u'}{width // 8}").view(f"u{width // 8}")


@op("ld", "ldu")
def ld(k, instr, m):
    """Loads, vectors included; acquire forms learn what the location's releases published."""
    space, semantics, _, vector, kind = _modifiers(k, m)
    address = k.addr(instr.ops[1])
    outs = k.dsts(instr.ops[0], kind, loose=True)
    if len(outs) != vector:
        raise k.fail(f"{len(outs)} destinations for .v{vector}")
    each = TYPE_BITS[kind] // 8
    widths = [k.program.widths[d] for d in outs]
    if space in ("shared", "generic"):
        k.program.min_shared_access = min(k.program.min_shared_access, each)

    def run(w):
        addresses = address(w)
        data = mem.load(w, space, addresses, each * vector)
        if semantics == "acquire":
            w.machine.acquire(w, space, addresses)
        for i, (d, width) in enumerate(zip(outs, widths)):
            put(w, f"u{width}" if width < 128 else "b128", d, _row(data[:, i * each : (i + 1) * each], kind, width))

    return run


@op("st")
def st(k, instr, m):
    """Stores, vectors included; release forms publish what the warp knows."""
    space, semantics, _, vector, kind = _modifiers(k, m)
    address = k.addr(instr.ops[0])
    rows = k.srcs(instr.ops[1], kind, loose=True)
    if len(rows) != vector:
        raise k.fail(f"{len(rows)} sources for .v{vector}")
    each = TYPE_BITS[kind] // 8
    if space in ("shared", "generic"):
        k.program.min_shared_access = min(k.program.min_shared_access, each)
    widths = [k.program.widths[r] for r in rows]

    def run(w):
        addresses = address(w)
        parts = [
            w.V[f"u{width}" if width < 128 else "b128"][r].reshape(32, -1).view(np.uint8).reshape(32, -1)[:, :each]
            for r, width in zip(rows, widths)
        ]
        if semantics == "release":
            w.machine.release(w, space, addresses)
        mem.store(w, space, addresses, np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0])

    return run


_ATOMIC = {
    "add": lambda a, b: a + b,
    "min": min,
    "max": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "exch": lambda a, b: b,
    "inc": lambda a, b: 0 if a >= b else a + 1,
    "dec": lambda a, b: b if a == 0 or a > b else a - 1,
}


def _decode_value(kind, raw):
    """Bytes -> Python or numpy value of an atomic's element type."""
    if kind in ("f32", "f64"):
        return raw.view(np.float32 if kind == "f32" else np.float64)[0]
    if kind.startswith("f16"):
        return f16_to_f32(raw.view(np.uint16))
    if kind.startswith("bf16"):
        return bf16_to_f32(raw.view(np.uint16))
    return int(raw.view(f"{'i' if kind[0] == 's' else 'u'}{len(raw)}")[0])


def _encode_value(kind, value, nbytes):
    """Inverse of _decode_value."""
    if kind in ("f32", "f64"):
        return np.array([value], np.float32 if kind == "f32" else np.float64).view(np.uint8)
    if kind.startswith("f16"):
        return f32_to_f16(value).view(np.uint8)
    if kind.startswith("bf16"):
        return f32_to_bf16(value).view(np.uint8)
    return np.frombuffer((int(value) & ((1 << (8 * nbytes)) - 1)).to_bytes(nbytes, "little"), np.uint8)


@op("atom", "red")
def atom(k, instr, m):
    """atom and red: lanes apply one after the other, in lane order."""
    returns = instr.opcode == "atom"
    space = (m.take(*SPACES) or "generic").split("::")[0]
    semantics = m.take(*SEMANTICS, default="relaxed")
    m.take(*SCOPES)
    m.flag("L2::cache_hint")
    m.flag("noftz")
    vector = int((m.take("v2", "v4", "v8") or "v1")[1:])
    name = m.need(*_ATOMIC, "cas")
    kind = m.type()
    ops = list(instr.ops)
    outs = k.dsts(ops.pop(0), kind) if returns else []
    address = k.addr(ops.pop(0))
    rows = k.srcs(ops.pop(0), kind)
    swap = k.src(ops.pop(0), kind) if name == "cas" else None
    each, view = TYPE_BITS[kind] // 8, VIEW[kind].replace("f", "u").replace("s", "u")

    def run(w):
        addresses = address(w)
        if semantics in ("release", "acq_rel"):
            w.machine.release(w, space, addresses)
        old = np.zeros((vector, 32), f"u{each}")
        for region, who, offsets in mem.groups(w, space, addresses, each * vector):
            for lane, offset in zip(who.tolist(), offsets.tolist()):
                for v in range(vector):
                    at = region.data[offset + v * each : offset + (v + 1) * each]
                    old[v, lane] = at.view(f"u{each}")[0] if offset % each == 0 else 0
                    arg = np.ascontiguousarray(w.V[view][rows[v]][lane : lane + 1]).view(np.uint8)
                    at[:] = _apply(name, kind, at.copy(), arg, w, swap, view, lane, each)
            if region.shadow is not None:
                region.shadow.wid[region.shadow.granules(offsets, each * vector)] = -(2**31)
            region.version += 1
        w.machine.progress += 1
        if semantics in ("acquire", "acq_rel"):
            w.machine.acquire(w, space, addresses)
        for v, d in enumerate(outs):
            put(w, view, d, old[v])

    return run


def _apply(name, kind, current, arg, w, swap, view, lane, each):
    if name == "cas":
        new = np.ascontiguousarray(w.V[view][swap][lane : lane + 1]).view(np.uint8)
        return new if (current == arg).all() else current
    return _encode_value(
        kind,
        _ATOMIC[name](_decode_value(kind, current), _decode_value(kind, arg))
        if not kind.endswith("x2") or name == "add"
        else _packed(name, kind, current, arg),
        each,
    )


def _packed(name, kind, current, arg):
    pick = {"min": np.minimum, "max": np.maximum}[name]
    return pick(_decode_value(kind, current), _decode_value(kind, arg))


@op("prefetch", "prefetchu", "applypriority", "discard")
def prefetch(k, instr, m):
    """Hints: the address is checked by nobody, as on the GPU."""
    m.take("tensormap")
    m.take(*SPACES)
    m.take("L1", "L2", "L2::128B", "L2::evict_last", "L2::evict_normal")
    return lambda w: None


@op("mapa")
def mapa(k, instr, m):
    """shared::cluster address of the same variable in another CTA of the cluster."""
    shared = m.take("shared::cluster", "shared")
    kind = m.type()
    a, rank = k.src(instr.ops[1], kind), k.src(instr.ops[2], "u32")
    d, view = k.dst(instr.ops[0], kind), VIEW[kind]

    def run(w):
        low = w.V[view][a].astype(np.uint64) & np.uint64((1 << mem.RANK_SHIFT) - 1)
        value = low | (w.V["u32"][rank].astype(np.uint64) << np.uint64(mem.RANK_SHIFT))
        put(w, view, d, value + np.uint64(0 if shared else mem.windows["shared"]))

    return run


@op("getctarank")
def getctarank(k, instr, m):
    """CTA rank an address belongs to."""
    m.take("shared::cluster", "shared")
    kind = m.type()
    a, d = k.src(instr.ops[1], kind), k.dst(instr.ops[0], "u32")
    return lambda w: put(w, "u32", d, (w.V[VIEW[kind]][a].astype(np.uint64) >> np.uint64(24)) & np.uint64(0xFFFF))


@op("createpolicy")
def createpolicy(k, instr, m):
    """L2 policies have no effect on results: the register gets a fixed value."""
    m.left.clear()
    d = k.dst(instr.ops[0], "b64")
    return lambda w: put(w, "u64", d, 0)
