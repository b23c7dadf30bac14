"""The grid: clusters, CTAs, the seeded scheduler, asynchronous operations, deadlock detection."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from attncc.emulator.cta import Cluster, Cta
from attncc.emulator.decode import BLOCK, EXIT, Program
from attncc.emulator.findings import Finding, FindingLog, StopEmulation
from attncc.emulator.memory import GlobalMemory
from attncc.emulator.races import Clock
from attncc.emulator.warp import Warp


@dataclass(frozen=True)
class Launch:
    """One kernel launch as the host code made it (dimensions in threads, CTAs, CTAs per cluster; bytes)."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int] = (1, 1, 1)
    shared_bytes: int = 0
    params: bytes = b""
    registers: int = 0
    attributes: tuple = ()


@dataclass(eq=False)
class AsyncOp:
    """An operation in flight: `run` moves the data and signals; `ready` tells whether it may complete now."""

    number: int
    name: str
    warp: Warp
    pc: int
    clk: Clock
    run: Callable[[AsyncOp], None]
    cta: object = None
    done: bool = False
    started: int = 0
    ready: Callable[[], bool] | None = None
    data: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """How far a run may go.

    max_steps: warp instructions of one launch. idle_steps: instructions without any effect before a livelock is reported.
    resident_clusters: how many run side by side. clusters: run only so many of the last launch's, picked by the number `pick`.
    """

    max_steps: int = 200_000_000
    idle_steps: int = 400_000
    resident_clusters: int = 2
    clusters: int | None = None
    pick: int = 0


class Machine:
    """Runs one launch under one seed."""

    def __init__(
        self, program: Program, launch: Launch, memory: GlobalMemory, log: FindingLog, limits: Limits, trace=None
    ):
        self.program, self.launch, self.memory, self.log, self.limits = program, launch, memory, log, limits
        self.trace = trace
        self.rng = random.Random(log.seed)
        self.events = 0
        self.progress = 0
        self.steps = 0
        self.generic_ops = 0
        self.ops: list[AsyncOp] = []
        self.pending: list[AsyncOp] = []
        self.location_clocks: dict[tuple, Clock] = {}
        self.warps_per_cta = -(-int(np.prod(launch.block)) // 32)
        self.total_warps = self.warps_per_cta * int(np.prod(launch.grid))
        self.clusters: list[Cluster] = []
        self.eagerness = self.rng.choice([0.02, 0.1, 0.5, 0.9])
        self.idle_rounds = 0
        self.op_cache: dict = {}
        self.op_retired = 0

    # -- clocks and identities -------------------------------------------------------------------------------------

    def new_clock(self, gid: int) -> Clock:
        """The starting knowledge of warp `gid`: itself."""
        clock = Clock.empty(self.total_warps)
        clock.vc[gid] = 1
        return clock

    def now(self) -> int:
        """Time in emulator steps (also %clock)."""
        return self.steps

    def describe(self, who: int, pc: int) -> str:
        """A warp or asynchronous operation and the instruction it came from, in words."""
        line, source, _ = self.program.source_of(pc)
        where = f"{source or 'ptx'} (ptx:{line})"
        if who >= 0:
            return f"warp {who % self.warps_per_cta} of cta {who // self.warps_per_cta} at {where}"
        operation = self.ops[-2 - who]
        return f"{operation.name} issued by warp {operation.warp.id} at {where}"

    def known_ops(self, first_gid: int, count: int) -> int:
        """Operations that every live warp of a range knows to be finished."""
        known = -1
        for cluster in self.clusters:
            for cta in cluster.ctas:
                for warp in cta.running:
                    if first_gid <= warp.gid < first_gid + max(count, 1):
                        known &= warp.clk.ops
        return max(known, 0)

    # -- acquire / release through memory locations ---------------------------------------------------------------------

    def release(self, w: Warp, space: str, addresses: np.ndarray) -> None:
        """Publish what the warp knows at the addressed locations."""
        for address in {int(a) for lane, a in enumerate(addresses) if w.mi >> lane & 1}:
            clock = self.location_clocks.setdefault((space, address), Clock.empty(self.total_warps))
            clock.join(w.clk)
        w.tick()

    def acquire(self, w: Warp, space: str, addresses: np.ndarray) -> None:
        """Learn what was published at the addressed locations."""
        for address in {int(a) for lane, a in enumerate(addresses) if w.mi >> lane & 1}:
            clock = self.location_clocks.get((space, address))
            if clock is not None:
                w.clk.join(clock)

    # -- asynchronous operations ---------------------------------------------------------------------------------------

    def issue(
        self, w: Warp, name: str, run, generic: bool = False, queue: bool = True, clk: Clock | None = None
    ) -> AsyncOp:
        """Start an operation; it completes when the scheduler picks it or a wait forces it."""
        operation = AsyncOp(len(self.ops), name, w, w.pc - 1, clk or w.clk.copy(), run, w.cta, started=self.steps)
        self.ops.append(operation)
        if generic:
            self.generic_ops |= 1 << operation.number
        if self.trace:
            self.trace.issued(operation)
        if queue:
            self.pending.append(operation)
            self.events += 1
        return operation

    def complete(self, operation: AsyncOp) -> None:
        """Run an operation now."""
        if operation.done:
            return
        operation.done = True
        if operation in self.pending:
            self.pending.remove(operation)
        operation.run(operation)
        self.events += 1
        if self.trace:
            self.trace.operation(operation, self.steps)

    def complete_some(self) -> bool:
        """Complete one random operation that may; False if there is none."""
        candidates = [o for o in self.pending if o.ready is None or o.ready()]
        if not candidates:
            return False
        self.complete(self.rng.choice(candidates))
        return True

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the whole grid."""
        waiting = self._cluster_indices()
        active: list[Cluster] = []
        try:
            while waiting or active:
                while waiting and len(active) < self.limits.resident_clusters:
                    cluster = Cluster(self, waiting.pop(0))
                    self.clusters.append(cluster)
                    active.append(cluster)
                self._schedule(active, bool(waiting))
                for cluster in [c for c in active if c.finished()]:
                    cluster.retire()
                    active.remove(cluster)
                    self.clusters.remove(cluster)
            while self.complete_some():
                pass
        except StopEmulation:
            pass

    def _cluster_indices(self) -> list[tuple[int, int, int]]:
        counts = [-(-g // c) for g, c in zip(self.launch.grid, self.launch.cluster)]
        every = [(x, y, z) for z in range(counts[2]) for y in range(counts[1]) for x in range(counts[0])]
        if self.limits.clusters is None or len(every) <= self.limits.clusters:
            return every
        return sorted(random.Random(self.limits.pick).sample(every, self.limits.clusters), key=every.index)

    def _schedule(self, active: list[Cluster], more: bool) -> None:
        """Run warps until some cluster finishes."""
        warps = [w for cluster in active for cta in cluster.ctas for w in cta.running]
        weights = {w.gid: self.rng.choice((1, 1, 4, 16)) for w in warps}
        last_progress, marker = self.steps, self.progress + self.events
        while not any(c.finished() for c in active):
            if self.pending and self.rng.random() < self.eagerness * 0.3:
                self.complete_some()
            ready = [
                w
                for cluster in active
                for cta in cluster.ctas
                for w in cta.running
                if w.wait is None or w.seen_events != self.events
            ]
            if not ready:
                if not self.complete_some():
                    self._stalled(active)
                continue
            w = self.rng.choices(ready, [weights.get(r.gid, 1) for r in ready])[0] if len(ready) > 1 else ready[0]
            self._slice(w)
            if self.progress + self.events != marker:
                marker, last_progress, self.idle_rounds = self.progress + self.events, self.steps, 0
            elif self.steps - last_progress > self.limits.idle_steps:
                self._dead("livelock", active)
            if self.steps > self.limits.max_steps:
                raise StopEmulation("step limit")

    def _slice(self, w: Warp) -> None:
        """Give one warp a random number of instructions."""
        before = w.steps
        w.wait = None
        seen = self.events
        status = w.run(self.rng.choice((1, 8, 40, 200)))
        self.steps += w.steps - before
        if status == BLOCK:
            w.seen_events = self.events if self.events == seen else seen
            if self.trace:
                self.trace.blocked(w, self.steps)
        else:
            w.wait = None
            if self.trace:
                self.trace.ran(w, self.steps, w.steps - before)
            if status == EXIT:
                w.cta.warp_done(w)
                self.events += 1

    def _stalled(self, active: list[Cluster]) -> None:
        """Nothing can run and nothing is in flight: let try_wait time out a few times, then it is a deadlock."""
        self.idle_rounds += 1
        warps = [w for cluster in active for cta in cluster.ctas for w in cta.running]
        timed = [w for w in warps if w.wait is not None and w.wait.kind == "mbarrier" and w.wait.barrier is not None]
        if self.idle_rounds > 4 or not timed:
            self._dead("deadlock", active)
        for w in timed:
            w.force_timeout = True
            w.seen_events = -1

    def _dead(self, kind: str, active: list[Cluster]) -> None:
        """Report who waits for what, and stop."""
        warps = [w for cluster in active for cta in cluster.ctas for w in cta.running]
        named = set()
        for w in warps:
            if w.wait is not None and w.wait.kind in ("register-pool", "divergence", "tmem", "named-barrier-count"):
                w.report(w.wait.kind.replace("-count", ""), w.wait.text + ", which can never happen", pc=w.wait.pc)
            if w.wait is not None and w.wait.barrier is not None and w.wait.kind == "mbarrier":
                named.add(w.wait.barrier)
        for barrier in named:
            barrier.explain_stall(self)
        lines = self._waits(warps)
        first = warps[0]
        line, source, text = self.program.source_of(first.wait.pc if first.wait else first.pc)
        message = ("no warp can go on: " if kind == "deadlock" else "nothing changes any more: ") + "; ".join(lines)
        self.log.add(Finding(kind, message, line, source, first.cta.index, first.id, -1, self.log.seed, "error", text))
        raise StopEmulation(kind)

    def _waits(self, warps: list[Warp]) -> list[str]:
        """One phrase per group of warps of a CTA that wait for the same thing."""
        groups: dict[tuple, list[int]] = {}
        for w in warps:
            line, source, _ = self.program.source_of(w.wait.pc if w.wait else w.pc)
            text = f"{w.wait.text if w.wait else 'running'} at {source} (ptx:{line})"
            groups.setdefault((w.cta.index, text), []).append(w.id)
        return [
            f"cta{cta} warp{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))}: {text}"
            for (cta, text), ids in groups.items()
        ]


__all__ = ["AsyncOp", "Cta", "Launch", "Limits", "Machine"]
