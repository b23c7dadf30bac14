"""Lets each computing group pass over the key tiles that only other groups of its block need.

    before  role consumer, groups=3 { let count_0, count_1, tiles_total; if tiles_total > 0 { wait Q; for t in 0..count_0 { A }; for t in 0..count_1 { B } } }
    after   role consumer, groups=3 { let tiles_total; let own_0, own_1, own_total; let passed, left
              wait Q
              for t in 0..passed { wait K; release K; wait V; release V }
              if own_total > 0 { for t in 0..own_0 { A }; for t in 0..own_1 { B } }
              for t in 0..left { wait K; release K; wait V; release V } }

The bounds of a query tile's key tiles are those of all its rows. Under a causal mask the first 64 rows of 192 need up to two tiles of 80 keys
less than the last 64, and fewer of their tiles are partial: each group takes the bounds of its own rows, found by the same
passes for a query tile of that many rows. A group without any row (the last query tile is seldom full) has no tiles.

Groups that visit tiles of their own cannot take turns (ping_pong). Three groups of 64 rows gain more by the former where a window is so narrow that
they save a twelfth of the work: measured at a window of 1024 (narrow_windows), 6 % at head dim 96, nothing either way at 64; 9 % at 64 and 512 keys.

Asks for: roles. The tiles must be one range, taken from its end to its begin, by the block and by the group. Without this pass every group computes every tile of its block, masked where it needs none of it.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.algebra import linear
from attncc.ir.expr import ONE, ZERO, Expr, add, apply, const, mul, select, sub, substitute, var
from attncc.ir.schedule_ops import compute_role, operations, replace_role, role_named
from attncc.ir.simplify import simplify
from attncc.ir.tile import PARTIAL, Let, TileProgram
from attncc.lower.attention_to_tile import lower_attention_to_tile
from attncc.lower.tile_to_schedule import TOTAL, count_name
from attncc.passes.schedule.ping_pong import LEAST_GROUPS, takes_turns
from attncc.passes.tile.peel_masked_tiles import peel_masked_tiles
from attncc.passes.tile.skip_empty_tiles import skip_empty_tiles
from attncc.targets import Target

OWN, OWN_TOTAL, PASSED, LEFT = "own", "own_total", "passed", "left"
SAVED = 1 / 12
MASKED = 1.2
"""Full tiles that take as long as one that runs mask code: 432 instructions beside 358 (head dim 128, 80 keys)."""
LONG = 2**22
"""Rows and keys of a sequence that is longer than any window."""
SAMPLE = 8
"""Query tiles that are counted: windows and tiles have lengths that do not divide each other."""


def narrow_groups(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` whose computing groups visit the key tiles of their own rows; unchanged where that is not one range or turns are taken."""
    role = compute_role(schedule)
    if role.groups < 2 or len(schedule.roles) != 2 or schedule.table is not None:
        return schedule
    if takes_turns(schedule, target) and not outweighs_turns(schedule):
        return schedule
    outer = next(op for op in role.body if isinstance(op, l3.If))
    loops = tuple(op for op in outer.body if isinstance(op, l3.For))
    lets = {op.name: op.expr for op in operations(role.body) if isinstance(op, Let)}
    ends = [_end(loop) for loop in loops]
    own = program_of_rows(schedule, role.rows_per_group)
    own_ends = [end_of(s.tile) for s in own.segments]
    counts = [lets.get(count_name(i)) for i in range(len(loops))]
    if not _is_one_range(ends, counts, lets) or len(own.segments) != len(loops):
        return schedule
    own_lets = {op.name: op.expr for op in own.prologue if isinstance(op, Let)}
    if not _is_one_range(own_ends, [s.count for s in own.segments], own_lets) or not _same_kinds(loops, own):
        return schedule
    q = next(op.channel for op in outer.body if isinstance(op, l3.Wait))
    body = _narrowed(schedule, role, outer, own, ends[0], q)
    schedule = replace_role(schedule, role, body=body)
    producer = role_named(schedule, schedule.channel(q).producer)
    return replace_role(schedule, producer, body=always(producer.body, q))


def outweighs_turns(schedule: l3.Schedule) -> bool:
    """Whether groups of three or more that visit tiles of their own save so much, in query tiles far from both ends of a long sequence, that
    turns gain less."""
    role = compute_role(schedule)
    if role.groups < LEAST_GROUPS:
        return False
    whole, own = (program_of_rows(schedule, rows) for rows in (schedule.tile_m, role.rows_per_group))
    tiles = range(LONG // 2 // schedule.tile_m, LONG // 2 // schedule.tile_m + SAMPLE)
    together = [_work(whole, i) for i in tiles]
    apart = [_work(own, i * role.groups + g) for i in tiles for g in range(role.groups)]
    return None not in together + apart and role.groups * sum(together) * (1 - SAVED) >= sum(apart)


def _work(program: TileProgram, q_tile: int) -> float | None:
    """Full tiles that take as long as those of a query tile in a long sequence; None where their number depends on more than positions."""
    known: dict[str, Expr] = {"seq_q": const(LONG), "seq_kv": const(LONG), "off": ZERO}
    known |= {"q_tile": const(q_tile), "kv_tiles": const(LONG // program.tile_n)}
    for op in program.prologue:
        if isinstance(op, Let):
            known[op.name] = simplify(substitute(op.expr, known))
    counts = [simplify(substitute(s.count, known)) for s in program.segments]
    if any(count.op != "const" for count in counts):
        return None
    return sum(max(0, count.value) * (MASKED if s.kind == PARTIAL else 1.0) for count, s in zip(counts, program.segments))


def always(body: tuple, channel: str) -> tuple:
    """`body` in which whatever concerns `channel` is done before the condition that there is a key tile."""
    out: list = []
    for op in body:
        if isinstance(op, l3.If) and any(getattr(o, "channel", None) == channel for o in op.body):
            moved = tuple(o for o in op.body if getattr(o, "channel", None) == channel)
            op = dataclasses.replace(op, body=tuple(o for o in op.body if o not in moved))
            out += moved
        out.append(op)
    return tuple(out)


def program_of_rows(schedule: l3.Schedule, rows: int) -> TileProgram:
    """The tile program of a query tile of `rows` rows, its partial and full tiles apart."""
    return peel_masked_tiles(unpeeled(schedule, rows))


def unpeeled(schedule: l3.Schedule, rows: int) -> TileProgram:
    """The same with partial and full tiles together."""
    return skip_empty_tiles(lower_attention_to_tile(schedule.attention, rows, schedule.tile_n))


def _end(loop: l3.For) -> Expr | None:
    """The key tile after the first one that a loop visits, when it goes down one by one."""
    first = loop.body[0]
    return end_of(first.expr, loop.counter) if isinstance(first, Let) and first.name == "kv_tile" else None


def end_of(tile: Expr, counter: str = "t") -> Expr | None:
    if linear(tile).coefficient(var(counter)) != -1:
        return None
    return simplify(add(substitute(tile, {counter: ZERO}), ONE))


def _is_one_range(ends: list, counts: list, lets: dict[str, Expr]) -> bool:
    """Whether each range ends where the one before it began."""
    if None in ends or None in counts or not ends:
        return False
    begins = [linear(resolved(end, lets)).plus(linear(resolved(count, lets)), -1) for end, count in zip(ends, counts)]
    return all(begin == linear(resolved(end, lets)) for begin, end in zip(begins, ends[1:]))


def resolved(e: Expr, lets: dict[str, Expr]) -> Expr:
    """`e` without names of bounds, so that two ways to write one bound compare equal."""
    while True:
        known = {name: lets[name] for name in lets if name.startswith(("bound", "count"))}
        new = substitute(e, known)
        if new is e:
            return simplify(e)
        e = new


def _same_kinds(loops: tuple[l3.For, ...], own: TileProgram) -> bool:
    return all(loop.label == f"{s.kind} tiles" for loop, s in zip(loops, own.segments))


def _narrowed(schedule: l3.Schedule, role: l3.Role, outer: l3.If, own: TileProgram, end: Expr, q: str) -> tuple:
    """The role's body with the group's own loops, and with loops that pass over the others' tiles before and after."""
    place = {"q_tile": add(mul(var("q_tile"), const(role.groups)), var(l3.GROUP_VARIABLE))}
    names = {op.name: var(f"{OWN}_{op.name}", op.expr.type) for op in own.prologue if isinstance(op, Let)}

    def here(e: Expr) -> Expr:
        return simplify(substitute(e, {**place, **names}))

    first_row = add(mul(var("q_tile"), const(schedule.tile_m)), mul(var(l3.GROUP_VARIABLE), const(role.rows_per_group)))
    some = apply("lt", first_row, var("seq_q"))
    lets = [Let(names[op.name].value, here(op.expr)) for op in own.prologue if isinstance(op, Let)]
    lets += [Let(f"{OWN}_{i}", select(some, here(s.count), ZERO)) for i, s in enumerate(own.segments)]
    total: Expr = ZERO
    for i in range(len(own.segments)):
        total = var(f"{OWN}_{i}") if total is ZERO else add(total, var(f"{OWN}_{i}"))
    above = simplify(sub(end, here(end_of(own.segments[0].tile))))
    # an empty range lies anywhere: a group without a tile passes over all
    lets += [Let(OWN_TOTAL, total), Let(PASSED, select(apply("gt", var(OWN_TOTAL), ZERO), above, var(TOTAL)))]
    lets += [Let(LEFT, sub(sub(var(TOTAL), var(PASSED)), var(OWN_TOTAL)))]
    loops = iter(zip(own.segments, range(len(own.segments))))

    def narrow(op):
        if not isinstance(op, l3.For):
            return op
        segment, i = next(loops)
        tile = Let("kv_tile", here(segment.tile))
        return dataclasses.replace(op, end=var(f"{OWN}_{i}"), body=(tile, *op.body[1:]))

    inside = tuple(narrow(op) for op in outer.body)
    channels = tuple(dict.fromkeys(op.channel for op in operations(inside) if isinstance(op, l3.Wait) and op.channel != q))
    skip = tuple(o for name in channels for o in (l3.Wait(name), l3.Release(name)))
    new = dataclasses.replace(outer, condition=apply("gt", var(OWN_TOTAL), ZERO), body=inside)
    at = role.body.index(outer)
    body = (*role.body[:at], *lets, l3.For("t", ZERO, var(PASSED), "tiles above", skip), new)
    body = (*body, l3.For("t", ZERO, var(LEFT), "tiles below", skip), *role.body[at + 1 :])
    return always(body, q)
