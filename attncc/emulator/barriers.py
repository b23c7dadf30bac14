"""mbarriers and named barriers: state and rules (PTX ISA 9.7.13)."""

from __future__ import annotations

from attncc.emulator.races import Clock

TX_LIMIT = (1 << 20) - 1


class MBarrier:
    """An mbarrier object: expected count, pending count, tx-count, phase, and the knowledge its arrivals carry."""

    def __init__(self, cta, offset: int, count: int, w):
        self.cta, self.offset, self.count = cta, offset, count
        self.pending, self.tx, self.phase = count, 0, 0
        self.clock = Clock.empty(cta.machine.total_warps)
        self.done_clock = Clock.empty(cta.machine.total_warps)
        self.init_gid, self.init_epoch, self.fenced = w.gid, int(w.clk.vc[w.gid]), False
        self.last = "no arrival yet"

    def name(self) -> str:
        """Where it lies, from the start of dynamic shared memory."""
        return f"mbarrier at shared+{self.offset:#x} of cta{self.cta.index}"

    def state(self) -> str:
        """Phase, pending arrivals and transactions in words."""
        return f"phase {self.phase}, {self.pending} of {self.count} arrivals pending, tx-count {self.tx}"

    def arrive(self, report, clk: Clock | None, count: int, who: str) -> None:
        """`count` arrivals; completes the phase when nothing is pending."""
        if clk is not None:
            self.clock.join(clk)
        self.last = f"last arrival by {who}"
        if count > self.pending:
            report(
                "mbarrier",
                f"{self.name()}: {count} arrivals, but only {self.pending} of {self.count} are pending "
                f"in phase {self.phase}",
            )
            self.pending = count
        self.pending -= count
        self.check(report)

    def expect(self, report, nbytes: int) -> None:
        """expect-tx."""
        self.tx += nbytes
        if abs(self.tx) > TX_LIMIT:
            report("tx-count", f"{self.name()}: tx-count {self.tx} outside +-{TX_LIMIT}")
        self.check(report)

    def complete_tx(self, report, nbytes: int, number: int) -> None:
        """complete-tx by asynchronous operation `number`: waiters learn that it is done, nothing else."""
        self.clock.ops |= 1 << number
        self.tx -= nbytes
        if self.pending == 0 and self.tx < 0:
            report("tx-count", f"{self.name()}: {-self.tx} more bytes were copied than the phase expects")
        self.check(report)

    def check(self, report) -> None:
        """Complete the phase if it is due."""
        machine = self.cta.machine
        machine.events += 1
        if self.pending == 0 and self.tx == 0:
            self.phase += 1
            self.pending = self.count
            self.done_clock.join(self.clock)

    def explain_stall(self, machine) -> None:
        """At a deadlock: bytes expected that no copy in flight will bring."""
        if self.pending == 0 and self.tx != 0:
            from attncc.emulator.findings import Finding

            machine.log.add(
                Finding(
                    "tx-count",
                    f"{self.name()}: {self.tx} bytes are still expected in phase {self.phase} and no copy is in flight",
                    cta=self.cta.index,
                    seed=machine.log.seed,
                )
            )


class NamedBarrier:
    """One of the 16 barriers of a CTA; counts threads in whole warps."""

    def __init__(self, number: int):
        self.number = number
        self.expected = 0
        self.open_count = False
        self.arrived = 0
        self.generation = 0
        self.clock: Clock | None = None
        self.done_clock: Clock | None = None
        self.votes: list[tuple[int, int]] = []
        self.result = (0, 0)

    def arrive(self, w, count: int) -> int:
        """A warp arrives (a warp may arrive and then sync: it counts twice); returns the generation it belongs to."""
        if self.clock is None:
            self.clock, self.done_clock = Clock.empty(w.machine.total_warps), Clock.empty(w.machine.total_warps)
        if self.arrived and not self.open_count and count and count != self.expected:
            w.report(
                "named-barrier",
                f"barrier {self.number}: this warp expects {count} threads, earlier ones {self.expected}",
            )
        self.expected, self.open_count = count, count == 0
        self.clock.join(w.clk)
        self.arrived += 32
        mine = self.generation
        if count and self.arrived > count:
            w.report("named-barrier", f"barrier {self.number}: {self.arrived} threads arrived, {count} expected")
        self.check(w.cta)
        w.tick()
        return mine

    def check(self, cta) -> None:
        """Complete if everyone is here; a barrier without a count waits for all warps that still run."""
        expected = 32 * len(cta.running) if self.open_count else self.expected
        if self.arrived and self.arrived >= expected:
            self.generation += 1
            self.arrived = 0
            self.done_clock.join(self.clock)
            if self.votes:
                self.result = (sum(v for v, _ in self.votes), sum(n for _, n in self.votes))
                self.votes = []
            cta.machine.events += 1
