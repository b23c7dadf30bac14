"""Lets a block work on several query tiles, so that the next one's copies run under the end of the present one.

    before  grid = (x, y, z)                           role producer { copy Q; copy K, V ... }
                                                       role consumer { wait Q; ...; finalize O; convert OUT; store OUT; store_wait }
    after   grid = (min(x * y * z, blocks that are resident), 1, 1)
            role producer { for each work tile { place; copy Q; copy K, V ... } }
            role consumer { for each work tile { place; wait Q; ...; release Q; finalize O; store_wait; convert OUT; store OUT } store_wait }

(FlashAttention-3, section 3; "persistent" kernels.) A query tile costs some microseconds outside its loop: the block's start, first copies,
the output. The copying role now goes on to the next tile as soon as its stages are free. Work tiles keep the order of the grid; round by
round they are dealt to the blocks forwards and backwards in turn, so that with costs that fall steadily (tile_order) every
block gets as much. The output gets shared memory of its own where there is some left, and Q can be copied under it; else Q is released when the
output has been stored out of its memory.

Asks for: roles, tma_store. Done where the costs of all query tiles are known to be alike, or to rise from the first to the last;
elsewhere the hardware hands out blocks as others end, which balances any cost. Whether it pays is measured for each shape of the loop
(`Target.manners`): it gains 1 to 3 % at head dims 64 and 256, and loses up to 5 % at 96 and 192/128. Without this pass each block works on one tile.
"""

from __future__ import annotations

import dataclasses

from attncc.formats import bytes_of
from attncc.ir import schedule as l3
from attncc.ir.expr import (
    ONE,
    ZERO,
    add,
    apply,
    const,
    floordiv,
    minimum,
    mul,
    select,
    sub,
    substitute,
    var,
    variables,
)
from attncc.ir.schedule_ops import compute_role, operations, replace_role, role_named, shared_bytes
from attncc.ir.simplify import simplify
from attncc.ir.tile import SHARED, Finalize, Let, Store
from attncc.passes.schedule.narrow_groups import always
from attncc.passes.schedule.tile_order import SAMPLE, key_tiles
from attncc.targets import Target

WORK_TILES, BLOCKS, ROUNDS, ROUND, WORK = "work_tiles", "blocks", "rounds", "round", "work"
ALIKE = 1.25
"""Costs that differ by no more than this factor count as alike."""


def persistent_blocks(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with a loop over work tiles in every role; unchanged where their costs are not known beforehand."""
    known = target.manner(schedule.attention.dim_qk, schedule.attention.dim_v, compute_role(schedule).groups)
    if not (known and known.several and target.has("tma_store")) or len(schedule.roles) != 2 or not has_steady_costs(schedule):
        return schedule
    q, out = _q_channel(schedule), _stored(schedule)
    if q is None or out is None:
        return schedule
    schedule = _apart(schedule, out, target)
    over_q = schedule.buffer(out).alias is not None
    consumer = compute_role(schedule)
    producer = role_named(schedule, schedule.channel(q).producer)
    computing = _end_with_release(consumer.body, q) if over_q else _release_early(consumer.body, q, out)
    copying = always(producer.body, q)
    after = () if over_q else (l3.StoreWait(),)
    shared, place = _split_prelude(schedule.prelude)
    schedule = replace_role(schedule, consumer, body=_loop(computing, place, schedule.grid, after))
    schedule = replace_role(schedule, producer, body=_loop(copying, place, schedule.grid, ()))
    total = simplify(mul(mul(schedule.grid[0], schedule.grid[1]), schedule.grid[2]))
    resident = const(target.rates.sms * schedule.blocks_per_sm)
    lets = (
        Let(WORK_TILES, total),
        Let(BLOCKS, minimum(var(WORK_TILES), resident)),
        Let(ROUNDS, floordiv(sub(add(var(WORK_TILES), var(BLOCKS)), ONE), apply("max", var(BLOCKS), ONE))),
    )
    return dataclasses.replace(schedule, grid=(minimum(total, resident), ONE, ONE), prelude=(*shared, *lets))


def has_steady_costs(schedule: l3.Schedule) -> bool:
    """Whether all query tiles of all heads have about as many key tiles, or more and more from the first to the last."""
    if schedule.table is not None or schedule.attention.packed:  # every packed sequence has a length of its own
        return False
    tiles = -(-SAMPLE // schedule.tile_m)
    heads = schedule.attention.heads_q
    costs = [[key_tiles(schedule, SAMPLE, SAMPLE, t, h) for t in range(tiles)] for h in sorted({0, heads // 2, heads - 1})]
    first = costs[0]
    if any(None in row for row in costs) or any(row != first for row in costs):
        return False
    return first == sorted(first) or max(first) <= ALIKE * min(first)


def _split_prelude(prelude: tuple[Let, ...]) -> tuple[tuple[Let, ...], tuple[Let, ...]]:
    """What is the same for all work tiles, and what depends on the block's indices."""
    moving = set(l3.BLOCK_VARIABLES)
    shared, place = [], []
    for op in prelude:
        depends = bool(variables(op.expr) & moving)
        (place if depends else shared).append(op)
        moving |= {op.name} if depends else set()
    return tuple(shared), tuple(place)


def _q_channel(schedule: l3.Schedule) -> str | None:
    """The channel that is filled once for a query tile."""
    outside = [op.channel for role in schedule.roles for op in _outside_loops(role.body) if isinstance(op, l3.Copy)]
    return outside[0] if len(outside) == 1 else None


def _outside_loops(body: tuple):
    for op in body:
        yield op
        if isinstance(op, l3.If):
            yield from _outside_loops(op.body)


def _stored(schedule: l3.Schedule) -> str | None:
    """The shared buffer that the output leaves from."""
    stores = (op for op in operations(compute_role(schedule).body) if isinstance(op, Store) and op.asynchronous)
    return next((op.src for op in stores if schedule.buffer(op.src).space == SHARED), None)


def _apart(schedule: l3.Schedule, out: str, target: Target) -> l3.Schedule:
    """`schedule` with memory of its own for the output where that fits."""
    buffers = tuple(dataclasses.replace(b, alias=None) if b.name == out else b for b in schedule.buffers)
    apart = dataclasses.replace(schedule, buffers=buffers)
    return apart if shared_bytes(apart, bytes_of) <= target.shared_limit else schedule


def _release_early(body: tuple, q: str, out: str) -> tuple:
    """Q is released after the loops; the output waits until the one before it has left."""
    new: list = []
    for op in always(body, q):
        if isinstance(op, Finalize):
            new.append(l3.Release(q))
        if isinstance(op, l3.Convert) and op.dst == out:
            new.append(l3.StoreWait())
        if not isinstance(op, l3.StoreWait):
            new.append(op)
    return tuple(new)


def _end_with_release(body: tuple, q: str) -> tuple:
    """The output lies over Q: Q is waited for in any case, and released when the output has been read."""
    out: list = []
    for op in always(body, q):
        out.append(op)
        if isinstance(op, l3.StoreWait):
            out.append(l3.Release(q))
    return tuple(out)


def _loop(body: tuple, place: tuple[Let, ...], grid: tuple, after: tuple) -> tuple:
    """`body` once for each work tile of the block; what a role does before it starts (giving the first turn) stays outside."""
    start = next(i for i, op in enumerate(body) if not (isinstance(op, l3.If) and all(isinstance(o, l3.Arrive) for o in op.body)))
    across, down = grid[:2]
    row = floordiv(var(WORK), across)
    indices = dict(zip(l3.BLOCK_VARIABLES, (apply("mod", var(WORK), across), apply("mod", row, down), floordiv(row, down))))
    lets = tuple(Let(op.name, simplify(substitute(op.expr, indices))) for op in place)
    inner = l3.If(apply("lt", var(WORK), var(WORK_TILES)), (*lets, l3.Place(), *body[start:]))
    backwards = sub(sub(var(BLOCKS), ONE), var("block_x"))
    dealt = select(apply("eq", apply("mod", var(ROUND), const(2)), ZERO), var("block_x"), backwards)
    work = Let(WORK, add(mul(var(ROUND), var(BLOCKS)), dealt))
    return (*body[:start], l3.For(ROUND, ZERO, var(ROUNDS), "work tiles", (work, inner)), *after)
