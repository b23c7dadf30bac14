"""Starts copies before they are needed, in a role that copies for itself.

    before  for each tile { copy K; wait K; S = Q K^T; release K; score; softmax; copy V; wait V; O += P V; release V }
    after   copy K of the first tile
            for each tile { wait K; copy V; S = Q K^T; release K; score; wait V; copy K of the next tile; softmax; O += P V; release V }

(FlashAttention-2's order for one stage of each.) V arrives under the first product, the next K under softmax and the second
one. After the last tile there is no copy, but its group is closed all the same, so that counts stay alike. For targets
without roles; without this pass each copy is waited for at once.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.expr import ONE, ZERO, Expr, add, any_of, apply, select, substitute, var
from attncc.ir.schedule_ops import compute_role, replace_role
from attncc.ir.simplify import simplify
from attncc.ir.tile import Let, Mask, Score
from attncc.targets import Target

NEXT = "next_tile"


def prefetch_copies(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with the copies of the computing role moved ahead; unchanged when another role copies."""
    role = compute_role(schedule)
    index = next(i for i, op in enumerate(role.body) if isinstance(op, l3.If))
    outer = role.body[index]
    loops = tuple(op for op in outer.body if isinstance(op, l3.For))
    if not loops or not any(isinstance(op, l3.Copy) for op in loops[-1].body):
        return schedule
    straight = tuple(op for op in outer.body if not isinstance(op, l3.For))
    start = next((i for i, op in enumerate(straight) if isinstance(op, Let) and op.name == "kv_tile"), len(straight))
    first_key = next(op for op in loops[-1].body if isinstance(op, l3.Copy))
    once, waits = _split_waits(straight[:start])
    if start < len(straight):
        peeled = _tile(straight[start:], _from(loops, 0))
        body = (*once, peeled[0], *_copy(first_key, var("kv_tile")), *waits, *peeled[1:])
    else:
        body = (*once, Let(NEXT, _from(loops, 0)[1]), *_copy(first_key, var(NEXT)), *waits)
    body += tuple(_loop(loops, i) for i in range(len(loops)))
    outer = dataclasses.replace(outer, body=body)
    return replace_role(schedule, role, body=role.body[:index] + (outer,) + role.body[index + 1 :])


def _copy(like: l3.Copy, tile: Expr) -> tuple:
    return l3.Acquire(like.channel), dataclasses.replace(like, tile=tile), l3.Commit(like.channel)


def _from(loops: tuple[l3.For, ...], start: int) -> tuple[Expr, Expr]:
    """Whether loops[start:] have a tile, and which is their first."""
    rest = loops[start:]
    more = any_of(*(apply("lt", loop.begin, loop.end) for loop in rest))
    tile: Expr = ZERO
    for loop in reversed(rest):
        first = simplify(substitute(loop.body[0].expr, {loop.counter: loop.begin}))
        tile = first if loop is rest[-1] else select(apply("lt", loop.begin, loop.end), first, tile)
    return more, tile


def _loop(loops: tuple[l3.For, ...], i: int) -> l3.For:
    """Loop i, with the copy of the tile after each of its tiles."""
    loop = loops[i]
    following = add(var(loop.counter), ONE)
    here = apply("lt", following, loop.end)
    tile = simplify(substitute(loop.body[0].expr, {loop.counter: following}))
    if i + 1 < len(loops):
        more, other = _from(loops, i + 1)
        here, tile = any_of(here, more), select(here, tile, other)
    return dataclasses.replace(loop, body=_tile(loop.body, (here, tile)))


def _tile(body: tuple, following: tuple[Expr, Expr]) -> tuple:
    """One tile's operations in the new order; `following` says whether there is a next tile, and which."""
    more, tile = following
    copies = [op for op in body if isinstance(op, l3.Copy)]
    first, second = copies[0], copies[-1]
    moving = (l3.Acquire, l3.Copy, l3.Commit)
    rest = [op for op in body if not isinstance(op, moving) and op != l3.Wait(second.channel)]
    mma = next(i for i, op in enumerate(rest) if isinstance(op, l3.Mma))
    scored = max(i for i, op in enumerate(rest) if isinstance(op, (l3.Mma, l3.Release, Score, Mask)) and i < _weights(rest))
    ahead = (
        l3.Acquire(first.channel),
        l3.If(more, (Let(NEXT, tile), dataclasses.replace(first, tile=var(NEXT)))),
        l3.Commit(first.channel),
    )
    return (
        *rest[:mma], *_copy(second, second.tile), *rest[mma : scored + 1], l3.Wait(second.channel), *ahead, *rest[scored + 1 :],
    )  # fmt: skip


def _weights(ops: list) -> int:
    """Where scores become weights."""
    return next(i for i, op in enumerate(ops) if isinstance(op, (l3.SoftmaxStep, l3.Weights)))


def _split_waits(body: tuple) -> tuple[tuple, tuple]:
    """The operations before the tiles, and the waits among them."""
    waits = tuple(op for op in body if isinstance(op, l3.Wait))
    return tuple(op for op in body if not isinstance(op, l3.Wait)), waits
