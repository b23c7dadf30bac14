"""Lane masks: 32-bit integers and the boolean arrays they stand for."""

from __future__ import annotations

import numpy as np

FULL = 0xFFFFFFFF
LANE = np.arange(32)
_cache: dict[int, np.ndarray] = {}


def lanes(mask: int) -> np.ndarray:
    """The bool[32] array of a lane mask (shared, read-only)."""
    try:
        return _cache[mask]
    except KeyError:
        array = np.array([(mask >> i) & 1 for i in range(32)], bool)
        array.flags.writeable = False
        if len(_cache) < 1 << 16:
            _cache[mask] = array
        return array


def pack(array: np.ndarray) -> int:
    """bool[32] -> lane mask."""
    return int.from_bytes(np.packbits(array, bitorder="little").tobytes(), "little")


def first(mask: int) -> int:
    """Lowest lane of a non-empty mask."""
    return (mask & -mask).bit_length() - 1


def some(array: np.ndarray) -> bool:
    """Is any element of a bool array true? (Several times faster than .any() on 32 lanes.)"""
    return b"\x01" in array.tobytes()
