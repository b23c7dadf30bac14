"""tcgen05 except mma: alloc, dealloc, ld, st, wait, commit, fence (PTX ISA 9.7.17).

ld and st are asynchronous until tcgen05.wait::ld/st: destination registers are locked, and their accesses count as done
for other warps only after the wait (for ld: after the wait or the first use of a result, see warp.Lock). MMAs and copies of one warp form a pipe that completes in order; commit closes a batch
and signals its mbarriers when everything before it is done.
"""

from __future__ import annotations

import numpy as np

from attncc.emulator.decode import BLOCK, op
from attncc.emulator.lanes import LANE, first
from attncc.emulator.memory import active
from attncc.emulator.ops_bulk import Addressed
from attncc.emulator.ops_sync import barrier_at, scalar
from attncc.emulator.races import Agent, Clock, op_ident
from attncc.emulator.tmem import COLUMNS, Tmem
from attncc.emulator.warp import Lock, Wait

GROUPS = ("cta_group::1", "cta_group::2")


# -- allocation ------------------------------------------------------------------------------------------------------------


@op("tcgen05.alloc")
def alloc(k, instr, m):
    """Allocate columns (a power of two from 32 to 512) and write the address to shared memory."""
    pair = m.need(*GROUPS) == "cta_group::2"
    for name in ("sync", "aligned"):
        m.need(name)
    m.take("shared::cta", "shared")
    m.flag("b32")
    target, columns = k.addr(instr.ops[0]), scalar(k, instr.ops[1])

    def run(w):
        if not w.converged(instr.text):
            return BLOCK
        n, tmem = columns(w), Tmem.of(w.cta)
        if n & (n - 1) or not 32 <= n <= COLUMNS:
            w.report("tmem", f"tcgen05.alloc of {n} columns (a power of two from 32 to 512 is legal)")
            return None
        if tmem.relinquished:
            w.report("tmem", "tcgen05.alloc after tcgen05.relinquish_alloc_permit")
        choice = w.machine.log.seed + sum(w.cta.cluster.index) if pair else w.machine.log.seed + w.cta.linear
        base = tmem.allocate(n, lambda free: free[choice % len(free)] if choice else free[0])
        if base is None:
            w.wait = Wait("tmem", f"tcgen05.alloc waits for {n} free columns", w.pc - 1)
            return BLOCK
        address = int(target(w)[first(w.mi)]) & 0xFFFFFF
        shared = w.cta.shared
        shared.shadow.write(w.agent(), shared.shadow.granules(np.array([address]), 4))
        shared.data[address : address + 4] = np.array([base], np.uint32).view(np.uint8)
        shared.version += 1
        w.machine.events += 1
        return None

    return run


@op("tcgen05.dealloc", "tcgen05.relinquish_alloc_permit")
def dealloc(k, instr, m):
    """Free a block; or give up the right to allocate."""
    m.need(*GROUPS)
    for name in ("sync", "aligned"):
        m.need(name)
    m.flag("b32")
    if instr.mods[0] == "relinquish_alloc_permit":

        def relinquish(w):
            if not w.converged(instr.text):
                return BLOCK
            Tmem.of(w.cta).relinquished = True
            return None

        return relinquish
    address, columns = scalar(k, instr.ops[0]), scalar(k, instr.ops[1])

    def run(w):
        if not w.converged(instr.text):
            return BLOCK
        tmem, base, n = Tmem.of(w.cta), address(w) & 0xFFFF, columns(w)
        if tmem.blocks.get(base) != n:
            w.report("tmem", f"tcgen05.dealloc of {n} columns at {base}, but the allocated blocks are {tmem.blocks}")
        if base in tmem.blocks:
            tmem.shadow.write(w.agent(), tmem.granules(0, 128, base, tmem.blocks.pop(base)))
        w.machine.events += 1
        return None

    return run


# -- ld and st ----------------------------------------------------------------------------------------------------------------

REPEATS = {f"x{1 << i}": 1 << i for i in range(8)}
#: shape -> (lanes, columns per repeat, registers per repeat)
SHAPES = {
    "32x32b": (32, 1, 1),
    "16x64b": (16, 2, 1),
    "16x128b": (16, 4, 2),
    "16x256b": (16, 8, 4),
    "16x32bx2": (16, 1, 1),
}


def fragment(shape: str, repeat: int, split: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(lane, column) of register r in thread t, both [registers, 32], relative to the address (PTX ISA 9.7.17.2.3)."""
    per = SHAPES[shape][2]
    r = np.arange(per * repeat)[:, None]
    t = LANE[None, :]
    v, block = r % per, r // per
    if shape == "32x32b":
        return t + 0 * r, r + 0 * t
    if shape == "16x64b":
        return t // 4 + 8 * (t % 2) + 0 * r, (t // 2) % 2 + 2 * r
    if shape == "16x128b":
        return t // 4 + 8 * v, t % 4 + 4 * block
    if shape == "16x256b":
        return t // 4 + 8 * (v // 2), 2 * (t % 4) + v % 2 + 8 * block
    return t % 16 + 0 * r, r + split * (t // 16)


class Stores:
    """tcgen05.st of a warp since its last wait::st: one operation, its data moved at random moments."""

    def __init__(self, w):
        self.operation = w.machine.issue(w, "tcgen05.st", lambda _: None, queue=False)
        self.work: list = []

    def flush(self) -> None:
        """Move the data of everything issued so far."""
        work, self.work = self.work, []
        for step in work:
            step()

    def at_exit(self, w) -> None:
        """Stores nobody waited for still land."""
        self.flush()


def _stores(w) -> Stores:
    if w.state.get("tcgen05.st") is None:
        w.state["tcgen05.st"] = Stores(w)
    return w.state["tcgen05.st"]


def _prepare(k, m):
    """Static part of ld/st: shape and repeat."""
    m.need("sync")
    m.need("aligned")
    shape, repeat = m.need(*SHAPES), REPEATS[m.need(*REPEATS)]
    m.flag("b32")
    return shape, repeat


def _place(w, where, shape, lane, column):
    """(tmem, lane array, column array, granules) of an access, or None after a finding."""
    tmem = Tmem.of(w.cta)
    rows, base, start = SHAPES[shape][0], int(where) >> 16, int(where) & 0xFFFF
    quarter = 32 * (w.id % 4)
    if base and not quarter <= base < quarter + 32:
        w.report("tmem", f"warp {w.id} may use lanes {quarter}..{quarter + 31}, the address names lane {base}")
    base = base if base else quarter
    last = int(column.max())
    if not tmem.check(w.report, base, rows, start, last + 1):
        return None
    granules = np.unique(((lane + base) // 16) * COLUMNS + column + start)
    return tmem, lane + base, column + start, granules


@op("tcgen05.ld")
def ld(k, instr, m):
    """tcgen05.ld.sync.aligned.shape.num[.pack::16b].b32."""
    if m.flag("red"):
        raise k.fail("tcgen05.ld.red is not supported")
    shape, repeat = _prepare(k, m)
    pack = m.flag("pack::16b")
    outs = [k.program.index[r.name] for r in instr.ops[0].items]
    address = k.addr(instr.ops[1])
    lane, column = fragment(shape, repeat, instr.ops[2].value if len(instr.ops) > 2 else 0)
    targets = k.program.bank_rows(outs)
    if len(outs) * (2 if pack else 1) != len(lane):
        raise k.fail("wrong number of registers")

    def run(w):
        if not w.converged(instr.text[:60]):
            return BLOCK
        placed = _place(w, address(w)[0], shape, lane, column)
        if placed is None:
            return None
        tmem, rows, columns, granules = placed
        operation = w.machine.issue(w, "tcgen05.ld", lambda _: None, queue=False)
        w.state.setdefault("tcgen05.ld", []).append(operation)
        agent = Agent(op_ident(operation.number), w.clk.copy(), 0, w.pc - 1, False, Addressed(w, w.pc - 1))
        tmem.shadow.read(agent, granules)
        values = tmem.data[rows, columns]
        if pack:
            values = values[0::2] & np.uint32(0xFFFF) | values[1::2] << np.uint32(16)
        lock = Lock("tcgen05-order", "tcgen05.wait::ld", operation, soft=True)
        w.bank[targets] = values
        for d in outs:
            w.locked[d] = lock
            w.init[d] = 0
        return None

    return run


@op("tcgen05.st")
def st(k, instr, m):
    """tcgen05.st.sync.aligned.shape.num[.unpack::16b].b32."""
    shape, repeat = _prepare(k, m)
    unpack = m.flag("unpack::16b")
    address = k.addr(instr.ops[0])
    sources = k.program.bank_rows(k.srcs(instr.ops[-1], "b32"))
    lane, column = fragment(shape, repeat, instr.ops[1].value if len(instr.ops) > 2 else 0)
    if len(sources) * (2 if unpack else 1) != len(lane):
        raise k.fail("wrong number of registers")

    def run(w):
        if not w.converged(instr.text[:60]):
            return BLOCK
        placed = _place(w, address(w)[0], shape, lane, column)
        if placed is None:
            return None
        tmem, rows, columns, granules = placed
        batch = _stores(w)
        agent = Agent(op_ident(batch.operation.number), w.clk.copy(), 0, w.pc - 1, False, Addressed(w, w.pc - 1))
        tmem.shadow.write(agent, granules)
        values = w.bank[sources]
        if unpack:
            values = np.stack([values & np.uint32(0xFFFF), values >> np.uint32(16)], axis=1).reshape(-1, 32)

        def move():
            tmem.data[rows, columns] = values

        batch.work.append(move)
        if w.machine.rng.random() < 0.5:
            batch.flush()
        return None

    return run


@op("tcgen05.wait::ld", "tcgen05.wait::st")
def wait(k, instr, m):
    """Earlier ld (or st) of the warp are complete."""
    m.need("sync")
    m.need("aligned")
    kind = instr.mods[0][-2:]

    def run(w):
        if not w.converged(instr.text):
            return BLOCK
        if kind == "ld":
            w.free(set(w.state.pop("tcgen05.ld", ())))
            return None
        stores = w.state.pop("tcgen05.st", None)
        if stores is not None:
            stores.flush()
            w.clk.ops |= 1 << stores.operation.number
        return None

    return run


# -- the MMA pipe: commit and fences ------------------------------------------------------------------------------------------


class Pipe:
    """Asynchronous tcgen05 operations of one warp, in order."""

    def __init__(self):
        self.open = None
        self.batches: list = []
        self.bits = 0

    def current(self, w):
        """The batch that collects operations until the next commit."""
        if self.open is None:
            self.open = w.machine.issue(w, "tcgen05.mma", _run_batch, queue=False)
            self.open.data["work"] = []
            self.open.data["signals"] = []
            self.bits |= 1 << self.open.number
        return self.open

    def add(self, w, work) -> None:
        """Queue one operation; it may happen at once if everything before it has."""
        batch = self.current(w)
        batch.data["work"].append(work)
        if w.machine.rng.random() < 0.4 and all(b.done for b in self.batches):
            _drain(batch)

    def at_exit(self, w) -> None:
        """MMAs that no commit covers still run."""
        if self.open is not None and self.open.data["work"]:
            w.report(
                "exit-pending",
                "the warp exits with tcgen05 operations that no tcgen05.commit covers",
                severity="warning",
            )
            self.close(w)

    def close(self, w) -> None:
        """End the batch: it may complete once the earlier ones have."""
        batch = self.current(w)
        earlier = list(self.batches)
        batch.ready = lambda: all(b.done for b in earlier)
        w.machine.pending.append(batch)
        self.batches = [b for b in self.batches if not b.done] + [batch]
        self.open = None


def pipe_of(w) -> Pipe:
    """The warp's pipe."""
    return w.state.setdefault("tcgen05.pipe", Pipe())


def _drain(batch) -> None:
    work, batch.data["work"] = batch.data["work"], []
    for step in work:
        step()


def _run_batch(batch) -> None:
    """Everything in the batch happens, then its mbarriers are signalled."""
    _drain(batch)
    for barrier, clk, pc in batch.data["signals"]:
        barrier.arrive(Addressed(batch.warp, pc), clk, 1, f"tcgen05.commit of warp {batch.warp.id}")


@op("tcgen05.commit")
def commit(k, instr, m):
    """Signal mbarriers when all earlier asynchronous tcgen05 operations of the thread are done."""
    m.need(*GROUPS)
    m.need("mbarrier::arrive::one")
    m.take("shared::cluster")
    multicast = m.flag("multicast::cluster")
    m.need("b64")
    address = k.addr(instr.ops[0])
    mask = k.src(instr.ops[1], "u16") if multicast else None

    def run(w):
        where = address(w)
        pipe = pipe_of(w)
        batch = pipe.current(w)
        clk = w.clk.copy()
        clk.ops |= pipe.bits
        for lane in active(w):
            for target in _targets(w, int(where[lane]), None if mask is None else int(w.V["u16"][mask][lane])):
                barrier = barrier_at(w, target, proxy=True)
                if barrier is not None:
                    batch.data["signals"].append((barrier, clk, w.pc - 1))
        pipe.close(w)
        w.machine.events += 1
        w.tick()

    return run


def _targets(w, address: int, ranks: int | None) -> list[int]:
    if ranks is None:
        return [address]
    low = address & 0xFFFFFF
    return [low | rank << 24 for rank in range(16) if ranks >> rank & 1]


@op("tcgen05.fence::before_thread_sync", "tcgen05.fence::after_thread_sync")
def fence(k, instr, m):
    """Ordering with other threads is tracked through waits and barriers; the fence adds nothing here."""
    return lambda w: None


def pair_of(w, what: str) -> list:
    """The CTAs of the warp's pair, or none after a finding when the warp may not issue for it."""
    base = w.cta.rank & ~1
    ctas = w.cta.cluster.ctas[base : base + 2]
    if w.cta.rank == base and len(ctas) == 2:
        return ctas
    article = "an" if what == "MMA" else "a"
    w.report("divergence", f"{article} {what} of cta_group::2 must be issued by the even CTA of a pair")
    return []


def mma_clock(w) -> Clock:
    """What an operation issued now is ordered after: the warp's knowledge and everything earlier in its pipe."""
    clk = w.clk.copy()
    clk.ops |= pipe_of(w).bits
    return clk
