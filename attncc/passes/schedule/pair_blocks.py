"""Lets two neighbouring blocks work together: one instruction multiplies for both, and each holds half of every key tile.

    before  grid = (q_tiles, heads_q, batch)
            buffer K rows=128, cols=192       role producer { ... acquire K; copy K tile=kv_tile; commit K; copy V tile=kv_tile ... }
            buffer V rows=128, cols=128       role issuer   { wait K; acquire TS; TS := Q K^T; commit TS; release K ... }
    after   grid = ((q_tiles + 1) // 2 * 2, heads_q, batch), cluster = 2
            buffer K rows=64,  cols=192       role producer { ... acquire K; copy K tile=kv_tile * 2 + pair_half; commit K;
            buffer V rows=128, cols=64                        copy V tile=kv_tile, column=pair_half ... }
            channels of the issuer: pair      role issuer, pair { the same, in the first block, for both }

(CTA pairs of Blackwell's tensor cores; FlashAttention-4 does so for the same head dims.) The second operand of a product is read from
shared memory for 128 rows of the first; for the 256 rows of a pair it is read once, half of it in each block. So shared memory is read half as
often, copies bring half as much to each multiprocessor, and a stage of K and V takes half the room: more of them fit. The rows of
the other block of a last pair may lie past the end, where copies give zeros and stores do nothing.

Asks for: mma_pairs. Done where the resource model finds that it gains (`paired_tiles`: head dims from 128 on, all query tiles of a head having as
many key tiles). Without this pass each block works alone.
"""

from __future__ import annotations

import dataclasses

from attncc.formats import bytes_of
from attncc.ir import schedule as l3
from attncc.ir.expr import ONE, add, const, floordiv, mul, var
from attncc.ir.schedule_ops import operations, remark, rewrite, shared_bytes
from attncc.ir.simplify import simplify
from attncc.ir.tile import TENSOR
from attncc.passes.schedule.pipeline_stages import looped_channels, with_stages
from attncc.targets import Target
from attncc.targets.fit import hints, shared_room
from attncc.targets.tiles import paired_tiles

BLOCKS = 2


def pair_blocks(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` for pairs of blocks; unchanged where they would gain too little, or where products do not go to tensor memory."""
    tiles = paired_tiles(schedule.attention, target) if target.has("mma_pairs") else None
    if tiles is None or (schedule.tile_m, schedule.tile_n) != (tiles.tile_m, tiles.tile_n):
        return schedule
    issuer = next((r for r in schedule.roles if _issues(schedule, r)), None)
    return schedule if issuer is None else in_pairs(schedule, issuer, target)


def in_pairs(schedule: l3.Schedule, issuer: l3.Role, target: Target) -> l3.Schedule:
    """`schedule` for pairs of blocks, with `issuer` working for both."""
    products = {op.b: op for op in operations(issuer.body) if isinstance(op, l3.Mma)}
    halves = {c.name: products[c.buffer] for c in schedule.channels if c.buffer in products}
    buffers = tuple(_half(b, products[b.name]) if b.name in products else b for b in schedule.buffers)
    channels = tuple(dataclasses.replace(c, pair=issuer.name in (c.producer, *c.consumers)) for c in schedule.channels)
    roles = tuple(
        dataclasses.replace(r, body=rewrite(r.body, lambda op: (_own_half(op, halves),)), pair=r is issuer) for r in schedule.roles
    )
    across = simplify(mul(floordiv(add(schedule.grid[0], ONE), const(BLOCKS)), const(BLOCKS)))
    paired = dataclasses.replace(
        schedule, grid=(across, *schedule.grid[1:]), buffers=buffers, channels=channels, roles=roles, cluster=BLOCKS
    )
    paired = _deeper(paired, frozenset(halves) & looped_channels(paired), target)
    return remark(paired, "pair_blocks", "two blocks work together: each holds half of every tile of K and V")


def _issues(schedule: l3.Schedule, role: l3.Role) -> bool:
    return any(isinstance(op, l3.Mma) and schedule.buffer(op.dst).space == TENSOR for op in operations(role.body))


def _half(buffer: l3.Buffer, product: l3.Mma) -> l3.Buffer:
    """What a block holds of a second operand: half of the keys, or of the columns of the output."""
    if product.transposed:
        return dataclasses.replace(buffer, rows=buffer.rows // BLOCKS)
    return dataclasses.replace(buffer, cols=buffer.cols // BLOCKS)


def _own_half(op, halves: dict[str, l3.Mma]):
    """A copy of the block's own half."""
    if not isinstance(op, l3.Copy) or op.channel not in halves:
        return op
    half = var(l3.PAIR_VARIABLE)
    if halves[op.channel].transposed:
        return dataclasses.replace(op, tile=simplify(add(mul(op.tile, const(BLOCKS)), half)))
    return dataclasses.replace(op, column=half)


def _deeper(schedule: l3.Schedule, rings: frozenset[str], target: Target) -> l3.Schedule:
    """`schedule` with the bytes of half a tile, and as many stages as there is room for now."""
    halved = tuple(_sized(schedule, c) if c.name in rings else c for c in schedule.channels)
    best = dataclasses.replace(schedule, channels=halved)
    wanted = hints(schedule.attention, target).stages or target.stages
    for stages in range(1 + max(schedule.channel(n).stages for n in rings), wanted + 1):
        deeper = with_stages(best, rings, stages)
        if shared_bytes(deeper, bytes_of) > shared_room(target, schedule.attention, schedule.tile_m, schedule.tile_n):
            break
        best = deeper
    return best


def _sized(schedule: l3.Schedule, channel: l3.Channel) -> l3.Channel:
    buffer = schedule.buffer(channel.buffer)
    return dataclasses.replace(channel, bytes=buffer.rows * buffer.cols * bytes_of(buffer.dtype))
