"""tcgen05.mma: SS and TS, one or two CTAs, kinds f16, tf32, f8f6f4 (8-bit operands) and i8 (PTX ISA 9.7.17.10).

Sums are float32 (int64 for i8) in numpy's order: |error| <= K * 2^-23 * sum |a*b| per instruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attncc.emulator.decode import op
from attncc.emulator.lanes import first
from attncc.emulator.ops_bulk import Addressed, chunk_granules
from attncc.emulator.ops_mma import BITS, elements
from attncc.emulator.ops_tcgen05 import GROUPS, mma_clock, pipe_of
from attncc.emulator.ops_wgmma import operand_values
from attncc.emulator.ptx_parse import Addr, Imm, Vec
from attncc.emulator.races import Agent, op_ident
from attncc.emulator.smem_operand import MatrixDescriptor, operand_chunks
from attncc.emulator.tmem import Tmem

FORMATS = {
    "f16": {0: "f16", 1: "bf16"},
    "tf32": {2: "tf32"},
    "f8f6f4": {0: "e4m3", 1: "e5m2"},
    "i8": {0: "u8", 1: "s8"},
}


@dataclass(frozen=True)
class Shape:
    """A decoded instruction descriptor."""

    m: int
    n: int
    a: str
    b: str
    d: str
    a_mn: bool
    b_mn: bool
    sign: int
    saturate: bool


def decode_instruction(kind: str, raw: int, pair: bool) -> Shape:
    """The 32-bit instruction descriptor; ValueError names what is not legal."""
    if raw & 7 or raw >> 30:
        raise ValueError(f"instruction descriptor {raw:#x} asks for sparsity or a shift")
    formats = FORMATS[kind]
    a, b, d = formats.get(raw >> 7 & 7), formats.get(raw >> 10 & 7), {0: "f16", 1: "f32", 2: "s32"}.get(raw >> 4 & 3)
    m, n = (raw >> 24 & 31) << 4, (raw >> 17 & 63) << 3
    if a is None or b is None or d not in (("s32",) if kind == "i8" else ("f32",)):
        raise ValueError(f"instruction descriptor {raw:#x}: element types not supported for kind::{kind}")
    legal = {False: (64, 128), True: (128, 256)}[pair]
    step = 16 if m in (128, 256) and (not pair or m == 128) else 32 if pair else 8
    if m not in legal or n % min(step, 16) or not 8 <= n <= 256:
        raise ValueError(f"tcgen05.mma of M={m}, N={n} with cta_group::{2 if pair else 1}")
    sign = (-1 if raw >> 13 & 1 else 1) * (-1 if raw >> 14 & 1 else 1)
    return Shape(m, n, a, b, d, bool(raw >> 15 & 1), bool(raw >> 16 & 1), sign, bool(raw >> 3 & 1))


@op("tcgen05.mma")
def mma(k, instr, m):
    """tcgen05.mma.cta_group.kind [d], a, b, idesc, {disable}, enable-d."""
    pair = m.need(*GROUPS) == "cta_group::2"
    kind = m.need(*(f"kind::{name}" for name in FORMATS))[6:]
    m.take(*(f"collector::a::{use}" for use in ("fill", "use", "lastuse", "discard")))
    ops = list(instr.ops)
    d = k.addr(ops.pop(0))
    a_op = ops.pop(0)
    from_tmem = isinstance(a_op, Addr)
    a = k.addr(a_op) if from_tmem else k.src(a_op, "b64")
    b, idesc = k.src(ops.pop(0), "b64"), k.src(ops.pop(0), "b32")
    disable = k.srcs(ops.pop(0), "b32") if isinstance(ops[0], Vec) else []
    enable = bool(ops[0].value) if isinstance(ops[0], Imm) else k.pred(ops[0])
    if len(ops) > 1:
        raise k.fail("scale-input-d is not supported")

    def run(w):
        lane = first(w.mi)
        if w.mi.bit_count() > 1:
            w.report("divergence", f"tcgen05.mma is issued by {w.mi.bit_count()} lanes; one thread must issue it")
        try:
            shape = decode_instruction(kind, int(w.V["u32"][idesc][lane]), pair)
            right = MatrixDescriptor.tcgen05(int(w.V["u64"][b][lane]))
            left = int(a(w)[lane]) if from_tmem else MatrixDescriptor.tcgen05(int(w.V["u64"][a][lane]))
        except ValueError as error:
            w.report("descriptor", str(error))
            return
        if any(int(w.V["u32"][r][lane]) for r in disable):
            w.report("descriptor", "a non-zero disable-output-lane vector is not supported")
        add = enable if isinstance(enable, bool) else bool((w.pr[enable[0]] >> lane & 1) ^ enable[1])
        issue(w, shape, pair, int(d(w)[lane]), left, right, add)

    return run


def issue(w, shape: Shape, pair: bool, d: int, left, right: MatrixDescriptor, add: bool) -> None:
    """Record the accesses of one MMA and queue its arithmetic, for each CTA that takes part."""
    ctas = [w.cta]
    if pair:
        base = w.cta.rank & ~1
        ctas = w.cta.cluster.ctas[base : base + 2]
        if w.cta.rank != base or len(ctas) != 2:
            w.report("divergence", "a cta_group::2 MMA must be issued by the even CTA of a pair")
            return
    batch = pipe_of(w).current(w)
    agent = Agent(op_ident(batch.number), mma_clock(w), 0, w.pc - 1, True, Addressed(w, w.pc - 1))
    rows = shape.m // len(ctas)
    b_rows = shape.n // len(ctas)
    parts = []
    for cta in ctas:
        chunks = _touch(w, agent, cta, right, b_rows, shape.b, shape.b_mn)
        a_chunks = None if isinstance(left, int) else _touch(w, agent, cta, left, rows, shape.a, shape.a_mn)
        if chunks is None or (a_chunks is None and not isinstance(left, int)):
            return
        if not _touch_tmem(w, agent, cta, shape, rows, d, left, add, len(ctas)):
            return
        parts.append((cta, a_chunks, chunks))
    pipe_of(w).add(w, lambda: compute(parts, shape, rows, d, left, add))


def _touch(w, agent, cta, desc, rows, kind, mn_major):
    """Chunks of a shared operand, with the read recorded."""
    chunks = operand_chunks(desc, rows, 32, mn_major, BITS[kind] // 8)
    shared = cta.shared
    if int(chunks.max()) >= len(shared.data) // 16:
        w.report("out-of-bounds", f"a tcgen05 operand reaches shared+{int(chunks.max()) * 16:#x}, past {shared.name}")
        return None
    shared.shadow.read(agent, chunk_granules(shared.shadow, chunks.ravel()), uninit="warning")
    return chunks


def accumulator_place(rows: int, n: int, ctas: int) -> tuple[np.ndarray, np.ndarray]:
    """(lane, column) of D[row, n] in a CTA's tensor memory, both broadcastable to [rows, n].

    128 rows: lane = row. 64 rows of one CTA: rows 16i.. in lanes 32i.. . 64 rows of a pair: the upper half of N in
    lanes 64 and up (PTX ISA 9.7.17.10.5, data path layouts D, F, B).
    """
    row, column = np.arange(rows)[:, None], np.arange(n)[None, :]
    if rows == 128:
        return row, column
    if ctas == 1:
        return (row // 16) * 32 + row % 16, column
    return row + 64 * (column // (n // 2)), column % (n // 2)


def _touch_tmem(w, agent, cta, shape, rows, d, left, add, ctas) -> bool:
    tmem, report = Tmem.of(cta), w.report
    column, lane = d & 0xFFFF, d >> 16
    width = shape.n // 2 if rows == 64 and ctas == 2 else shape.n
    if not tmem.check(report, lane, 128 if rows == 128 or ctas == 2 else 112, column, width):
        return False
    lanes, _ = accumulator_place(rows, shape.n, ctas)
    groups = np.unique((lanes + lane) // 16)
    granules = (groups[:, None] * 512 + np.arange(column, column + width)).ravel()
    agent.proxy = False
    if isinstance(left, int):
        columns = 32 // 4
        if left & 0xFFFF < column + width and column < (left & 0xFFFF) + columns:
            report(
                "tmem",
                f"A (columns {left & 0xFFFF}..{(left & 0xFFFF) + columns - 1}) overlaps D (columns {column}.."
                f"{column + width - 1})",
            )
        if not tmem.check(report, left >> 16, rows, left & 0xFFFF, columns):
            return False
        tmem.shadow.read(agent, tmem.granules(left >> 16, rows, left & 0xFFFF, columns))
    if add:
        tmem.shadow.read(agent, granules)
    tmem.shadow.write(agent, granules)
    agent.proxy = True
    return True


def compute(parts, shape: Shape, rows: int, d: int, left, add: bool) -> None:
    """D = A B (+ D) for every CTA; B is the concatenation of the CTAs' shares along N."""
    right = np.concatenate([operand_values(cta, chunks, shape.b, shape.b_mn) for cta, _, chunks in parts])
    for cta, a_chunks, _ in parts:
        tmem = Tmem.of(cta)
        if isinstance(left, int):
            lane, column = left >> 16, left & 0xFFFF
            words = tmem.data[lane : lane + rows, column : column + 8]
            a = elements(shape.a, np.ascontiguousarray(words)).reshape(rows, -1)
        else:
            a = operand_values(cta, a_chunks, shape.a, shape.a_mn)
        value = shape.sign * (a @ right.T)
        lanes, columns = accumulator_place(rows, shape.n, len(parts))
        where = (np.broadcast_to(lanes + (d >> 16), value.shape), np.broadcast_to(columns + (d & 0xFFFF), value.shape))
        store(tmem, where, value, shape, add)


def store(tmem, where, value, shape: Shape, add: bool) -> None:
    """Write or accumulate the product."""
    if shape.d == "s32":
        old = tmem.data[where].view(np.int32).astype(np.int64) if add else 0
        total = value + old
        total = np.clip(total, -(2**31), 2**31 - 1) if shape.saturate else total
        tmem.data[where] = total.astype(np.int32).view(np.uint32)
        return
    old = tmem.data[where].view(np.float32) if add else np.float32(0)
    tmem.data[where] = (value + old).astype(np.float32).view(np.uint32)
