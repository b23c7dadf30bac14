"""Numbers of the key tile's columns are computed once by a group of threads, where each thread owns a whole row.

    before  wait TS; convert S, TS; release TS; col_let col_0 = doc_kv[b, kv_idx]; mask S, row_0 == col_0
    after   sync columns; col_let col_0 = doc_kv[b, kv_idx], slot=0; sync columns; wait TS; convert S, TS; release TS; mask S, row_0 == col_0

With products into tensor memory a thread holds all columns of one row, so it would compute (and load) what depends on the column
alone for every column of the tile, as all others of its group do: 128 times the work, and registers for loads under way and
their addresses. Shared, a thread computes one column, and reads the others' four at a time. It happens before the scores are waited
for. Conditions become a bit each: a word for 32 keys. Asks for: tensor_memory.
"""

from __future__ import annotations

import dataclasses

from attncc.formats import bytes_of
from attncc.ir import schedule as l3
from attncc.ir.expr import BOOL, Expr, all_of, conjuncts, rebuild, substitute, var, variables, walk
from attncc.ir.instructions import cost
from attncc.ir.key_words import in_words
from attncc.ir.schedule_ops import compute_role, operations, remark, replace_role, shared_bytes
from attncc.ir.tile import ELEMENT, SHARED, ColLet, Let, Mask, RowLet, Score
from attncc.passes.schedule.pipeline_stages import looped_channels, with_stages
from attncc.targets import Target

NUMBERS, BARRIER = "KEY_NUMBERS", "columns"
WARP = 32
COSTLY = 4
"""Instructions of an operator, such as a division, from which on a part of a score or mask is shared that no column let holds; and of a whole
condition on the key that is not worked out as words of bits by each thread."""


def share_columns(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with its column lets in shared memory; unchanged without tensor memory or column lets."""
    role = compute_role(schedule)
    if not target.has("tensor_memory"):
        return schedule
    rows = frozenset(op.name for op in operations(role.body) if isinstance(op, RowLet)) | {ELEMENT, "q_idx"}
    columns = frozenset(op.name for op in operations(role.body) if isinstance(op, ColLet))
    body = _body(role.body, _Parts(rows, columns, schedule.tile_n))
    slots = max((op.slot + 1 for op in operations(body) if isinstance(op, ColLet)), default=0)
    if not slots:
        return schedule
    threads = role.warps * WARP // role.groups
    out = replace_role(schedule, role, body=body)
    out = dataclasses.replace(
        out,
        buffers=(*schedule.buffers, l3.Buffer(NUMBERS, SHARED, slots * role.groups * threads, 1, "f32")),
        barriers=(*schedule.barriers, l3.Barrier(BARRIER, threads, role.groups)),
    )
    return _fitting(out, target)


def _fitting(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with fewer stages of K and V where its numbers would otherwise not fit beside them."""
    rings = frozenset(n for n in looped_channels(schedule) if schedule.channel(n).kind == "tma")
    most = stages = max((schedule.channel(name).stages for name in rings), default=1)
    while stages > 1 and shared_bytes(schedule, bytes_of) > target.shared_limit:
        stages -= 1
        schedule = with_stages(schedule, rings, stages)
    if stages == most:
        return schedule
    return remark(schedule, "share_columns", f"{stages} stage(s) of K and V, not {most}: the numbers of columns take their room")


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Tells which parts of scores and masks are shared, by the names of what differs between rows and of column lets."""

    rows: frozenset[str]
    columns: frozenset[str]
    tile_n: int

    def are_alone(self, node: Expr) -> bool:
        """Whether the condition `node` depends on the key, and on no row or column let, and is no range of keys or the like."""
        names = variables(node)
        found = node.type == BOOL and "kv_idx" in names and not names & (self.rows | self.columns)
        return found and in_words(node, self.columns, frozenset(), self.tile_n) is None

    def is_shared(self, node: Expr) -> bool:
        """Whether a part depends on the column alone, and costs more than what a thread reads it for."""
        names = variables(node)
        if "kv_idx" not in names or names & self.rows:
            return False
        return _is_costly(node) or (cost(node) >= COSTLY and self.are_alone(node))


def _body(body: tuple, parts: _Parts) -> tuple:
    """`body` with its own column lets in slots, moved along with other lets before the wait for the scores; nested bodies too."""
    body = tuple(dataclasses.replace(op, body=_body(op.body, parts)) if hasattr(op, "body") else op for op in body)
    found: dict[Expr, ColLet] = {}
    body = tuple(_named(op, parts, found) for op in body)
    lets = [*(op for op in body if isinstance(op, ColLet)), *found.values()]
    if not lets:
        return body
    at = next(i for i, op in enumerate(body) if isinstance(op, l3.Wait))
    values: dict[str, Expr] = {}
    shared = []
    for slot, op in enumerate(lets):
        values[op.name] = substitute(op.expr, values)
        shared.append(ColLet(op.name, values[op.name], slot))
    before = tuple(op for op in body[at:] if isinstance(op, Let))
    rest = tuple(op for op in body[at:] if not isinstance(op, (ColLet, Let)))
    return (*body[:at], *before, l3.Sync(BARRIER), *shared, l3.Sync(BARRIER), *rest)


def _named(op, parts: _Parts, found: dict[Expr, ColLet]):
    """A score or mask with its costly parts that depend on the column alone given names, which are added to `found`."""
    if not isinstance(op, (Score, Mask)):
        return op

    def rewrite(node: Expr) -> Expr:
        if parts.is_shared(node):
            let = found.setdefault(node, ColLet(f"key_{len(found)}", node))
            return var(let.name, node.type)
        return rebuild(node, tuple(rewrite(a) for a in node.args)) if node.args else node

    if isinstance(op, Score):
        return dataclasses.replace(op, expr=rewrite(op.expr))
    items = conjuncts(op.expr)
    new = tuple(map(rewrite, _gathered(items, parts)))
    return op if new == items else dataclasses.replace(op, expr=all_of(*new))


def _gathered(items: tuple[Expr, ...], parts: _Parts) -> tuple[Expr, ...]:
    """A mask's conditions, with those on the key alone as one, where they are worth sharing together."""
    alone = [c for c in items if parts.are_alone(c)]
    together = all_of(*alone)
    return (*(c for c in items if c not in alone), together) if alone and parts.is_shared(together) else items


def _is_costly(node: Expr) -> bool:
    """Whether an operator costs more than what a thread reads the number for."""
    return any(cost(n) - sum(cost(a) for a in n.args) >= COSTLY for n in walk(node))


__all__ = ["share_columns"]
