"""Address spaces, regions and checked lane-wise access.

Generic addresses carry the space in their top byte (`windows`); a shared address carries the CTA rank in its bits
24 and up, as the hardware's shared::cluster window does, so `mapa` and the 2-CTA peer mask work on it.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass

import numpy as np

from attncc.emulator.lanes import FULL, LANE, lanes

windows = {"global": 0, "shared": 1 << 56, "local": 2 << 56, "param": 3 << 56, "const": 4 << 56}
_NAMES = {0: "global", 1: "shared", 2: "local", 3: "param", 4: "const"}
SHARED_BASE = 1024
RANK_SHIFT = 24


def space_of(address: int) -> str:
    """State space of a generic address."""
    return _NAMES.get((address >> 56) & 0xFF, "global")


@dataclass
class TensorInfo:
    """A tensor argument: for naming elements and for bounds."""

    name: str
    base: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int

    def element(self, address: int) -> str:
        """`name[i, j]` of the element at `address`, or the byte offset if it is none."""
        offset = (address - self.base) // self.itemsize
        index, rest = [0] * len(self.shape), offset
        for d in sorted(range(len(self.shape)), key=lambda d: -self.strides[d]):
            if self.strides[d] > 0:
                index[d], rest = divmod(rest, self.strides[d])
        inside = rest == 0 and all(0 <= i < n for i, n in zip(index, self.shape))
        mark = "" if inside else f" (outside its shape {list(self.shape)})"
        return f"{self.name}[{', '.join(map(str, index))}]{mark}"


class Region:
    """A stretch of memory: bytes, base address, access history, and (for strided tensors) which bytes exist."""

    def __init__(self, name: str, base: int, data: np.ndarray, shadow=None, valid: np.ndarray | None = None):
        self.name, self.base, self.data, self.shadow, self.valid = name, base, data, shadow, valid
        self.tensors: list[TensorInfo] = []
        self.version = 0

    @property
    def end(self) -> int:
        """First address after the region."""
        return self.base + len(self.data)

    def describe(self, address: int) -> str:
        """The tensor element at `address`, or an offset."""
        for tensor in self.tensors:
            span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides)) + 1
            if tensor.base <= address < tensor.base + span * tensor.itemsize:
                return tensor.element(address)
        return f"{self.name}+{address - self.base:#x}"


class GlobalMemory:
    """Global allocations, sorted by address."""

    def __init__(self):
        self.regions: list[Region] = []
        self.starts: list[int] = []

    def add(self, region: Region) -> None:
        """Register an allocation."""
        at = bisect.bisect(self.starts, region.base)
        self.regions.insert(at, region)
        self.starts.insert(at, region.base)

    def find(self, address: int) -> Region | None:
        """The allocation that holds `address`."""
        at = bisect.bisect_right(self.starts, address) - 1
        if at >= 0 and address < self.regions[at].end:
            return self.regions[at]
        return None

    def nearest(self, address: int) -> str:
        """Words for an address outside every allocation."""
        best = min(self.regions, key=lambda r: max(r.base - address, address - r.end + 1), default=None)
        if best is None:
            return "no allocation exists"
        distance = address - best.end if address >= best.end else address - best.base
        near = best.tensors[0] if best.tensors else None
        name = near.element(address) if near and abs(distance) < 1 << 30 else best.name
        side = f"{distance} bytes past the end" if address >= best.end else f"{-distance} bytes before the start"
        return f"{name}, {side} of {best.name}"


def active(w) -> np.ndarray:
    """Indices of active lanes."""
    return LANE if w.mi == FULL else np.nonzero(lanes(w.mi))[0]


def groups(w, space: str, addresses: np.ndarray, nbytes: int):
    """Yield (region, lanes, offsets) for the active lanes; reports misaligned and out-of-bounds lanes and drops them."""
    if space != "generic":
        plain = _plain(w, space, addresses, nbytes)
        if plain is not None:
            yield plain
            return
    who = active(w)
    where = addresses[who]
    bad = where % nbytes != 0 if nbytes & (nbytes - 1) == 0 else np.zeros(len(who), bool)
    if bad.any():
        lane = int(who[np.argmax(bad)])
        w.report("misaligned", f"address {int(addresses[lane]):#x} is not a multiple of {nbytes} bytes", lane)
        who, where = who[~bad], where[~bad]
    while len(who):
        kind = space
        if space == "generic":
            kind = space_of(int(where[0]))
        region, offsets, inside = _resolve(w, kind, where, nbytes, who)
        if inside.all():
            if region is not None:
                yield region, who, offsets
            return
        if region is not None and inside.any():
            yield region, who[inside], offsets[inside]
        who, where = who[~inside], where[~inside]


def _plain(w, space, addresses, nbytes):
    """(region, lanes, offsets) of the usual access: aligned, inside one region. None: it must be looked at lane by lane."""
    who = active(w)
    where = addresses if w.mi == FULL else addresses[who]
    low, high = int(where.min()), int(where.max()) + nbytes
    if nbytes & nbytes - 1 or int(np.bitwise_or.reduce(where)) & nbytes - 1:
        return None
    if space == "shared":
        region = w.cta.shared_region(low)
        base = low >> RANK_SHIFT << RANK_SHIFT
        return None if region is None or high - base > len(region.data) else (region, who, where - base)
    if space == "global":
        region = w.machine.memory.find(low)
        if region is None or high > region.end or region.valid is not None:
            return None
        return region, who, where - region.base
    return None


def _resolve(w, kind, where, nbytes, who):
    """Region of the first lane, offsets of all lanes in it, and which lanes lie inside (a dropped lane counts as in)."""
    if kind == "global":
        return _resolve_global(w, where, nbytes, who)
    local = where & ((1 << 56) - 1)
    if kind == "shared":
        region, base = w.cta.shared_region(int(local[0])), (int(local[0]) >> RANK_SHIFT) << RANK_SHIFT
        offsets = local - base
    elif kind == "local":
        region, offsets = w.local_region(), local + who * w.local_size()
        inside = local + nbytes <= w.local_size()
        return _drop(w, kind, region, offsets, inside, where, who)
    else:
        region, offsets = w.cta.space_region(kind), local
    if region is None:
        w.report("out-of-bounds", f"{kind} address {int(where[0]):#x} belongs to no CTA of the cluster", int(who[0]))
        return None, offsets, np.ones(len(where), bool)
    same = (where >> RANK_SHIFT) == (where[0] >> RANK_SHIFT)
    inside = (offsets >= 0) & (offsets + nbytes <= len(region.data))
    if not inside[same].all():
        return _drop(w, kind, region, offsets, inside, where, who)
    return region, offsets, same


def _drop(w, kind, region, offsets, inside, where, who):
    """Report lanes outside and pass on the rest."""
    if inside.all():
        return region, offsets, inside
    lane = int(np.argmin(inside))
    size = len(region.data) // (32 if kind == "local" else 1)
    w.report(
        "out-of-bounds",
        f"{kind} address {int(where[lane]):#x} lies outside the {size} bytes of {region.name}",
        int(who[lane]),
    )
    if inside.any():
        return region, offsets, inside
    return None, offsets, np.ones(len(where), bool)


def _resolve_global(w, where, nbytes, who):
    memory = w.machine.memory
    region = memory.find(int(where[0]))
    if region is None:
        w.report("out-of-bounds", f"global address {int(where[0]):#x} is {memory.nearest(int(where[0]))}", int(who[0]))
        inside = np.zeros(len(where), bool)
        inside[0] = True
        dropped = np.array([memory.find(int(a)) is None for a in where])
        return None, where, dropped
    offsets = where - region.base
    inside = (offsets >= 0) & (offsets + nbytes <= len(region.data))
    if not inside[0]:
        w.report("out-of-bounds", f"access of {nbytes} bytes runs past {region.describe(int(where[0]))}", int(who[0]))
        inside[0] = True
        return None, offsets, inside
    if region.valid is not None:
        ok = region.valid[offsets[inside]]
        if not ok.all():
            lane = int(np.nonzero(inside)[0][np.argmin(ok)])
            w.report(
                "out-of-bounds",
                f"global address is {region.describe(int(where[lane]))}, which is no element of a tensor",
                int(who[lane]),
            )
    return region, offsets, inside


def load(w, space: str, addresses: np.ndarray, nbytes: int, uninit: str | None = "error") -> np.ndarray:
    """uint8[32, nbytes] of a per-lane load; lanes that are inactive or faulted read zero."""
    out = np.zeros((32, nbytes), np.uint8)
    step = np.arange(nbytes)
    for region, who, offsets in groups(w, space, addresses, nbytes):
        if region.shadow is not None:
            region.shadow.read(w.agent(), region.shadow.granules(offsets, nbytes), uninit)
        out[who] = region.data[offsets[:, None] + step]
    return out


def _unchanged(region: Region, index: np.ndarray, new: np.ndarray) -> bool:
    return np.array_equal(region.data[index], new)


def store(w, space: str, addresses: np.ndarray, data: np.ndarray) -> None:
    """Per-lane store of uint8[32, nbytes]; of two lanes that hit the same byte the higher wins, as on no GPU for sure."""
    nbytes = data.shape[1]
    step = np.arange(nbytes)
    for region, who, offsets in groups(w, space, addresses, nbytes):
        index, new = offsets[:, None] + step, data[who]
        if region.shadow is not None:
            same = functools.partial(_unchanged, region, index, new)
            region.shadow.write(w.agent(), region.shadow.granules(offsets, nbytes), same)
        region.data[index] = new
        region.version += 1
    w.machine.progress += 1
