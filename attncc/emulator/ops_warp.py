"""Warp-wide instructions: shfl, vote, match, redux, elect, activemask (PTX ISA 9.7.9.6, 9.7.14)."""

from __future__ import annotations

import numpy as np

from attncc.emulator.decode import BLOCK, op, put
from attncc.emulator.lanes import FULL, LANE, first, lanes, pack
from attncc.emulator.ptx_parse import Imm


def members(k, operand):
    """Function warp -> member mask (the register is read in the first active lane)."""
    if isinstance(operand, Imm):
        value = operand.value & FULL
        return lambda w: value
    index = k.src(operand, "b32")
    return lambda w: int(w.V["u32"][index][first(w.mi)])


def gather_members(w, mask: int, what: str) -> bool:
    """True when all live lanes of `mask` are in the current path, else the path waits for them."""
    want = mask & w.live
    if want & ~w.mi:
        return w.converged_mask(want, what)
    if w.mi & ~mask:
        w.report("divergence", f"{what}: lanes {w.mi & ~mask:#x} run it but are not in its mask", first(w.mi & ~mask))
    return True


@op("shfl")
def shfl(k, instr, m):
    """shfl.sync up/down/bfly/idx with segments; reading a lane that is not a member is a finding."""
    m.need("sync")
    mode = m.need("up", "down", "bfly", "idx")
    m.type()
    out, pred = k.pair(instr.ops[0])
    a, b, c = (k.src(o, "b32") for o in instr.ops[1:4])
    mask = members(k, instr.ops[4])
    d = k.dst(out, "b32")
    p = k.dst(pred, "pred") if pred is not None else None

    def run(w):
        who = mask(w)
        if not gather_members(w, who, "shfl.sync"):
            return BLOCK
        u = w.V["u32"]
        source, valid = _shuffle_source(mode, u[b] & 31, u[c])
        bits = who & w.live
        bad = w.mi & ~pack(lanes(bits)[source] | ~valid)
        if bad:
            lane = first(bad)
            w.report("divergence", f"shfl.sync reads lane {int(source[lane])}, which does not take part", lane)
        value = u[a][np.where(valid, source, LANE)]
        put(w, "u32", d, value)
        if p is not None:
            w.pr[p] = (w.pr[p] & ~w.mi) | (pack(valid) & w.mi)
        return None

    return run


def _shuffle_source(mode, b, c):
    """(source lane, in range) per lane, by the pseudo code of the ISA."""
    bval, cval = b.astype(np.int64), (c & 31).astype(np.int64)
    segment = ((c >> np.uint32(8)) & np.uint32(31)).astype(np.int64)
    high, low = (LANE & segment) | (cval & ~segment), LANE & segment
    if mode == "up":
        j = LANE - bval
        valid = j >= high
    elif mode == "down":
        j = LANE + bval
        valid = j <= high
    elif mode == "bfly":
        j = LANE ^ bval
        valid = j <= high
    else:
        j = low | (bval & ~segment)
        valid = j <= high
    return np.where(valid, j, LANE), valid


@op("vote")
def vote(k, instr, m):
    """vote.sync all/any/uni/ballot."""
    m.need("sync")
    mode = m.need("all", "any", "uni", "ballot")
    kind = m.type()
    p, negated = k.pred(instr.ops[1])
    mask = members(k, instr.ops[2])
    d = k.dst(instr.ops[0], kind)

    def run(w):
        who = mask(w)
        if not gather_members(w, who, "vote.sync"):
            return BLOCK
        group = who & w.mi
        bits = (~w.pr[p] if negated else w.pr[p]) & group
        if mode == "ballot":
            put(w, "u32", d, np.uint32(bits))
        else:
            result = bits == group if mode == "all" else bits != 0 if mode == "any" else bits in (0, group)
            w.pr[d] = (w.pr[d] & ~w.mi) | (w.mi if result else 0)
        return None

    return run


@op("match")
def match(k, instr, m):
    """match.sync any/all."""
    mode = m.need("any", "all")
    m.need("sync")
    kind = m.type()
    out, pred = k.pair(instr.ops[0])
    a = k.src(instr.ops[1], kind)
    mask = members(k, instr.ops[2])
    d = k.dst(out, "b32")
    p = k.dst(pred, "pred") if pred is not None else None

    def run(w):
        who = mask(w)
        if not gather_members(w, who, "match.sync"):
            return BLOCK
        row = w.V["u64" if kind == "b64" else "u32"][a]
        group = lanes(who & w.mi)
        same = (row[:, None] == row[None, :]) & group[None, :]
        values = np.array([pack(s) for s in same], np.uint32)
        if mode == "all":
            every = bool((row[group] == row[group][0]).all())
            values[:] = who & w.mi if every else 0
            if p is not None:
                w.pr[p] = (w.pr[p] & ~w.mi) | (w.mi if every else 0)
        put(w, "u32", d, values)
        return None

    return run


@op("redux")
def redux(k, instr, m):
    """redux.sync on integers, and min/max on f32 (sm_100a)."""
    m.need("sync")
    name = m.need("add", "min", "max", "and", "or", "xor")
    use_abs, nan = m.flag("abs"), m.flag("NaN")
    kind = m.type()
    a, mask, d = k.src(instr.ops[1], kind), members(k, instr.ops[2]), k.dst(instr.ops[0], kind)
    view = {"f32": "f32", "s32": "s32"}.get(kind, "u32")
    functions = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    function = functions[name]
    if kind == "f32" and not nan:
        function = np.fmin if name == "min" else np.fmax

    def run(w):
        who = mask(w)
        if not gather_members(w, who, "redux.sync"):
            return BLOCK
        values = w.V[view][a][lanes(who & w.mi)]
        put(w, view, d, function.reduce(np.abs(values) if use_abs else values))
        return None

    return run


@op("elect")
def elect(k, instr, m):
    """elect.sync: the lowest member lane is the leader."""
    m.need("sync")
    out, pred = k.pair(instr.ops[0])
    mask = members(k, instr.ops[1])
    d, p = k.dst(out, "b32"), k.dst(pred, "pred")

    def run(w):
        who = mask(w)
        if not gather_members(w, who, "elect.sync"):
            return BLOCK
        leader = first(who & w.mi)
        put(w, "u32", d, np.uint32(leader))
        w.pr[p] = (w.pr[p] & ~w.mi) | ((1 << leader) & w.mi)
        return None

    return run


@op("activemask")
def activemask(k, instr, m):
    """Lanes of the current path."""
    m.type()
    d = k.dst(instr.ops[0], "b32")
    return lambda w: put(w, "u32", d, np.uint32(w.mi))
