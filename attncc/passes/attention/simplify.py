"""Expressions of L1 are simplified."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir import simplify as rules
from attncc.ir.algebra import Algebra, Facts
from attncc.ir.attention import Attention
from attncc.ir.expr import INT, Expr


def simplify(attention: Attention) -> Attention:
    """Constants are folded, neutral elements go, and what the ranges of heads and declared values decide is decided.

    Before:
        score = qk * 0.125 * 1.0 / 30.0
        mask = not kv_idx > q_idx and h < 8            (8 heads)
    After:
        score = qk * 0.004166666666666667
        mask = kv_idx <= q_idx
    """
    algebra = Algebra(_facts(attention))

    def better(expr: Expr | None) -> Expr | None:
        return None if expr is None else rules.simplify(expr, algebra)

    reduction = replace(
        attention.reduction,
        sink=better(attention.reduction.sink),
        weight_scale=better(attention.reduction.weight_scale),
    )
    return replace(attention, score=better(attention.score), mask=better(attention.mask), reduction=reduction)


def _facts(attention: Attention) -> Facts:
    ranges: dict[str, tuple[int | None, int | None]] = {
        n: (0, None) for n in ("b", "q_idx", "kv_idx", "seq_q", "seq_kv")
    }
    ranges |= {"h": (0, attention.heads_q - 1), "hkv": (0, attention.heads_kv - 1), "batch": (1, None)}
    ranges |= {s.name: rules.promised(s) for s in attention.scalars if s.type == INT}
    return Facts(ranges, {t.name: rules.promised(t) for t in attention.tensors}, {})
