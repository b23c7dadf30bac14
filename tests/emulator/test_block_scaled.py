"""Block-scaled tcgen05.mma, tcgen05.cp and elements of 4 and 6 bits, against products and placements written out here.

The kernel of kernels/blockscaled.py lays out scale factors by CuTe's functions, in shared and in tensor memory; the numpy side knows
only what PTX ISA 9.7.17.10.7 says: which element is multiplied by which factor.
"""

import functools
import math

import cutlass
import cutlass.cute as cute
import numpy as np
import pytest
import torch
from cutlass.cute.runtime import make_fake_compact_tensor

from attncc.emulator import emulate, keep_ptx
from attncc.emulator.ops_tcgen05_scale import COPIES
from tests.emulator.bench import run
from tests.emulator.faults import drop, swap
from tests.emulator.kernels.blockscaled import Blockscaled

SEEDS = 8
#: kind -> element, scale type, elements per scale factor
KINDS = {
    "mxf8": (cutlass.Float8E4M3FN, cutlass.Float8E8M0FNU, 32),
    "mxf4": (cutlass.Float4E2M1FN, cutlass.Float8E8M0FNU, 32),
    "nvf4": (cutlass.Float4E2M1FN, cutlass.Float8E4M3FN, 16),
}
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # OCP Microscaling Formats 1.0, table 5


@functools.cache
def built(kind: str, ctas: int = 1, columns: int = 128):
    """(kernel object, compiled function)."""
    kernel = Blockscaled(*KINDS[kind], ctas, columns)
    size = kernel.depth * kernel.element.width // 8
    factors = kernel.depth // kernel.vector
    counts = (kernel.rows * size, columns * size, kernel.rows * factors, columns * factors)
    fakes = [make_fake_compact_tensor(cutlass.Uint8, (n,), assumed_align=32) for n in counts]
    out = make_fake_compact_tensor(cutlass.Float32, (kernel.rows, columns), stride_order=(1, 0), assumed_align=16)
    with keep_ptx():
        return kernel, cute.compile(kernel, *fakes, out, options="--gpu-arch sm_100a --enable-tvm-ffi")


def operand(kind: str, rows: int, depth: int, random) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, values) of small elements, [rows, depth]."""
    if kind == "mxf8":
        values = random.randint(-8, 9, (rows, depth)).astype(np.float64)
        codes = torch.from_numpy(values).float().to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        return codes.reshape(-1), values
    codes = random.randint(0, 16, (rows, depth)).astype(np.uint8)
    values = np.where(codes & 8, -1.0, 1.0) * np.array(E2M1)[codes & 7]
    return (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(-1), values


def factors(kind: str, rows: int, count: int, random) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, values) of scale factors, [rows, count]: powers of two, or multiples of a half."""
    if kind == "nvf4":
        values = random.randint(1, 7, (rows, count)) / 2
        return torch.from_numpy(values).float().to(torch.float8_e4m3fn).view(torch.uint8).numpy(), values
    exponents = random.randint(-2, 3, (rows, count))
    return (exponents + 127).astype(np.uint8), 2.0**exponents


def blocks(codes: np.ndarray) -> np.ndarray:
    """[rows, count] factors in blocks of 128 x 4 (cuBLAS, "1D block scaling factors layout"), blocks along K first."""
    rows, count = codes.shape
    out = np.zeros(rows * count, np.uint8)
    for r in range(rows):
        for j in range(count):
            block = (r // 128) * (count // 4) + j // 4
            out[512 * block + 16 * (r % 32) + 4 * (r % 128 // 32) + j % 4] = codes[r, j]
    return out


def product(kind: str, ctas: int = 1, columns: int = 128, seeds: int = 1, change=None):
    """(result, output, expected)."""
    kernel, compiled = built(kind, ctas, columns)
    random = np.random.RandomState(ctas)
    a, va = operand(kind, kernel.rows, kernel.depth, random)
    b, vb = operand(kind, columns, kernel.depth, random)
    sa, fa = factors(kind, kernel.rows, kernel.depth // kernel.vector, random)
    sb, fb = factors(kind, columns, kernel.depth // kernel.vector, random)
    out = torch.full((kernel.rows, columns), math.nan)
    tensors = [torch.from_numpy(x).clone() for x in (a, b, blocks(sa), blocks(sb))]
    text = change(compiled.__ptx__) if change else None
    result = emulate(compiled, *tensors, out, seeds=seeds, ptx=text)
    wanted = (va * np.repeat(fa, kernel.vector, 1)) @ (vb * np.repeat(fb, kernel.vector, 1)).T
    return result, out.numpy(), wanted


@pytest.mark.parametrize("kind,ctas,columns", [(k, c, 128) for k in KINDS for c in (1, 2)] + [("nvf4", 1, 256)])
def test_product_is_exact(kind, ctas, columns):
    """All sums fit float32 exactly, so every bit is determined."""
    result, out, wanted = product(kind, ctas, columns, SEEDS)
    assert not result.findings, str(result)
    assert (out == wanted).all()
    assert result.deterministic


COPY = r"tcgen05\.cp[^;]*;"
FAULTS = {
    "scale factors never copied": (drop(COPY), {"uninitialised-memory"}),
    "scale factors copied to the wrong column": (
        swap(r"(tcgen05\.cp\S* *\t*\[%r\d+)\]", r"\1+64]"),
        {"uninitialised-memory"},
    ),
    "scale factors copied over the accumulator": (
        swap(r"(add\.s32 \s*%r\d+, %r\d+), 128;", r"\1, 120;"),
        {"tmem", "tcgen05-order"},
    ),
    "scale factors copied past the allocated columns": (swap(r"(tcgen05\.cp\S* *\t*\[%r\d+)\]", r"\1+510]"), {"tmem"}),
    "another byte in the instruction than in the address": (
        swap(r"(shr\.u32 \s*%r\d+, %r\d+), 26;", r"\1, 25;", 1),
        {"descriptor"},
    ),
    "every lane issues the copy": (
        swap(
            r"@%p\d+ bra[^;]*;((?:(?!bra)[^;])*;(?:(?!bra)[^;])*;(?:(?!bra)[^;])*;(?:(?!bra)[^;])*;\s*(?:\.loc[^\n]*\n\s*)?tcgen05\.cp)",
            r"\1",
        ),
        {"divergence"},
    ),
    "copy before the factors have arrived": (drop(r"LAB_WAIT:[^}]*?DONE:"), {"stale-read", "uninitialised-memory"}),
    "commit removed": (drop(r"tcgen05\.commit[^;]*;"), {"deadlock"}),
    "sparsity asked for": (swap(r"(selp\.b32 \s*%r\d+, 1447\d+, )144703488", r"\g<1>144703492"), {"descriptor"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found(name):
    change, kinds = FAULTS[name]
    result, _, _ = product("mxf8", seeds=SEEDS, change=change)
    assert {f.kind for f in result.findings} & kinds, str(result)


def test_one_cta_of_a_pair_without_factors_is_found():
    """The pair's copies bring factors to both CTAs; with cta_group::1 the odd one has none."""
    result, _, _ = product(
        "mxf8", 2, seeds=SEEDS, change=lambda t: t.replace("tcgen05.cp.cta_group::2", "tcgen05.cp.cta_group::1")
    )
    assert "uninitialised-memory" in result.kinds, str(result)


# tcgen05.cp (9.7.17.8): which row of shared memory a lane of tensor memory gets; None where it keeps what it had
ROW_OF_LANE = {
    "128x256b": lambda lane: lane,
    "128x128b": lambda lane: lane,
    "4x256b": lambda lane: lane // 32 if lane % 32 == 0 else None,
    "64x128b.warpx2::02_13": lambda lane: lane % 64,
    "64x128b.warpx2::01_23": lambda lane: lane % 32 + 32 * (lane // 64),
    "32x128b.warpx4": lambda lane: lane % 32,
}
OPEN = """mov.b32 %r2002, smem;
setp.eq.u32 %p1, %r2000, 0;
@%p1 mbarrier.init.shared.b64 [%r2002+16], 1;
shr.u32 %r1, %r2000, 5;
setp.eq.u32 %p2, %r1, 0;
@!%p2 bra OTHERS;
tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r2002], 64;
OTHERS:
"""
CLOSE = """bar.sync 0;
@!%p2 bra END;
tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r5, 64;
END:
"""
WAIT = """AGAIN:
mbarrier.try_wait.parity.shared.b64 %p3, [%r2002+16], 0;
@!%p3 bra AGAIN;
"""


def stored_row(base: int, words: int, source: str) -> str:
    """Every thread writes its row of `words` words: core matrices of 8 rows x 16 bytes, 128 bytes apart, columns 2048 apart."""
    text = (
        "and.b32 %r10, %r2000, 7;\nshr.u32 %r11, %r2000, 3;\nshl.b32 %r10, %r10, 4;\nshl.b32 %r11, %r11, 7;\n"
        "add.s32 %r12, %r10, %r11;\nadd.s32 %r12, %r12, %r2002;\n"
    )
    return text + "".join(
        f"st.shared.b32 [%r12+{base + 2048 * (j // 4) + 4 * (j % 4)}], {source.format(j=j)};\n" for j in range(words)
    )


def descriptor(register: str, base: int) -> str:
    """No swizzle, 2048 bytes between columns, 128 between groups of eight rows."""
    bits = 1 << 46 | (128 >> 4) << 32 | (2048 >> 4) << 16
    return (
        f"add.s32 %r20, %r2002, {base};\nshr.u32 %r20, %r20, 4;\ncvt.u64.u32 {register}, %r20;\n"
        f"or.b64 {register}, {register}, {bits};\n"
    )


@pytest.mark.parametrize("form", ROW_OF_LANE)
def test_copies_to_tensor_memory(form):
    """9.7.17.8: shapes and multicasts; lanes that a copy does not name keep what they had."""
    words = COPIES[form.split(".")[0]][1] // 4
    ids = ", ".join(["%r2003"] * words)
    outs = ", ".join(f"%o{j}" for j in range(words))
    text = (
        OPEN
        + stored_row(1024, 8, "%i{j}")
        + "fence.proxy.async.shared::cta;\nbar.sync 0;\nld.shared.b32 %r5, [%r2002];\nmov.b32 %r2003, 7;\n"
        + f"tcgen05.st.sync.aligned.32x32b.x{words}.b32 [%r5], {{{ids}}};\ntcgen05.wait::st.sync.aligned;\nbar.sync 0;\n"
        + "@!%p1 bra ISSUED;\n"
        + descriptor("%d1", 1024)
        + f"tcgen05.cp.cta_group::1.{form} [%r5], %d1;\n"
        + "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r2002+16];\nISSUED:\n"
        + WAIT
        + f"tcgen05.ld.sync.aligned.32x32b.x{words}.b32 {{{outs}}}, [%r5];\ntcgen05.wait::ld.sync.aligned;\n"
        + CLOSE
    )
    data = np.arange(8 * 128).reshape(8, 128) + 1000
    for seed in range(3):
        out, findings = run(text, list(data), words, threads=128, shared=8192, seed=seed)
        assert not findings, [str(f) for f in findings]
        for lane in range(128):
            row = ROW_OF_LANE[form](lane)
            wanted = [7] * words if row is None else data[:words, row].tolist()
            assert out[:, lane].tolist() == wanted, (lane, row)


def small_value(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
    """OCP Microscaling Formats 1.0, 5.3: value of a code with a sign, without infinities or NaN."""
    mantissa = code & (1 << mantissa_bits) - 1
    exponent = code >> mantissa_bits & (1 << exponent_bits) - 1
    sign = -1.0 if code >> mantissa_bits + exponent_bits else 1.0
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)


#: type -> code in the instruction descriptor, bits, exponent bits, mantissa bits, bias
SMALL = {"e2m3": (3, 6, 2, 3, 1), "e3m2": (4, 6, 3, 2, 3), "e2m1": (5, 4, 2, 1, 1)}


def padded(codes: np.ndarray, bits: int) -> np.ndarray:
    """[rows, 32] codes -> uint32 [rows, 8]: sixteen elements from the lowest bit of each 16 bytes on."""
    out = np.zeros((len(codes), 8), np.uint32)
    for r, row in enumerate(codes):
        for half in range(2):
            packed = sum(int(c) << bits * i for i, c in enumerate(row[16 * half : 16 * half + 16]))
            for j in range(4):
                out[r, 4 * half + j] = packed >> 32 * j & 0xFFFFFFFF
    return out


@pytest.mark.parametrize("kind_a,kind_b", [("e2m1", "e3m2"), ("e2m3", "e2m1")])
def test_elements_of_four_and_six_bits(kind_a, kind_b):
    """9.7.17.3.2: kind::f8f6f4 with operands padded to 16 bytes for sixteen elements; M=128, N=16, K=32."""
    random = np.random.RandomState(1)
    codes_a = random.randint(0, 1 << SMALL[kind_a][1], (128, 32))
    codes_b = random.randint(0, 1 << SMALL[kind_b][1], (16, 32))
    words_b = np.zeros((128, 8), np.uint32)
    words_b[:16] = padded(codes_b, SMALL[kind_b][1])
    instruction = 1 << 4 | SMALL[kind_a][0] << 7 | SMALL[kind_b][0] << 10 | 16 >> 3 << 17 | 128 >> 4 << 24
    outs = ", ".join(f"%o{j}" for j in range(16))
    text = (
        OPEN
        + stored_row(1024, 8, "%i{j}")
        + stored_row(8192, 8, "%i1{j}")
        + "fence.proxy.async.shared::cta;\nbar.sync 0;\nld.shared.b32 %r5, [%r2002];\n@!%p1 bra ISSUED;\n"
        + descriptor("%d1", 1024)
        + descriptor("%d2", 8192)
        + f"mov.b32 %r30, {instruction};\nmov.pred %p4, 0;\n"
        + "tcgen05.mma.cta_group::1.kind::f8f6f4 [%r5], %d1, %d2, %r30, %p4;\n"
        + "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r2002+16];\nISSUED:\n"
        + WAIT
        + f"tcgen05.ld.sync.aligned.32x32b.x16.b32 {{{outs}}}, [%r5];\ntcgen05.wait::ld.sync.aligned;\n"
        + CLOSE
    )
    unused = [np.zeros(128, np.uint32)] * 2
    data = [*padded(codes_a, SMALL[kind_a][1]).T, *unused, *words_b.T]
    out, findings = run(text, data, 16, threads=128, shared=16384)
    assert not findings, [str(f) for f in findings]
    value = lambda codes, kind: np.vectorize(lambda c: small_value(int(c), *SMALL[kind][2:]))(codes)
    wanted = value(codes_a, kind_a) @ value(codes_b, kind_b).T
    assert (out.view(np.float32).T == wanted).all()
