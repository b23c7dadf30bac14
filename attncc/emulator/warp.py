"""One warp: registers as 32-lane rows, active masks, divergence by lowest program counter."""

from __future__ import annotations

import numpy as np

from attncc.emulator.decode import BLOCK, EXIT, Program
from attncc.emulator.findings import Finding
from attncc.emulator.lanes import FULL, first
from attncc.emulator.memory import Region
from attncc.emulator.races import Agent, Shadow

_VIEWS = {16: ("u16", "s16", "f16"), 32: ("u32", "s32", "f32"), 64: ("u64", "s64", "f64")}
_DTYPES = {
    "u16": np.uint16,
    "s16": np.int16,
    "f16": np.float16,
    "u32": np.uint32,
    "s32": np.int32,
    "f32": np.float32,
    "u64": np.uint64,
    "s64": np.int64,
    "f64": np.float64,
}


class RegisterFile:
    """Rows of 32 lanes for every register, under each numpy view of its width. Making one takes a while, so they are reused."""

    def __init__(self, program: Program):
        n = len(program.widths)
        self.views = {view: [None] * n for views in _VIEWS.values() for view in views}
        self.views["b128"] = [None] * n
        self.stores = {}
        for bits, views in _VIEWS.items():
            where = [i for i, width in enumerate(program.widths) if width == bits]
            store = self.stores[bits] = np.zeros((len(where), 32), _DTYPES[views[0]])
            for view in views:
                rows, table = store.view(_DTYPES[view]), self.views[view]
                for row, index in zip(rows, where):
                    table[index] = row
        wide = [i for i, width in enumerate(program.widths) if width == 128]
        self.stores[128] = np.zeros((len(wide), 32, 2), np.uint64)
        for row, index in zip(self.stores[128], wide):
            self.views["b128"][index] = row
        for index, value in program.consts:
            width = program.widths[index]
            if width > 1:
                self.views[f"u{width}"][index][:] = np.asarray(value).astype(f"u{width // 8}")
        self.blank = {bits: store.copy() for bits, store in self.stores.items()}

    def clear(self) -> None:
        """Zero everything but the constants."""
        for bits, store in self.stores.items():
            store[:] = self.blank[bits]


class Warp:
    """Architectural state of 32 threads.

    `V[view][index]` is the row of a register under a numpy view, `bank` all 32-bit ones as an array; predicates are lane masks in `pr[index]`;
    `init[index]` tells which lanes hold a defined value. `mi` is the active mask of the current path, `live` the
    lanes that have not exited, `others` the paths that diverged from it as [pc, mask, blocked].
    """

    def __init__(self, program: Program, cta, warp_id: int, live: int):
        self.prog, self.cta, self.machine = program, cta, cta.machine
        self.id = warp_id
        self.gid = cta.first_gid + warp_id
        self.pc, self.mi, self.live = 0, live, live
        self.others: list[list] = []
        self.wait = None
        self.seen_events = -1
        self.force_timeout = False
        self.steps = 0
        self.locked: dict[int, object] = {}
        self.stamp: dict[int, int] = {}
        self.fence_count = 0
        self.clk = cta.machine.new_clock(self.gid)
        self.state: dict[str, object] = {}
        self._allocate()

    def _allocate(self) -> None:
        n = len(self.prog.widths)
        self.file = self.prog.files.pop() if self.prog.files else RegisterFile(self.prog)
        self.file.clear()
        self.V, self.bank = self.file.views, self.file.stores[32]
        self.pr = [0] * n
        self.init = [0] * n
        self._constants()

    def _constants(self) -> None:
        for index, value in self.prog.consts:
            if self.prog.widths[index] == 1:
                self.set_row(index, value)
            self.init[index] = FULL
        for index, name in self.prog.specials:
            self.set_row(index, self.cta.special(name, self))
        for index, name in self.prog.syms:
            self.set_row(index, self.cta.symbol_address(name))

    def set_row(self, index: int, value) -> None:
        """Give a constant row its value."""
        self.init[index] = FULL
        width = self.prog.widths[index]
        if width == 1:
            self.pr[index] = FULL if value & 1 else 0
        else:
            self.V[f"u{width}"][index][:] = np.asarray(value).astype(f"u{width // 8}")

    # -- execution -------------------------------------------------------------------------------------------------

    def run(self, budget: int) -> int | None:
        """Run up to `budget` instructions. BLOCK when every path waits, EXIT when all lanes are gone, else None."""
        code = self.prog.code
        for path in self.others:
            path[2] = False
        while budget > 0:
            budget -= 1
            pc = self.pc
            self.pc = pc + 1
            status = code[pc](self)
            if status is not None:
                if status == BLOCK:
                    self.pc = pc
                    if not self._switch_blocked():
                        self.steps += 1
                        return BLOCK
                elif status == EXIT:
                    if not self._exit():
                        return EXIT
                else:  # YIELD: done, but others should go first
                    budget = 0
                    if self.others:
                        self._reconverge()
            elif self.others:
                self._reconverge()
            self.steps += 1
        return None

    def _reconverge(self) -> None:
        """Merge paths at the same pc, then continue with the lowest pc that is not waiting."""
        keep = []
        for path in self.others:
            if path[0] == self.pc:
                self.mi |= path[1]
            else:
                keep.append(path)
        self.others = keep
        ready = [p for p in keep if not p[2]]
        if ready:
            best = min(ready, key=lambda p: p[0])
            if best[0] < self.pc:
                self._swap(best, blocked=False)

    def _swap(self, path: list, blocked: bool) -> None:
        old = [self.pc, self.mi, blocked]
        self.others.remove(path)
        self.pc, self.mi = path[0], path[1]
        self.others.append(old)

    def _switch_blocked(self) -> bool:
        """The current path waits: run another one if any can run."""
        ready = [p for p in self.others if not p[2]]
        if not ready:
            return False
        self._swap(min(ready, key=lambda p: p[0]), blocked=True)
        for path in list(self.others):
            if path[0] == self.pc:
                self.mi |= path[1]
                self.others.remove(path)
        return True

    def _exit(self) -> bool:
        """Drop the lanes of the current path; True if others remain."""
        self.live &= ~self.mi
        self.mi = 0
        if not self.others:
            return False
        path = min(self.others, key=lambda p: (p[2], p[0]))
        self.others.remove(path)
        self.pc, self.mi = path[0], path[1]
        return True

    def branch(self, target: int, taken: int) -> None:
        """Send lanes `taken` of the current path to `target`."""
        if taken == self.mi:
            self.pc = target
        elif taken:
            self.others.append([target, taken, False])
            self.mi &= ~taken

    def converged(self, what: str) -> bool:
        """True if every live lane is here; otherwise the path waits for the others (and a finding tells if none come)."""
        if self.mi == self.live:
            return True
        self.wait = Wait(
            "divergence",
            f"{what} needs all {self.live.bit_count()} live lanes, {self.mi.bit_count()} are here",
            self.pc - 1,
        )
        return False

    def converged_mask(self, want: int, what: str) -> bool:
        """The path waits until all lanes of `want` are here; always False."""
        missing = want & ~self.mi
        self.wait = Wait("divergence", f"{what} waits for lanes {missing:#x} of its mask", self.pc - 1)
        return False

    # -- memory and clocks ---------------------------------------------------------------------------------------------

    def agent(self) -> Agent:
        """This warp as the author of a generic access at the current instruction."""
        return Agent(self.gid, self.clk, int(self.clk.vc[self.gid]), self.pc - 1, False, self.report)

    def tick(self) -> None:
        """Start a new epoch: what was published so far is older than what comes now."""
        self.clk.vc[self.gid] += 1

    def local_size(self) -> int:
        """Bytes of local memory per lane."""
        return self.cta.local_bytes

    def local_region(self) -> Region:
        """Local memory of all lanes, one after the other."""
        if "local" not in self.state:
            size = self.cta.local_bytes * 32
            shadow = Shadow(self.machine, "local", size, 1, self.gid, 0)
            self.state["local"] = Region("local memory", 0, np.full(size, 0xFF, np.uint8), shadow)
        return self.state["local"]

    def finish(self) -> None:
        """All lanes have exited: collectives that were left open are reported."""
        for hook in list(self.state.values()):
            if hasattr(hook, "at_exit"):
                hook.at_exit(self)

    # -- findings ----------------------------------------------------------------------------------------------------

    def report(self, kind: str, message: str, lane: int = -1, severity: str = "error", pc: int | None = None) -> None:
        """Add a finding at the current instruction (or at `pc`)."""
        line, source, text = self.prog.source_of(self.pc - 1 if pc is None else pc)
        self.machine.log.add(
            Finding(kind, message, line, source, self.cta.index, self.id, lane, self.machine.log.seed, severity, text)
        )

    def bad_read(self, index: int) -> None:
        """A source register has lanes with no value: uninitialised, or still owned by an asynchronous MMA."""
        missing = self.mi & ~self.init[index]
        if not missing:
            return
        name = self.prog.names[index]
        owner = self.locked.get(index)
        if owner is not None and owner.soft:
            self.settle(owner)
            return
        if owner is not None:
            self.report(owner.kind, f"{name} read before {owner.until}", first(missing))
        else:
            self.report("uninitialised-register", f"{name} read before any write", first(missing))
        self.init[index] |= self.mi

    def settle(self, lock: Lock) -> None:
        """A soft-locked register is used: the use counts as the wait."""
        self.report(lock.kind, f"the result is used without {lock.until}", severity="warning", pc=lock.group.pc)
        self.free([lock.group])

    def free(self, operations) -> None:
        """The operations are done for this warp: learn it and unlock their registers."""
        for operation in operations:
            self.clk.ops |= 1 << operation.number
        for register in [r for r, lock in self.locked.items() if lock.group in operations]:
            del self.locked[register]
            self.init[register] = FULL

    def bad_write(self, index: int) -> None:
        """A register that an asynchronous operation still uses was written."""
        owner = self.locked[index]
        if owner.soft:
            self.settle(owner)
            return
        self.report(owner.kind, f"{self.prog.names[index]} written before {owner.until}", first(self.mi))


class Lock:
    """Why a register may not be touched: finding kind and the wait that would free it.

    A soft lock (tcgen05.ld) holds a value already. A mov may copy it, and the copy is locked like the original:
    compilers place such copies before the wait, and ptxas makes them the same register. Any other use is a warning
    and counts as the wait: the ISA asks for tcgen05.wait::ld, but ptxas orders register uses after the load, and
    published kernels rely on it.
    """

    __slots__ = ("group", "kind", "soft", "until")

    def __init__(self, kind: str, until: str, group: object = None, soft: bool = False):
        self.kind, self.until, self.group, self.soft = kind, until, group, soft


class Wait:
    """Why a warp is not running; shown when nothing moves any more."""

    __slots__ = ("barrier", "kind", "pc", "text")

    def __init__(self, kind: str, text: str, pc: int, barrier=None):
        self.kind, self.text, self.pc, self.barrier = kind, text, pc, barrier
