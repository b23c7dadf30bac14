"""The 128-byte tensor map: decoding, box addressing, shared-memory swizzles.

The layout was read off maps that compiled host code encodes, one property varied at a time (docs/emulator.md):
word 0 address; word 1 rank-1 in bits 4-6, element type in 7-10, swizzle in 13-14, stride of dimension 1 (16-byte
units) in the upper half; words 2-3 the other strides; words 4-6 sizes minus one; byte 55 and bytes 56-59 the box
sizes minus one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

#: element type code -> (bytes, numpy or half type used by reductions)
ELEMENTS = {
    0: (1, "u8"),
    1: (2, "u16"),
    2: (4, "u32"),
    3: (4, "s32"),
    4: (8, "u64"),
    5: (8, "s64"),
    6: (2, "f16"),
    7: (4, "f32"),
    8: (8, "f64"),
    10: (2, "bf16"),
    11: (1, "u4"),
}
#: types of which a byte holds several elements: a decoded map counts their bytes
PACKED = {"u4": 2}
SPANS = {0: 16, 1: 32, 2: 64, 3: 128}
_KNOWN_BITS = 0xF | 0x7 << 4 | 0xF << 7 | 0x3 << 13 | 0x7 << 16 | 1 << 21


class DescriptorError(ValueError):
    """A tensor map field the emulator does not know or the hardware would reject."""


@dataclass(frozen=True)
class TensorMap:
    """Decoded tensor map; strides in bytes (dimension 0 is dense), sizes and box in elements (bytes of dimension 0 if PACKED)."""

    address: int
    kind: str
    itemsize: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.sizes)

    @property
    def box_bytes(self) -> int:
        """Bytes a copy of one box moves (out-of-range elements count)."""
        return int(np.prod(self.box)) * self.itemsize

    def place(self, coords: tuple[int, ...]) -> tuple[int, ...]:
        """Coordinates of a copy in the units of `sizes`. DescriptorError for one inside a byte."""
        per_byte = PACKED.get(self.kind, 1)
        if coords[0] % per_byte:
            raise DescriptorError(f"coordinate {coords[0]} of dimension 0 lies inside a byte of packed elements")
        return (coords[0] // per_byte, *coords[1:])

    def rows(self, coords: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Per box row (all dimensions but 0): byte offset from the address, and whether it lies inside."""
        offset = np.zeros(1, np.int64)
        inside = np.ones(1, bool)
        for d in range(1, self.rank):
            at = coords[d] + np.arange(self.box[d], dtype=np.int64)
            offset = (at[:, None] * self.strides[d] + offset[None, :]).reshape(-1)
            inside = (((at >= 0) & (at < self.sizes[d]))[:, None] & inside[None, :]).reshape(-1)
        return offset, inside

    def columns(self, coords: tuple[int, ...]) -> tuple[int, int]:
        """First and one-past-last box column that lies inside the tensor."""
        first = min(max(-coords[0], 0), self.box[0])
        last = max(min(self.sizes[0] - coords[0], self.box[0]), first)
        return first, last


def decode(raw: bytes) -> TensorMap:
    """128 bytes -> TensorMap. Raises DescriptorError on anything unknown."""
    words = struct.unpack_from("<16Q", raw)
    control = words[1] & 0xFFFFFFFF
    if control & 0xF != 2 or control & ~_KNOWN_BITS & 0xFFFFFFFF:
        raise DescriptorError(f"tensor map control word {control:#x} has fields that are not understood")
    code = control >> 7 & 0xF
    if code not in ELEMENTS:
        raise DescriptorError(f"tensor map element type {code} is not understood")
    rank, swizzle = (control >> 4 & 7) + 1, control >> 13 & 3
    if rank > 5 or (words[6] >> 32) & 0xFFFFFF:
        raise DescriptorError("tensor map with rank above 5, or with traversal strides")
    itemsize, kind = ELEMENTS[code]
    strides16 = (words[1] >> 32, words[2] & 0xFFFFFFFF, words[2] >> 32, words[3] & 0xFFFFFFFF)
    sizes = (words[4] & 0xFFFFFFFF, words[4] >> 32, words[5] & 0xFFFFFFFF, words[5] >> 32, words[6] & 0xFFFFFFFF)
    boxes = (words[6] >> 56, *((words[7] >> 8 * i) & 0xFF for i in range(4)))
    per_byte = PACKED.get(kind, 1)
    box = ((boxes[0] + 1) // per_byte, *(b + 1 for b in boxes[1:rank]))
    if box[0] * itemsize % 16 or (swizzle and box[0] * itemsize > SPANS[swizzle]):
        raise DescriptorError(f"inner box of {box[0] * itemsize} bytes with swizzle mode {swizzle}")
    return TensorMap(
        words[0],
        kind,
        itemsize,
        ((sizes[0] + 1) // per_byte, *(s + 1 for s in sizes[1:rank])),
        (itemsize, *(16 * s for s in strides16[: rank - 1])),
        box,
        swizzle,
    )


def swizzled(addresses: np.ndarray, mode: int) -> np.ndarray:
    """Shared addresses after the swizzle: 16-byte chunk bits 4.. are XORed with bits 7.. (1, 2 or 3 of them)."""
    mask = (1 << mode) - 1
    return addresses ^ (((addresses >> 7) & mask) << 4)
