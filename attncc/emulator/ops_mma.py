"""ldmatrix, stmatrix, movmatrix, mma.sync (PTX ISA 9.7.15.5).

mma.sync products are exact and summed in float32 (numpy's order): |error| <= K * 2^-23 * sum |a*b|, where the GPU
has an order and a truncation of its own.
"""

from __future__ import annotations

import numpy as np

from attncc.emulator import memory as mem
from attncc.emulator import numerics as nm
from attncc.emulator.decode import BLOCK, op, put, put_rows

_COUNT = {"x1": 1, "x2": 2, "x4": 4}


def _matrix_rows(w, address, count: int):
    """The first 8*count lanes' addresses, with the other lanes masked off; restores with the returned mask."""
    saved = w.mi
    w.mi = saved & ((1 << (8 * count)) - 1)
    return saved


@op("ldmatrix")
def ldmatrix(k, instr, m):
    """ldmatrix.sync.aligned.m8n8.x{1,2,4}[.trans].shared.b16: lane 8i+r gives row r of matrix i."""
    m.need("sync")
    m.need("aligned")
    shape = m.need("m8n8", "m16n16")
    count, trans = _COUNT[m.need("x1", "x2", "x4")], m.flag("trans")
    m.take("shared", "shared::cta")
    kind = m.need("b16", "b8")
    address = k.addr(instr.ops[1])
    outs = k.dsts(instr.ops[0], "b32")
    if shape == "m16n16":
        return _ldmatrix_b8(k, instr, address, outs, count, trans, kind)
    if kind != "b16" or len(outs) != count:
        raise k.fail("unsupported ldmatrix form")
    targets = k.program.bank_rows(outs)

    def run(w):
        if not w.converged(instr.text):
            return BLOCK
        saved = _matrix_rows(w, address, count)
        rows = mem.load(w, "shared", address(w), 16, uninit="warning")[: 8 * count]
        w.mi = saved
        data = rows.view(np.uint16).reshape(count, 8, 8)
        if trans:
            data = data.transpose(0, 2, 1)
        put_rows(w, targets, np.ascontiguousarray(data).view(np.uint32).reshape(count, 32))
        return None

    return run


def _ldmatrix_b8(k, instr, address, outs, count, trans, kind):
    """m16n16.trans.b8: 16 rows of 16 bytes per matrix, transposed; two registers per matrix."""
    if kind != "b8" or not trans or count not in (1, 2) or len(outs) != 2 * count:
        raise k.fail("unsupported ldmatrix form")

    def run(w):
        if not w.converged(instr.text):
            return BLOCK
        saved = w.mi
        w.mi = saved & ((1 << (16 * count)) - 1)
        rows = mem.load(w, "shared", address(w), 16, uninit="warning")[: 16 * count]
        w.mi = saved
        for i in range(count):
            tile = rows[16 * i : 16 * i + 16].T
            for half in range(2):
                words = np.ascontiguousarray(tile[8 * half : 8 * half + 8]).view(np.uint32).reshape(32)
                put(w, "u32", outs[2 * i + half], words)
        return None

    return run


@op("stmatrix")
def stmatrix(k, instr, m):
    """stmatrix.sync.aligned.m8n8.x{1,2,4}[.trans].shared.b16: the inverse of ldmatrix."""
    m.need("sync")
    m.need("aligned")
    m.need("m8n8")
    count, trans = _COUNT[m.need("x1", "x2", "x4")], m.flag("trans")
    m.take("shared", "shared::cta")
    m.need("b16")
    address, sources = k.addr(instr.ops[0]), k.srcs(instr.ops[1], "b32")
    if len(sources) != count:
        raise k.fail("unsupported stmatrix form")
    registers = k.program.bank_rows(sources)

    def run(w):
        if not w.converged(instr.text):
            return BLOCK
        words = w.bank[registers]
        data = words.view(np.uint16).reshape(count, 8, 8)
        if trans:
            data = data.transpose(0, 2, 1)
        rows = np.zeros((32, 16), np.uint8)
        rows[: 8 * count] = np.ascontiguousarray(data).view(np.uint8).reshape(8 * count, 16)
        saved = _matrix_rows(w, address, count)
        mem.store(w, "shared", address(w), rows)
        w.mi = saved
        return None

    return run


@op("movmatrix")
def movmatrix(k, instr, m):
    """movmatrix.sync.aligned.m8n8.trans.b16: transpose an 8x8 matrix held one row per four lanes."""
    for name in ("sync", "aligned", "m8n8", "trans", "b16"):
        m.need(name)
    a, d = k.src(instr.ops[1], "b32"), k.dst(instr.ops[0], "b32")

    def run(w):
        if not w.converged(instr.text):
            return BLOCK
        tile = w.V["u32"][a].view(np.uint16).reshape(8, 8).T
        put(w, "u32", d, np.ascontiguousarray(tile).view(np.uint32).reshape(32))
        return None

    return run


# -- mma.sync ------------------------------------------------------------------------------------------------------------

BITS = {"f16": 16, "bf16": 16, "tf32": 32, "s8": 8, "u8": 8, "e4m3": 8, "e5m2": 8}
#: of tcgen05.mma only: packed pairs, and elements of 4 or 6 bits packed at the front of 16 bytes that stand for sixteen of them
BITS |= {"e2m1": 4, "e2m1x8": 8, "e2m3": 8, "e3m2": 8}
REGISTER_TYPES = ("f16", "bf16", "tf32", "s8", "u8", "e4m3", "e5m2")


def elements(kind: str, words: np.ndarray) -> np.ndarray:
    """uint32 registers [..., 32] -> values [..., 32, elements per register], float32 or int64."""
    bits = BITS[kind]
    raw = np.ascontiguousarray(words)[..., None].view(f"u{max(bits, 8) // 8}")
    if kind == "f16":
        return nm.f16_to_f32(raw)
    if kind == "bf16":
        return nm.bf16_to_f32(raw)
    if kind == "tf32":
        return (raw & np.uint32(0xFFFFE000)).view(np.float32)
    if kind in ("e4m3", "e5m2"):
        return nm.small_to_f32(kind, raw)
    if kind == "e2m1":
        return nm.small_to_f32(kind, np.stack([raw & 15, raw >> 4], -1)).reshape(*raw.shape[:-1], -1)
    return raw.view(np.int8 if kind == "s8" else np.uint8).astype(np.int64)


def padded_elements(kind: str, chunks: np.ndarray) -> np.ndarray:
    """uint8 [n, 16] chunks -> values [n, 16] of 4- or 6-bit elements, packed from the first bit on."""
    width = 4 if kind == "e2m1x8" else 6
    bits = np.unpackbits(chunks, axis=1, bitorder="little")[:, : 16 * width].reshape(-1, 16, width)
    return nm.small_to_f32(kind[:4], (bits << np.arange(width, dtype=np.uint8)).sum(-1).astype(np.uint8))


def fragment_a(kind: str, words: np.ndarray) -> np.ndarray:
    """A registers [n, 32] -> matrix [16, K]: register 2*kb+h holds rows 8h + lane/4, columns kb*4e + (lane%4)*e ..."""
    values = elements(kind, words)
    e = values.shape[-1]
    blocks = len(words) // 2
    return values.reshape(blocks, 2, 8, 4, e).transpose(1, 2, 0, 3, 4).reshape(16, blocks * 4 * e)


def fragment_b(kind: str, words: np.ndarray) -> np.ndarray:
    """B registers [n, 32] -> matrix [K, 8]: register kb holds column lane/4, rows kb*4e + (lane%4)*e ..."""
    values = elements(kind, words)
    e = values.shape[-1]
    return values.reshape(len(words), 8, 4, e).transpose(0, 2, 3, 1).reshape(len(words) * 4 * e, 8)


def accumulator(rows: np.ndarray) -> np.ndarray:
    """C registers [4, 32] -> matrix [16, 8]: register 2h+j holds row 8h + lane/4, column 2*(lane%4) + j."""
    return rows.reshape(2, 2, 8, 4).transpose(0, 2, 3, 1).reshape(16, 8)


def accumulator_rows(matrix: np.ndarray) -> np.ndarray:
    """Inverse of accumulator."""
    return matrix.reshape(2, 8, 4, 2).transpose(0, 3, 1, 2).reshape(4, 32)


@op("mma")
def mma(k, instr, m):
    """mma.sync.aligned.m16n8k*.row.col for f16, bf16, tf32, fp8 and int8."""
    m.need("sync")
    m.need("aligned")
    shape = m.need("m16n8k8", "m16n8k16", "m16n8k32", "m16n8k4")
    m.need("row")
    m.need("col")
    m.flag("kind::f8f6f4")
    sat = m.flag("satfinite")
    types = [t for t in m.left]
    if len(types) != 4 or types[1] not in REGISTER_TYPES or types[2] not in REGISTER_TYPES or types[0] != types[3]:
        raise k.fail("unsupported mma types")
    m.left.clear()
    acc, ka, kb = types[0], types[1], types[2]
    depth = int(shape.rsplit("k", 1)[1])
    a, b = k.srcs(instr.ops[1], "b32"), k.srcs(instr.ops[2], "b32")
    c_kind = {"f32": "f32", "s32": "s32", "f16": "b32"}[acc]
    c, d = k.srcs(instr.ops[3], c_kind), k.dsts(instr.ops[0], c_kind)
    sources, first_b, first_c = k.program.bank_rows([*a, *b, *c]), len(a), len(a) + len(b)
    targets = k.program.bank_rows(d)
    if len(a) * 64 // BITS[ka] != depth or len(b) * 128 // BITS[kb] != depth:
        raise k.fail("wrong number of fragment registers")
    view = {"f32": np.float32, "s32": np.int32, "f16": np.uint32}[acc]

    def run(w):
        if not w.converged(instr.text):
            return BLOCK
        words = w.bank[sources]
        left, right = fragment_a(ka, words[:first_b]), fragment_b(kb, words[first_b:first_c])
        rows = words[first_c:].view(view)
        if acc == "f16":
            rows = rows.view(np.float16).reshape(2, 32, 2).transpose(0, 2, 1).reshape(4, 32).astype(np.float32)
        value = left @ right + accumulator(rows)
        if acc == "s32":
            value = np.clip(value, -(2**31), 2**31 - 1).astype(np.int32) if sat else value.astype(np.int32)
        out = accumulator_rows(value)
        if acc == "f16":
            out = np.ascontiguousarray(nm.f32_to_f16(out).reshape(2, 2, 32).transpose(0, 2, 1)).view(np.uint32)[..., 0]
        put_rows(w, targets, np.ascontiguousarray(out).view(np.uint32))
        return None

    return run
