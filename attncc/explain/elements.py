"""What a score costs for an element, by the expression that the kernel computes: after the passes, not by the spec's text."""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.diagonals import split_diagonals
from attncc.ir.expr import FLOAT, Expr, var, variables, walk
from attncc.ir.schedule_ops import compute_role, element_names, operations, without_repairs
from attncc.ir.tile import COLUMN_STEP, ELEMENT, ColLet, RowLet, Score, Weights
from attncc.targets import Target
from attncc.targets.cost import LOAD_INSTRUCTIONS, SLOW, SPECIAL, ElementCost, element_cost
from attncc.targets.distances import LEVEL_INSTRUCTIONS, STAGED_BYTES, STAGED_ROW_READ, STAGING_INSTRUCTIONS
from attncc.targets.model import Shares

STAGED_READ = 1.0
"""A number of a distance in shared memory."""
GATHERED_READ = 10.0
"""An element of a tensor, where a thread reads its row's one by one: strides are numbers of 64 bits."""
EIGHT_READ, ROW_BYTES = 1.2, 4.0
"""The same where eight numbers of a row come at once: a shift or a mask, and its part of the load. Each 16 bytes are half of a sector of 32 that
the first-level cache, which is the shared memory, gives."""
COLUMN_INSTRUCTIONS = 15.0
"""Of a warp and tile, to compute a number of each key for all rows."""
_TILE, _ROW, _COLUMN, _ELEMENT = range(4)


def score_cost(schedule: l3.Schedule, target: Target, near: float = 1.0) -> ElementCost:
    """The work of the score of an unmasked tile (the last one of the schedule), and what bounded scores save. `near` is the share of tiles whose
    terms of the distance are not all the same."""
    extra = element_cost(schedule.attention)
    role = compute_role(schedule)
    scores = _last_scores(without_repairs(role.body))
    steps = [op for op in operations(without_repairs(role.body)) if isinstance(op, l3.SoftmaxStep)]
    instructions = special = read = 0.0
    if scores:
        expr, terms, rows = scores[-1].expr, (), role.rows_per_group // (role.warps * 8 // role.groups)
        if target.has("tensor_memory"):
            rows = 1
            expr, terms = split_diagonals(expr, element_names(role.body))
        instructions, special = _count(expr, _classes_of(role), target, rows)
        rows_read = sum(_reads_row(n, schedule) for n in walk(expr)) if target.has("tensor_memory") else 0
        instructions -= rows_read * (GATHERED_READ - EIGHT_READ)
        staged = len(terms) * (STAGED_ROW_READ + STAGING_INSTRUCTIONS / schedule.tile_n)
        instructions += near * staged + (LEVEL_INSTRUCTIONS / schedule.tile_n if scores[-1].same is not None else 0.0)
        read = STAGED_BYTES * near * len(terms) + ROW_BYTES * rows_read
        columns = _shared_columns(role.body) & variables(expr)
        instructions += len(columns) * (STAGED_ROW_READ + COLUMN_INSTRUCTIONS / schedule.tile_n)
        read += 1.0 * len(columns)  # all of a warp's threads read the same four numbers
    capped = bool(steps) and steps[-1].cap is not None
    if capped:
        instructions, special = instructions + 1.0, special + 1.0
    bounded = bool(steps) and steps[-1].maximum is not None
    if bounded and not target.rates.trusting:
        instructions -= 0.5 if target.has("packed_arithmetic") else 1.0  # no running maximum
    return dataclasses.replace(extra, instructions=instructions, special=special, bounded=bounded, capped=capped, shared_bytes=read)


def shares_of(schedule: l3.Schedule) -> Shares:
    """What the softmax step of an unmasked tile makes by polynomials."""
    steps = [op for op in operations(compute_role(schedule).body) if isinstance(op, l3.SoftmaxStep) and op.half != "maximum"]
    return Shares(steps[-1].polynomial, steps[-1].odd) if steps else Shares()


def _last_scores(body: tuple) -> list[Score]:
    """The scores of the last tile's body. It may have none, where softmax does all."""
    found: list[Score] = []
    for op in body:
        found = [op] if isinstance(op, Score) else found
        inner = getattr(op, "body", ())
        if any(isinstance(o, (l3.SoftmaxStep, Weights)) for o in operations(inner)):
            found = _last_scores(inner)
    return found


def _classes_of(role: l3.Role) -> dict[str, int]:
    classes = {ELEMENT: _ELEMENT, "q_idx": _ROW, "kv_idx": _COLUMN, COLUMN_STEP: _COLUMN}
    for op in operations(role.body):
        if isinstance(op, (RowLet, ColLet)):
            classes[op.name] = _ROW if isinstance(op, RowLet) else _COLUMN
    return classes


def _count(root: Expr, names: dict[str, int], target: Target, rows: int) -> tuple[float, float]:
    """(instructions, special function results) for an element. A column's work is shared by the `rows` rows that a thread has of it."""
    classes: dict[Expr, int] = {}
    instructions = special = 0.0
    hidden = _inside_loads(root)
    for node in walk(root):
        kinds = {classes[a] for a in node.args} | ({names.get(node.value, _TILE)} if node.op == "var" else set())
        own = _ELEMENT if _ELEMENT in kinds or {_ROW, _COLUMN} <= kinds else max(kinds, default=_TILE)
        classes[node] = own
        if own in (_TILE, _ROW) or node.op in ("var", "const") or node in hidden:
            continue
        share = 1.0 if own == _ELEMENT else 1.0 / max(1, rows)
        instructions += share * _instructions(node, own, target)
        special += share * SPECIAL.get(node.op, 0)
    return instructions, special


def _inside_loads(root: Expr) -> set[Expr]:
    """Index arithmetic: of distances it is made once for all, of others it is part of the load."""
    return {n for load in walk(root) if load.op == "load" for a in load.args for n in walk(a)}


def _instructions(node: Expr, own: int, target: Target) -> float:
    if target.has("tensor_memory") and _is_step(node):
        return 0.0  # a constant of the unrolled loop, and its product, which is part of an addition
    if target.has("tensor_memory") and any(map(_is_step, node.args)):
        return 1.0  # that addition: each element has a constant of its own, so they do not go by pairs
    if node.op == "load" and target.has("tensor_memory"):
        return GATHERED_READ
    if node.op == "load":
        return STAGED_READ if own == _ELEMENT and not _is_block(node) else LOAD_INSTRUCTIONS
    if node.op == "mul" and node.type == FLOAT and any(a.op == "const" for a in node.args):
        return 0.0  # part of an addition, or of softmax
    if node.op in ("add", "sub") and node.type == FLOAT and target.has("packed_arithmetic"):
        return 0.5
    return 1.0 + SLOW.get(node.op, 0)


def _shared_columns(body: tuple) -> frozenset[str]:
    """Numbers of a key that a thread of the group computes for all."""
    return frozenset(op.name for op in operations(body) if isinstance(op, ColLet) and op.slot is not None)


def _reads_row(node: Expr, schedule: l3.Schedule) -> bool:
    """Whether `node` reads 16-bit numbers of neighbouring keys side by side."""
    if node.op != "load" or not (len(node.args) > 1 and node.args[-1] == var("kv_idx")):
        return False
    dtype = next((t.dtype for t in schedule.attention.tensors if t.name == node.value), "")
    return dtype in ("bf16", "f16") and not any("kv_idx" in variables(a) for a in node.args[:-1])


def _is_step(node: Expr) -> bool:
    """A column's place in the tile, as a number, times something."""
    if node.op in ("to_float", "mul"):
        return any(map(_is_step, node.args))
    return node.op == "var" and node.value == COLUMN_STEP


def _is_block(node: Expr) -> bool:
    """Whether neighbouring elements read neighbouring numbers: the key itself is the last index."""
    return any(n.op == "var" and n.value == "kv_idx" for n in node.args[-1:])


__all__ = ["score_cost"]
