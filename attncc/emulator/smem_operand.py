"""Matrix operands in shared memory: descriptors -> 16-byte chunk indices (PTX ISA 9.7.16.5.1, wgmma; 9.7.17, tcgen05).

K-major: rows of the swizzle span W, groups of eight rows SBO bytes apart. MN-major: W bytes along MN by eight K rows;
the next W bytes LBO away, the next eight rows SBO away. Without swizzle, 8x16-byte core matrices LBO (along K) and
SBO (along MN) apart. The swizzle works on address bits, so an operand may start inside an atom.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from attncc.emulator.tensormap import SPANS, swizzled


@dataclass(frozen=True)
class MatrixDescriptor:
    """Start address, leading and stride byte offsets, swizzle mode as in tensor maps (0 none, 1..3 = 32, 64, 128 B)."""

    start: int
    leading: int
    stride: int
    swizzle: int

    @classmethod
    def wgmma(cls, raw: int) -> MatrixDescriptor:
        """The 64-bit descriptor of wgmma; raises ValueError on a base offset."""
        if raw >> 49 & 7:
            raise ValueError("matrix descriptor with a base offset is not supported")
        mode = {0: 0, 1: 3, 2: 2, 3: 1}[raw >> 62 & 3]
        return cls((raw & 0x3FFF) << 4, (raw >> 16 & 0x3FFF) << 4, (raw >> 32 & 0x3FFF) << 4, mode)

    @classmethod
    def tcgen05(cls, raw: int) -> MatrixDescriptor:
        """The 64-bit shared-memory descriptor of tcgen05; raises ValueError on fields that are not supported."""
        layouts = {0: 0, 2: 3, 4: 2, 6: 1}
        if raw >> 46 & 7 != 1:
            raise ValueError(f"tcgen05 descriptor {raw:#x}: version bits are not 001")
        if raw >> 49 & 0xF or raw >> 61 not in layouts:
            raise ValueError(f"tcgen05 descriptor {raw:#x}: base offset, absolute leading mode or 32-byte-atom swizzle")
        return cls((raw & 0x3FFF) << 4, (raw >> 16 & 0x3FFF) << 4, (raw >> 32 & 0x3FFF) << 4, layouts[raw >> 61])


def operand_chunks(desc: MatrixDescriptor, rows: int, k_bytes: int, mn_major: bool, itemsize: int) -> np.ndarray:
    """Chunk indices of an operand of `rows` (M or N) by `k_bytes` bytes of K.

    K-major: shape [rows, k_bytes/16]. MN-major: shape [K, rows*itemsize/16].
    """
    base = desc.start & ~0x3FF
    table = _table(desc.start - base, desc.leading, desc.stride, desc.swizzle, rows, k_bytes, mn_major, itemsize)
    return table + (base >> 4)


@functools.lru_cache(maxsize=1024)
def _table(start, leading, stride, mode, rows, k_bytes, mn_major, itemsize):
    span = SPANS[mode]
    if mn_major:
        k = np.arange(k_bytes // itemsize)[:, None]
        mn = 16 * np.arange(rows * itemsize // 16)[None, :]
        if mode == 0:
            address = (mn // 16) * stride + (k % 8) * 16 + (k // 8) * leading
        else:
            address = (mn // span) * leading + mn % span + (k % 8) * span + (k // 8) * stride
    else:
        r = np.arange(rows)[:, None]
        kb = 16 * np.arange(k_bytes // 16)[None, :]
        if mode == 0:
            address = (r // 8) * stride + (r % 8) * 16 + (kb // 16) * leading
        else:
            address = (r // 8) * stride + (r % 8) * span + kb
    table = swizzled(start + address, mode) >> 4
    table.flags.writeable = False
    return table
