"""tcgen05.mma: SS and TS, one or two CTAs, kinds f16, tf32, f8f6f4, i8 and the block-scaled ones (PTX ISA 9.7.17.10).

Sums are float32 (int64 for i8) in numpy's order: |error| <= K * 2^-23 * sum |a*b| per instruction. Block-scaled products are
summed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attncc.emulator.decode import op
from attncc.emulator.lanes import first
from attncc.emulator.ops_bulk import Addressed, chunk_granules
from attncc.emulator.ops_mma import BITS, elements
from attncc.emulator.ops_tcgen05 import GROUPS, mma_clock, pair_of, pipe_of
from attncc.emulator.ops_tcgen05_scale import scale_factors, touch_scales
from attncc.emulator.ops_wgmma import operand_values
from attncc.emulator.ptx_parse import Addr, Imm, Vec
from attncc.emulator.races import Agent, op_ident
from attncc.emulator.smem_operand import MatrixDescriptor, operand_chunks
from attncc.emulator.tcgen05_descriptor import FORMATS, PADDED, VECTORS, Shape, decode_instruction
from attncc.emulator.tmem import Tmem


@dataclass(frozen=True)
class Operands:
    """One MMA about to be issued: D's and A's addresses or A's descriptor, B's, whether D is added to, scale factor addresses."""

    d: int
    left: int | MatrixDescriptor
    right: MatrixDescriptor
    add: bool
    scales: tuple[int, int] | None = None


def _vector(k, m, kind: str) -> int | None:
    """Elements that share a scale factor, from the modifiers; None for a kind without."""
    if kind not in VECTORS:
        return None
    m.need("block_scale")
    name = m.take(*(n for n in VECTORS[kind] if n))
    if name not in VECTORS[kind]:
        raise k.fail(f"kind::{kind} needs one of {', '.join(n for n in VECTORS[kind] if n)}")
    return VECTORS[kind][name]


@op("tcgen05.mma")
def mma(k, instr, m):
    """tcgen05.mma.cta_group.kind{.block_scale} [d], a, b, idesc, {disable} or [scale-a], [scale-b], enable-d."""
    pair = m.need(*GROUPS) == "cta_group::2"
    kind = m.need(*(f"kind::{name}" for name in FORMATS))[6:]
    vector = _vector(k, m, kind)
    m.take(*(f"collector::a::{use}" for use in ("fill", "use", "lastuse", "discard")))
    ops = list(instr.ops)
    d = k.addr(ops.pop(0))
    a_op = ops.pop(0)
    from_tmem = isinstance(a_op, Addr)
    a = k.addr(a_op) if from_tmem else k.src(a_op, "b64")
    b, idesc = k.src(ops.pop(0), "b64"), k.src(ops.pop(0), "b32")
    scales = [k.addr(ops.pop(0)), k.addr(ops.pop(0))] if vector else []
    disable = k.srcs(ops.pop(0), "b32") if isinstance(ops[0], Vec) else []
    enable = bool(ops[0].value) if isinstance(ops[0], Imm) else k.pred(ops[0])
    if len(ops) > 1:
        raise k.fail("scale-input-d is not supported")

    def run(w):
        lane = first(w.mi)
        if w.mi.bit_count() > 1:
            w.report("divergence", f"tcgen05.mma is issued by {w.mi.bit_count()} lanes; one thread must issue it")
        try:
            shape = decode_instruction(kind, int(w.V["u32"][idesc][lane]), pair, vector)
            right = MatrixDescriptor.tcgen05(int(w.V["u64"][b][lane]))
            left = int(a(w)[lane]) if from_tmem else MatrixDescriptor.tcgen05(int(w.V["u64"][a][lane]))
        except ValueError as error:
            w.report("descriptor", str(error))
            return
        if any(int(w.V["u32"][r][lane]) for r in disable):
            w.report("descriptor", "a non-zero disable-output-lane vector is not supported")
        add = enable if isinstance(enable, bool) else bool((w.pr[enable[0]] >> lane & 1) ^ enable[1])
        where = tuple(int(s(w)[lane]) & 0xFFFFFFFF for s in scales) or None
        issue(w, shape, pair, Operands(int(d(w)[lane]), left, right, add, where))

    return run


def issue(w, shape: Shape, pair: bool, operands: Operands) -> None:
    """Record the accesses of one MMA and queue its arithmetic, for each CTA that takes part."""
    ctas = pair_of(w, "MMA") if pair else [w.cta]
    left = operands.left
    if isinstance(left, int) and shape.a in PADDED:
        w.report("descriptor", f"A of type {shape.a} in tensor memory is not supported")
        return
    batch = pipe_of(w).current(w)
    agent = Agent(op_ident(batch.number), mma_clock(w), 0, w.pc - 1, True, Addressed(w, w.pc - 1))
    rows = shape.m // max(len(ctas), 1)
    b_rows = shape.n // max(len(ctas), 1)
    parts = []
    for cta in ctas:
        chunks = _touch(w, agent, cta, operands.right, b_rows, shape.b, shape.b_mn)
        a_chunks = None if isinstance(left, int) else _touch(w, agent, cta, left, rows, shape.a, shape.a_mn)
        if chunks is None or (a_chunks is None and not isinstance(left, int)):
            return
        if shape.scaling and not _touch_scales(w, agent, cta, shape, rows, operands):
            return
        if not _touch_tmem(w, agent, cta, shape, rows, operands, len(ctas)):
            return
        parts.append((cta, a_chunks, chunks))
    if parts:
        report = Addressed(w, w.pc - 1)
        pipe_of(w).add(w, lambda: compute(parts, shape, rows, operands, report))


def _touch_scales(w, agent, cta, shape: Shape, rows: int, operands: Operands) -> bool:
    """Reads of both operands' scale factors; every CTA of a pair has those of its rows of A and of all of B."""
    scaling, column = shape.scaling, operands.d & 0xFFFF
    for address, count, byte, name in zip(operands.scales, (rows, shape.n), (scaling.a_byte, scaling.b_byte), "AB"):
        at, width = address & 0xFFFF, -(-count // 32)
        if at < column + shape.n and column < at + width:
            w.report("tmem", f"{name}'s scale factors (columns {at}..{at + width - 1}) overlap D (columns {column}..)")
        agent.proxy = False
        good = touch_scales(w, agent, cta, address, count, byte, name)
        agent.proxy = True
        if not good:
            return False
    return True


def _touch(w, agent, cta, desc, rows, kind, mn_major):
    """Chunks of a shared operand, with the read recorded."""
    chunks = operand_chunks(desc, rows, 32, mn_major, max(BITS[kind] // 8, 1))
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


def _touch_tmem(w, agent, cta, shape, rows, operands: Operands, ctas) -> bool:
    tmem, report, d, left = Tmem.of(cta), w.report, operands.d, operands.left
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
    if operands.add:
        tmem.shadow.read(agent, granules)
    tmem.shadow.write(agent, granules)
    agent.proxy = True
    return True


def compute(parts, shape: Shape, rows: int, operands: Operands, report) -> None:
    """D = A B (+ D) for every CTA; B is the concatenation of the CTAs' shares along N."""
    d, left = operands.d, operands.left
    right = np.concatenate([operand_values(cta, chunks, shape.b, shape.b_mn) for cta, _, chunks in parts])
    for cta, a_chunks, _ in parts:
        tmem = Tmem.of(cta)
        if isinstance(left, int):
            lane, column = left >> 16, left & 0xFFFF
            words = tmem.data[lane : lane + rows, column : column + 8]
            a = elements(shape.a, np.ascontiguousarray(words)).reshape(rows, -1)
        else:
            a = operand_values(cta, a_chunks, shape.a, shape.a_mn)
        if shape.scaling:
            value = shape.sign * _scaled(cta, a, right, shape, operands.scales, report)
        else:
            value = shape.sign * (a @ right.T)
        lanes, columns = accumulator_place(rows, shape.n, len(parts))
        where = (np.broadcast_to(lanes + (d >> 16), value.shape), np.broadcast_to(columns + (d & 0xFFFF), value.shape))
        store(tmem, where, value, shape, operands.add)


def _scaled(cta, a, b, shape: Shape, addresses: tuple[int, int], report) -> np.ndarray:
    """Product of operands whose elements are multiplied by their scale factors, in float64 (the products are exact)."""
    scaling = shape.scaling
    for_a = scale_factors(cta, addresses[0], len(a), scaling.a_byte, scaling, report)
    for_b = scale_factors(cta, addresses[1], len(b), scaling.b_byte, scaling, report)
    wide = lambda x, factors: x.astype(np.float64) * np.repeat(factors, scaling.vector, axis=1)
    return wide(a, for_a) @ wide(b, for_b).T


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
