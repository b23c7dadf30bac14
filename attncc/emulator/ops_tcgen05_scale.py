"""Scale factors of block-scaled MMAs in tensor memory, and tcgen05.cp, which brings them there (PTX ISA 9.7.17.10.7, 9.7.17.8).

The factors of row r of A (or column r of B) are bytes of the 32-bit word in lane r % 32, column r / 32 of the address; four copies,
one in each quarter of the lanes, must be equal. The two top bits of the address are the id that the instruction descriptor
repeats. Copies and MMAs of a warp form one pipe in issue order (see ops_tcgen05.Pipe).
"""

from __future__ import annotations

import numpy as np

from attncc.emulator import numerics as nm
from attncc.emulator.decode import op
from attncc.emulator.lanes import first
from attncc.emulator.ops_bulk import Addressed, chunk_granules
from attncc.emulator.ops_tcgen05 import GROUPS, mma_clock, pair_of, pipe_of
from attncc.emulator.races import Agent, op_ident
from attncc.emulator.smem_operand import MatrixDescriptor, operand_chunks
from attncc.emulator.tcgen05_descriptor import Scaling
from attncc.emulator.tmem import Tmem

COLUMN_BITS, ID_SHIFT = 0xFFFF, 30


def scale_place(address: int) -> int:
    """The first column of an operand's scale factors; the id in the top bits is left out."""
    return address & COLUMN_BITS


def touch_scales(w, agent, cta, address: int, rows: int, byte: int, name: str) -> bool:
    """Record that an MMA reads the scale factors of `rows` rows of operand `name`."""
    tmem, column, count = Tmem.of(cta), scale_place(address), -(-rows // 32)
    if address >> ID_SHIFT & 3 != byte:
        w.report(
            "descriptor",
            f"the address of {name}'s scale factors names byte {address >> ID_SHIFT & 3}, the instruction {byte}",
        )
    if not tmem.check(w.report, 0, 128, column, count):
        return False
    tmem.shadow.read(agent, tmem.granules(0, 128, column, count))
    return True


def scale_factors(cta, address: int, rows: int, byte: int, scaling: Scaling, report) -> np.ndarray:
    """float64 [rows, factors] as the MMA reads them."""
    column, count = scale_place(address), -(-rows // 32)
    words = Tmem.of(cta).data[:, column : column + count].reshape(4, 32, count)
    used = np.ascontiguousarray(words).view(np.uint8).reshape(4, 32, count, 4)[..., byte : byte + scaling.count]
    used = used.transpose(0, 2, 1, 3).reshape(4, count * 32, scaling.count)[:, :rows]
    if not (used == used[0]).all():
        report("tmem", f"the four copies of the scale factors at column {column} are not the same")
    return nm.small_to_f32(scaling.kind, used[0]).astype(np.float64)


#: shape -> (rows, bytes of a row)
COPIES = {"128x256b": (128, 32), "4x256b": (4, 32), "128x128b": (128, 16), "64x128b": (64, 16), "32x128b": (32, 16)}
#: multicast -> lane quarters that get rows 0-31, and rows 32-63
MULTICASTS = {"warpx2::02_13": ((0, 2), (1, 3)), "warpx2::01_23": ((0, 1), (2, 3)), "warpx4": ((0, 1, 2, 3),)}

LEGAL = {"64x128b": ("warpx2::02_13", "warpx2::01_23"), "32x128b": ("warpx4",)}


def copy_lanes(shape: str, multicast: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(row, lane) pairs: which row of shared memory goes to which lane of tensor memory."""
    rows = np.arange(COPIES[shape][0])
    if multicast is None:
        return rows, rows * (32 if shape == "4x256b" else 1)
    pairs = [
        (32 * part + r, 32 * quarter + r)
        for part, quarters in enumerate(MULTICASTS[multicast])
        for quarter in quarters
        for r in range(32)
    ]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


@op("tcgen05.cp")
def cp(k, instr, m):
    """tcgen05.cp.cta_group.shape{.multicast} [taddr], s-desc: shared memory to tensor memory, in the pipe of the MMAs."""
    pair = m.need(*GROUPS) == "cta_group::2"
    shape = m.need(*COPIES)
    multicast = m.take(*MULTICASTS)
    if multicast not in LEGAL.get(shape, (None,)):
        raise k.fail(f"tcgen05.cp.{shape} with multicast {multicast}")
    if any(name.startswith(("b6x16", "b4x16")) for name in m.left):
        raise k.fail("tcgen05.cp with decompression is not supported")
    target, source = k.addr(instr.ops[0]), k.src(instr.ops[1], "b64")
    rows, lanes = copy_lanes(shape, multicast)

    def run(w):
        lane = first(w.mi)
        if w.mi.bit_count() > 1:
            w.report("divergence", f"tcgen05.cp is issued by {w.mi.bit_count()} lanes; one thread must issue it")
        try:
            desc = MatrixDescriptor.tcgen05(int(w.V["u64"][source][lane]))
        except ValueError as error:
            w.report("descriptor", str(error))
            return
        ctas = pair_of(w, "tcgen05.cp") if pair else [w.cta]
        if ctas:
            _copy(w, ctas, int(target(w)[lane]) & 0xFFFFFFFF, desc, COPIES[shape], rows, lanes)

    return run


def _copy(w, ctas, address: int, desc: MatrixDescriptor, size: tuple[int, int], rows, lanes) -> None:
    """Record the accesses of one copy and queue it, for each CTA that takes part."""
    count, nbytes = size
    batch = pipe_of(w).current(w)
    agent = Agent(op_ident(batch.number), mma_clock(w), 0, w.pc - 1, True, Addressed(w, w.pc - 1))
    column, base = scale_place(address), address >> 16 & 0x7F
    chunks, columns = operand_chunks(desc, count, nbytes, False, 1), nbytes // 4
    for cta in ctas:
        shared, tmem = cta.shared, Tmem.of(cta)
        if int(chunks.max()) >= len(shared.data) // 16:
            w.report("out-of-bounds", f"tcgen05.cp reads up to shared+{int(chunks.max()) * 16:#x}, past {shared.name}")
            return
        if not tmem.check(w.report, base, int(lanes.max()) + 1, column, columns):
            return
        shared.shadow.read(agent, chunk_granules(shared.shadow, chunks.ravel()), uninit="error")
        groups = np.unique((lanes + base) // 16)
        agent.proxy = False
        tmem.shadow.write(agent, (groups[:, None] * 512 + np.arange(column, column + columns)).ravel())
        agent.proxy = True

    def move():
        for cta in ctas:
            raw = cta.shared.data[: len(cta.shared.data) // 16 * 16].reshape(-1, 16)[chunks[rows].ravel()]
            words = raw.reshape(-1).view(np.uint32).reshape(len(rows), columns)
            Tmem.of(cta).data[(lanes + base)[:, None], np.arange(column, column + columns)] = words

    pipe_of(w).add(w, move)
