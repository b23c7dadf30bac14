"""Takes the first key tile out of the loops, so that it needs no old statistics and no rescaling.

    before  if tiles_total > 0 { for t in 0..count_0 { A } for t in 0..count_1 { B } }
    after   if tiles_total > 0 {
              let first_0 = min(count_0, 1); let first_1 = select(count_0 > 0, 0, min(count_1, 1))
              A, with kv_tile = the first tile of the first segment that has one, softmax_step first, no rescale
              for t in first_0..count_0 { A }; for t in first_1..count_1 { B }
            }

The peeled tile runs the body of partial tiles, which is right for full ones too: its mask keeps every cell of them. A segment that
comes first and never has more than one tile needs no loop any more. Without this pass every tile is treated alike: the
first one reads statistics that were filled with -inf and 0 and rescales an accumulator of zeros; softmax and matrix
products cannot be overlapped.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.expr import ONE, ZERO, Expr, add, apply, minimum, select, substitute, var
from attncc.ir.schedule_ops import compute_role, operations, remark, replace_role, rewrite
from attncc.ir.simplify import simplify
from attncc.ir.tile import Let, Mask
from attncc.passes.schedule.bounds import largest
from attncc.targets import Target

NAME = "peel_first_tile"


def peel_first_tile(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with the first tile before the loops of the computing role; unchanged where no body fits every segment."""
    role = compute_role(schedule)
    index = next(i for i, op in enumerate(role.body) if isinstance(op, l3.If))
    outer = role.body[index]
    loops = tuple(op for op in outer.body if isinstance(op, l3.For))
    widest = general_body(loops)
    if widest is None:
        return remark(schedule, NAME, "no body is right for every segment; the first tile stays in its loop")
    bounds = {op.name: op.expr for op in (*schedule.prelude, *operations(role.body)) if isinstance(op, Let)}
    before = tuple(op for op in outer.body if not isinstance(op, l3.For))
    begins, rest = _rest(loops, bounds)
    body = begins + before + _first(loops, widest) + rest
    body = role.body[:index] + (dataclasses.replace(outer, body=body),) + role.body[index + 1 :]
    return replace_role(schedule, role, body=body)


def general_body(loops: tuple[l3.For, ...]) -> tuple | None:
    """The operations (without the tile index) that are right for every tile: those of partial tiles, else those all loops have.

    None when there is no such body: partial segments that differ, or full ones that do.
    """
    bodies = dict.fromkeys(loop.body[1:] if _names_tile(loop) else loop.body for loop in loops)
    masked = [body for body in bodies if any(isinstance(op, Mask) for op in body)]
    choice = masked or list(bodies)
    return choice[0] if len(choice) == 1 else None


def _first(loops: tuple[l3.For, ...], body: tuple) -> tuple:
    """The peeled tile: its index, and `body` as the first step."""
    tile = _tile(loops[-1])
    for loop in reversed(loops[:-1]):
        tile = select(apply("gt", loop.end, ZERO), _tile(loop), tile)

    def as_first(op):
        if isinstance(op, l3.Rescale):
            return ()
        return (dataclasses.replace(op, first=True),) if isinstance(op, l3.SoftmaxStep) else (op,)

    return (Let("kv_tile", tile), *rewrite(body, as_first))


def _names_tile(loop: l3.For) -> bool:
    """Whether the body begins with the tile's index. A role that uses it nowhere (a mask of no key index) has no such let."""
    return isinstance(loop.body[0], Let) and loop.body[0].name == "kv_tile"


def _tile(loop: l3.For) -> Expr:
    """The index of the first tile of a loop; 0 where the role does not ask for it."""
    if not _names_tile(loop):
        return ZERO
    return simplify(substitute(loop.body[0].expr, {loop.counter: ZERO}))


def _rest(loops: tuple[l3.For, ...], bounds: dict[str, Expr]) -> tuple[tuple, tuple]:
    """The lets that say where the loops begin, and the loops without the peeled tile."""
    begins: list[l3.Op] = []
    rest: list[l3.Op] = []
    before: Expr | None = None
    for i, loop in enumerate(loops):
        begin = minimum(loop.end, ONE)
        if before is not None:
            begin = select(apply("gt", before, ZERO), ZERO, begin)
        if before is not None or largest(loop.end, bounds) is None or largest(loop.end, bounds) > 1:
            begins.append(Let(f"first_{i}", begin))
            rest.append(dataclasses.replace(loop, begin=var(f"first_{i}")))
        before = loop.end if before is None else add(before, loop.end)
    return tuple(begins), tuple(rest)
