"""wgmma (PTX ISA 9.7.16): asynchronous warp-group MMA.

Each warp computes its own 16 rows; the operation's data movement happens at a random moment between issue and the
wait that covers it. Accumulators and A registers are locked until then. Sums are float32 in numpy's order:
|error| <= K * 2^-23 * sum |a*b| per instruction.
"""

from __future__ import annotations

import numpy as np

from attncc.emulator import numerics as nm
from attncc.emulator.decode import BLOCK, op
from attncc.emulator.ops_bulk import Addressed, chunk_granules
from attncc.emulator.ops_mma import BITS, REGISTER_TYPES, elements, fragment_a, padded_elements
from attncc.emulator.ptx_parse import Imm, Vec
from attncc.emulator.races import Agent, op_ident
from attncc.emulator.smem_operand import MatrixDescriptor, operand_chunks
from attncc.emulator.warp import Lock

KIND = "accumulator"
UNTIL = "wgmma.wait_group"


class WgmmaState:
    """Per-warp: MMAs not yet computed, the open group's operation, committed groups, the sequence for convergence."""

    def __init__(self):
        self.queue: list = []
        self.open = None
        self.groups: list = []
        self.issued = 0

    def flush(self) -> None:
        """Compute everything issued so far, in order."""
        queue, self.queue = self.queue, []
        for compute in queue:
            compute()

    def at_exit(self, w) -> None:
        """A warp that leaves with MMAs in flight."""
        if self.queue or self.open is not None or self.groups:
            w.report("exit-pending", "the warp exits with wgmma operations it never waited for", severity="warning")
        self.flush()


def state(w) -> WgmmaState:
    """The warp's wgmma state."""
    return w.state.setdefault("wgmma", WgmmaState())


class Sequence:
    """wgmma instructions of a warp group, to check that its four warps run the same ones."""

    def __init__(self):
        self.entries: list[tuple] = []

    def check(self, w, number: int, entry: tuple) -> None:
        """Compare the number-th wgmma of this warp with the other warps'."""
        if number == len(self.entries):
            self.entries.append(entry)
        elif self.entries[number] != entry:
            w.report("divergence", "the four warps of the warp group issue different wgmma operations")

    def final_check(self, cta) -> None:
        """Every warp of the group must have issued all of them."""
        for w in cta.warps:
            if cta.extra.get(("wgmma", w.id // 4)) is self and state(w).issued != len(self.entries):
                w.report(
                    "divergence",
                    f"warp {w.id} issued {state(w).issued} wgmma operations, others of its group {len(self.entries)}",
                )


@op("wgmma.fence")
def fence(k, instr, m):
    """wgmma.fence: registers and generic shared writes before it are ordered with later wgmma."""
    m.need("sync")
    m.need("aligned")

    def run(w):
        if not w.converged(instr.text):
            return BLOCK
        w.fence_count += 1
        return None

    return run


@op("wgmma.commit_group")
def commit(k, instr, m):
    """Close the group."""
    m.need("sync")
    m.need("aligned")

    def run(w):
        if not w.converged(instr.text):
            return BLOCK
        own = state(w)
        own.groups.append(own.open)
        own.open = None
        if w.machine.rng.random() < 0.3:
            own.flush()
        return None

    return run


@op("wgmma.wait_group")
def wait(k, instr, m):
    """All but the newest N groups are complete: registers are free, shared memory has been read."""
    m.need("sync")
    m.need("aligned")
    keep = instr.ops[0].value

    def run(w):
        if not w.converged(instr.text):
            return BLOCK
        own = state(w)
        done = own.groups[: max(len(own.groups) - keep, 0)]
        if done:
            own.flush()
            del own.groups[: len(done)]
            w.free({g for g in done if g is not None})
            w.machine.events += 1
        return None

    return run


def parse_operands(k, instr, m):
    """Everything static about a wgmma.mma_async."""
    m.need("sync")
    m.need("aligned")
    shape = next((t for t in m.left if t.startswith("m64n")), None)
    if shape is None:
        raise k.fail("wgmma shape")
    m.left.remove(shape)
    sat = m.flag("satfinite")
    if len(m.left) != 3:
        raise k.fail("wgmma types")
    acc, ka, kb = m.left
    m.left.clear()
    n = int(shape[4 : shape.index("k")])
    if (
        acc not in ("f32", "f16", "s32")
        or ka not in REGISTER_TYPES
        or kb not in REGISTER_TYPES
        or n % 8
        or not 8 <= n <= 256
    ):
        raise k.fail("unsupported wgmma form")
    return acc, ka, kb, n, int(shape.rsplit("k", 1)[1]), sat


@op("wgmma.mma_async")
def mma_async(k, instr, m):
    """wgmma.mma_async.sync.aligned.m64nNkK, A from shared memory or registers."""
    acc, ka, kb, n, depth, sat = parse_operands(k, instr, m)
    d = [k.program.index[r.name] for r in instr.ops[0].items]
    if len(d) != (n // 2 if acc != "f16" else n // 4) or depth * BITS[ka] != 256:
        raise k.fail("wrong accumulator count or depth")
    from_registers = isinstance(instr.ops[1], Vec)
    a = k.srcs(instr.ops[1], "b32") if from_registers else k.src(instr.ops[1], "b64")
    b = k.src(instr.ops[2], "b64")
    scale_d = k.pred(instr.ops[3]) if not isinstance(instr.ops[3], Imm) else bool(instr.ops[3].value)
    rest = [o.value for o in instr.ops[4:]]
    if acc == "s32":
        signs, trans = (1, 1), (0, 0)
    else:
        signs, trans = tuple(rest[:2]), tuple(rest[2:])
        trans = (0, *trans) if from_registers and len(trans) == 1 else trans or (0, 0)
    rows_a = k.program.bank_rows(a) if from_registers else None
    spec = Spec(
        acc,
        ka,
        kb,
        n,
        depth,
        sat,
        d,
        a,
        b,
        scale_d,
        signs,
        trans,
        from_registers,
        instr,
        rows_a,
        k.program.bank_rows(d),
    )
    return spec.run


def operand_values(cta, chunks: np.ndarray, kind: str, mn_major: bool) -> np.ndarray:
    """Matrix [rows, K] of a shared operand, cached while the CTA's shared memory does not change."""
    shared = cta.shared
    cache = cta.extra.setdefault("operands", {"version": -1})
    if cache["version"] != shared.version:
        cache.clear()
        cache["version"] = shared.version
    key = (int(chunks.flat[0]), chunks.shape, int(chunks.flat[-1]), int(chunks.sum()), kind, mn_major)
    if key not in cache:
        raw = shared.data[: len(shared.data) // 16 * 16].reshape(-1, 16)[chunks.ravel()]
        if kind in ("e2m1x8", "e2m3", "e3m2"):
            values = padded_elements(kind, raw).reshape(chunks.shape[0], -1)
        else:
            values = elements(kind, raw.reshape(-1).view(np.uint32)).reshape(chunks.shape[0], -1)
        cache[key] = values.T if mn_major else values
    return cache[key]


class Spec:
    """One decoded wgmma.mma_async."""

    def __init__(
        self, acc, ka, kb, n, depth, sat, d, a, b, scale_d, signs, trans, from_registers, instr, rows_a, rows_d
    ):
        self.acc, self.ka, self.kb, self.n, self.depth, self.sat = acc, ka, kb, n, depth, sat
        self.d, self.a, self.b, self.scale_d, self.signs, self.trans = d, a, b, scale_d, signs, trans
        self.from_registers, self.instr, self.rows_a, self.rows_d = from_registers, instr, rows_a, rows_d
        self.view = {"f32": "f32", "s32": "s32", "f16": "u32"}[acc]

    def run(self, w):
        """Issue."""
        if not w.converged(self.instr.text[:60]):
            return BLOCK
        own, pc = state(w), w.pc - 1
        accumulate = self.scale_d if isinstance(self.scale_d, bool) else self._predicate(w)
        self._check_registers(w, accumulate)
        desc_b = self._descriptor(w, self.b)
        desc_a = None if self.from_registers else self._descriptor(w, self.a)
        sequence = w.cta.extra.setdefault(("wgmma", w.id // 4), Sequence())
        sequence.check(w, own.issued, (pc, desc_a, desc_b, accumulate))
        own.issued += 1
        if own.open is None:
            own.open = w.machine.issue(w, "wgmma", lambda _: None, queue=False)
        operation = own.open
        agent = Agent(op_ident(operation.number), w.clk.copy(), 0, pc, True, Addressed(w, pc))
        chunks = self._touch(w, agent, desc_a, desc_b)
        self._lock(w, operation)
        if chunks is not None:
            own.queue.append(lambda: self._compute(w, chunks, accumulate))
            if w.machine.rng.random() < 0.5:
                own.flush()
        return None

    def _predicate(self, w) -> bool:
        index, negated = self.scale_d
        bits = (~w.pr[index] if negated else w.pr[index]) & w.mi
        if bits not in (0, w.mi):
            w.report("divergence", "wgmma scale-d differs between lanes")
        return bool(bits)

    def _descriptor(self, w, index) -> MatrixDescriptor:
        row = w.V["u64"][index]
        if not (row == row[0]).all():
            w.report("divergence", "wgmma descriptor differs between lanes")
        try:
            return MatrixDescriptor.wgmma(int(row[0]))
        except ValueError as error:
            w.report("descriptor", str(error))
            return MatrixDescriptor.wgmma(int(row[0]) & ~(7 << 49))

    def _check_registers(self, w, accumulate) -> None:
        """Accumulators must be defined if they are added to; no register may be newer than the last wgmma.fence."""
        for r in self.d:
            lock = w.locked.get(r)
            if accumulate and lock is None and w.init[r] & w.mi != w.mi:
                w.report("uninitialised-register", f"wgmma adds to {w.prog.names[r]}, which was never written")
                break
        for r in (self.d if accumulate else []) + (self.a if self.from_registers else []):
            if w.stamp.get(r, -1) == w.fence_count:
                w.report("wgmma-fence", f"{w.prog.names[r]} was written after the last wgmma.fence")
                break

    def _touch(self, w, agent, desc_a, desc_b):
        """Chunk indices of the operands in shared memory, with their reads recorded."""
        shared = w.cta.shared
        limit = len(shared.data) // 16
        item_a, item_b = BITS[self.ka] // 8, BITS[self.kb] // 8
        right = operand_chunks(desc_b, self.n, 32, bool(self.trans[1]), item_b)
        left = None
        if desc_a is not None:
            left = operand_chunks(desc_a, 64, 32, bool(self.trans[0]), item_a)
            rows = slice(16 * (w.id % 4), 16 * (w.id % 4) + 16)
            if not self.trans[0]:
                left = left[rows]
        for chunks in (right, left):
            if chunks is None:
                continue
            if int(chunks.max()) >= limit:
                w.report(
                    "out-of-bounds", f"a wgmma operand reaches shared+{int(chunks.max()) * 16:#x}, past {shared.name}"
                )
                return None
            shared.shadow.read(agent, chunk_granules(shared.shadow, chunks.ravel()), uninit="warning")
        return left, right

    def _lock(self, w, operation) -> None:
        lock = Lock(KIND, UNTIL, operation)
        for r in self.d:
            w.locked[r] = lock
            w.init[r] = 0
        if self.from_registers:
            for r in self.a:
                w.locked[r] = lock

    def _compute(self, w, chunks, accumulate) -> None:
        left_chunks, right_chunks = chunks
        right = operand_values(w.cta, right_chunks, self.kb, bool(self.trans[1]))
        if self.from_registers:
            left = fragment_a(self.ka, w.bank[self.rows_a])
        else:
            left = operand_values(w.cta, left_chunks, self.ka, bool(self.trans[0]))
            if self.trans[0]:
                left = left[16 * (w.id % 4) : 16 * (w.id % 4) + 16]
        value = left @ right.T
        if self.signs[0] * self.signs[1] < 0:
            value = -value
        store_accumulator(w, self, value, accumulate)


def store_accumulator(w, spec, value: np.ndarray, accumulate: bool) -> None:
    """[16, N] -> accumulator registers: register 4*(n/8) + 2h + j holds row 8h + lane/4, column 8*(n/8) + 2*(lane%4) + j."""
    rows = value.reshape(2, 8, spec.n // 8, 4, 2).transpose(2, 0, 4, 1, 3).reshape(spec.n // 2, 32)
    table = w.V[spec.view]
    if spec.acc == "f16":
        pairs = rows.reshape(spec.n // 4, 2, 32).transpose(0, 2, 1)
        for r, pair in zip(spec.d, pairs):
            old = nm.f16_to_f32(table[r].view(np.uint16).reshape(32, 2)) if accumulate else np.float32(0)
            table[r][:] = np.ascontiguousarray(nm.f32_to_f16(pair + old)).view(np.uint32)[:, 0]
        return
    old = w.bank[spec.rows_d]
    if spec.acc == "s32":
        total = rows + old.view(np.int32).astype(np.int64) if accumulate else rows
        total = np.clip(total, -(2**31), 2**31 - 1) if spec.sat else total
        w.bank[spec.rows_d] = total.astype(np.int32).view(np.uint32)
        return
    total = np.asarray(rows + old.view(np.float32) if accumulate else rows, np.float32)
    w.bank[spec.rows_d] = np.ascontiguousarray(total).view(np.uint32)
