"""Starts the longest query tiles first, where later query tiles have more key tiles (causal masks).

    before  grid = (q_tiles, heads_q, batch)     q_tile = block_x; h = block_y; b = block_z
    after   grid = (heads_q, batch, q_tiles)     q_tile = q_tiles - 1 - block_z; h = block_x; b = block_y

Blocks start in the order of their indices, so long tiles of all heads go first and short ones fill the end (longest
processing time first, Graham 1969). Without this pass blocks start in the order of the rows, and the last to start are the longest.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.expr import ONE, const, sub, var
from attncc.ir.schedule_ops import compute_role, number, operations
from attncc.ir.tile import Let
from attncc.lower.tile_to_schedule import TOTAL
from attncc.targets import Target

SAMPLE = 4096
"""The length at which the work of the first and the last query tile are compared."""


def tile_order(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with the query tiles in descending order when the last has more key tiles than the first."""
    tiles = -(-SAMPLE // schedule.tile_m)
    first, last = (key_tiles(schedule, SAMPLE, SAMPLE, tile) for tile in (0, tiles - 1))
    if first is None or last is None or last <= first:
        return schedule
    places = {"q_tile": sub(sub(var("q_tiles"), ONE), var("block_z")), "h": var("block_x"), "b": var("block_y")}
    prelude = tuple(Let(op.name, places.get(op.name, op.expr)) for op in schedule.prelude)
    grid = (const(schedule.attention.heads_q), var("batch"), var("q_tiles"))
    return dataclasses.replace(schedule, grid=grid, prelude=prelude)


def key_tiles(schedule: l3.Schedule, seq_q: int, seq_kv: int, q_tile: int) -> int | None:
    """Key tiles of a query tile of the first head; None when that depends on tensors or run-time scalars."""
    env = {"seq_q": seq_q, "seq_kv": seq_kv, "off": seq_kv - seq_q, "batch": 1, "b": 0, "h": 0, "hkv": 0, "q_tile": q_tile}
    lets = [op for op in (*schedule.prelude, *operations(compute_role(schedule).body)) if isinstance(op, Let)]
    for let in lets:
        try:
            env.setdefault(let.name, number(let.expr, env))
        except KeyError:
            continue  # a block index, a tensor, or a name that needs one
        if let.name == TOTAL:
            return env[TOTAL]
    return None
