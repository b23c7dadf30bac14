"""Integer, float and conversion instructions against Python integers, fractions and torch (PTX ISA 9.7.1-9.7.9)."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.emulator.bench import run

EDGES = [
    0,
    1,
    2,
    31,
    32,
    33,
    0x7FFFFFFF,
    0x80000000,
    0x80000001,
    0xFFFFFFFF,
    0xFFFF0000,
    0x12345678,
    0xDEADBEEF,
    255,
    256,
    65535,
]
A = np.array(EDGES + EDGES[::-1], np.uint32)
B = np.array([EDGES[(3 * i + 5) % 16] for i in range(32)], np.uint32)
C = np.array([EDGES[(7 * i + 1) % 16] for i in range(32)], np.uint32)


def signed(x: int, bits: int = 32) -> int:
    """Two's complement."""
    return x - (1 << bits) if x >> (bits - 1) else x


INTEGER = {  # PTX ISA section: instruction, value for lanes a, b, c
    "9.7.1 add.s32 %o0, %i0, %i1;": lambda a, b, c: a + b,
    "9.7.1 sub.s32 %o0, %i0, %i1;": lambda a, b, c: a - b,
    "9.7.1 mul.lo.s32 %o0, %i0, %i1;": lambda a, b, c: a * b,
    "9.7.1 mul.hi.u32 %o0, %i0, %i1;": lambda a, b, c: a * b >> 32,
    "9.7.1 mul.hi.s32 %o0, %i0, %i1;": lambda a, b, c: signed(a) * signed(b) >> 32,
    "9.7.1 mad.lo.s32 %o0, %i0, %i1, %i2;": lambda a, b, c: a * b + c,
    "9.7.1 max.s32 %o0, %i0, %i1;": lambda a, b, c: max(signed(a), signed(b)),
    "9.7.1 min.u32 %o0, %i0, %i1;": lambda a, b, c: min(a, b),
    "9.7.1 neg.s32 %o0, %i0;": lambda a, b, c: -a,
    "9.7.1 popc.b32 %o0, %i0;": lambda a, b, c: a.bit_count(),
    "9.7.1 clz.b32 %o0, %i0;": lambda a, b, c: 32 - a.bit_length(),
    "9.7.1 brev.b32 %o0, %i0;": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "9.7.1 bfind.u32 %o0, %i0;": lambda a, b, c: a.bit_length() - 1,
    "9.7.1 bfe.u32 %o0, %i0, 5, 9;": lambda a, b, c: a >> 5 & 511,
    "9.7.1 bfe.s32 %o0, %i0, 28, 4;": lambda a, b, c: signed(a >> 28, 4),
    "9.7.1 bfi.b32 %o0, %i0, %i1, 8, 12;": lambda a, b, c: b & ~0xFFF00 | (a & 0xFFF) << 8,
    "9.7.1 sad.u32 %o0, %i0, %i1, %i2;": lambda a, b, c: abs(a - b) + c,
    "9.7.8 shl.b32 %o0, %i0, %i1;": lambda a, b, c: a << b if b < 32 else 0,
    "9.7.8 shr.u32 %o0, %i0, %i1;": lambda a, b, c: a >> b if b < 32 else 0,
    "9.7.8 shr.s32 %o0, %i0, %i1;": lambda a, b, c: signed(a) >> min(b, 31),
    "9.7.8 shf.l.wrap.b32 %o0, %i0, %i1, 7;": lambda a, b, c: (b << 32 | a) << 7 >> 32,
    "9.7.8 lop3.b32 %o0, %i0, %i1, %i2, 0x96;": lambda a, b, c: a ^ b ^ c,
    "9.7.8 lop3.b32 %o0, %i0, %i1, %i2, 0xE8;": lambda a, b, c: a & b | a & c | b & c,
    "9.7.9 prmt.b32 %o0, %i0, %i1, 0x5410;": lambda a, b, c: a & 0xFFFF | (b & 0xFFFF) << 16,
    "9.7.9 prmt.b32 %o0, %i0, %i1, 0x0123;": lambda a, b, c: int.from_bytes(a.to_bytes(4, "little"), "big"),
}


@pytest.mark.parametrize("line", INTEGER)
def test_integer(line):
    out, findings = run(line.split(" ", 1)[1] + "\n", [A, B, C])
    assert not findings
    expected = [INTEGER[line](int(a), int(b), int(c)) & 0xFFFFFFFF for a, b, c in zip(A, B, C)]
    assert out[0].tolist() == expected


@pytest.mark.parametrize(
    "name,value", [("eq", lambda a, b: a == b), ("lt", lambda a, b: a < b), ("ge", lambda a, b: a >= b)]
)
def test_setp_selp_signed(name, value):
    """9.7.6 setp, selp."""
    out, _ = run(f"setp.{name}.s32 %p1, %i0, %i1;\nselp.b32 %o0, 1, 0, %p1;\n", [A, B])
    assert out[0].tolist() == [int(value(signed(int(a)), signed(int(b)))) for a, b in zip(A, B)]


FLOATS = np.array(
    [0.0, -0.0, 1.0, -1.5, 3.1415927, 1e-38, 1e-45, -1e-40, 3e38, -3e38, np.inf, -np.inf, np.nan, 1e-7, 16777217.0, 0.1]
    * 2,
    np.float32,
)
OTHERS = np.roll(FLOATS, 5)[::-1].copy()


def nearest_f32(x: Fraction) -> np.float32:
    """Correct rounding of an exact value, by neighbours of a float64 estimate."""
    guess = np.float32(float(x))
    best = min(
        (np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))),
        key=lambda v: (
            abs(Fraction(float(v)) - x) if np.isfinite(v) else Fraction(10) ** 60,
            int(v.view(np.uint32)) & 1,
        ),
    )
    return best


def test_fma_rounds_once():
    """9.7.3.6 fma.rn.f32 on values chosen to break double rounding."""
    rng = np.random.default_rng(0)
    for _ in range(6):
        a = rng.standard_normal(32).astype(np.float32)
        b = rng.standard_normal(32).astype(np.float32)
        exact = [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b)]
        c = np.array([-float(p) * (1 + s) for p, s in zip(exact, rng.choice([0, 2.0**-24, 1e-3], 32))], np.float32)
        out, _ = run("fma.rn.f32 %o0, %i0, %i1, %i2;\n", [a, b, c])
        expected = [nearest_f32(p + Fraction(float(z))) for p, z in zip(exact, c)]
        np.testing.assert_array_equal(out[0].view(np.float32), np.array(expected, np.float32))


@pytest.mark.parametrize("mode,pick", [("rm", min), ("rp", max)])
def test_directed_add(mode, pick):
    """9.7.3.3 add.rm / add.rp."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(32).astype(np.float32) * np.float32(2.0) ** rng.integers(-20, 20, 32) for _ in range(2))
    a, b = a.astype(np.float32), b.astype(np.float32)
    out, _ = run(f"add.{mode}.f32 %o0, %i0, %i1;\n", [a, b])
    for x, y, got in zip(a, b, out[0].view(np.float32)):
        exact = Fraction(float(x)) + Fraction(float(y))
        near = np.float32(x + y)
        around = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
        legal = [v for v in around if (Fraction(float(v)) <= exact if mode == "rm" else Fraction(float(v)) >= exact)]
        assert got == (max(legal) if mode == "rm" else min(legal))
    assert pick in (min, max)


def test_max_and_nan():
    """9.7.3.12 max: NaN loses, with .NaN it wins; max(+0, -0) is +0."""
    out, _ = run("max.f32 %o0, %i0, %i1;\nmax.NaN.f32 %o1, %i0, %i1;\n", [FLOATS, OTHERS], 2)
    for a, b, plain, strict in zip(FLOATS, OTHERS, *out.view(np.float32)):
        if np.isnan(a) or np.isnan(b):
            assert np.isnan(strict)
            assert np.isnan(plain) if np.isnan(a) and np.isnan(b) else plain == (b if np.isnan(a) else a)
        else:
            assert plain == strict == max(a, b)


def test_ftz_flushes_inputs_and_results():
    """9.7.3: .ftz."""
    tiny = np.full(32, 1e-40, np.float32)
    out, _ = run(
        "add.ftz.f32 %o0, %i0, %i0;\nadd.f32 %o1, %i0, %i0;\nmul.ftz.f32 %o2, %i1, %i1;\n",
        [tiny, np.full(32, 1e-20, np.float32)],
        3,
    )
    assert out[0].tolist() == [0] * 32
    assert (out[1].view(np.float32) == np.float32(1e-40) + np.float32(1e-40)).all()
    assert out[2].tolist() == [0] * 32


@pytest.mark.parametrize(
    "name,function,bound",
    [
        ("ex2.approx.ftz.f32", np.exp2, 2.0**-22),
        ("lg2.approx.ftz.f32", np.log2, 2.0**-22),
        ("rcp.approx.ftz.f32", lambda x: 1 / x, 2.0**-23),
        ("rsqrt.approx.ftz.f32", lambda x: 1 / np.sqrt(x), 2.0**-22.9),
        ("tanh.approx.f32", np.tanh, 2.0**-11),
    ],
)
def test_approximate_functions(name, function, bound):
    """9.7.3.21..: inside the documented error (lg2: absolute near 1, relative elsewhere)."""
    x = np.linspace(0.05, 9.7, 32).astype(np.float32)
    out, _ = run(f"{name} %o0, %i0;\n", [x])
    exact = function(x.astype(np.float64))
    assert (np.abs(out[0].view(np.float32) - exact) <= bound * np.maximum(np.abs(exact), 2.0**-1)).all()


def patterns(n: int) -> np.ndarray:
    """Random float32 bit patterns, all exponents."""
    rng = np.random.default_rng(n)
    return np.concatenate(
        [rng.integers(0, 2**32, 30, dtype=np.uint64).astype(np.uint32), [0x3F808000, 0x3F818000]]
    ).astype(np.uint32)


@pytest.mark.parametrize("kind,dtype", [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_narrowing_pairs(kind, dtype):
    """9.7.9.22 cvt.rn.{bf16x2,f16x2}.f32: first operand in the upper half."""
    for n in range(8):
        a, b = patterns(n), patterns(n + 100)
        out, _ = run(f"cvt.rn.{kind}x2.f32 %o0, %i0, %i1;\n", [a, b])
        for shift, source in ((16, a), (0, b)):
            x = torch.from_numpy(source.view(np.float32).copy())
            expected = x.to(dtype).view(torch.int16).numpy().view(np.uint16)
            got = (out[0] >> shift).astype(np.uint16)
            keep = ~np.isnan(x.numpy())
            assert (got[keep] == expected[keep]).all()
            assert (got[~keep] == 0x7FFF).all()


@pytest.mark.parametrize(
    "kind,dtype,limit", [("e4m3", torch.float8_e4m3fn, 448.0), ("e5m2", torch.float8_e5m2, 57344.0)]
)
def test_fp8(kind, dtype, limit):
    """9.7.9.22 cvt.rn.satfinite.e4m3x2/e5m2x2.f32 and back."""
    rng = np.random.default_rng(3)
    a = (rng.standard_normal(32) * np.exp2(rng.integers(-12, 12, 32))).astype(np.float32)
    b = np.clip(a[::-1] * 3, -limit, limit).astype(np.float32).copy()
    body = f"cvt.rn.satfinite.{kind}x2.f32 %h0, %i0, %i1;\ncvt.rn.f16x2.{kind}x2 %o0, %h0;\ncvt.u32.u16 %o1, %h0;\n"
    out, _ = run(body, [a, b], 2)
    for shift, source in ((8, a), (0, b)):
        expected = torch.from_numpy(np.clip(source, -limit, limit)).to(dtype)
        assert ((out[1] >> shift & 255) == expected.view(torch.uint8).numpy()).all()
        half = (out[0] >> (2 * shift) & 0xFFFF).astype(np.uint16).view(np.float16)
        assert (half == expected.to(torch.float16).numpy()).all()


def test_integer_conversions():
    """9.7.9.22 cvt between integers and floats."""
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 3e9, -3e9, np.nan] * 4, np.float32)
    out, _ = run(
        "cvt.rni.s32.f32 %o0, %i0;\ncvt.rzi.u32.f32 %o1, %i0;\ncvt.rn.f32.s32 %o2, %i1;\ncvt.s32.s8 %o3, %i1;\n",
        [x, A],
        4,
    )
    assert out[0].view(np.int32)[:8].tolist() == [0, 2, 2, 0, -2, 2147483647, -2147483648, 0]
    assert out[1][:8].tolist() == [0, 1, 2, 0, 0, 3000000000, 0, 0]
    assert (out[2].view(np.float32) == A.view(np.int32).astype(np.float64).astype(np.float32)).all()
    assert out[3].view(np.int32).tolist() == [signed(int(a) & 255, 8) for a in A]


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("segment", [0, 0x1C, 0x10])
def test_shuffle(mode, segment):
    """9.7.9.6 shfl.sync, by the ISA's pseudo code, lane by lane."""
    clamp, amount = (0 if mode == "up" else 31), 3
    c = segment << 8 | clamp
    out, findings = run(
        f"shfl.sync.{mode}.b32 %o0|%p1, %i0, {amount}, {c}, -1;\nselp.b32 %o1, 1, 0, %p1;\n", [np.arange(32) * 7], 2
    )
    assert not findings
    for lane in range(32):
        low, high = lane & segment, lane & segment | clamp & ~segment & 31
        j = {"up": lane - amount, "down": lane + amount, "bfly": lane ^ amount, "idx": low | amount & ~segment & 31}[
            mode
        ]
        valid = j >= high if mode == "up" else j <= high
        assert out[1][lane] == valid
        assert out[0][lane] == 7 * (j if valid else lane)


def test_votes_and_reductions():
    """9.7.14 vote, match, redux, elect."""
    x = np.arange(32) % 5
    body = """setp.gt.s32 %p1, %i0, 2;
vote.sync.ballot.b32 %o0, %p1, -1;
redux.sync.add.s32 %o1, %i0, -1;
redux.sync.max.s32 %o2, %i0, -1;
match.any.sync.b32 %o3, %i0, -1;
elect.sync %o4|%p2, -1;
"""
    out, findings = run(body, [x], 5)
    assert not findings
    assert out[0][0] == sum(1 << i for i in range(32) if x[i] > 2)
    assert (out[1] == x.sum()).all() and (out[2] == 4).all() and (out[4] == 0).all()
    assert out[3].tolist() == [sum(1 << j for j in range(32) if x[j] == x[i]) for i in range(32)]


def test_divergence_reconverges():
    """Lanes with different trip counts meet again after the loop."""
    body = """mov.b32 %r1, 0;
mov.b32 %r2, 0;
LOOP: add.s32 %r1, %r1, %r2000;
add.s32 %r2, %r2, 1;
setp.le.u32 %p1, %r2, %i0;
@%p1 bra LOOP;
shfl.sync.idx.b32 %o0, %r1, 5, 31, -1;
mov.b32 %o1, %r1;
"""
    out, findings = run(body, [np.arange(32) % 7], 2)
    assert not findings
    assert out[1].tolist() == [i * (i % 7 + 1) for i in range(32)]
    assert (out[0] == out[1][5]).all()


def test_unknown_instruction_and_modifier_are_errors():
    """Never skipped, never approximated silently."""
    from attncc.emulator.findings import PtxError

    with pytest.raises(PtxError, match="unknown instruction frobnicate"):
        run("frobnicate.b32 %o0, %i0;\n", [A])
    with pytest.raises(PtxError, match=r"unknown modifier \.sideways"):
        run("add.sideways.s32 %o0, %i0, %i0;\n", [A])


def test_mixed_precision_fma():
    """fma.rn.f32.bf16: half operands, float32 addend and result, rounded once."""
    rng = np.random.default_rng(5)
    a, b = (torch.from_numpy(rng.standard_normal(32).astype(np.float32)).bfloat16() for _ in range(2))
    c = rng.standard_normal(32).astype(np.float32)
    body = "cvt.u16.u32 %h0, %i0;\ncvt.u16.u32 %h1, %i1;\nfma.rn.f32.bf16 %o0, %h0, %h1, %i2;\n"
    words = [t.view(torch.int16).numpy().view(np.uint16).astype(np.uint32) for t in (a, b)]
    out, _ = run(body, [*words, c])
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c)]
    assert out[0].view(np.float32).tolist() == [float(nearest_f32(x)) for x in exact]
