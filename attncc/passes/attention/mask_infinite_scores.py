"""Conditions under which a score is -inf become part of the mask."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.algebra import conjoin, disjoin, negate
from attncc.ir.attention import RAW_SCORE, Attention
from attncc.ir.expr import FALSE, TRUE, Expr, apply, select, variables


def mask_infinite_scores(attention: Attention) -> Attention:
    """A score that is -inf under a condition on positions, tensors or scalars is masked there instead.

    Before:
        score = select(q_idx >= kv_idx, qk * 0.125, -inf) + bias[h, kv_idx]
        mask = true
    After:
        score = qk * 0.125 + bias[h, kv_idx]
        mask = q_idx >= kv_idx

    By the meaning of the language a score of -inf is masked, whatever the reduction, so results are the same. (FlexAttention's score_mod is often
    written so.) What is gained is what masks have: tiles without a key are not visited, tiles without a masked one compute no condition, rows need
    no guard. Conditions on the raw score stay where they are, and so do finite numbers (a row that has none but a
small one, such as -1e4, is the mean of all keys).
    """
    finite, score = _split(attention.score)
    if finite is TRUE:
        return attention
    return replace(attention, score=score, mask=conjoin(attention.mask, finite))


def _split(e: Expr) -> tuple[Expr, Expr]:
    """(condition, value): `e` is `value` where the condition holds and -inf elsewhere."""
    if _is_minus_infinity(e):
        return FALSE, e
    if e.op == "select":
        return _split_select(e)
    if e.op == "add":
        (a_finite, a), (b_finite, b) = map(_split, e.args)
        return conjoin(a_finite, b_finite), apply("add", a, b)
    if e.op == "sub":
        finite, a = _split(e.args[0])
        return finite, apply(e.op, a, e.args[1])
    if e.op in ("mul", "div") and e.args[1].op == "const" and e.args[1].value > 0:
        finite, a = _split(e.args[0])
        return finite, apply(e.op, a, e.args[1])
    return TRUE, e


def _split_select(e: Expr) -> tuple[Expr, Expr]:
    condition, yes, no = e.args
    (yes_finite, a), (no_finite, b) = _split(yes), _split(no)
    if (yes_finite is TRUE and no_finite is TRUE) or RAW_SCORE in variables(condition):
        return TRUE, e
    if no_finite is FALSE:
        return conjoin(condition, yes_finite), a
    if yes_finite is FALSE:
        return conjoin(negate(condition), no_finite), b
    finite = conjoin(disjoin(negate(condition), yes_finite), disjoin(condition, no_finite))
    return finite, select(condition, a, b)


def _is_minus_infinity(e: Expr) -> bool:
    if e.op == "neg":
        return e.args[0].op == "const" and e.args[0].value == float("inf")
    return e.op == "const" and e.value == -float("inf")
