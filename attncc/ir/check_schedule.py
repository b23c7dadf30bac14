"""Legality of an L3 schedule, checked after every pass.

`check_schedule(schedule, target)` raises IllegalProgram with every problem found. It looks at names and shapes, channels,
barriers, roles, memory and registers, and at sample walks through each role's control flow: every name and register is
bound before it is used, and channels are filled and emptied in turn and equally often. Orders that only some interleavings
reach are the interpreter's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attncc.ir import schedule as l3
from attncc.ir.attention import SIZE_VARIABLES
from attncc.ir.check_expr import IllegalProgram
from attncc.ir.expr import tensors, variables, walk
from attncc.ir.schedule_ops import (
    buffers_read,
    buffers_written,
    expressions,
    fetched_names,
    names_read,
    number,
    operations,
    shared_bytes,
    shared_columns,
    tensor_places,
)
from attncc.ir.schedule_walk import SAMPLES, walk_problems
from attncc.ir.tile import (
    COLUMN_FIRST,
    COLUMN_STEP,
    ELEMENT,
    REGISTER,
    SHARED,
    TILE_COUNT,
    TILE_LIST,
    ColLet,
    Let,
    Mask,
    RowLet,
    Score,
)

if TYPE_CHECKING:
    from attncc.targets import Target

ELEMENT_BYTES = {"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "i8": 1, "u8": 1, "i16": 2, "i32": 4, "i64": 8, "bool": 1}
WARP = 32
REPAIRING = (l3.Mma, Score, l3.SoftmaxStep, l3.Rescale, l3.Convert)
"""What a Repair may do."""
NAMED_BARRIERS = 15
"""Barriers of a block beside the one of all its threads."""
OVERHEAD_REGISTERS = 24
"""Registers a thread needs beside its tiles: addresses, counters, positions in rings."""


def check_schedule(schedule: l3.Schedule, target: Target | None = None) -> None:
    """Raises IllegalProgram unless `schedule` is legal; limits are those of `target`, not checked without one."""
    problems = [*_names(schedule), *_roles(schedule), *_barriers(schedule), *_channels(schedule), *_pairs(schedule)]
    if not problems:
        problems += [*_bindings(schedule), *walk_problems(schedule, SAMPLES)]
    if target is not None:
        problems += [*_memory(schedule, target), *_registers(schedule, target)]
    if problems:
        raise IllegalProgram(f"L3 {schedule.attention.name}", *dict.fromkeys(problems))


def _names(s: l3.Schedule) -> Iterator[str]:
    for what, items in (("buffer", s.buffers), ("channel", s.channels), ("barrier", s.barriers), ("role", s.roles)):
        names = [i.name for i in items]
        yield from (f"{what} {n} is declared twice" for n in sorted({n for n in names if names.count(n) > 1}))
    buffers, channels = {b.name for b in s.buffers}, {c.name for c in s.channels}
    barriers = {b.name for b in s.barriers} | {l3.BLOCK_BARRIER}
    fields = {
        "channel": channels, "barrier": barriers, "a": buffers, "b": buffers, "dst": buffers, "src": buffers,
        "scores": buffers, "weights": buffers, "row_max": buffers, "row_sum": buffers, "correction": buffers,
        "factor": buffers, "accumulator": buffers, "sums": buffers,
    }  # fmt: skip
    for role in s.roles:
        for op in operations(role.body):
            for field, known in fields.items():
                name = getattr(op, field, None)
                if isinstance(name, str) and name not in known:
                    yield f"role {role.name}: {type(op).__name__} names {field} {name}, which is not declared"
    for b in s.buffers:
        if b.alias is not None and b.alias not in {o.name for o in s.buffers if o.space == b.space and o.alias is None}:
            yield f"buffer {b.name} shares the memory of {b.alias}, which is no {b.space} buffer with memory of its own"


def _roles(s: l3.Schedule) -> Iterator[str]:
    taken: dict[int, str] = {}
    for role in s.roles:
        for warp in range(role.first_warp, role.first_warp + role.warps):
            if warp in taken:
                yield f"warp {warp} belongs to roles {taken[warp]} and {role.name}"
            taken[warp] = role.name
        if role.groups < 1 or role.warps % role.groups:
            yield f"role {role.name}: {role.warps} warps do not make {role.groups} groups"
        if role.rows_per_group and role.rows_per_group * role.groups != s.tile_m:
            yield f"role {role.name}: {role.groups} groups of {role.rows_per_group} rows are not the {s.tile_m} rows of a tile"
    if s.threads != len(taken) * WARP:
        yield f"the block has {s.threads} threads, its roles {len(taken) * WARP}"


def _barriers(s: l3.Schedule) -> Iterator[str]:
    if sum(b.copies for b in s.barriers) > NAMED_BARRIERS:
        yield f"{sum(b.copies for b in s.barriers)} named barriers; there are {NAMED_BARRIERS}"
    for b in s.barriers:
        if b.threads % WARP or not 0 < b.threads <= s.threads:
            yield f"barrier {b.name} is for {b.threads} threads, not a whole number of the block's {s.threads // WARP} warps"


def _channels(s: l3.Schedule) -> Iterator[str]:
    roles = {r.name: r for r in s.roles}
    for c in s.channels:
        if c.kind not in l3.CHANNEL_KINDS or not {c.producer, *c.consumers} <= set(roles):
            yield f"channel {c.name}: kind {c.kind}, from {c.producer} to {' and '.join(c.consumers)}"
            continue
        buffer = next((b for b in s.buffers if b.name == c.buffer), None)
        if buffer is None or buffer.stages != c.stages or c.stages < 1:
            yield f"channel {c.name} has {c.stages} stages, its buffer {c.buffer} {buffer.stages if buffer else 'none'}"
            continue
        size = buffer.rows * buffer.cols * ELEMENT_BYTES[buffer.dtype]
        bytes_due = {"tma": size}.get(c.kind, 0)
        arrivals_due = 0 if c.kind == "cp_async" else 1 if c.private else sum(roles[name].groups for name in c.consumers)
        if c.bytes != bytes_due:
            yield f"channel {c.name} counts {c.bytes} bytes a stage, {bytes_due} arrive"
        if c.arrivals != arrivals_due:
            yield f"channel {c.name} is emptied by {c.arrivals} arrivals, {arrivals_due} groups release it"
        if c.kind == "cp_async" and c.producer != c.consumer:
            yield f"channel {c.name}: only the role that copies ({c.producer}) sees its own cp.async copies"
        yield from _users(s, c)


def _pairs(s: l3.Schedule) -> Iterator[str]:
    """What the two blocks of a pair must agree on."""
    workers = {r.name for r in s.roles if r.pair}
    if s.cluster not in (1, 2) or (s.cluster == 1) != (not workers):
        yield f"clusters of {s.cluster} blocks, with {len(workers)} roles that work for a pair"
    for c in s.channels:
        ends = [name in workers for name in (c.producer, *c.consumers)]
        if c.pair != any(ends):
            yield f"channel {c.name} is {'' if c.pair else 'not '}for a pair, its roles {c.producer} and {' and '.join(c.consumers)} are not alike"
        if c.pair and (all(ends) or c.second is not None):
            yield f"channel {c.name} connects a role that works for a pair with more than the roles of one kind in each block"
    for role in s.roles if s.cluster > 1 else ():
        yield from _pair_products(s, role)
    for seq_q, seq_kv in SAMPLES if s.cluster > 1 else ():
        env = {"batch": 1, "seq_q": seq_q, "seq_kv": seq_kv, "q_tiles": -(-seq_q // s.tile_m)}
        if number(s.grid[0], env) % s.cluster:
            yield f"{seq_q} queries make an odd number of blocks"


def _pair_products(s: l3.Schedule, role: l3.Role) -> Iterator[str]:
    """Products for a pair find half of their second operand in each block."""
    buffers = {b.name: b for b in s.buffers}
    for op in operations(role.body):
        if isinstance(op, l3.Mma) and {op.a, op.b, op.dst} <= set(buffers):
            held = buffers[op.b].rows if op.transposed else buffers[op.b].cols
            if not role.pair:
                yield f"role {role.name} multiplies for its own block, beside a role that works for a pair"
            elif held * s.cluster != buffers[op.dst].cols:
                yield f"role {role.name}: {op.dst} has {buffers[op.dst].cols} columns, {op.b} {held} in each block of a pair"


def _users(s: l3.Schedule, c: l3.Channel) -> Iterator[str]:
    """Operations on a channel by a role that has no part in it."""
    for role in s.roles:
        for op in operations(role.body):
            if getattr(op, "channel", None) != c.name:
                continue
            ends = (c.producer,) if isinstance(op, (l3.Acquire, l3.Copy, l3.Commit, l3.Drain)) else c.consumers
            if role.name not in ends:
                yield f"role {role.name} does {type(op).__name__} on channel {c.name}, which is for {' and '.join(ends)}"


def _bindings(s: l3.Schedule) -> Iterator[str]:
    a = s.attention
    outer = {*SIZE_VARIABLES, *(x.name for x in a.scalars)}
    known = {t.name for t in a.tensors} | ({TILE_COUNT, TILE_LIST} if s.table is not None else set())
    at_grid = outer | {op.name for op in s.prelude} | {"q_tiles"}
    for e in s.grid:
        yield from (f"the grid reads {n}, which is not known there" for n in _unknown(e, at_grid))
    bound = outer | set(l3.BLOCK_VARIABLES) | ({l3.PAIR_VARIABLE} if s.cluster > 1 else set())
    for op in s.prelude:
        yield from (f"the prelude's {op.name} reads {n} before it is bound" for n in sorted(names_read(op) - bound) if _plain(n))
        bound.add(op.name)
    for role in s.roles:
        rows = {"q_idx"} if role.rows_per_group else set()
        yield from _body_bindings(role.name, role.body, bound | {l3.GROUP_VARIABLE} | rows | fetched_names(role.body))
        yield from _fetches(role)
        yield from _repairs(role)
        for op in operations(role.body):
            for e in expressions(op):
                yield from (f"role {role.name} reads tensor {t}, which is not declared" for t in tensors(e) - known)


def _fetches(role: l3.Role) -> Iterator[str]:
    """What is fetched ahead is an element for each column, and only what stages numbers of columns reads it."""
    fetched = fetched_names(role.body)
    rows = {op.name for op in operations(role.body) if isinstance(op, RowLet)} | {"q_idx"}
    for op in operations(role.body):
        if isinstance(op, l3.ColFetch):
            names = variables(op.expr)
            direct = op.expr.op == "load" and not any(n.op == "load" for a in op.expr.args for n in walk(a))
            if not direct or not names & {"kv_idx", COLUMN_FIRST} or names & (rows | fetched | {"kv_tile"}):
                yield f"role {role.name}: {op.name} fetches {op.expr}, which is not one element of a tensor for each column"
        elif names_read(op) & fetched and not (isinstance(op, ColLet) and op.space == SHARED and op.slot is None):
            yield f"role {role.name}: {type(op).__name__} reads {min(names_read(op) & fetched)}, which is fetched for numbers of columns in shared memory"


def _repairs(role: l3.Role) -> Iterator[str]:
    """One warp alone repairs: it cannot meet others there, start anything, or move on in a ring."""
    for op in operations(role.body):
        if isinstance(op, l3.Repair):
            for o in operations(op.body):
                if not isinstance(o, REPAIRING) or (isinstance(o, l3.Mma) and o.asynchronous):
                    yield f"role {role.name}: {type(o).__name__} in the repair of {op.sums}, which single warps do"
        elif isinstance(op, l3.SoftmaxStep) and (op.keeps and op.sums is None or op.first and op.sums is not None):
            yield f"role {role.name}: a softmax step that {'begins rows' if op.first else 'keeps maxima'} with sums {op.sums or 'nowhere'}"
        elif isinstance(op, l3.SoftmaxStep) and op.keeps and not _repaired(op.sums, role):
            yield f"role {role.name}: nothing repairs the rows of {op.sums}"


def _repaired(sums: str, role: l3.Role) -> bool:
    return any(isinstance(o, l3.Repair) and o.sums == sums for o in operations(role.body))


def _plain(name: str) -> bool:
    """Whether a variable must be bound by the program (extents of tensors are always there)."""
    return not name.startswith("__extent_")


def _unknown(e, known: set[str]) -> list[str]:
    return sorted(n for n in variables(e) - known if _plain(n))


def _body_bindings(role: str, body: tuple, bound: set[str]) -> Iterator[str]:
    bound = set(bound)
    for op in body:
        inside = {ELEMENT} if isinstance(op, (Score, Mask)) else set()
        if "kv_tile" in bound:
            inside |= {"kv_idx", COLUMN_FIRST, COLUMN_STEP}
        missing = sorted(n for n in names_read(op) - bound - inside if _plain(n))
        yield from (f"role {role}: {type(op).__name__} reads {n}, which is not bound there" for n in missing)
        if isinstance(op, (Let, RowLet, ColLet)):
            bound.add(op.name)
        elif isinstance(op, l3.For):
            yield from _body_bindings(role, op.body, bound | {op.counter})
        elif isinstance(op, (l3.If, l3.ForParts, l3.Repair)):
            yield from _body_bindings(role, op.body, bound)


def _memory(s: l3.Schedule, target: Target) -> Iterator[str]:
    used = shared_bytes(s, ELEMENT_BYTES.__getitem__)
    if used > target.shared_limit:
        yield f"{used} bytes of shared memory; a block may have {target.shared_limit}"
    spaces = {b.space for b in s.buffers} - set(target.memory_spaces)
    yield from (f"target {target.name} has no {space} memory" for space in sorted(spaces))
    yield from _tensor_memory(s, target)
    if s.cluster > 1 and not target.has("mma_pairs"):
        yield f"target {target.name} has no products for pairs of blocks"
    if s.threads > target.max_threads:
        yield f"{s.threads} threads; a block may have {target.max_threads}"


def _tensor_memory(s: l3.Schedule, target: Target) -> Iterator[str]:
    """Places past the last column, and places of two buffers that share columns though neither lies over the other."""
    places = tensor_places(s)
    for (name, part), (begin, end) in places.items():
        if begin < 0 or end > target.tensor_columns:
            yield f"{name} of part {part} takes columns {begin} to {end} of tensor memory; there are {target.tensor_columns}"
    owner = {b.name: b.alias or b.name for b in s.buffers}
    for a, b in shared_columns(places):
        if owner[a[0]] != owner[b[0]] or a[1] != b[1]:
            yield f"{a[0]} of part {a[1]} and {b[0]} of part {b[1]} share columns of tensor memory"


def _registers(s: l3.Schedule, target: Target) -> Iterator[str]:
    launch = min(target.registers_thread, target.registers_sm // (s.threads * s.blocks_per_sm) // 8 * 8)
    total = sum(r.warps * WARP * (r.registers or launch) for r in s.roles)
    if total > target.registers_sm:
        yield f"the roles' budgets take {total} registers; there are {target.registers_sm}"
    for role in s.roles:
        counts = [op.count for op in operations(role.body) if isinstance(op, l3.SetRegisters)]
        if counts != ([] if role.registers is None else [role.registers]):
            yield f"role {role.name} has a budget of {role.registers} registers and sets {counts}"
        need = register_need(s, role)
        have = role.registers or launch
        if role.registers is not None and need + (OVERHEAD_REGISTERS if role.rows_per_group else 0) > have:
            yield f"role {role.name} holds {need} registers of tiles a thread and has a budget of {have}"


def register_need(s: l3.Schedule, role: l3.Role) -> int:
    """Registers of a thread that the role's tiles take, all alive at once."""
    used = {name for op in operations(role.body) for name in _buffer_names(op)}
    threads = role.warps * WARP // role.groups
    tiles = [b for b in s.buffers if b.name in used and b.space == REGISTER and b.cols > 1]
    return sum(b.rows * b.cols * ELEMENT_BYTES[b.dtype] // 4 // threads for b in tiles)


def _buffer_names(op) -> tuple[str, ...]:
    return buffers_read(op) + buffers_written(op)
