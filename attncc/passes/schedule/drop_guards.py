"""Drops the guard against rows without a key where every row is known to have one.

    before  softmax_step ..., guard=true          after   softmax_step ..., guard=false

Known is: scores are finite, and the tile is not masked or only at the end of the keys (each tile visited has at least one
key), or the first tile was already of that kind. Without this pass every step tests each row's maximum.
"""

from __future__ import annotations

import dataclasses
import math

from attncc.ir import schedule as l3
from attncc.ir.expr import FLOAT, ONE, Expr, apply, conjuncts, sub, substitute, tensors, var, variables, walk
from attncc.ir.schedule_ops import compute_role, number, operations, replace_role
from attncc.ir.tile import Mask, Score
from attncc.targets import Target

WILD = frozenset({"div", "pow", "exp", "exp2", "log", "log2", "sqrt"})
"""Operators whose result may be infinite for finite arguments."""
HUGE = 1e8
"""Constants from here on may stand for infinity: kernels take a sum with one from 1.9e8 on for -inf (softmax.no_key)."""
ENDS = (apply("lt", var("kv_idx"), var("seq_kv")), apply("le", var("kv_idx"), sub(var("seq_kv"), ONE)))
"""Masks that only cut off positions past the last key."""


def drop_guards(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with `guard=false` in the steps of the computing role that need none."""
    role = compute_role(schedule)
    lets = {op.name: op.expr for op in operations(role.body) if hasattr(op, "name") and hasattr(op, "expr")}
    heads = schedule.attention.heads_q
    if not all(is_finite(op.expr, lets, heads) for op in operations(role.body) if isinstance(op, Score)):
        return schedule
    body, _ = _drop(role.body, False, lets)
    return replace_role(schedule, role, body=body)


def _drop(body: tuple, seen: bool, lets: dict[str, Expr]) -> tuple[tuple, bool]:
    """`body` without needless guards, and whether every row has a key after it; `seen`: whether it has one before."""
    out, open_mask = [], False
    for op in body:
        if isinstance(op, Mask):
            open_mask = open_mask or any(substitute(c, lets) not in ENDS for c in conjuncts(op.expr))
        elif isinstance(op, l3.SoftmaxStep) and op.maximum is None:
            safe = seen or not open_mask
            op = dataclasses.replace(op, guard=not safe)
            seen, open_mask = safe, False
        elif isinstance(op, (l3.If, l3.For)):
            inner, _ = _drop(op.body, seen, lets)
            op = dataclasses.replace(op, body=inner)
        out.append(op)
    return tuple(out), seen


def is_finite(e: Expr, lets: dict[str, Expr], heads: int = 0) -> bool:
    """Whether `e` is finite whenever the raw score is, without looking at the caller's data; `h` has `heads` values."""
    if variables(e) == {"h"} and not tensors(e):
        return all(_is_number(e, h) for h in range(heads))
    if e.op in ("add", "sub", "mul", "neg", "to_float"):  # each side may be finite for a reason of its own
        return e.op == "to_float" or all(is_finite(a, lets, heads) for a in e.args)
    for node in walk(e):
        if node.op in WILD or (node.op == "load" and node.type == FLOAT):
            return False
        if node.op == "const" and node.type == FLOAT and not abs(node.value) < HUGE:
            return False
        open_name = node.op == "var" and node.type == FLOAT and node.value != "qk"
        if open_name and (node.value not in lets or not is_finite(lets[node.value], lets, heads)):
            return False
    return True


def _is_number(e: Expr, h: int) -> bool:
    try:
        return math.isfinite(number(e, {"h": h}))
    except (ValueError, ArithmeticError):
        return False
