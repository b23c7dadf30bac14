"""The tanh that caps a score becomes part of the softmax step, where nothing comes between the two.

    before  score dst=S, expr=tanh(qk * 0.0029); softmax_step scores=S, ..., maximum=-0.55
    after   softmax_step scores=S, ..., maximum=-0.55, cap=0.0029

For tiles without a mask, after a row's maximum is set. There the step may make the tanh of a pair by an odd polynomial (`share_exponentials`
says of how many), whose last multiplication and addition is the one that scales and shifts the exponent: five instructions for two
elements instead of two multiplications, two tanh and two additions. Asks for: packed_arithmetic. Not for fp16 operands, whose tanh is more exact.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.expr import FLOAT, Expr, var
from attncc.ir.schedule_ops import compute_role, replace_role
from attncc.ir.tile import ELEMENT, Score
from attncc.targets import Target

QK = var(ELEMENT, FLOAT)
LEAST, MOST = 1e-5, 1e3
"""A cap whose seventh power, times any multiplier, is an ordinary float32 number."""


def cap_in_softmax(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with the tanh of capped scores in its softmax steps; unchanged without packed arithmetic or for other types than bf16."""
    if not target.has("packed_arithmetic") or schedule.attention.dtype != "bf16":
        return schedule
    role = compute_role(schedule)
    body = _body(role.body)
    return schedule if body == role.body else replace_role(schedule, role, body=body)


def _body(body: tuple) -> tuple:
    out: list = []
    for op in body:
        if hasattr(op, "body"):
            op = dataclasses.replace(op, body=_body(op.body))
        at = _score_before(out) if _keeps_maximum(op) else None
        split = None if at is None else _split(out[at].expr)
        if split is not None:
            cap, inner = split
            out[at : at + 1] = [] if inner == QK else [dataclasses.replace(out[at], expr=inner)]
            op = dataclasses.replace(op, cap=cap)
        out.append(op)
    return tuple(out)


def _keeps_maximum(op) -> bool:
    return isinstance(op, l3.SoftmaxStep) and op.maximum is not None and not (op.first or op.sets)


def _score_before(ops: list) -> int | None:
    """The place of the score with nothing but waits for rings after it; None when there is none."""
    at = len(ops) - 1
    while at >= 0 and isinstance(ops[at], l3.Acquire):
        at -= 1
    return at if at >= 0 and isinstance(ops[at], Score) else None


def _split(score: Expr) -> tuple[float, Expr] | None:
    """(cap, x) with score = tanh(cap * x); None for other scores."""
    if score.op != "tanh":
        return None
    (inner,) = score.args
    if inner.op == "mul" and QK in inner.args:
        other = inner.args[0] if inner.args[1] == QK else inner.args[1]
        if other.op == "const" and LEAST <= other.value <= MOST:
            return other.value, QK
    return 1.0, inner


__all__ = ["cap_in_softmax"]
