"""Numbers of columns: which are staged in shared memory together, and what is fetched for them a key tile ahead."""

from __future__ import annotations

import dataclasses
import itertools

from attncc.emit.expressions import local_name, to_statements
from attncc.emit.view import DSL_TYPES, Step
from attncc.ir import schedule as l3
from attncc.ir.expr import BOOL, substitute
from attncc.ir.schedule import Role
from attncc.ir.schedule_ops import names_read, operations
from attncc.ir.tile import REGISTER, SHARED, ColLet, Mask, RowLet, Score


def steps_of(flattener, body: tuple) -> tuple[Step, ...]:
    """The steps of a body; neighbouring column numbers in shared memory are staged together."""
    body, steps = inline_columns(body), []
    while body:
        columns = tuple(itertools.takewhile(is_staged_column, body))
        steps.append(stage_columns(flattener, columns) if columns else flattener.step(body[0]))
        body = body[max(1, len(columns)) :]
    return tuple(steps)


def stage_columns(flattener, columns: tuple[ColLet, ...]) -> Step:
    """Each thread of a group computes a few columns' numbers, then all read what they need."""
    flattener.staged_columns = max(flattener.staged_columns, len(columns))
    parts = []
    for i, op in enumerate(columns):
        flattener.count += 1
        lines, (text,) = to_statements((op.expr,), flattener.names(f"e{flattener.count}", flattener.variables(op)))
        own = flattener.element_let(op, f"cols_{local_name(op.name)}", "c")
        parts.append({"number": i, "lines": lines, "text": text, **own})
    return Step("stage_columns", {"parts": tuple(parts), "barrier": flattener.staging_barrier})


def fetch_column(flattener, op: l3.ColFetch) -> tuple[str, dict]:
    """The element as it is stored: what makes a number of its type of it, and would wait for it, stands where it is read."""
    target = local_name(op.name)
    kept = f"{target}[i]"
    flattener.element_lets[op.name] = f"({kept} != 0)" if op.expr.type == BOOL else f"{kept}.to({DSL_TYPES[op.expr.type]})"
    names = flattener.names(f"e{flattener.count}at")
    lines, (tile,) = to_statements((op.tile,), names)
    index_lines, index = to_statements(op.expr.args, flattener.names(f"e{flattener.count}"))
    fields = {"target": target, "tile_lines": lines, "tile": tile, "lines": index_lines, "index": ", ".join(index)}
    return "col_fetch", {**fields, "tensor": names.tensor(op.expr.value)}


def fetched(flattener, role: Role) -> tuple[Step, ...]:
    """A declaration of registers for each name that a role fetches ahead."""
    loads = {op.name: op.expr.value for op in operations(role.body) if isinstance(op, l3.ColFetch)}
    return tuple(Step("declare_fetched", {"name": local_name(n), "tensor": flattener.base.tensor(t)}) for n, t in loads.items())


def inline_columns(body: tuple) -> tuple:
    """`body` with each ColLet that one operation beside it reads put into that operation.

    Elements are visited column by column, so a column's number is still computed once, and it dies with its column instead of
    taking a register until the tile is done.
    """
    lets = {op.name: op for op in body if isinstance(op, ColLet) and op.space == REGISTER and op.slot is None}
    readers = {name: [op for op in body if name in _reads(op)] for name in lets}
    single = {name for name, found in readers.items() if len(found) == 1 and not hasattr(found[0], "body")}
    out, bound = [], {}
    for op in body:
        if isinstance(op, (ColLet, Score, Mask)):
            op = dataclasses.replace(op, expr=substitute(op.expr, bound))
        if isinstance(op, ColLet) and op.space == REGISTER and op.name in single:
            bound[op.name] = op.expr
        else:
            out.append(op)
    return tuple(out)


def is_staged_column(op) -> bool:
    return isinstance(op, ColLet) and op.space == SHARED and op.slot is None


def _reads(op) -> frozenset[str]:
    """Variables that an operation or what it holds reads, without those that it binds itself before (a loop has column lets of its own)."""
    names, bound = names_read(op), frozenset()
    for inner in getattr(op, "body", ()):
        names |= _reads(inner) - bound
        bound |= {inner.name} if isinstance(inner, (l3.Let, RowLet, ColLet)) else frozenset()
    return names
