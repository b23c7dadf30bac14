"""Starts the longest query tiles first, where later query tiles have more key tiles (causal masks).

    before  grid = (q_tiles, heads_q, batch)     q_tile = block_x; h = block_y; b = block_z
    after   grid = (heads_together, q_tiles, batch * sections)
            q_tile = q_tiles - 1 - block_y, and block_y in every second section, the last one descending
            h = block_z % sections * heads_together + block_x; b = block_z // sections

Blocks start in the order of their indices: long tiles go first and short ones fill the end (longest processing time first,
Graham 1969). Heads are taken in sections, so that the blocks that run at a time share few streams of keys and values: neighbouring query
tiles of a head start together and read the same keys from the L2 cache at about the same time. Every second section is taken in ascending order, so that costs change steadily from one section to the next: where a
block works on several tiles (persistent_blocks) that keeps blocks even. Without this pass blocks start in the order of the rows, and the last to start are the longest.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.expr import ONE, ZERO, Expr, add, apply, const, floordiv, mul, select, sub, var
from attncc.ir.packing import GRID_TILES
from attncc.ir.schedule_ops import compute_role, number, operations
from attncc.ir.simplify import simplify
from attncc.ir.tile import Let
from attncc.lower.tile_to_schedule import TOTAL

SAMPLE = 4096
"""The length at which the work of the first and the last query tile are compared."""
STREAMS = 16
"""Key/value heads of a section: with 132 blocks at a time eight read each stream."""


def tile_order(schedule: l3.Schedule) -> l3.Schedule:
    """`schedule` with the query tiles in descending order when the last has more key tiles than the first."""
    tiles = -(-SAMPLE // schedule.tile_m)
    first, last = (key_tiles(schedule, SAMPLE, SAMPLE, tile) for tile in (0, tiles - 1))
    if first is None or last is None or last <= first:
        return schedule
    together = heads_together(schedule)
    sections = schedule.attention.heads_q // together
    section = simplify(sub(sub(mul(var("batch"), const(sections)), ONE), var("block_z")))
    tiles = var(GRID_TILES if schedule.attention.packed else "q_tiles")
    places = {
        "q_tile": select(apply("eq", apply("mod", section, const(2)), ZERO), sub(sub(tiles, ONE), var("block_y")), var("block_y")),
        "h": add(mul(apply("mod", var("block_z"), const(sections)), const(together)), var("block_x")),
        "b": floordiv(var("block_z"), const(sections)),
    }
    prelude = tuple(Let(op.name, simplify(places.get(op.name, op.expr))) for op in schedule.prelude)
    grid = (const(together), var("q_tiles"), simplify(mul(var("batch"), const(sections))))
    return dataclasses.replace(schedule, grid=grid, prelude=prelude)


def heads_together(schedule: l3.Schedule) -> int:
    """Query heads of a section: those of the largest number of key/value heads that divides theirs and is no more than STREAMS."""
    a = schedule.attention
    return a.group * max(n for n in range(1, min(STREAMS, a.heads_kv) + 1) if a.heads_kv % n == 0)


def key_tiles(schedule: l3.Schedule, seq_q: int, seq_kv: int, q_tile: int, head: int = 0) -> int | None:
    """Key tiles of a query tile of one head; None when that depends on tensors or run-time scalars."""
    env = {"seq_q": seq_q, "seq_kv": seq_kv, "off": seq_kv - seq_q, "batch": 1, "b": 0, "q_tile": q_tile}
    env |= {"h": head, "hkv": head // schedule.attention.group}
    lets = [op for op in (*schedule.prelude, *operations(compute_role(schedule).body)) if isinstance(op, Let)]
    for let in lets:
        try:
            env.setdefault(let.name, number(let.expr, env))
        except KeyError:
            continue  # a block index, a tensor, or a name that needs one
        if let.name == TOTAL:
            return env[TOTAL]
    return None
