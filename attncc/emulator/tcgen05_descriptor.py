"""The 32-bit instruction descriptor of tcgen05.mma (PTX ISA 9.7.17.4.2): element types, shape, signs, and for block-scaled kinds the
scale factors.

Names of element types: `e2m1` is packed two to a byte; e2m3, e3m2 and `e2m1x8` lie sixteen to 16 bytes, the elements packed
first and the rest unused (PTX ISA 9.7.17.3.2, what a tensor map of the ALIGN16B types writes).
"""

from __future__ import annotations

from dataclasses import dataclass

FORMATS = {
    "f16": {0: "f16", 1: "bf16"},
    "tf32": {2: "tf32"},
    "f8f6f4": {0: "e4m3", 1: "e5m2", 3: "e2m3", 4: "e3m2", 5: "e2m1x8"},
    "i8": {0: "u8", 1: "s8"},
    "mxf8f6f4": {0: "e4m3", 1: "e5m2", 3: "e2m3", 4: "e3m2", 5: "e2m1x8"},
    "mxf4": {1: "e2m1"},
    "mxf4nvf4": {1: "e2m1"},
}
PADDED = ("e2m3", "e3m2", "e2m1x8")
#: block-scaled kind -> {modifier: elements that share a scale factor}; None is what no modifier means
VECTORS = {
    "mxf8f6f4": {"scale_vec::1X": 32, "block32": 32, None: 32},
    "mxf4": {"scale_vec::2X": 32, "block32": 32, None: 32},
    "mxf4nvf4": {"scale_vec::2X": 32, "block32": 32, "scale_vec::4X": 16, "block16": 16},
}


@dataclass(frozen=True)
class Scaling:
    """Scale factors of one MMA: their type, how many along K for a row, elements to each, and the byte of A's and B's first."""

    kind: str
    count: int
    vector: int
    a_byte: int
    b_byte: int


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
    scaling: Scaling | None = None


def decode_instruction(kind: str, raw: int, pair: bool, vector: int | None = None) -> Shape:
    """The descriptor's meaning for `kind`; `vector` elements share a scale factor. ValueError names what is not legal."""
    scaled = kind in VECTORS
    if raw & (0b1001111 & ~(3 << 4) if scaled else 7) or raw >> (31 if scaled else 30):
        raise ValueError(f"instruction descriptor {raw:#x} asks for sparsity, a shift or K=96")
    formats, wide = FORMATS[kind], kind not in ("mxf4", "mxf4nvf4")
    a, b = formats.get(raw >> 7 & 7), formats.get(raw >> 10 & (7 if wide else 3))
    d = "f32" if scaled else {0: "f16", 1: "f32", 2: "s32"}.get(raw >> 4 & 3)
    m, n = (raw >> 24 & 31) << 4, (raw >> 17 & 63) << 3
    a_mn, b_mn = bool(raw >> 15 & 1), bool(raw >> 16 & 1)
    if a is None or b is None or d not in (("s32",) if kind == "i8" else ("f32",)):
        raise ValueError(f"instruction descriptor {raw:#x}: element types not supported for kind::{kind}")
    _check_shape(m, n, pair, scaled)
    if (a_mn and a in (*PADDED, "e2m1")) or (b_mn and b in (*PADDED, "e2m1")):
        raise ValueError(f"instruction descriptor {raw:#x}: MN-major operands of {a} x {b} are not supported")
    sign = (-1 if raw >> 13 & 1 else 1) * (-1 if raw >> 14 & 1 else 1)
    scaling = _scaling(kind, raw, vector) if scaled else None
    return Shape(m, n, a, b, d, a_mn, b_mn, sign, bool(raw >> 3 & 1), scaling)


def _check_shape(m: int, n: int, pair: bool, scaled: bool) -> None:
    if scaled:
        legal = (256,) if pair else (128,)
    else:
        legal = (128, 256) if pair else (64, 128)
    step = 16 if m in (128, 256) and (not pair or m == 128) else 32 if pair else 8
    if m not in legal or n % min(step, 16) or not 8 <= n <= 256:
        what = "a block-scaled tcgen05.mma" if scaled else "tcgen05.mma"
        raise ValueError(f"{what} of M={m}, N={n} with cta_group::{2 if pair else 1}")


def _scaling(kind: str, raw: int, vector: int) -> Scaling:
    """Bits 4-5 and 29-30 name the first byte of B's and A's scale factors, bit 23 their type."""
    depth = 32 if kind == "mxf8f6f4" else 64
    count = depth // vector
    a_byte, b_byte, name = raw >> 29 & 3, raw >> 4 & 3, "ue8m0" if raw >> 23 & 1 else "ue4m3"
    if a_byte % count or b_byte % count:
        raise ValueError(
            f"scale factor ids {a_byte} and {b_byte}, but {count} factors to a row start at multiples of that"
        )
    if name == "ue4m3" and (kind != "mxf4nvf4" or vector != 16):
        raise ValueError(f"scale factors of type ue4m3 with kind::{kind} and {vector} elements each (ue8m0 is legal)")
    return Scaling(name, count, vector, a_byte, b_byte)
