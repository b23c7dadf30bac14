"""Matrix instructions against fragment tables written element by element from the PTX ISA (9.7.15 - 9.7.17)."""

import numpy as np
import pytest
import torch

from attncc.emulator.numerics import bf16_to_f32, f32_to_bf16
from attncc.emulator.ops_tcgen05 import SHAPES, fragment
from attncc.emulator.smem_operand import MatrixDescriptor, operand_chunks
from attncc.emulator.tensormap import swizzled
from tests.emulator.bench import run


def braces(prefix: str, count: int, start: int = 0) -> str:
    """{%x0, %x1, ...}"""
    return "{" + ", ".join(f"%{prefix}{start + i}" for i in range(count)) + "}"


def small_integers(shape, seed, low=-4, high=5):
    """Matrices whose products and sums are exact in float32."""
    return np.random.default_rng(seed).integers(low, high, shape)


def encode(kind: str, values: np.ndarray) -> np.ndarray:
    """Integer values -> bit patterns of an element type."""
    x = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    if kind in ("s8", "u8"):
        return values.astype(np.int8).view(np.uint8)
    if kind == "tf32":
        return x.numpy().view(np.uint32)
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[kind]
    y = x.to(dtype)
    return y.view(torch.uint8).numpy() if y.element_size() == 1 else y.view(torch.int16).numpy().view(np.uint16)


def register_word(elements) -> int:
    """Elements of one 32-bit register, lowest first."""
    width = 32 // len(elements)
    return sum(int(e) << (width * i) for i, e in enumerate(elements))


# mma.sync: (row, column) of element i of A in a lane, and of B, by the formulas of 9.7.15.5.8 (16-bit), 9.7.15.5.10 (8-bit)
# and 9.7.15.5.7 (tf32)
def a_position(lane: int, i: int, bits: int):
    """Element i of the A fragment of m16n8k(256/bits) in `lane`."""
    group, thread = lane >> 2, lane % 4
    if bits == 16:
        row = group if i < 2 or 4 <= i < 6 else group + 8
        return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    if bits == 8:
        row = group if i < 4 or 8 <= i < 12 else group + 8
        return row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)
    return (group if i % 2 == 0 else group + 8), thread + (4 if i >= 2 else 0)


def b_position(lane: int, i: int, bits: int):
    """Element i of the B fragment (row k, column n)."""
    group, thread = lane >> 2, lane % 4
    if bits == 16:
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group
    if bits == 8:
        return thread * 4 + (i & 3) + (16 if i >= 4 else 0), group
    return thread + 4 * i, group


def c_position(lane: int, i: int):
    """Element i of the C fragment."""
    return (lane >> 2) + (8 if i >= 2 else 0), (lane % 4) * 2 + (i & 1)


@pytest.mark.parametrize(
    "kind,acc",
    [("bf16", "f32"), ("f16", "f32"), ("tf32", "f32"), ("e4m3", "f32"), ("e5m2", "f32"), ("s8", "s32"), ("u8", "s32")],
)
def test_mma_sync(kind, acc):
    bits = {"tf32": 32, "bf16": 16, "f16": 16}.get(kind, 8)
    depth, per = 256 // bits, 32 // bits
    low = 0 if kind == "u8" else -3
    a, b, c = small_integers((16, depth), 1, low), small_integers((depth, 8), 2, low), small_integers((16, 8), 3)
    ea, eb = encode(kind, a), encode(kind, b)
    inputs = []
    for r in range(4):
        inputs.append([register_word([ea[a_position(t, r * per + j, bits)] for j in range(per)]) for t in range(32)])
    for r in range(2):
        inputs.append([register_word([eb[b_position(t, r * per + j, bits)] for j in range(per)]) for t in range(32)])
    for r in range(4):
        row = np.array([c[c_position(t, r)] for t in range(32)])
        inputs.append(row.astype(np.float32) if acc == "f32" else row.astype(np.int32).view(np.uint32))
    inputs = [np.asarray(x, np.uint32) if isinstance(x, list) else x for x in inputs]
    name = f"mma.sync.aligned.m16n8k{depth}.row.col.{acc}.{kind}.{kind}.{acc}"
    out, findings = run(
        f"{name} {braces('o', 4)}, {braces('i', 4)}, {braces('i', 2, 4)}, {braces('i', 4, 6)};\n", inputs, 4
    )
    assert not findings
    expected = a @ b + c
    got = out.view(np.float32 if acc == "f32" else np.int32)
    for t in range(32):
        for i in range(4):
            assert got[i, t] == expected[c_position(t, i)], (t, i)


FILL = """shl.b32 %r1, %r2000, 2;
add.s32 %r1, %r1, %r2001;
"""


def fill_shared(words: int) -> str:
    """Every thread writes its input words at 128-byte steps: word j of thread t lies at 128 j + 4 t."""
    return FILL + "".join(f"st.shared.b32 [%r1+{128 * j}], %i{j};\n" for j in range(words)) + "bar.sync 0;\n"


@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix_and_stmatrix(trans):
    """9.7.15.5.15: lane 8i+r addresses row r of matrix i; thread t holds elements 2(t%4), +1 of row t/4."""
    data = np.arange(4 * 64, dtype=np.uint16)
    words = data.view(np.uint32).reshape(4, 32)
    suffix = ".trans" if trans else ""
    body = (
        fill_shared(4)
        + f"""and.b32 %r3, %r2000, 31;
shl.b32 %r3, %r3, 4;
add.s32 %r3, %r3, %r2001;
ldmatrix.sync.aligned.m8n8.x4{suffix}.shared.b16 {braces("o", 4)}, [%r3];
stmatrix.sync.aligned.m8n8.x4{suffix}.shared.b16 [%r3+512], {braces("o", 4)};
bar.sync 0;
"""
        + "".join(f"ld.shared.b32 %o{4 + j}, [%r1+{512 + 128 * j}];\n" for j in range(4))
    )
    out, findings = run(body, list(words), 8, shared=2048)
    assert not findings
    matrices = data.reshape(4, 8, 8)
    for i in range(4):
        for t in range(32):
            row, column = t // 4, 2 * (t % 4)
            pair = [matrices[i][column + j][row] if trans else matrices[i][row][column + j] for j in range(2)]
            assert out[i, t] == register_word(pair)
    assert (out[4:] == words).all()


def cute_swizzle(bits: int, base: int, shift: int, x: int) -> int:
    """Swizzle<B, M, S> as CuTe defines it, on one integer."""
    mask = ((1 << bits) - 1) << (base + shift)
    return x ^ (x & mask) >> shift


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_swizzle_is_cutes(mode):
    """9.7.9.27 (tensor copies) and 9.7.16.5 (matrix operands): Swizzle<mode, 4, 3> on byte addresses."""
    x = np.arange(0, 4096, 16)
    assert swizzled(x, mode).tolist() == [cute_swizzle(mode, 4, 3, int(v)) for v in x]


@pytest.mark.parametrize("mode", [1, 2, 3])
@pytest.mark.parametrize("rows", [8, 64, 128])
def test_k_major_operand(mode, rows):
    """9.7.16.5.1: a row-major tile of `span` bytes per row, swizzled; a k step of 32 bytes starts inside the atom."""
    span = 16 << mode
    for k0 in range(0, span, 32):
        desc = MatrixDescriptor(2048 + k0, 0, 8 * span, mode)
        chunks = operand_chunks(desc, rows, 32, False, 2)
        for r in (0, 1, 7, rows - 1):
            for c in range(2):
                assert chunks[r, c] * 16 == cute_swizzle(mode, 4, 3, 2048 + r * span + k0 + 16 * c)


@pytest.mark.parametrize("mode", [1, 2, 3])
def test_mn_major_operand(mode):
    """9.7.16.5.1: `span` bytes along N by eight K rows; the next span LBO away, the next eight rows SBO away."""
    span = 16 << mode
    desc = MatrixDescriptor(1024, 64 * span, 8 * span, mode)
    chunks = operand_chunks(desc, 64, 32, True, 2)
    for k in range(16):
        for n in range(0, 64, 8):
            offset = 1024 + (2 * n // span) * 64 * span + 2 * n % span + k % 8 * span + k // 8 * 8 * span
            assert chunks[k, n // 8] * 16 == cute_swizzle(mode, 4, 3, offset)


def wgmma_fixture(kind_bits: int, n: int):
    """Descriptor words for A at shared+0 and B at shared+8192, 32-byte rows, 32-byte swizzle."""

    def desc(address):
        return f"""add.s32 %r10, %r2001, {address};
and.b32 %r10, %r10, 262143;
shr.u32 %r10, %r10, 4;
cvt.u64.u32 %q5, %r10;
or.b64 %q5, %q5, {(256 >> 4) << 32 | 3 << 62};
"""

    return desc(0) + "mov.b64 %q6, %q5;\n" + desc(8192)


@pytest.mark.parametrize(
    "kind,acc,n", [("bf16", "f32", 64), ("f16", "f32", 8), ("e4m3", "f32", 128), ("s8", "s32", 32), ("tf32", "f32", 16)]
)
@pytest.mark.parametrize("registers", [False, True])
def test_wgmma(kind, acc, n, registers):
    """9.7.16.5: A from shared memory or registers, accumulator layout of 9.7.16.5.2."""
    bits = {"tf32": 32, "bf16": 16, "f16": 16}.get(kind, 8)
    depth, per = 256 // bits, 32 // bits
    a, b = small_integers((64, depth), 4), small_integers((n, depth), 5)
    ea, eb = encode(kind, a), encode(kind, b)
    shared = np.zeros(8192 + 32 * n, np.uint8)
    for base, e in ((0, ea), (8192, eb)):
        raw = np.ascontiguousarray(e).view(np.uint8).reshape(len(e), 32)
        for r in range(len(e)):
            for c in range(0, 32, 16):
                at = cute_swizzle(1, 4, 3, base + 32 * r + c)
                shared[at : at + 16] = raw[r, c : c + 16]
    words = np.zeros((-(-len(shared) // 512), 128), np.uint32)
    words.reshape(-1)[: len(shared) // 4] = shared.view(np.uint32)
    body = "shl.b32 %r1, %r2000, 2;\nadd.s32 %r1, %r1, %r2001;\n"
    body += "".join(f"st.shared.b32 [%r1+{512 * j}], %i{j};\n" for j in range(len(words)))
    body += "fence.proxy.async.shared::cta;\nbar.sync 0;\n" + wgmma_fixture(bits, n)
    count = n // 2
    body += "wgmma.fence.sync.aligned;\n"
    fragments = []
    if registers:
        for r in range(4):
            fragments.append(
                [
                    register_word(
                        [
                            ea[
                                (t // 32) * 16 + a_position(t % 32, r * per + j, bits)[0],
                                a_position(t % 32, r * per + j, bits)[1],
                            ]
                            for j in range(per)
                        ]
                    )
                    for t in range(128)
                ]
            )
        left = braces("i", 4, len(words))
    else:
        left = "%q6"
    flags = "" if acc == "s32" else ", 1, 1" + ("" if bits != 16 else (", 0" if registers else ", 0, 0"))
    name = f"wgmma.mma_async.sync.aligned.m64n{n}k{depth}.{acc}.{kind}.{kind}"
    body += f"setp.ne.b32 %p1, %r2000, %r2000;\n{name} {braces('o', count)}, {left}, %q5, %p1{flags};\n"
    body += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n"
    inputs = list(words) + [np.array(f, np.uint32) for f in fragments]
    out, findings = run(body, inputs, count, threads=128, shared=16384, target="sm_90a")
    assert not findings, [str(f) for f in findings]
    got, expected = out.view(np.float32 if acc == "f32" else np.int32), a @ b.T
    for t in range(128):
        for i in range(count):
            row = 16 * (t // 32) + (t % 32) // 4 + 8 * (i % 4 // 2)
            column = 8 * (i // 4) + 2 * (t % 4) + i % 2
            assert got[i, t] == expected[row, column]


# tcgen05.ld: CuTe's destination layouts of the copy atoms (thread modes, value modes) -> linear index in lanes x columns
TMEM_TABLES = {
    ("32x32b", 1): ([(32, 1)], [(1, 1)]),
    ("32x32b", 4): ([(32, 4)], [(4, 1)]),
    ("16x64b", 1): ([(2, 16), (2, 1), (8, 2)], [(1, 1)]),
    ("16x64b", 2): ([(2, 32), (2, 1), (8, 4)], [(2, 2)]),
    ("16x64b", 4): ([(2, 64), (2, 1), (8, 8)], [(4, 2)]),
    ("16x128b", 1): ([(4, 1), (8, 4)], [(2, 32)]),
    ("16x128b", 2): ([(4, 1), (8, 8)], [(2, 64), (2, 4)]),
    ("16x128b", 4): ([(4, 1), (8, 16)], [(2, 128), (4, 4)]),
    ("16x256b", 1): ([(4, 2), (8, 8)], [(2, 1), (2, 64)]),
    ("16x256b", 2): ([(4, 2), (8, 16)], [(2, 1), (2, 128), (2, 8)]),
    ("16x256b", 4): ([(4, 2), (8, 32)], [(2, 1), (2, 256), (4, 8)]),
}


def layout_index(modes, i: int) -> int:
    """CuTe layout of (extent, stride) modes at linear coordinate i."""
    total = 0
    for extent, stride in modes:
        total += i % extent * stride
        i //= extent
    return total


@pytest.mark.parametrize("shape,repeat", TMEM_TABLES)
def test_tensor_memory_fragments(shape, repeat):
    """9.7.17.2.3.1: matrix fragments of tcgen05.ld/st, against the layouts CuTe uses for the same instructions."""
    threads, values = TMEM_TABLES[shape, repeat]
    lane, column = fragment(shape, repeat)
    width = SHAPES[shape][1] * repeat
    for t in range(32):
        for r in range(len(lane)):
            assert int(lane[r, t]) * width + int(column[r, t]) == layout_index(threads, t) + layout_index(values, r)


def test_tensor_memory_round_trip():
    """tcgen05.alloc, st, ld, dealloc: what one shape stores another reads back at the same lanes and columns."""
    body = """tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r2001], 32;
bar.sync 0;
ld.shared.b32 %r5, [%r2001];
tcgen05.st.sync.aligned.32x32b.x8.b32 [%r5], {%i0, %i1, %i2, %i3, %i4, %i5, %i6, %i7};
tcgen05.wait::st.sync.aligned;
tcgen05.ld.sync.aligned.16x256b.x1.b32 {%o0, %o1, %o2, %o3}, [%r5];
tcgen05.wait::ld.sync.aligned;
bar.sync 0;
tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r5, 32;
"""
    data = np.arange(256).reshape(8, 32)
    out, findings = run(body, list(data), 4, shared=256)
    assert not findings, [str(f) for f in findings]
    for t in range(32):
        for r in range(4):
            lane, column = t // 4 + 8 * (r // 2), 2 * (t % 4) + r % 2
            assert out[r, t] == data[column, lane]


def test_bf16_helpers_agree_with_torch():
    """The conversions used by every matrix instruction."""
    bits = np.arange(0, 65536, 7, dtype=np.uint16)
    values = bf16_to_f32(bits)
    keep = ~np.isnan(values)
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert (values[keep] == expected[keep]).all()
    assert (f32_to_bf16(values[keep]) == bits[keep]).all()
