"""cp.async (non-bulk) and its groups (PTX ISA 9.7.9.25.3).

The copies of one group are one asynchronous operation: it lands at a random moment after its commit, or when a wait
needs it. Its writes belong to the generic proxy: the waiting thread sees them after the wait, others after a barrier.
"""

from __future__ import annotations

import numpy as np

from attncc.emulator import memory as mem
from attncc.emulator.decode import op
from attncc.emulator.ops_sync import barrier_at
from attncc.emulator.races import Agent, op_ident


class CopyGroups:
    """Per-warp state: the open group and the committed ones, oldest first; a group is a list of operations."""

    def __init__(self):
        self.open: list = []
        self.groups: list[list] = []
        self.sealed = True

    def at_exit(self, w) -> None:
        """The warp is gone: whatever it issued still lands."""
        for operation in self.open + [o for group in self.groups for o in group]:
            w.machine.complete(operation)


def state(w) -> CopyGroups:
    """The warp's cp.async state."""
    return w.state.setdefault("cp.async", CopyGroups())


def _current(w):
    """The operation that collects the open group's copies."""
    groups = state(w)
    if groups.sealed:
        operation = w.machine.issue(w, "cp.async group", _land, generic=True, queue=False)
        operation.data["copies"] = []
        groups.open.append(operation)
        groups.sealed = False
    return groups.open[-1]


def _land(operation) -> None:
    """All copies of the operation happen."""
    w = operation.warp
    saved = w.mi, w.pc
    for mask, clk, pc, source, target, size, nbytes in operation.data["copies"]:
        w.mi, w.pc = mask, pc + 1
        data = np.zeros((32, size), np.uint8)
        _read_sources(w, source, nbytes, data)
        agent = Agent(op_ident(operation.number), clk, 0, pc, False, _reporter(w, pc))
        step = np.arange(size)
        for region, who, offsets in mem.groups(w, "shared", target, size):
            region.shadow.write(agent, region.shadow.granules(offsets, size))
            region.data[offsets[:, None] + step] = data[who]
            region.version += 1
    w.mi, w.pc = saved


def _reporter(w, pc):
    def report(kind, message, lane=-1, severity="error"):
        w.report(kind, message, lane, severity, pc=pc)

    return report


def _read_sources(w, source, nbytes, data) -> None:
    """Global reads of the lanes; lanes with a smaller source size get zeros after it, size 0 reads nothing."""
    mask = w.mi
    for size in np.unique(nbytes):
        if size == 0:
            continue
        chosen = 0
        for lane in range(32):
            if mask >> lane & 1 and nbytes[lane] == size:
                chosen |= 1 << lane
        if not chosen:
            continue
        w.mi = chosen
        part = mem.load(w, "global", source, int(size))
        lanes = mem.active(w)
        data[lanes, :size] = part[lanes]
    w.mi = mask


@op("cp.async")
def cp_async(k, instr, m):
    """cp.async.ca/cg.shared.global [dst], [src], size{, src-size or ignore-src}{, policy}."""
    cache = m.need("ca", "cg")
    m.need("shared", "shared::cta")
    m.need("global")
    policy = m.flag("L2::cache_hint")
    m.take("L2::64B", "L2::128B", "L2::256B")
    target, source = k.addr(instr.ops[0]), k.addr(instr.ops[1])
    size = instr.ops[2].value
    if size not in ((16,) if cache == "cg" else (4, 8, 16)):
        raise k.fail(f"cp.async.{cache} of {size} bytes")
    rest = list(instr.ops[3 : len(instr.ops) - policy])
    src_size = k.src(rest[0], "u32") if rest else None
    k.program.min_shared_access = min(k.program.min_shared_access, size)

    def run(w):
        nbytes = np.minimum(w.V["u32"][src_size], size) if src_size is not None else np.full(32, size)
        operation = _current(w)
        operation.data["copies"].append(
            (w.mi, w.clk.copy(), w.pc - 1, source(w).copy(), target(w).copy(), size, nbytes.copy())
        )

    return run


@op("cp.async.commit_group")
def commit(k, instr, m):
    """The open group may land from now on."""

    def run(w):
        groups = state(w)
        for operation in groups.open:
            if not operation.done:
                w.machine.pending.append(operation)
        groups.groups.append(groups.open)
        groups.open, groups.sealed = [], True

    return run


def _finish(w, groups) -> None:
    for group in groups:
        for operation in group:
            w.machine.complete(operation)
            w.clk.ops |= 1 << operation.number


@op("cp.async.wait_group", "cp.async.wait_all")
def wait(k, instr, m):
    """All but the newest N groups have landed and are visible to the executing thread."""
    keep = instr.ops[0].value if instr.ops else 0

    def run(w):
        groups = state(w)
        if not instr.ops:
            groups.groups.append(groups.open)
            groups.open, groups.sealed = [], True
        done = len(groups.groups) - keep
        if done > 0:
            _finish(w, groups.groups[:done])
            del groups.groups[:done]

    return run


@op("cp.async.mbarrier.arrive")
def mbarrier_arrive(k, instr, m):
    """The mbarrier gets an arrival per thread once all its earlier cp.async have landed."""
    noinc = m.flag("noinc")
    m.need("shared", "shared::cta")
    m.need("b64")
    address = k.addr(instr.ops[0])

    def run(w):
        groups = state(w)
        earlier = [o for group in groups.groups for o in group] + list(groups.open)
        groups.sealed = True
        where, mask, clk = address(w).copy(), w.mi, w.clk.copy()
        bars = [b for b in (barrier_at(w, int(where[i])) for i in range(32) if mask >> i & 1) if b is not None]
        if not noinc:
            for barrier in bars:
                barrier.pending += 1

        def signal(operation):
            for other in earlier:
                w.machine.complete(other)
                clk.ops |= 1 << other.number
            for barrier in bars:
                barrier.arrive(_reporter(w, operation.pc), clk, 1, f"cp.async of warp {w.id} (ptx:{instr.line})")

        w.machine.issue(w, "cp.async.mbarrier.arrive", signal)
        w.tick()

    return run
