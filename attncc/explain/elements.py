"""What a score costs for an element, by the expression that the kernel computes: after the passes, not by the spec's text."""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.expr import FLOAT, Expr, walk
from attncc.ir.schedule_ops import compute_role, operations
from attncc.ir.tile import COLUMN_STEP, ELEMENT, ColLet, RowLet, Score, Weights
from attncc.targets import Target
from attncc.targets.cost import LOAD_INSTRUCTIONS, SLOW, SPECIAL, ElementCost, element_cost
from attncc.targets.model import Shares

STAGED_READ = 1.0
"""A number of a distance in shared memory."""
_TILE, _ROW, _COLUMN, _ELEMENT = range(4)


def score_cost(schedule: l3.Schedule, target: Target) -> ElementCost:
    """The work of the score of an unmasked tile (the last one of the schedule), and what bounded scores save."""
    extra = element_cost(schedule.attention)
    role = compute_role(schedule)
    scores = _last_scores(role.body)
    steps = [op for op in operations(role.body) if isinstance(op, l3.SoftmaxStep)]
    instructions = special = 0.0
    if scores:
        instructions, special = _count(scores[-1].expr, _classes_of(role), target, role.rows_per_group // (role.warps * 8 // role.groups))
    capped = bool(steps) and steps[-1].cap is not None
    if capped:
        instructions, special = instructions + 1.0, special + 1.0
    bounded = bool(steps) and steps[-1].maximum is not None
    if bounded:
        instructions -= 0.5 if target.has("packed_arithmetic") else 1.0  # no running maximum
    return dataclasses.replace(extra, instructions=instructions, special=special, bounded=bounded, capped=capped)


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
    if node.op == "load":
        return STAGED_READ if own == _ELEMENT and not _is_block(node) else LOAD_INSTRUCTIONS
    if node.op == "mul" and node.type == FLOAT and any(a.op == "const" for a in node.args):
        return 0.0  # part of an addition, or of softmax
    if node.op in ("add", "sub") and node.type == FLOAT and target.has("packed_arithmetic"):
        return 0.5
    return 1.0 + SLOW.get(node.op, 0)


def _is_block(node: Expr) -> bool:
    """Whether neighbouring elements read neighbouring numbers: the key itself is the last index."""
    return any(n.op == "var" and n.value == "kv_idx" for n in node.args[-1:])


__all__ = ["score_cost"]
