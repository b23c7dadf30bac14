"""Number formats: conversions with PTX rounding, on numpy arrays of any shape.

Half and bf16 values travel as uint16 bit patterns, fp8 values as uint8, fp4/fp6 as uint8. Every narrowing rounds to
nearest even unless a function says otherwise (PTX ISA, section "cvt").
"""

from __future__ import annotations

import functools

import numpy as np

from attncc.emulator.lanes import some

F32 = np.float32
U32 = np.uint32
EXPONENT = U32(0x7F800000)


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    """uint16 bf16 patterns -> float32, exact."""
    return (bits.astype(np.uint32) << U32(16)).view(np.float32)


def f32_to_bf16(x: np.ndarray, rounding: str = "rn") -> np.ndarray:
    """float32 -> uint16 bf16 patterns; `rounding` is rn or rz. NaN becomes 0x7FFF as PTX says."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    if rounding == "rn":
        out = ((bits + (U32(0x7FFF) + ((bits >> U32(16)) & U32(1)))) >> U32(16)).astype(np.uint16)
    else:
        out = (bits >> U32(16)).astype(np.uint16)
    nan = (bits & U32(0x7FFFFFFF)) > U32(0x7F800000)
    return np.where(nan, np.uint16(0x7FFF), out) if some(nan) else out


def bf16_pair(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Two uint32 rows of float32 bits -> packed bf16 pairs, round to nearest even."""
    bits = np.array((low, high))
    nan = (bits & U32(0x7FFFFFFF)) > EXPONENT
    bits += U32(0x7FFF) + ((bits >> U32(16)) & U32(1))
    if some(nan):
        bits[nan] = U32(0x7FFF0000)
    return (bits[0] >> U32(16)) | (bits[1] & U32(0xFFFF0000))


def f16_to_f32(bits: np.ndarray) -> np.ndarray:
    """uint16 half patterns -> float32, exact."""
    return bits.view(np.float16).astype(np.float32)


def f32_to_f16(x: np.ndarray, rounding: str = "rn") -> np.ndarray:
    """float32 -> uint16 half patterns; rn or rz."""
    with np.errstate(all="ignore"):
        half = np.asarray(x, np.float32).astype(np.float16)
        if rounding == "rz":
            too_far = np.abs(half.astype(np.float32)) > np.abs(x)
            half = np.where(too_far, np.nextafter(half, np.float16(0)), half)
    out = half.view(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), out)


@functools.cache
def minifloat_values(name: str) -> np.ndarray:
    """All values of a small format as float32, indexed by bit pattern (e4m3, e5m2, e2m1, e2m3, e3m2, ue8m0)."""
    if name == "ue8m0":
        values = np.exp2(np.arange(256, dtype=np.float64) - 127)
        values[255] = np.nan
        return values.astype(np.float32)
    exp_bits, man_bits, bias = {
        "e4m3": (4, 3, 7),
        "e5m2": (5, 2, 15),
        "e2m1": (2, 1, 1),
        "e2m3": (2, 3, 1),
        "e3m2": (3, 2, 3),
        "ue4m3": (4, 3, 7),
    }[name]
    codes = np.arange(1 << (1 + exp_bits + man_bits))
    exp = (codes >> man_bits) & ((1 << exp_bits) - 1)
    man = codes & ((1 << man_bits) - 1)
    sign = np.where(codes >> (exp_bits + man_bits), -1.0, 1.0)
    scale = float(1 << man_bits)
    values = sign * np.where(exp == 0, man / scale * 2.0 ** (1 - bias), (1 + man / scale) * np.exp2(exp - bias))
    if name in ("e4m3", "ue4m3"):
        values[(codes & 0x7F) == 0x7F] = np.nan
    if name == "e5m2":
        values[(exp == 31) & (man == 0)] *= np.inf
        values[(exp == 31) & (man != 0)] = np.nan
    return values.astype(np.float32)


def small_to_f32(name: str, bits: np.ndarray) -> np.ndarray:
    """Bit patterns of a small format -> float32, exact."""
    table = minifloat_values(name)
    return table[bits & (len(table) - 1)]


def f32_to_small(name: str, x: np.ndarray, satfinite: bool = True) -> np.ndarray:
    """float32 -> uint8 patterns, round to nearest even; with satfinite, overflow gives the largest finite value."""
    table = minifloat_values(name)
    half = len(table) // 2
    finite = np.nonzero(np.isfinite(table[:half]))[0]
    grid = table[finite].astype(np.float64)
    mag = np.abs(np.asarray(x, np.float64))
    hi = np.clip(np.searchsorted(grid, mag), 0, len(grid) - 1)
    lo = np.maximum(hi - 1, 0)
    up = grid[hi] - mag
    down = mag - grid[lo]
    code = np.where((up < down) | ((up == down) & (hi % 2 == 0)), hi, lo)
    code = np.where(mag >= grid[-1], len(grid) - 1, code)
    if not satfinite:
        step = grid[-1] - grid[-2]
        over = mag >= grid[-1] + step / 2
        code = np.where(over, {"e5m2": 0x7C, "e4m3": 0x7F}.get(name, len(grid) - 1), code)
    code = finite[code] | np.where(np.signbit(x), half, 0)
    nan_code = {"e4m3": 0x7F, "e5m2": 0x7F}.get(name, int(finite[-1]))
    return np.where(np.isnan(x), nan_code, code).astype(np.uint8)


def flush(x: np.ndarray) -> np.ndarray:
    """`.ftz`: subnormal float32 values become zeros of the same sign."""
    zero_exponent = (x.view(np.uint32) & EXPONENT) == 0
    return np.where(zero_exponent, np.copysign(F32(0), x), x) if some(zero_exponent) else x


def fma_f32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a*b+c in float32 with one rounding: the product is exact in float64, the sum is rounded to odd."""
    product = a.astype(np.float64) * b
    total = product + c
    bits = total.view(np.uint64)
    risky = ((bits & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)) | (np.abs(total) < 1.2e-38)
    if some(risky):
        total = _round_to_odd(product, c.astype(np.float64), total)
    return total.astype(np.float32)


def _round_to_odd(p: np.ndarray, c: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Corrects s = p + c so that a later rounding to float32 is not a double rounding."""
    back = s - p
    err = (p - (s - back)) + (c - back)
    bits = s.view(np.int64).copy()
    fix = np.isfinite(s) & (err != 0) & ((bits & 1) == 0)
    toward_zero = (err > 0) != (s > 0)
    bits[fix] += np.where(toward_zero[fix], -1, 1)
    return bits.view(np.float64)


def round_f32(x64: np.ndarray, rounding: str) -> np.ndarray:
    """float64 -> float32 with a PTX rounding mode: rn, rz, rm or rp."""
    near = x64.astype(np.float32)
    if rounding == "rn":
        return near
    wide = near.astype(np.float64)
    over = {"rz": np.abs(wide) > np.abs(x64), "rm": wide > x64, "rp": wide < x64}[rounding]
    toward = {"rz": F32(0), "rm": F32(-np.inf), "rp": F32(np.inf)}[rounding]
    return np.where(over, np.nextafter(near, toward), near)
