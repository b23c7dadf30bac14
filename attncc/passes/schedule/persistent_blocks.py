"""Lets a block work on several query tiles, so that the next one's copies run under the end of the present one.

    before  grid = (x, y, z)                           role producer { copy Q; copy K, V ... }
                                                       role consumer { wait Q; ...; finalize O; convert OUT; store OUT; store_wait }
    after   grid = (min(x * y * z, blocks that are resident) for short rows, else x * y * z, 1, 1); channel Q: 2 stages
            role producer { for each work tile { place; copy Q; copy K, V ... } }
            role consumer { for each work tile { place; wait Q; ...; release Q; finalize O; store_wait; convert OUT; store OUT } store_wait }

(FlashAttention-3, section 3; "persistent" kernels.) A query tile costs some microseconds outside its loop: the block's start, first copies,
the output. The copying role now goes on to the next tile as soon as its stages are free. Work tiles keep the order of the grid. Where costs are
alike they are dealt to the blocks round by round, a block's place moving on from round to round, so that the cut tiles at the ends of sequences do not all
come to the same blocks; where costs fall steadily (tile_order), and with tensor memory, forwards and backwards in turn, so that every block gets as much. The output gets shared
memory of its own where there is some left. Then Q can be copied under it, into a second copy where that fits as well (without tensor memory: there groups wait for
each other's Q and for its copy at the start of a tile, 2400 of 31000 cycles at 1024 keys and head dim 128; docs/performance-log.md); else Q is released when the
output has been stored out of its memory.

With tensor memory, four roles (FlashAttention-4):

    before  role correction { acquire TO; TO := 0; ...; OUT := TO * FACTOR; store OUT; store_wait }
            role issuer     { wait Q; S := Q K^T ...; O += P V }
    after   role correction { acquire TO; for each work tile { place; TO := 0; ...; wait Q; OUT := TO * FACTOR; store OUT; store_wait; release Q } }
            role issuer     { for each work tile { place; wait Q; S := Q K^T ...; release Q; O += P V } }
            role queries    { for each work tile { place; copy Q } }                          (where the output lies over Q)

Rings between roles go on from tile to tile: each is filled and emptied equally often for a tile, also for one without keys, but for the sums TO,
which the correction takes once and has again at each tile's end. Q is waited for in any case and released behind the last product
that reads it. With memory of its own for the output (a third stage of K and V gives way to it) the copy of Q, the first products of
a tile and its first softmax run under the last products, the correction's last factor and the store of the tile before; products into TO wait for
those. With the output over Q the correction must release Q too, when the store has read it, and a role of its own copies Q, so that
the first K and V of the next tile come meanwhile; products wait.

Blocks of a pair (pair_blocks) are dealt neighbours in every round, since a row of the grid has an even number of tiles. Where the output would lie over Q
they work on one tile each: a pair's copies of Q tell the first block only, and the role that stores waits in its own.

Asks for: roles, tma_store. Done where the costs of all query tiles are known to be alike, or to rise from the first to the last (tables of tiles,
packed sequences and tiles of heads that differ are not); elsewhere the hardware hands out blocks as others end, which balances any cost.
Whether it pays is measured for each shape of the loop (`Target.manners`). On Hopper, where nothing is masked and scores cost nothing, it gains 8 % at head dim 128 and
1024 keys, 3 % at 4096, nothing at 16384 (head dims 64 and 96: 11 and 10 % at 1024, nothing at 8192, so longer rows have a block for each tile). Where costs fall it gains 0 to 3 % at the lengths of tables, but a deal made
beforehand can go wrong: where a round of blocks is near a multiple of two sequences' tiles the same blocks get the long ones every time (16 heads, 7 x 1500 keys: 22 to 28 %
slower, head dim 256 at 16 x 1024 36 %), so there the hardware hands out blocks. Scores that cost something lost 2 to 8 %. Where nothing was measured the resource model decides (`model.gains_by_several`). Without this pass
each block works on one tile.
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
from attncc.ir.schedule_ops import compute_role, operations, remark, replace_role, role_named, shared_bytes
from attncc.ir.simplify import simplify
from attncc.ir.tile import BLOCK, SHARED, Finalize, Let, Store
from attncc.passes.schedule.narrow_groups import always
from attncc.passes.schedule.pipeline_stages import looped_channels, with_stages
from attncc.passes.schedule.tile_order import has_like_costs, has_steady_costs, takes_several
from attncc.targets import Target
from attncc.targets.fit import hints, shared_room

WORK_TILES, BLOCKS, ROUNDS, ROUND, WORK = "work_tiles", "blocks", "rounds", "round", "work"
QUERIES = "queries"
"""The role that copies Q where that waits for the output."""
TURN = 31
"""How far a block's place moves on from round to round. Added to 132 blocks it makes a prime, so that no number of tiles a sequence
brings a block back to the same one."""
SHORT = 4096
"""Keys up to which blocks of two roles work on several tiles. Longer rows gain nothing (docs/performance-log.md), and the hardware balances them better."""
LEAST_STAGES = 2
"""Copies of K and V that are kept when the output looks for room."""


def persistent_blocks(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with a loop over work tiles in every role; unchanged where their costs are not known beforehand."""
    if not (takes_several(schedule, target) and target.has("tma_store") and has_steady_costs(schedule)):
        return schedule
    q, out = _q_channel(schedule), _stored(schedule)
    divided = target.has("tensor_memory")
    if q is None or out is None or len(schedule.roles) != (4 if divided else 2):
        return schedule
    before, schedule = schedule, _apart(schedule, out, target)
    if schedule.cluster > 1 and schedule.buffer(out).alias is not None:
        return before
    schedule = _of_four_roles(schedule, q, out) if divided else _of_two_roles(_ahead(schedule, q, out, target), q, out)
    shared, place = _split_prelude(schedule.prelude)
    dealt = _in_turn() if has_like_costs(before) and not divided else _back_and_forth()
    roles = tuple(dataclasses.replace(r, body=_loop(r.body, place, schedule.grid, dealt)) for r in schedule.roles)
    total = simplify(mul(mul(schedule.grid[0], schedule.grid[1]), schedule.grid[2]))
    resident = const(target.rates.sms * schedule.blocks_per_sm // schedule.cluster * schedule.cluster)

    def blocks(tiles):
        few = minimum(tiles, resident)
        return few if divided else select(apply("le", var("seq_kv"), const(SHORT)), few, tiles)

    lets = (
        Let(WORK_TILES, total),
        Let(BLOCKS, blocks(var(WORK_TILES))),
        Let(ROUNDS, floordiv(sub(add(var(WORK_TILES), var(BLOCKS)), ONE), apply("max", var(BLOCKS), ONE))),
    )
    return dataclasses.replace(schedule, grid=(blocks(total), ONE, ONE), prelude=(*shared, *lets), roles=roles)


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
    stores = (op for role in schedule.roles for op in operations(role.body) if isinstance(op, Store) and op.asynchronous)
    return next((op.src for op in stores if schedule.buffer(op.src).space == SHARED), None)


def _apart(schedule: l3.Schedule, out: str, target: Target) -> l3.Schedule:
    """`schedule` with memory of its own for the output where that fits, if need be in the place of a third copy of K and V, which nobody
    asked for by a hint."""
    buffers = tuple(dataclasses.replace(b, alias=None) if b.name == out else b for b in schedule.buffers)
    apart = dataclasses.replace(schedule, buffers=buffers)
    room = shared_room(target, schedule.attention, schedule.tile_m, schedule.tile_n)
    if shared_bytes(apart, bytes_of) <= room:
        return apart
    rings = frozenset(n for n in looped_channels(schedule) if schedule.channel(n).kind == "tma" and not n.startswith(BLOCK))
    most = max(schedule.channel(n).stages for n in rings)
    for stages in range(most - 1, LEAST_STAGES - 1, -1) if hints(schedule.attention, target).stages is None else ():
        fewer = with_stages(apart, rings, stages)
        if shared_bytes(fewer, bytes_of) <= room:
            return remark(fewer, "persistent_blocks", f"{stages} stages of K and V, not {most}: the output has memory of its own")
    return schedule


def _ahead(schedule: l3.Schedule, q: str, out: str, target: Target) -> l3.Schedule:
    """`schedule` with a second copy of Q where the output has memory of its own and there is room: the next tile's Q comes under the present
    tile's loop, and no group waits for the others to begin the next."""
    twice = with_stages(schedule, frozenset({q}), 2)
    fits = shared_bytes(twice, bytes_of) <= shared_room(target, schedule.attention, schedule.tile_m, schedule.tile_n)
    return twice if fits and schedule.buffer(out).alias is None else schedule


def _of_two_roles(schedule: l3.Schedule, q: str, out: str) -> l3.Schedule:
    """What the roles do for one of several tiles, where the computing role stores the output."""
    over_q = schedule.buffer(out).alias is not None
    consumer = compute_role(schedule)
    producer = role_named(schedule, schedule.channel(q).producer)
    body = _end_with_release(consumer.body, q) if over_q else (*_release_early(consumer.body, q, out), l3.StoreWait())
    return replace_role(replace_role(schedule, consumer, body=body), producer, body=always(producer.body, q))


def _of_four_roles(schedule: l3.Schedule, q: str, out: str) -> l3.Schedule:
    """As `_of_two_roles`, where products go to tensor memory: its rings go on from tile to tile."""
    channel, over_q = schedule.channel(q), schedule.buffer(out).alias is not None
    issuer, copier = role_named(schedule, channel.consumer), role_named(schedule, channel.producer)
    storing = next(r for r in schedule.roles if any(_writes(op, out) for op in r.body))
    schedule = replace_role(schedule, issuer, body=_release_after_products(always(issuer.body, q), q, channel.buffer))
    schedule = replace_role(schedule, storing, body=_taken_once(_over(storing.body, q, out) if over_q else _beside(storing.body, out)))
    copying = always(copier.body, q)
    if not over_q:
        return replace_role(schedule, copier, body=copying)
    queries = tuple(op for op in copying if getattr(op, "channel", None) == q)
    rest = tuple(op for op in copying if op not in queries)
    schedule = replace_role(schedule, copier, warps=1, body=rest)
    second = dataclasses.replace(copier, name=QUERIES, first_warp=copier.first_warp + 1, warps=copier.warps - 1, body=queries)
    shared = dataclasses.replace(channel, producer=QUERIES, second=storing.name, arrivals=channel.arrivals + storing.groups)
    channels = tuple(shared if c is channel else c for c in schedule.channels)
    return dataclasses.replace(schedule, channels=channels, roles=(*schedule.roles, second))


def _writes(op, out: str) -> bool:
    return any(isinstance(o, l3.Convert) and o.dst == out for o in operations((op,)))


def _release_after_products(body: tuple, q: str, buffer: str) -> tuple:
    """Q is released behind the last product that reads it, also where there is none: the products that end the tile stand apart."""
    new: list = []
    for op in body:
        reads = [i for i, o in enumerate(getattr(op, "body", ())) if any(isinstance(p, l3.Mma) and p.a == buffer for p in operations((o,)))]
        if not reads:
            new.append(op)
            continue
        cut = reads[-1] + 1
        new += [dataclasses.replace(op, body=op.body[:cut]), l3.Release(q), dataclasses.replace(op, body=op.body[cut:])]
    return tuple(new)


def _taken_once(body: tuple) -> tuple:
    """What a role takes from its rings at first it has again at the end of a tile: it takes it once, before all tiles."""
    first, rest = body[0], body[1:]
    taken = tuple(op for op in first.body if isinstance(op, l3.Acquire))
    left = tuple(op for op in first.body if op not in taken)
    return (dataclasses.replace(first, body=taken), dataclasses.replace(first, body=left), *rest)


def _over(body: tuple, q: str, out: str) -> tuple:
    """The output lies over Q: it waits for this tile's Q, whose memory is free again when the output has been read."""
    new: list = []
    for op in body:
        new += [l3.Wait(q), op] if _writes(op, out) else [op]
        new += [l3.Release(q)] if isinstance(op, l3.StoreWait) else []
    return tuple(new)


def _beside(body: tuple, out: str) -> tuple:
    """The output has memory of its own: it waits until that of the tile before has been read, which the role's warps hear of one by one."""
    new: list = []
    for op in body:
        if _writes(op, out):
            new += [l3.StoreWait(), next(o for o in operations((op,)) if isinstance(o, l3.Sync))]
        new += [] if isinstance(op, l3.StoreWait) else [op]
    return (*new, l3.StoreWait())


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


def _back_and_forth():
    """Which work tile of a round a block has: every second round from the other end, so that of costs that fall every block gets as much."""
    backwards = sub(sub(var(BLOCKS), ONE), var("block_x"))
    return select(apply("eq", apply("mod", var(ROUND), const(2)), ZERO), var("block_x"), backwards)


def _in_turn():
    """Which work tile of a round a block has where costs are alike: another place in every round, so that the tiles at the ends of sequences,
    which are short, do not all come to the same blocks."""
    return apply("mod", add(var("block_x"), mul(var(ROUND), const(TURN))), var(BLOCKS))


def _loop(body: tuple, place: tuple[Let, ...], grid: tuple, dealt) -> tuple:
    """`body` once for each work tile of the block; what a role does before it starts, and what it waits for last, stays outside."""
    start = next(i for i, op in enumerate(body) if not _comes_before(op))
    end = len(body) - (isinstance(body[-1], l3.StoreWait))
    across, down = grid[:2]
    row = floordiv(var(WORK), across)
    indices = dict(zip(l3.BLOCK_VARIABLES, (apply("mod", var(WORK), across), apply("mod", row, down), floordiv(row, down))))
    lets = tuple(Let(op.name, simplify(substitute(op.expr, indices))) for op in place)
    inner = l3.If(apply("lt", var(WORK), var(WORK_TILES)), (*lets, l3.Place(), *body[start:end]))
    work = Let(WORK, add(mul(var(ROUND), var(BLOCKS)), dealt))
    return (*body[:start], l3.For(ROUND, ZERO, var(ROUNDS), "work tiles", (work, inner)), *body[end:])


def _comes_before(op) -> bool:
    """Whether an operation gives the first turn, or takes what a ring gives at first."""
    kinds = {l3.If: l3.Arrive, l3.ForParts: l3.Acquire}
    return type(op) in kinds and all(isinstance(o, kinds[type(op)]) for o in op.body)
