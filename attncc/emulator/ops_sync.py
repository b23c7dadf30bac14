"""Barriers, mbarriers, fences, setmaxnreg (PTX ISA 9.7.13, 9.7.19.5)."""

from __future__ import annotations

import numpy as np

from attncc.emulator.barriers import MBarrier, NamedBarrier
from attncc.emulator.decode import BLOCK, YIELD, op, put
from attncc.emulator.lanes import first, pack
from attncc.emulator.memory import active
from attncc.emulator.ops_warp import gather_members, members
from attncc.emulator.ptx_parse import Addr
from attncc.emulator.races import Clock
from attncc.emulator.warp import Wait

SPACES = ("shared", "shared::cta", "shared::cluster")
SCOPES = ("cta", "cluster", "gpu", "sys")


# -- named barriers ----------------------------------------------------------------------------------------------------


def scalar(k, operand):
    """Function warp -> value of an operand in the first active lane (barrier ids and counts are warp-uniform)."""
    index = k.src(operand, "u32")
    return lambda w: int(w.V["u32"][index][first(w.mi)])


@op("bar", "barrier")
def bar(k, instr, m):
    """bar.sync/arrive/red, barrier.cta..., bar.warp.sync, barrier.cluster.*"""
    if m.flag("warp"):
        return _warp_sync(k, instr, m)
    if m.flag("cluster"):
        return _cluster_barrier(k, instr, m)
    m.flag("cta")
    mode = m.need("sync", "arrive", "red")
    aligned = m.flag("aligned") or instr.opcode == "bar"
    if mode == "red":
        return _bar_red(k, instr, m, aligned)
    number = scalar(k, instr.ops[0])
    count = scalar(k, instr.ops[1]) if len(instr.ops) > 1 else None

    def run(w):
        return _bar_step(w, mode, number, count, aligned, instr)

    return run


def _bar_step(w, mode, number, count, aligned, instr, vote=None):
    """Arrive once, then (sync, red) wait for the generation to complete."""
    pc = w.pc - 1
    tokens = w.state.setdefault("bar", {})
    if pc in tokens:
        barrier, generation = tokens[pc]
    else:
        if aligned and not w.converged(instr.text):
            return BLOCK
        barrier = w.cta.bars.setdefault(number(w), NamedBarrier(number(w)))
        threads = count(w) if count else 0
        if threads % 32:
            w.report(
                "named-barrier", f"barrier {barrier.number}: thread count {threads} is no multiple of the warp size"
            )
        if vote is not None:
            barrier.votes.append(vote(w))
        generation = barrier.arrive(w, threads)
    if mode == "arrive":
        return None
    if barrier.generation == generation:
        tokens[pc] = (barrier, generation)
        w.wait = Wait(
            "named-barrier", f"{instr.text} ({barrier.arrived} of {barrier.expected or 'all'} threads arrived)", pc
        )
        return BLOCK
    tokens.pop(pc, None)
    w.clk.join(barrier.done_clock)
    return None


def _bar_red(k, instr, m, aligned):
    kind = m.need("popc", "and", "or")
    m.type()
    number = scalar(k, instr.ops[1])
    count = scalar(k, instr.ops[2]) if len(instr.ops) > 3 else None
    p, negated = k.pred(instr.ops[-1])
    d = k.dst(instr.ops[0], "u32" if kind == "popc" else "pred")

    def vote(w):
        bits = (~w.pr[p] if negated else w.pr[p]) & w.mi
        return bits.bit_count(), w.mi.bit_count()

    def run(w):
        status = _bar_step(w, "red", number, count, aligned, instr, vote)
        if status is not None:
            return status
        yes, total = w.cta.bars[number(w)].result
        if kind == "popc":
            put(w, "u32", d, np.uint32(yes))
        else:
            result = yes == total if kind == "and" else yes > 0
            w.pr[d] = (w.pr[d] & ~w.mi) | (w.mi if result else 0)
        return None

    return run


def _warp_sync(k, instr, m):
    m.need("sync")
    mask = members(k, instr.ops[0])
    return lambda w: None if gather_members(w, mask(w), "bar.warp.sync") else BLOCK


def _cluster_barrier(k, instr, m):
    mode = m.need("arrive", "wait")
    semantics = m.take("release", "acquire", "relaxed")
    aligned = m.flag("aligned")

    def arrive(w):
        if aligned and not w.converged(instr.text):
            return BLOCK
        cluster = w.cta.cluster
        if w.gid in cluster.arrived:
            w.report("named-barrier", "barrier.cluster.arrive twice without a wait in between")
        cluster.clock.join(w.clk if semantics != "relaxed" else fenced_clock(w))
        w.state["cluster"] = cluster.generation
        cluster.arrived.add(w.gid)
        cluster.check_barrier()
        w.tick()
        return None

    def wait(w):
        if aligned and not w.converged(instr.text):
            return BLOCK
        cluster = w.cta.cluster
        if "cluster" not in w.state:
            w.report("named-barrier", "barrier.cluster.wait without an arrive")
            return None
        if cluster.generation == w.state["cluster"]:
            w.wait = Wait("named-barrier", f"barrier.cluster.wait ({len(cluster.arrived)} warps arrived)", w.pc - 1)
            return BLOCK
        del w.state["cluster"]
        w.clk.join(cluster.done_clock)
        return None

    return arrive if mode == "arrive" else wait


# -- mbarriers -----------------------------------------------------------------------------------------------------------


def barrier_at(w, address: int, clk=None, proxy: bool = False, report=None) -> MBarrier | None:
    """The mbarrier at a shared address; findings if there is none or its initialisation is not visible."""
    report = report or w.report
    cta = w.cta.cta_of(address)
    offset = address & 0xFFFFFF
    barrier = cta.mbars.get(offset) if cta is not None else None
    if barrier is None:
        report("mbarrier", f"no mbarrier was initialised at shared address {address:#x}")
        return None
    clk = clk or w.clk
    if clk.vc[barrier.init_gid] < barrier.init_epoch:
        report("mbarrier", f"{barrier.name()} is used with nothing ordering this after its mbarrier.init")
    elif proxy and not barrier.fenced:
        report(
            "proxy-fence",
            f"{barrier.name()} is used by the async proxy (or the cluster) without "
            "fence.mbarrier_init or fence.proxy.async after its init",
        )
    return barrier


@op("mbarrier")
def mbarrier(k, instr, m):
    """mbarrier.init/inval/arrive/arrive_drop/expect_tx/complete_tx/test_wait/try_wait/pending_count."""
    what = m.need("init", "inval", "arrive_drop", "arrive", "expect_tx", "complete_tx", "test_wait", "try_wait")
    if what in ("test_wait", "try_wait"):
        return _wait(k, instr, m, what)
    if what in ("init", "inval"):
        return _init(k, instr, m, what)
    if what in ("expect_tx", "complete_tx"):
        return _tx(k, instr, m, what)
    return _arrive(k, instr, m, what)


def _init(k, instr, m, what):
    m.take(*SPACES)
    m.flag("b64")
    address = k.addr(instr.ops[0])
    count = k.src(instr.ops[1], "u32") if what == "init" else None

    def run(w):
        where = address(w)
        before = set(w.cta.mbars)
        for lane in active(w):
            offset = int(where[lane]) & 0xFFFFFF
            if int(where[lane]) % 8:
                w.report("misaligned", "an mbarrier needs 8-byte alignment", int(lane))
            if what == "inval":
                w.cta.mbars.pop(offset, None)
                continue
            n = int(w.V["u32"][count][lane])
            if not 1 <= n < 1 << 20:
                w.report("mbarrier", f"mbarrier.init with count {n}", int(lane))
            if offset in before:
                w.report(
                    "mbarrier", "mbarrier.init on a live mbarrier (no mbarrier.inval before)", int(lane), "warning"
                )
            w.cta.mbars[offset] = MBarrier(w.cta, offset, n, w)
            w.cta.shared.shadow.wid[offset // w.cta.shared.shadow.granule] = w.gid
        w.machine.events += 1

    return run


def _arrive(k, instr, m, what):
    expect = m.flag("expect_tx")
    m.flag("noComplete")
    semantics = m.take("release", "relaxed", default="release")
    m.take(*SCOPES)
    m.take(*SPACES)
    m.flag("b64")
    ops = list(instr.ops)
    d = k.dst(ops.pop(0), "b64") if not isinstance(ops[0], Addr) else None
    address = k.addr(ops.pop(0))
    amount = k.src(ops.pop(0), "u32") if ops else None

    def run(w):
        where = address(w)
        old = np.zeros(32, np.uint64)
        clk = w.clk if semantics == "release" else fenced_clock(w)
        for lane in active(w):
            barrier = barrier_at(w, int(where[lane]))
            if barrier is None:
                continue
            n = int(w.V["u32"][amount][lane]) if amount is not None else 1
            old[lane] = barrier.phase
            if what == "arrive_drop":
                barrier.count -= 1
            if expect:
                barrier.tx += n
            barrier.arrive(w.report, clk, 1 if expect else n, f"warp {w.id} (ptx:{instr.line})")
        w.tick()
        if d is not None:
            put(w, "u64", d, old)

    return run


def _tx(k, instr, m, what):
    m.take("relaxed")
    m.take(*SCOPES)
    m.take(*SPACES)
    m.flag("b64")
    address, amount = k.addr(instr.ops[0]), k.src(instr.ops[1], "u32")

    def run(w):
        where = address(w)
        for lane in active(w):
            barrier = barrier_at(w, int(where[lane]))
            if barrier is not None:
                n = int(w.V["u32"][amount][lane])
                barrier.expect(w.report, n if what == "expect_tx" else -n)

    return run


def _wait(k, instr, m, what):
    parity = m.flag("parity")
    semantics = m.take("acquire", "relaxed", default="acquire")
    m.take(*SCOPES)
    m.take(*SPACES)
    m.flag("b64")
    p = k.dst(instr.ops[0], "pred")
    address = k.addr(instr.ops[1])
    token = k.src(instr.ops[2], "u32" if parity else "b64")
    if len(instr.ops) > 3:
        k.src(instr.ops[3], "u32")
    view = "u32" if parity else "u64"

    def run(w):
        where, tokens = address(w), w.V[view][token]
        done, waits = np.zeros(32, bool), None
        lead = first(w.mi)
        same = (where == where[lead]).all() and (tokens == tokens[lead]).all()
        who = (lead,) if same else active(w)
        for key in {(int(where[i]), int(tokens[i])) for i in who}:
            barrier = barrier_at(w, key[0])
            if barrier is None:
                done |= where == key[0]
                continue
            finished = barrier.phase & 1 != key[1] & 1 if parity else barrier.phase != key[1]
            if finished:
                done |= (where == key[0]) & (tokens == key[1])
                if semantics == "acquire":
                    w.clk.join(barrier.done_clock)
            else:
                waits = (barrier, key[1])
        if waits is not None and what == "try_wait" and not w.force_timeout and w.machine.rng.random() > 0.03:
            barrier, want = waits
            w.wait = Wait(
                "mbarrier",
                f"waits on {barrier.name()} for the phase of parity {want} ({barrier.state()}; {barrier.last})",
                w.pc - 1,
                barrier,
            )
            return BLOCK
        w.force_timeout = False
        w.pr[p] = (w.pr[p] & ~w.mi) | (pack(done) & w.mi)
        w.init[p] |= w.mi
        return YIELD if waits is not None else None

    return run


# -- fences ----------------------------------------------------------------------------------------------------------------


@op("fence", "membar")
def fence(k, instr, m):
    """fence.proxy.async makes generic writes visible to the async proxy; fence.mbarrier_init publishes barriers."""
    if m.flag("mbarrier_init"):
        m.need("release")
        m.need("cluster")

        def publish(w):
            _publish_barriers(w)
            _release_fence(w)

        return publish
    if m.flag("proxy"):
        kind = m.need("async", "async::generic", "tensormap::generic", "tensormap", "alias")
        m.take("acquire", "release")
        m.take("sync_restrict::shared::cta", "sync_restrict::shared::cluster")
        m.take("global", "shared::cta", "shared::cluster", "shared::{cta,cluster}")
        m.take(*SCOPES)
        for o in instr.ops:
            if isinstance(o, Addr):
                k.addr(o)

        def proxy(w):
            if kind.startswith("async"):
                w.clk.fence_proxy()
                _publish_barriers(w)

        return proxy
    m.take("acq_rel", "sc", "acquire", "release")
    m.take("sync_restrict::shared::cta", "sync_restrict::shared::cluster")
    m.take("gl", *SCOPES)
    return _release_fence


def _release_fence(w):
    """What is known now is published by later relaxed operations."""
    w.state["released"] = w.clk.copy()
    w.tick()


def fenced_clock(w):
    """What a relaxed arrival publishes: the knowledge at the last fence."""
    return w.state.get("released") or Clock.empty(w.machine.total_warps)


def _publish_barriers(w):
    """Barriers initialised by this warp are usable by the async proxy and the cluster from now on."""
    for barrier in w.cta.mbars.values():
        if w.clk.vc[barrier.init_gid] >= barrier.init_epoch:
            barrier.fenced = True


# -- register pool -----------------------------------------------------------------------------------------------------------


@op("setmaxnreg")
def setmaxnreg(k, instr, m):
    """setmaxnreg.inc/dec with the CTA's register pool accounted per warp."""
    grow = m.need("inc", "dec") == "inc"
    m.need("sync")
    m.need("aligned")
    m.need("u32")
    count = instr.ops[0].value
    if count % 8 or not 24 <= count <= 256:
        raise k.fail("setmaxnreg wants a multiple of 8 from 24 to 256")

    def run(w):
        if not w.converged(instr.text):
            return BLOCK
        current = w.state.get("registers", w.machine.launch.registers)
        if not current:
            return None
        need = (count - current) * 32
        if (need < 0) == grow and need:
            w.report(
                "register-pool",
                f"setmaxnreg.{'inc' if grow else 'dec'} to {count}, but the warp has {current} registers",
            )
            return None
        if grow and need > w.cta.free_registers:
            w.wait = Wait(
                "register-pool",
                f"setmaxnreg.inc {count} needs {need} registers, {w.cta.free_registers} are free "
                f"(launched with {w.machine.launch.registers} per thread)",
                w.pc - 1,
            )
            return BLOCK
        w.cta.free_registers -= need
        w.state["registers"] = count
        w.machine.events += 1
        return None

    return run
