"""Happens-before tracking: vector clocks per warp, one bit per asynchronous operation, a shadow per memory region.

A warp's `Clock` says which epoch of every other warp, and which asynchronous operations, it is ordered after.
`pvc`/`pops` hold the part of that knowledge that a fence.proxy.async has made valid for the async proxy (PTX ISA,
"Async proxy"): the fence covers every write its executor is ordered after, and travels with later synchronisation.
A `Shadow` keeps, per granule of memory, the last writer (warp epoch or asynchronous operation), the last read of every
warp, and the asynchronous reads that may still be running. An access that its clock does not order after a
conflicting one is a finding, whatever order this run happened to execute them in.
"""

from __future__ import annotations

import numpy as np

UNWRITTEN = -1
INITIAL = -(2**31)


class Clock:
    """Knowledge of one warp, barrier or asynchronous operation."""

    __slots__ = ("_bits", "ops", "pops", "pvc", "vc")

    def __init__(self, vc: np.ndarray, pvc: np.ndarray, ops: int = 0, pops: int = 0):
        self.vc, self.pvc, self.ops, self.pops = vc, pvc, ops, pops
        self._bits = (-1, None)

    @classmethod
    def empty(cls, size: int) -> Clock:
        """Knows nothing."""
        return cls(np.zeros(size, np.int64), np.zeros(size, np.int64))

    def copy(self) -> Clock:
        """A snapshot."""
        other = Clock(self.vc.copy(), self.pvc.copy(), self.ops, self.pops)
        other._bits = self._bits
        return other

    def knows(self, numbers: np.ndarray) -> bool:
        """Are all these asynchronous operations known to be complete?"""
        ops, bits = self._bits
        if ops is not self.ops:
            raw = self.ops.to_bytes(self.ops.bit_length() // 8 + 1, "little")
            bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
            self._bits = (self.ops, bits)
        return int(numbers.max()) < len(bits) and bool(bits[numbers].all())

    def join(self, other: Clock) -> None:
        """Learn everything `other` knows."""
        np.maximum(self.vc, other.vc, out=self.vc)
        np.maximum(self.pvc, other.pvc, out=self.pvc)
        self.ops |= other.ops
        self.pops |= other.pops

    def fence_proxy(self) -> None:
        """fence.proxy.async: what is known becomes valid for the async proxy."""
        np.maximum(self.pvc, self.vc, out=self.pvc)
        self.pops |= self.ops


class Agent:
    """Who makes an access: a warp (generic proxy) or an asynchronous operation."""

    __slots__ = ("clk", "epoch", "ident", "pc", "proxy", "report")

    def __init__(self, ident: int, clk: Clock, epoch: int, pc: int, proxy: bool, report):
        self.ident, self.clk, self.epoch, self.pc, self.proxy, self.report = ident, clk, epoch, pc, proxy, report


def op_ident(number: int) -> int:
    """Shadow identity of asynchronous operation `number`."""
    return -2 - number


class Shadow:
    """Access history of one memory region."""

    def __init__(
        self,
        machine,
        name: str,
        nbytes: int,
        granule: int,
        first_gid: int = 0,
        readers: int = 0,
        initialised: bool = False,
    ):
        self.machine, self.name, self.granule = machine, name, granule
        n = -(-nbytes // granule)
        self.first_gid = first_gid
        self.wid = np.full(n, INITIAL if initialised else UNWRITTEN, np.int32)
        self.wep = np.zeros(n, np.int32)
        self.wpc = np.zeros(n, np.int32)
        self.rd = np.zeros((readers, n), np.int32) if readers else None
        self.rpc = np.zeros((readers, n), np.int32) if readers else None
        self.async_reads: dict[int, list] = {}
        self.async_mask = 0

    def granules(self, offsets: np.ndarray, nbytes: int) -> np.ndarray:
        """Granule indices of accesses of `nbytes` at `offsets`, lane by lane."""
        step = np.arange(0, max(nbytes, 1), self.granule)
        return ((offsets[:, None] + step) // self.granule).ravel()

    # -- accesses ------------------------------------------------------------------------------------------------------

    def read(self, agent: Agent, idx: np.ndarray, uninit: str | None = "error") -> None:
        """A read; `uninit` is the severity of reading unwritten bytes (None: allowed)."""
        ids = self.wid[idx]
        if not self._ordered(agent, idx, ids):
            self._check_writers(agent, idx, ids, reading=True, uninit=uninit)
        if self.rd is not None:
            if agent.ident >= 0:
                row = agent.ident - self.first_gid
                if 0 <= row < len(self.rd):
                    self.rd[row, idx] = agent.epoch
                    self.rpc[row, idx] = agent.pc
            else:
                number = -2 - agent.ident
                self.async_reads.setdefault(number, []).append((idx, agent.pc))
                self.async_mask |= 1 << number
                if len(self.async_reads) > 256:
                    self._prune()

    def write(self, agent: Agent, idx: np.ndarray, same=None) -> None:
        """A write; `same()` tells whether it leaves the bytes as they are (an unordered write is then only a warning)."""
        ids = self.wid[idx]
        if not self._ordered(agent, idx, ids):
            self._check_writers(agent, idx, ids, reading=False, uninit=None, same=same)
        if self.rd is not None:
            self._check_readers(agent, idx)
            self.rd[:, idx] = 0
        self.wid[idx] = agent.ident
        self.wep[idx] = agent.epoch
        self.wpc[idx] = agent.pc

    def _ordered(self, agent: Agent, idx: np.ndarray, ids: np.ndarray) -> bool:
        """The usual cases in a few array operations: True if the agent is ordered after all writers `ids` of granules `idx`.

        False says nothing: then each writer is looked at by itself.
        """
        low, high = int(ids.min()), int(ids.max())
        if low == high and low in (agent.ident, INITIAL):
            return True
        if low >= 0:
            known = agent.clk.pvc if agent.proxy else agent.clk.vc
            return bool((self.wep[idx] <= known[ids]).all())
        if low == INITIAL or high >= UNWRITTEN or (agent.proxy and self.machine.generic_ops):
            return False
        return agent.clk.knows(-2 - ids)

    # -- checks --------------------------------------------------------------------------------------------------------

    def _check_writers(self, agent, idx, ids, reading, uninit, same=None):
        kinds = np.unique(ids)
        for who in kinds.tolist():
            if who == agent.ident or who == INITIAL:
                continue
            if who == UNWRITTEN:
                if uninit:
                    where = int(idx[np.argmax(ids == UNWRITTEN)]) * self.granule
                    agent.report(
                        "uninitialised-memory", f"{self.name}+{where:#x} is read before any write", severity=uninit
                    )
                continue
            mine = idx[ids == who]
            problem = self._writer_problem(agent, who, int(self.wep[mine].max()))
            if problem:
                self._report_writer(agent, problem, mine, who, reading, same)

    def _writer_problem(self, agent, who, epoch) -> str | None:
        """None if `agent` is ordered after the writer, else 'order' or 'proxy'."""
        clk = agent.clk
        if who >= 0:
            if epoch > clk.vc[who]:
                return "order"
            return "proxy" if agent.proxy and epoch > clk.pvc[who] else None
        number = -2 - who
        if not clk.ops >> number & 1:
            return "order"
        generic = self.machine.generic_ops >> number & 1
        return "proxy" if agent.proxy and generic and not clk.pops >> number & 1 else None

    def _report_writer(self, agent, problem, mine, who, reading, same):
        late = mine[np.argmax(self.wep[mine])]
        writer = self.machine.describe(who, int(self.wpc[late]))
        place = f"{self.name}+{int(late) * self.granule:#x}"
        if problem == "proxy":
            agent.report(
                "proxy-fence", f"{place}: generic write by {writer} reaches the async proxy without fence.proxy.async"
            )
        elif reading:
            agent.report("stale-read", f"{place}: written by {writer}, and nothing orders this read after it")
        elif same is not None and same():
            text = f"{place}: the same value is also written by {writer}, and nothing orders the two"
            agent.report("write-write", text, severity="warning")
        else:
            agent.report("write-write", f"{place}: also written by {writer}, and nothing orders the two")

    def _check_readers(self, agent, idx):
        latest = self.rd[:, idx].max(axis=1)
        known = agent.clk.vc[self.first_gid : self.first_gid + len(latest)]
        late = latest > known
        if agent.ident >= 0 and 0 <= agent.ident - self.first_gid < len(late):
            late[agent.ident - self.first_gid] = False
        for row in np.nonzero(late)[0]:
            at = idx[np.argmax(self.rd[row, idx])]
            reader = self.machine.describe(self.first_gid + int(row), int(self.rpc[row, at]))
            agent.report("overwrite", f"{self.name}+{int(at) * self.granule:#x}: {reader} may still read it")
        unknown = self.async_mask & ~agent.clk.ops
        if unknown:
            low, high = int(idx.min()), int(idx.max())
            mine = np.zeros(high - low + 1, bool)
            mine[idx - low] = True
        while unknown:
            number = unknown.bit_length() - 1
            unknown ^= 1 << number
            if op_ident(number) != agent.ident:
                self._check_async_reader(agent, mine, low, number)

    def _check_async_reader(self, agent, mine, low, number):
        """`mine` marks the granules from `low` on that the agent writes."""
        for other, pc in self.async_reads[number]:
            if int(other[-1]) < low or int(other[0]) >= low + len(mine):
                continue
            near = other[(other >= low) & (other < low + len(mine))]
            common = near[mine[near - low]]
            if len(common):
                reader = self.machine.describe(op_ident(number), pc)
                agent.report("overwrite", f"{self.name}+{int(common[0]) * self.granule:#x}: {reader} may still read it")
                return

    def _prune(self) -> None:
        """Forget asynchronous reads that every live warp knows to be finished."""
        known = self.machine.known_ops(self.first_gid, len(self.rd))
        for number in [n for n in self.async_reads if known >> n & 1]:
            del self.async_reads[number]
            self.async_mask &= ~(1 << number)
