"""cp.async.bulk, cp.async.bulk.tensor, cp.reduce.async.bulk, their groups (PTX ISA 9.7.9.25.4-5, 9.7.9.27).

Each copy is one asynchronous operation of the async proxy. Loads signal an mbarrier (complete_tx) when their bytes
have landed; stores and reductions belong to the bulk groups of the issuing thread.
"""

from __future__ import annotations

import functools

import numpy as np

from attncc.emulator import tensormap as tm
from attncc.emulator.decode import op
from attncc.emulator.findings import PtxError
from attncc.emulator.memory import active, space_of, windows
from attncc.emulator.numerics import bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16
from attncc.emulator.ops_sync import barrier_at
from attncc.emulator.ptx_parse import Addr
from attncc.emulator.races import Agent, op_ident

CACHE = ("L2::cache_hint", "L2::64B", "L2::128B", "L2::256B")


class Addressed:
    """A pretend one-lane access for reporting: operations report at the instruction that issued them."""

    def __init__(self, w, pc):
        self.w, self.pc = w, pc

    def __call__(self, kind, message, lane=-1, severity="error"):
        self.w.report(kind, message, lane, severity, pc=self.pc)


def agent_of(operation, number=None) -> Agent:
    """The operation as the author of async-proxy accesses."""
    ident = op_ident(operation.number if number is None else number)
    return Agent(ident, operation.clk, 0, operation.pc, True, Addressed(operation.warp, operation.pc))


def chunk_granules(shadow, chunks: np.ndarray) -> np.ndarray:
    """16-byte chunk indices -> sorted granule indices."""
    per = 16 // shadow.granule
    return (np.sort(chunks)[:, None] * per + np.arange(per)).ravel() if per > 1 else np.sort(chunks)


def read_map(w, address: int) -> tm.TensorMap:
    """The tensor map at a generic address (kernel parameter or global memory)."""
    if space_of(address) == "param":
        offset = address - windows["param"]
        raw = w.machine.launch.params[offset : offset + 128]
    else:
        region = w.machine.memory.find(address)
        if region is None:
            raise tm.DescriptorError(f"no tensor map at {address:#x}")
        raw = region.data[address - region.base : address - region.base + 128].tobytes()
    return _decode(raw)


@functools.lru_cache(maxsize=256)
def _decode(raw: bytes) -> tm.TensorMap:
    return tm.decode(raw)


# -- tensor copies ------------------------------------------------------------------------------------------------------


def _tensor_modifiers(k, m):
    """(dimensions, target space, options) of a tensor copy."""
    dims = int(m.need("1d", "2d", "3d", "4d", "5d")[0])
    spaces = [s for s in m.left if s in ("shared::cta", "shared::cluster", "global")]
    if len(spaces) != 2:
        raise k.fail("a tensor copy names two state spaces")
    for s in spaces:
        m.left.remove(s)
    m.flag("tile")
    options = {
        "multicast": m.flag("multicast::cluster"),
        "hint": m.flag("L2::cache_hint"),
        "group": m.take("cta_group::1", "cta_group::2"),
    }
    return dims, spaces[0], options


@op("cp.async.bulk.tensor")
def tensor_copy(k, instr, m):
    """Tile-mode tensor copy, load or store."""
    dims, target, options = _tensor_modifiers(k, m)
    if target == "global":
        m.need("bulk_group")
        return _tensor_store(k, instr, dims, options, None)
    m.need("mbarrier::complete_tx::bytes")
    return _tensor_load(k, instr, dims, options)


@op("cp.reduce.async.bulk.tensor")
def tensor_reduce(k, instr, m):
    """Tensor reduction into global memory."""
    dims, _, options = _tensor_modifiers(k, m)
    m.need("bulk_group")
    return _tensor_store(k, instr, dims, options, m.need("add", "min", "max", "inc", "dec", "and", "or", "xor"))


@op("cp.async.bulk.prefetch.tensor", "cp.async.bulk.prefetch")
def prefetch(k, instr, m):
    """L2 prefetch: no effect on results."""
    m.left.clear()
    return lambda w: None


def _coords(k, operand, dims):
    if operand.coords is None or len(operand.coords) != dims:
        raise k.fail(f"expected {dims} coordinates")
    return [k.src(c, "s32") for c in operand.coords]


def _tensor_load(k, instr, dims, options):
    target, source, bar = instr.ops[:3]
    rest = list(instr.ops[3:])
    to, where, barrier = k.addr(target), k.addr(Addr(source.base, source.offset)), k.addr(bar)
    coords = _coords(k, source, dims)
    mask = k.src(rest.pop(0), "u16") if options["multicast"] else None
    name = f"TMA load ({instr.opcode}.{'.'.join(instr.mods[:4])})"

    def run(w):
        table = w.V["s32"]
        destinations, maps, bars = to(w), where(w), barrier(w)
        for lane in active(w):
            at = tuple(int(table[c][lane]) for c in coords)
            ranks = int(w.V["u16"][mask][lane]) if mask is not None else None
            _issue_load(w, name, int(maps[lane]), at, int(destinations[lane]), int(bars[lane]), ranks, dims)

    return run


def _issue_load(w, name, map_address, coords, target, bar, ranks, dims):
    try:
        tensor = read_map(w, map_address)
        if tensor.rank != dims:
            raise tm.DescriptorError(f"a {dims}-d copy uses a tensor map of rank {tensor.rank}")
        coords = tensor.place(coords)
    except tm.DescriptorError as error:
        w.report("descriptor", str(error))
        return
    if target % 128:
        w.report("misaligned", f"TMA shared address {target:#x} is not a multiple of 128")
        return
    barrier_at(w, bar, proxy=True)
    targets = _multicast(w, target, bar, ranks)

    def land(operation):
        data = read_box(operation, tensor, coords)
        bit = operation.number
        for cta, address, signal in targets:
            write_chunks(operation, cta, address, data, tensor.swizzle)
            barrier = barrier_at(w, signal, clk=operation.clk, report=Addressed(w, operation.pc))
            if barrier is not None:
                barrier.complete_tx(Addressed(w, operation.pc), tensor.box_bytes, bit)

    operation = w.machine.issue(w, name, land)
    operation.data["uses_shared"] = w.cta


def _multicast(w, target, bar, ranks):
    """(cta, shared address, barrier address) of every CTA that receives the box."""
    if ranks is None:
        cta = w.cta.cta_of(target)
        return [(cta, target, bar)] if cta is not None else []
    low, low_bar = target & 0xFFFFFF, bar & 0xFFFFFF
    found = []
    for rank, cta in enumerate(w.cta.cluster.ctas):
        if ranks >> rank & 1:
            found.append((cta, low | rank << 24, low_bar | rank << 24))
    if ranks >> len(w.cta.cluster.ctas):
        w.report(
            "out-of-bounds", f"multicast mask {ranks:#x} names CTAs outside the cluster of {len(w.cta.cluster.ctas)}"
        )
    return found


def read_box(operation, tensor, coords) -> np.ndarray:
    """uint8[chunks, 16] of a box in row order; out-of-range elements are zero."""
    rows, inside = tensor.rows(coords)
    inner = tensor.box[0] * tensor.itemsize
    out = np.zeros((len(rows), inner), np.uint8)
    first, last = (c * tensor.itemsize for c in tensor.columns(coords))
    if last > first and inside.any():
        base = tensor.address + coords[0] * tensor.itemsize
        index, region = _global_index(operation, tensor, base + rows[inside], first, last)
        if region is not None:
            region.shadow.read(agent_of(operation), np.unique(index // region.shadow.granule))
            out[np.nonzero(inside)[0][:, None], np.arange(first, last)] = region.data[index]
    return out.reshape(-1, 16)


def _global_index(operation, tensor, rows, first, last):
    """Byte indices [rows, columns] into the region that holds the tensor; a finding if it does not fit."""
    w = operation.warp
    start, end = int(rows.min()) + first, int(rows.max()) + last
    region = w.machine.memory.find(start)
    if region is None or end > region.end:
        near = w.machine.memory.nearest(start if region is None else end - 1)
        Addressed(w, operation.pc)(
            "out-of-bounds", f"the tensor map reaches global address {start if region is None else end:#x}: {near}"
        )
        return None, None
    index = rows[:, None] - region.base + np.arange(first, last)
    if region.valid is not None and not region.valid[index].all():
        bad = int(index[~region.valid[index]][0]) + region.base
        Addressed(w, operation.pc)(
            "out-of-bounds", f"the tensor map reaches {region.describe(bad)}, no element of a tensor"
        )
    return index, region


def write_chunks(operation, cta, address: int, data: np.ndarray, swizzle: int) -> None:
    """Write 16-byte chunks to shared memory from `address` on, swizzled."""
    offset, shared = address & 0xFFFFFF, cta.shared
    if offset + data.size > len(shared.data):
        Addressed(operation.warp, operation.pc)(
            "out-of-bounds",
            f"the copy writes {data.size} bytes at shared+{offset:#x}, past "
            f"the {len(shared.data)} bytes of {shared.name}",
        )
        return
    chunks = tm.swizzled(offset + 16 * np.arange(len(data)), swizzle) >> 4
    if int(chunks.max()) * 16 + 16 > len(shared.data):
        Addressed(operation.warp, operation.pc)("out-of-bounds", "the swizzled box runs past the end of shared memory")
        return
    shared.shadow.write(agent_of(operation), chunk_granules(shared.shadow, chunks))
    whole = shared.data[: len(shared.data) // 16 * 16].reshape(-1, 16)
    whole[chunks] = data
    shared.version += 1


def read_chunks(operation, cta, address: int, count: int, swizzle: int) -> np.ndarray | None:
    """Inverse of write_chunks: uint8[count, 16]."""
    offset, shared = address & 0xFFFFFF, cta.shared
    chunks = tm.swizzled(offset + 16 * np.arange(count), swizzle) >> 4
    if (int(chunks.max()) + 1) * 16 > len(shared.data):
        Addressed(operation.warp, operation.pc)("out-of-bounds", f"the copy reads past the end of {shared.name}")
        return None
    shared.shadow.read(agent_of(operation), chunk_granules(shared.shadow, chunks), uninit="warning")
    return shared.data[: len(shared.data) // 16 * 16].reshape(-1, 16)[chunks]


# -- stores ---------------------------------------------------------------------------------------------------------------


class BulkGroups:
    """Bulk groups of one warp: operations not committed yet, and committed groups."""

    def __init__(self):
        self.open: list = []
        self.groups: list[list] = []


def _groups(w) -> BulkGroups:
    return w.state.setdefault("bulk", BulkGroups())


def _tensor_store(k, instr, dims, options, reduce):
    target, source = instr.ops[:2]
    to, where, coords = k.addr(Addr(target.base, target.offset)), k.addr(source), _coords(k, target, dims)
    name = f"TMA {'reduce' if reduce else 'store'} ({'.'.join(instr.mods[:4])})"

    def run(w):
        table = w.V["s32"]
        maps, sources = to(w), where(w)
        keys = [(int(maps[i]), tuple(int(table[c][i]) for c in coords), int(sources[i])) for i in active(w)]
        # lanes that store the same box write the same bytes: once is enough; reductions add up and stay separate
        for key in keys if reduce else dict.fromkeys(keys):
            _issue_store(w, name, *key, dims, reduce)

    return run


def _issue_store(w, name, map_address, coords, source, dims, reduce):
    try:
        tensor = read_map(w, map_address)
        if tensor.rank != dims:
            raise tm.DescriptorError(f"a {dims}-d copy uses a tensor map of rank {tensor.rank}")
        coords = tensor.place(coords)
    except tm.DescriptorError as error:
        w.report("descriptor", str(error))
        return
    if source % 128:
        w.report("misaligned", f"TMA shared address {source:#x} is not a multiple of 128")
        return

    def land(operation):
        data = read_chunks(operation, w.cta, source, tensor.box_bytes // 16, tensor.swizzle)
        if data is not None:
            write_box(operation, tensor, coords, data, reduce, written.number)

    written = w.machine.issue(w, name, lambda _: None, queue=False)
    operation = w.machine.issue(w, name, land)
    operation.data.update(uses_shared=w.cta, written=written.number)
    _groups(w).open.append(operation)


def write_box(operation, tensor, coords, data, reduce, number) -> None:
    """Write (or reduce) a box into global memory; out-of-range elements are dropped."""
    rows, inside = tensor.rows(coords)
    inner = tensor.box[0] * tensor.itemsize
    first, last = (c * tensor.itemsize for c in tensor.columns(coords))
    if last <= first or not inside.any():
        return
    base = tensor.address + coords[0] * tensor.itemsize
    index, region = _global_index(operation, tensor, base + rows[inside], first, last)
    if region is None:
        return
    values = data.reshape(len(rows), inner)[inside][:, first:last]
    granules = np.unique(index // region.shadow.granule)
    if reduce:
        values = reduced(tensor.kind, reduce, region.data[index], values)
        region.shadow.wid[granules] = -(2**31)
    else:
        region.shadow.write(agent_of(operation, number), granules)
    region.data[index] = values
    region.version += 1


def reduced(kind: str, name: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """old (op) new on raw bytes of element type `kind`."""
    if kind in ("f16", "bf16"):
        widen, narrow = (f16_to_f32, f32_to_f16) if kind == "f16" else (bf16_to_f32, f32_to_bf16)
        a, b = (widen(np.ascontiguousarray(x).view(np.uint16)) for x in (old, new))
        value = {"add": np.add, "min": np.minimum, "max": np.maximum}[name](a, b)
        return narrow(value).view(np.uint8)
    dtype = {"u": "u", "s": "i", "b": "u", "f": "f"}[kind[0]] + str(int(kind[1:]) // 8)
    a, b = (np.ascontiguousarray(x).view(dtype) for x in (old, new))
    functions = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    if name not in functions:
        raise PtxError(f"bulk reduction .{name} is not supported")
    return functions[name](a, b).view(np.uint8)


@op("cp.async.bulk.commit_group")
def commit(k, instr, m):
    """Close the bulk group."""

    def run(w):
        groups = _groups(w)
        groups.groups.append(groups.open)
        groups.open = []

    return run


@op("cp.async.bulk.wait_group")
def wait(k, instr, m):
    """All but the newest N groups are done (`.read`: have read their source)."""
    only_read = m.flag("read")
    keep = instr.ops[0].value

    def run(w):
        groups = _groups(w)
        for group in groups.groups[: max(len(groups.groups) - keep, 0)]:
            for operation in group:
                w.machine.complete(operation)
                w.clk.ops |= 1 << operation.number
                if not only_read:
                    w.clk.ops |= 1 << operation.data["written"]
        if not only_read:
            del groups.groups[: max(len(groups.groups) - keep, 0)]

    return run


# -- plain bulk copies ------------------------------------------------------------------------------------------------------


@op("cp.async.bulk")
def bulk_copy(k, instr, m):
    """cp.async.bulk between global and shared, or shared of two CTAs; size and addresses are multiples of 16."""
    spaces = [s for s in m.left if s in ("shared::cta", "shared::cluster", "global")]
    for s in spaces:
        m.left.remove(s)
    while m.take(*CACHE):
        pass
    multicast = m.flag("multicast::cluster")
    to, source, size = k.addr(instr.ops[0]), k.addr(instr.ops[1]), k.src(instr.ops[2], "u32")
    if spaces[0] == "global":
        m.need("bulk_group")
        return _bulk_store(to, source, size, None, None)
    m.need("mbarrier::complete_tx::bytes")
    bar = k.addr(instr.ops[3])
    mask = k.src(instr.ops[4], "u16") if multicast else None
    local = spaces[1] != "global"

    def run(w):
        tos, sources, bars = to(w), source(w), bar(w)
        for lane in active(w):
            ranks = int(w.V["u16"][mask][lane]) if mask is not None else None
            _issue_bulk(
                w, int(tos[lane]), int(sources[lane]), int(w.V["u32"][size][lane]), int(bars[lane]), ranks, local
            )

    return run


def _issue_bulk(w, target, source, size, bar, ranks, local):
    if target % 16 or source % 16 or size % 16:
        w.report("misaligned", f"cp.async.bulk of {size} bytes from {source:#x} to {target:#x} needs multiples of 16")
        return
    barrier_at(w, bar, proxy=True)
    targets = _multicast(w, target, bar, ranks)

    def land(operation):
        data = read_chunks(operation, w.cta, source, size // 16, 0) if local else _read_linear(operation, source, size)
        if data is None:
            return
        for cta, address, signal in targets:
            write_chunks(operation, cta, address, data, 0)
            barrier = barrier_at(w, signal, clk=operation.clk, report=Addressed(w, operation.pc))
            if barrier is not None:
                barrier.complete_tx(Addressed(w, operation.pc), size, operation.number)

    operation = w.machine.issue(w, "cp.async.bulk", land)
    operation.data["uses_shared"] = w.cta


def _linear(operation, address, size):
    region = operation.warp.machine.memory.find(address)
    if region is None or address + size > region.end:
        near = operation.warp.machine.memory.nearest(address if region is None else address + size - 1)
        Addressed(operation.warp, operation.pc)(
            "out-of-bounds", f"cp.async.bulk of {size} bytes at {address:#x}: {near}"
        )
        return None, None
    return region, np.arange(address - region.base, address - region.base + size)


def _read_linear(operation, address, size):
    region, index = _linear(operation, address, size)
    if region is None:
        return None
    region.shadow.read(agent_of(operation), np.unique(index // region.shadow.granule))
    return region.data[index].reshape(-1, 16)


def _bulk_store(to, source, size, reduce, kind):
    def run(w):
        tos, sources = to(w), source(w)
        for lane in active(w):
            _issue_bulk_store(w, int(tos[lane]), int(sources[lane]), int(w.V["u32"][size][lane]), reduce, kind)

    return run


def _issue_bulk_store(w, target, source, size, reduce, kind):
    if target % 16 or source % 16 or size % 16:
        w.report("misaligned", f"cp.async.bulk of {size} bytes from {source:#x} to {target:#x} needs multiples of 16")
        return

    def land(operation):
        data = read_chunks(operation, w.cta, source, size // 16, 0)
        region, index = _linear(operation, target, size)
        if data is None or region is None:
            return
        granules = np.unique(index // region.shadow.granule)
        if reduce:
            region.data[index] = reduced(kind, reduce, region.data[index], data.ravel())
            region.shadow.wid[granules] = -(2**31)
        else:
            region.shadow.write(agent_of(operation, written.number), granules)
            region.data[index] = data.ravel()
        region.version += 1

    name = "cp.reduce.async.bulk" if reduce else "cp.async.bulk store"
    written = w.machine.issue(w, name, lambda _: None, queue=False)
    operation = w.machine.issue(w, name, land)
    operation.data.update(uses_shared=w.cta, written=written.number)
    _groups(w).open.append(operation)


@op("cp.reduce.async.bulk")
def bulk_reduce(k, instr, m):
    """cp.reduce.async.bulk.global.shared::cta.bulk_group.<op>.<type>."""
    m.need("global")
    m.need("shared::cta")
    m.need("bulk_group")
    while m.take(*CACHE):
        pass
    m.flag("noftz")
    name = m.need("add", "min", "max", "inc", "dec", "and", "or", "xor")
    kind = m.type()
    to, source, size = k.addr(instr.ops[0]), k.addr(instr.ops[1]), k.src(instr.ops[2], "u32")
    return _bulk_store(to, source, size, name, kind)
