"""What a column's number reads from global memory is loaded one key tile ahead.

    before  for t in first..count { kv_tile = bound - t - 1; ...; col_let col_0 = ref_0 - gates[b, h, kv_idx]; ... }
    after   if first < count { col_fetch ahead_0, tile=bound - first - 1: gates[b, h, kv_idx] }
            for t in first..count { kv_tile = bound - t - 1; ...; col_let col_0 = ref_0 - ahead_0
                                    col_fetch ahead_0, tile=bound - min(t + 1, count - 1) - 1: gates[b, h, kv_idx]; ... }

A thread makes the numbers of few columns for its group, and all wait for them at a barrier: without this pass each key tile waits there as
long as a load from global memory takes. Now the load has the time of a whole tile. The last tile fetches its own element again, so that no loop
loads anything that its body did not before (`guard_loads` left bounds away where full tiles need none). What stays where it is: elements whose
indices are elements, since fetching them would wait for those; small tables, which are near once they were read; and loops that take their
key tiles from a list. (H200, forgetting gate causal, 4096 keys: at head dim 64 312 TFLOP/s before, 380 after; at 128, tiles of 192 x 80, 496 and 497;
490 and 519 in a run with a file edited by hand.)

Asks for: async_mma, and threads that stage numbers of columns for their group in shared memory.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.algebra import linear
from attncc.ir.expr import ONE, Expr, add, apply, minimum, sub, substitute, transform, var, variables, walk
from attncc.ir.schedule_ops import compute_role, operations, replace_role
from attncc.ir.simplify import simplify
from attncc.ir.tile import COLUMN_FIRST, SHARED, ColLet, Let, RowLet
from attncc.targets import Target

AHEAD = "ahead"


def fetch_columns(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` whose computing role fetches elements for columns a key tile ahead; unchanged where it stages none that it loads."""
    role = compute_role(schedule)
    if not target.has("async_mma"):
        return schedule
    body = _Fetches(schedule).body(role.body)
    return schedule if body == role.body else replace_role(schedule, role, body=body)


class _Fetches:
    """Rewrites the loops of a role; a name of what is fetched means the same element in the whole role."""

    def __init__(self, schedule: l3.Schedule):
        a = schedule.attention
        bound = (op for role in schedule.roles for op in (*schedule.prelude, *operations(role.body)) if hasattr(op, "name"))
        self.taken = {x.name for x in (*a.tensors, *a.scalars, *bound)}
        self.count = 0

    def body(self, body: tuple) -> tuple:
        out: list = []
        for op in body:
            if isinstance(op, l3.If):
                op = dataclasses.replace(op, body=self.body(op.body))
            out += self.loop(op) if isinstance(op, l3.For) else (op,)
        return tuple(out)

    def loop(self, loop: l3.For) -> tuple:
        """The loop, after a fetch for its first tile; the loop alone where nothing can be fetched."""
        tile = next((op.expr for op in loop.body if isinstance(op, Let) and op.name == "kv_tile"), None)
        if tile is None or not _steps(tile, loop.counter):
            return (loop,)
        own = {op.name for op in loop.body if isinstance(op, (Let, RowLet, ColLet))} | {loop.counter, "q_idx"}
        found: dict[Expr, str] = {}
        body = tuple(dataclasses.replace(op, expr=self.ahead(op.expr, own, found)) if _is_staged(op) else op for op in loop.body)
        if not found:
            return (loop,)
        cut = 1 + max(i for i, op in enumerate(body) if _is_staged(op))
        last = minimum(add(var(loop.counter), ONE), sub(loop.end, ONE))
        body = (*body[:cut], *_fetches(found, tile, loop.counter, last), *body[cut:])
        first = l3.If(apply("lt", loop.begin, loop.end), _fetches(found, tile, loop.counter, loop.begin))
        return first, dataclasses.replace(loop, body=body)

    def ahead(self, expr: Expr, own: set[str], found: dict[Expr, str]) -> Expr:
        """`expr` with names for the elements that are fetched, which `found` then holds."""

        def rule(node: Expr) -> Expr:
            names = variables(node)
            kept = node.op != "load" or not any(map(_moves, node.args)) or names & (own | set(found.values()))
            if kept or any(n.op == "load" for a in node.args for n in walk(a)):
                return node
            if node not in found:
                found[node] = self.fresh()
            return var(found[node], node.type)

        return transform(expr, rule)

    def fresh(self) -> str:
        while f"{AHEAD}_{self.count}" in self.taken:
            self.count += 1
        self.count += 1
        return f"{AHEAD}_{self.count - 1}"


def _steps(tile: Expr, counter: str) -> bool:
    """Whether a loop's key tiles are neighbours, one after the other in either direction."""
    form = linear(tile)
    rest = frozenset().union(*(variables(term) for term, _ in form.without(var(counter)).terms))
    return abs(form.coefficient(var(counter))) == 1 and counter not in rest


def _moves(index: Expr) -> bool:
    """Whether an index is another one for each key, but for bounds of what is there."""
    if index.op in ("min", "max"):
        return any(map(_moves, index.args))
    return any(linear(index).coefficient(var(name)) for name in ("kv_idx", COLUMN_FIRST))


def _is_staged(op) -> bool:
    return isinstance(op, ColLet) and op.space == SHARED and op.slot is None


def _fetches(found: dict[Expr, str], tile: Expr, counter: str, at: Expr) -> tuple[l3.ColFetch, ...]:
    place = simplify(substitute(tile, {counter: at}))
    return tuple(l3.ColFetch(name, place, expr) for expr, name in found.items())
