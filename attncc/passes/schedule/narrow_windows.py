"""Lets each computing group visit only the key tiles of its own rows where the mask cuts keys off at both ends, as a window does.

    before  role consumer, groups=3 { if tiles_total > 0 { wait Q; for t in 0..count_0 { A, kv_tile at the end, then at the begin }; for t in 0..count_1 { B } } }
    after   role consumer, groups=3 { let window_end, window_begin; let own_end, own_begin, own_full_end, own_full_begin; let passed, left
              wait Q
              for t in 0..passed { wait K; release K; wait V; release V }
              if own_total > 0 { for t in 0..own_0 { A }; for t in 0..own_1 { B }; for t in 0..own_2 { A } }
              for t in 0..left { wait K; release K; wait V; release V } }
            role producer { for t in 0..tiles_total { let kv_tile = window_end - t - 1; copy K; copy V } }

As narrow_groups, for a range that is partial, full and partial again. Its tiles are visited from the end to the begin, partial or
not, so that a tile that is partial for one group may be full for another. The group's full tiles are cut to what lies inside its range,
and everything else in the range runs mask code: right whether or not a row has full tiles at all. With 192 rows, tiles of 80 keys and a window
of 1024 keys a group visits 14.6 tiles in place of 16.2, and 3.6 of them run mask code in place of 6.8.

Asks for: roles, and partial tiles at both ends that run the same body. Without this pass every group computes every tile of its block.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.algebra import linear, to_expr
from attncc.ir.expr import ONE, ZERO, Expr, add, apply, const, maximum, minimum, mul, select, sub, substitute, var
from attncc.ir.schedule_ops import compute_role, drop_unused_lets, operations, replace_role, role_named
from attncc.ir.simplify import simplify
from attncc.ir.tile import FULL, PARTIAL, Let, Segment
from attncc.lower.tile_to_schedule import TOTAL
from attncc.passes.schedule.narrow_groups import (
    LEFT,
    OWN,
    OWN_TOTAL,
    PASSED,
    always,
    end_of,
    outweighs_turns,
    program_of_rows,
    unpeeled,
)
from attncc.passes.schedule.ping_pong import takes_turns
from attncc.targets import Target

END, BEGIN = "window_end", "window_begin"
OWN_END, OWN_BEGIN, FULL_END, FULL_BEGIN = f"{OWN}_end", f"{OWN}_begin", f"{OWN}_full_end", f"{OWN}_full_begin"


@dataclasses.dataclass(frozen=True)
class Window:
    """The key tiles [begin, end) of a query tile, of which [full_begin, full_end) are full, in names of `lets`."""

    begin: Expr
    full_begin: Expr
    full_end: Expr
    end: Expr
    lets: dict[str, Expr]


def narrow_windows(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` whose computing groups visit the key tiles of their own rows; unchanged where those are no window or turns are taken."""
    role = compute_role(schedule)
    if role.groups < 2 or len(schedule.roles) != 2 or schedule.table is not None:
        return schedule
    whole, own = (_window(schedule, rows) for rows in (schedule.tile_m, role.rows_per_group))
    if whole is None or own is None or (takes_turns(schedule, target) and not outweighs_turns(schedule)):
        return schedule
    producer = next(r for r in schedule.roles if r is not role)
    loops = [_loops(r) for r in (role, producer)]
    if None in loops or not all(_knows(r, whole) for r in (role, producer)):
        return schedule
    partial, full = loops[1]
    if partial.body[1:] != full.body[1:]:
        return schedule
    q = next(op.channel for op in _outer(role).body if isinstance(op, l3.Wait))
    schedule = replace_role(schedule, producer, body=drop_unused_lets(always(_all_tiles(producer, partial, whole), q)))
    body = _own_tiles(schedule, role, loops[0], (whole, own), q)
    return replace_role(schedule, role_named(schedule, role.name), body=drop_unused_lets(always(body, q)))


def _window(schedule: l3.Schedule, rows: int) -> Window | None:
    """What a query tile of `rows` rows visits, where that is one range with partial tiles that run one body, and full ones; else None."""
    program, together = program_of_rows(schedule, rows), unpeeled(schedule, rows)
    if [s.kind for s in program.segments] != [PARTIAL, PARTIAL, FULL] or len(together.segments) != 1:
        return None
    last, first, full = program.segments
    whole, inner = _span(together.segments[0]), _span(full)
    if whole is None or inner is None or last.body != first.body:
        return None
    lets = {op.name: op.expr for op in program.prologue if isinstance(op, Let)}
    return Window(whole[0], *inner, whole[1], lets)


def _span(segment: Segment) -> tuple[Expr, Expr] | None:
    """[begin, end) of a segment that goes down one by one."""
    end = end_of(segment.tile)
    return None if end is None else (to_expr(linear(end).plus(linear(segment.count), -1)), end)


def _outer(role: l3.Role) -> l3.If:
    return next(op for op in role.body if isinstance(op, l3.If))


def _loops(role: l3.Role) -> tuple[l3.For, l3.For] | None:
    """The loops over partial and full tiles of a role that has these two."""
    loops = tuple(op for op in _outer(role).body if isinstance(op, l3.For))
    named = all(isinstance(op.body[0], Let) and op.body[0].name == "kv_tile" for op in loops)
    return loops if named and [op.label for op in loops] == [f"{PARTIAL} tiles", f"{FULL} tiles"] else None


def _knows(role: l3.Role, window: Window) -> bool:
    """Whether the role has the lets that the window is written in."""
    lets = {op.name: op.expr for op in operations(role.body) if isinstance(op, Let)}
    return all(lets.get(name) == expr for name, expr in window.lets.items())


def _ends(whole: Window) -> tuple[Let, ...]:
    """The range of the block, and how many tiles it has."""
    return Let(END, whole.end), Let(BEGIN, whole.begin), Let(TOTAL, sub(var(END), var(BEGIN)))


def _replaced(role: l3.Role, lets: tuple[Let, ...], outer: tuple) -> tuple:
    """The role's body with `lets` in place of the count of its tiles, and `outer` in place of what is done when there are some."""
    before = _outer(role)
    out: list = []
    for op in role.body:
        counts = isinstance(op, Let) and op.name == TOTAL
        out += lets if counts else outer if op is before else (op,)
    return tuple(out)


def _all_tiles(role: l3.Role, loop: l3.For, whole: Window) -> tuple:
    """The producer's body, with one loop over all tiles."""
    before = _outer(role)
    others = tuple(op for op in before.body if not isinstance(op, l3.For))
    copies = dataclasses.replace(loop, end=var(TOTAL), label="key tiles", body=(_tile(var(END)), *loop.body[1:]))
    return _replaced(role, _ends(whole), (dataclasses.replace(before, body=(*others, copies)),))


def _tile(end: Expr) -> Let:
    """The tile that a loop which goes down from `end` visits."""
    return Let("kv_tile", sub(sub(end, var("t")), ONE))


def _own_tiles(schedule: l3.Schedule, role: l3.Role, loops: tuple[l3.For, l3.For], windows: tuple[Window, Window], q: str) -> tuple:
    """The computing role's body: the group's own loops, and loops that pass over the others' tiles before and after."""
    whole, own = windows
    before = _outer(role)
    at = next(i for i, op in enumerate(before.body) if isinstance(op, l3.For))
    steps = zip((loops[0], loops[1], loops[0]), (OWN_END, FULL_END, FULL_BEGIN))
    narrow = (
        dataclasses.replace(loop, end=var(f"{OWN}_{i}"), body=(_tile(var(end)), *loop.body[1:])) for i, (loop, end) in enumerate(steps)
    )
    rest = tuple(op for op in before.body[at:] if not isinstance(op, l3.For))
    inside = dataclasses.replace(before, condition=apply("gt", var(OWN_TOTAL), ZERO), body=(*before.body[:at], *narrow, *rest))
    channels = tuple(dict.fromkeys(op.channel for op in operations(inside.body) if isinstance(op, l3.Wait) and op.channel != q))
    skip = tuple(o for name in channels for o in (l3.Wait(name), l3.Release(name)))
    above = l3.For("t", ZERO, var(PASSED), "tiles above", skip)
    below = l3.For("t", ZERO, var(LEFT), "tiles below", skip)
    return _replaced(role, (*_ends(whole), *_own_lets(schedule, role, own)), (above, inside, below))


def _own_lets(schedule: l3.Schedule, role: l3.Role, own: Window) -> tuple[Let, ...]:
    """The group's range inside the block's, its parts, and how many tiles of the block come before and after it."""
    place = {"q_tile": add(mul(var("q_tile"), const(role.groups)), var(l3.GROUP_VARIABLE))}
    names = {name: var(f"{OWN}_{name}", expr.type) for name, expr in own.lets.items()}

    def here(e: Expr) -> Expr:
        return simplify(substitute(e, {**place, **names}))

    first_row = add(mul(var("q_tile"), const(schedule.tile_m)), mul(var(l3.GROUP_VARIABLE), const(role.rows_per_group)))
    some = apply("lt", first_row, var("seq_q"))
    end, begin, full_end, full_begin = (var(name) for name in (OWN_END, OWN_BEGIN, FULL_END, FULL_BEGIN))
    total = select(some, maximum(sub(end, begin), ZERO), ZERO)
    parts = (sub(end, full_end), sub(full_end, full_begin), sub(full_begin, begin))
    there = apply("gt", var(OWN_TOTAL), ZERO)
    return (
        *(Let(names[name].value, here(expr)) for name, expr in own.lets.items()),
        Let(OWN_END, minimum(here(own.end), var(END))),
        Let(OWN_BEGIN, maximum(here(own.begin), var(BEGIN))),
        Let(OWN_TOTAL, total),
        Let(FULL_END, maximum(begin, minimum(here(own.full_end), end))),
        Let(FULL_BEGIN, maximum(begin, minimum(here(own.full_begin), full_end))),
        *(Let(f"{OWN}_{i}", select(there, part, ZERO)) for i, part in enumerate(parts)),
        # an empty range lies anywhere: a group without a tile passes over all
        Let(PASSED, select(there, sub(var(END), end), var(TOTAL))),
        Let(LEFT, sub(sub(var(TOTAL), var(PASSED)), var(OWN_TOTAL))),
    )


__all__ = ["narrow_windows"]
