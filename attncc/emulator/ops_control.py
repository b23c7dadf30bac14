"""Branches, exits, traps, and hints without effect (PTX ISA 9.7.12, 9.7.19)."""

from __future__ import annotations

from attncc.emulator.decode import EXIT, YIELD, op
from attncc.emulator.findings import StopEmulation
from attncc.emulator.lanes import first


def _taken(k, instr):
    """Function warp -> mask of lanes whose guard holds (this opcode handles its guard itself)."""
    if instr.guard is None:
        return lambda w: w.mi
    index, negated = k.program.index[instr.guard[0]], instr.guard[1]

    def taken(w):
        if w.init[index] & w.mi != w.mi:
            w.bad_read(index)
        return w.mi & (~w.pr[index] if negated else w.pr[index])

    return taken


@op("bra")
def bra(k, instr, m):
    """Branches; `.uni` must not diverge."""
    uniform = m.flag("uni")
    target = k.program.kernel.labels[instr.ops[0].name]
    taken = _taken(k, instr)

    def run(w):
        mask = taken(w)
        if mask:
            if uniform and mask != w.mi:
                w.report("divergence", "bra.uni taken by only some of its lanes", first(mask))
            w.branch(target, mask)

    return run


@op("ret", "exit")
def leave(k, instr, m):
    """The lanes are done."""
    m.flag("uni")
    taken = _taken(k, instr)

    def run(w):
        mask = taken(w)
        if mask == w.mi:
            return EXIT
        w.live &= ~mask
        w.mi &= ~mask
        return None

    return run


@op("trap", "brkpt")
def trap(k, instr, m):
    """trap: an assertion of the program failed."""

    def run(w):
        w.report("trap", "the kernel executed trap: a check it contains failed", first(w.mi))
        raise StopEmulation("trap")

    return run


@op("nanosleep")
def nanosleep(k, instr, m):
    """Another warp goes first."""
    m.type()
    k.src(instr.ops[0], "u32")
    return lambda w: YIELD


@op("pmevent", "griddepcontrol")
def hints(k, instr, m):
    """griddepcontrol: launches run one after the other here, so the dependency always holds."""
    m.take("wait", "launch_dependents")
    return lambda w: None
