"""Starts the longest query tiles first, where later query tiles have more key tiles (causal masks).

    before  grid = (q_tiles, heads_q, batch)     q_tile = block_x; h = block_y; b = block_z
    after   grid = (heads_together, q_tiles, batch * sections)
            q_tile = q_tiles - 1 - block_y, and block_y in every second section, the last one descending
            h = block_z % sections * heads_together + block_x; b = block_z // sections

Blocks start in the order of their indices: long tiles go first and short ones fill the end (longest processing time first,
Graham 1969). Heads are taken in sections whose keys and values stay in the L2 cache together; the section gets smaller as
seq_kv grows. Every second section is taken in ascending order, so that costs change steadily from one section to the next: where a
block works on several tiles (persistent_blocks) that keeps blocks even. Without this pass blocks start in the order of the rows, and the last to start are the longest.
"""

from __future__ import annotations

import dataclasses

from attncc.formats import bytes_of
from attncc.ir import schedule as l3
from attncc.ir.expr import ONE, ZERO, Expr, add, apply, const, floordiv, mul, select, sub, var
from attncc.ir.packing import GRID_TILES
from attncc.ir.schedule_ops import compute_role, number, operations
from attncc.ir.simplify import simplify
from attncc.ir.tile import Let
from attncc.lower.tile_to_schedule import TOTAL
from attncc.targets import Target
from attncc.targets.cost import element_cost
from attncc.targets.fit import tiles_of
from attncc.targets.model import gains_by_several
from attncc.targets.target import STEADY, UNMASKED

SAMPLE = 4096
"""The length at which the work of the first and the last query tile are compared."""
CACHE_SHARE = 0.6
"""Part of the L2 cache that keys and values of a section may fill; queries and outputs pass through it as well."""
NEARLY = 1.25
"""Costs that differ by no more than this factor count as alike."""
STREAMS = 16
"""Key/value heads of a section where blocks take several tiles: with 132 blocks at a time eight read each stream. Measured
(docs/performance-log.md): -1 to +5 % there beside sections of eight; where blocks start as others end up to 28 % slower than sections of four."""
TOGETHER, SECTIONS = "heads_together", "sections"


def tile_order(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with the query tiles in descending order when the last has more key tiles than the first."""
    tiles = -(-SAMPLE // schedule.tile_m)
    first, last = (key_tiles(schedule, SAMPLE, SAMPLE, tile) for tile in (0, tiles - 1))
    if first is None or last is None or last <= first:
        return schedule
    together = heads_together(schedule, target)
    sections = simplify(floordiv(const(schedule.attention.heads_q), together))
    names = [Let(n, e) for n, e in ((TOGETHER, together), (SECTIONS, sections)) if e.op != "const"]
    many, parts = (var(n) if e.op != "const" else e for n, e in ((TOGETHER, together), (SECTIONS, sections)))
    section = simplify(sub(sub(mul(var("batch"), parts), ONE), var("block_z")))
    tiles = var(GRID_TILES if schedule.attention.packed else "q_tiles")
    places = {
        "q_tile": select(apply("eq", apply("mod", section, const(2)), ZERO), sub(sub(tiles, ONE), var("block_y")), var("block_y")),
        "h": add(mul(apply("mod", var("block_z"), parts), many), var("block_x")),
        "b": floordiv(var("block_z"), parts),
    }
    prelude = tuple(Let(op.name, simplify(places.get(op.name, op.expr))) for op in schedule.prelude)
    grid = (together, var("q_tiles"), simplify(mul(var("batch"), sections)))
    return dataclasses.replace(schedule, grid=grid, prelude=(*names, *prelude))


def heads_together(schedule: l3.Schedule, target: Target) -> Expr:
    """Query heads of a section: all that share as many key/value heads as the cache holds at this seq_kv, or of a window, at least one. Blocks that will
    take several tiles are dealt them beforehand: long sections keep them even, and they stay in step as they read."""
    a = schedule.attention
    if takes_several(schedule, target):
        return const(a.group * max(n for n in range(1, min(STREAMS, a.heads_kv) + 1) if a.heads_kv % n == 0))
    per_key = bytes_of(a.dtype) * (a.dim_qk + a.dim_v)
    stretch = _stretch(schedule, target)
    size: Expr = const(a.group)
    kv_heads = 2
    while a.heads_kv % kv_heads == 0:
        longest = int(CACHE_SHARE * target.rates.l2_bytes) // (kv_heads * per_key)
        fits = apply("le", var("seq_kv"), const(longest))
        size = const(kv_heads * a.group) if stretch is not None and stretch <= longest else select(fits, const(kv_heads * a.group), size)
        kv_heads *= 2
    return size


def _stretch(schedule: l3.Schedule, target: Target) -> int | None:
    """The keys of a head that the blocks at work read, where a query tile sees no more than a part of a long sequence (a window): its own and
    those of the tiles beside it; None where they are as many as there are."""
    costs = _costs(schedule)
    most = max(costs, default=0) * schedule.tile_n
    at_work = target.rates.sms * schedule.blocks_per_sm * schedule.tile_m // STREAMS
    return most + at_work if 0 < most <= SAMPLE // 2 else None


def takes_several(schedule: l3.Schedule, target: Target) -> bool:
    """Whether blocks had better work on several query tiles: as was measured for this shape, else where the resource model says so and costs are
    steady."""
    a = schedule.attention
    known = target.manner(a.dim_qk, a.dim_v, compute_role(schedule).groups)
    if known is not None:
        extra = element_cost(a)
        unmasked = known.several == UNMASKED and extra.is_simple and extra.mask_size == 1 and has_like_costs(schedule)
        return unmasked or known.several == STEADY
    return target.has("tma_store") and gains_by_several(a, target, tiles_of(schedule)) and has_steady_costs(schedule)


def has_steady_costs(schedule: l3.Schedule) -> bool:
    """Whether all query tiles of all heads have about as many key tiles, or more and more from the first to the last."""
    costs = _costs(schedule)
    return bool(costs) and (costs == sorted(costs) or has_like_costs(schedule))


def has_like_costs(schedule: l3.Schedule) -> bool:
    """Whether all query tiles of all heads have about as many key tiles."""
    costs = _costs(schedule)
    return bool(costs) and max(costs) <= NEARLY * min(costs)


def _costs(schedule: l3.Schedule) -> list[int]:
    """Key tiles of each query tile of a sample; [] where they are not known or differ between heads."""
    if schedule.table is not None or schedule.attention.packed:  # every packed sequence has a length of its own
        return []
    tiles = -(-SAMPLE // schedule.tile_m)
    heads = schedule.attention.heads_q
    costs = [[key_tiles(schedule, SAMPLE, SAMPLE, t, h) for t in range(tiles)] for h in sorted({0, heads // 2, heads - 1})]
    return [] if any(None in row or row != costs[0] for row in costs) else costs[0]


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
