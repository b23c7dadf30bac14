"""The part of a mask that keeps one range of keys in each row.

A causal mask, a window or the end of the sequence compares kv_idx with a number that is the same for a whole row. All such conjuncts
together keep low <= kv_idx < high, and a thread needs one word of bits a row for that instead of a few comparisons an element.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc.ir.algebra import Linear, linear, number, to_expr
from attncc.ir.expr import INT, Expr, all_of, conjuncts, maximum, minimum, var, variables

KEY = var("kv_idx")


@dataclass(frozen=True)
class KeyRange:
    """Keys low <= kv_idx < high (None: no bound), and the conjuncts `rest` that are no such bound."""

    low: Expr | None
    high: Expr | None
    rest: Expr


def key_range(mask: Expr, varying: frozenset[str]) -> KeyRange:
    """Splits `mask`; `varying` names the variables other than kv_idx that differ between the keys of a row."""
    low = high = None
    rest = []
    for item in conjuncts(mask):
        bounds = _bounds(item, varying | {"kv_idx", "qk"})
        if bounds is None:
            rest.append(item)
            continue
        for lower, upper in bounds:
            low = lower if low is None else low if lower is None else maximum(low, lower)
            high = upper if high is None else high if upper is None else minimum(high, upper)
    return KeyRange(low, high, all_of(*rest))


def _bounds(item: Expr, varying: frozenset[str]) -> list[tuple[Expr | None, Expr | None]] | None:
    """The bounds (low, high) that a comparison gives, or None when it is no bound of kv_idx."""
    if item.op not in ("le", "lt", "ge", "gt", "eq") or item.args[0].type != INT:
        return None
    a, b = item.args if item.op not in ("ge", "gt") else item.args[::-1]
    gap = linear(b).plus(linear(a), -1)
    strict = 1 if item.op in ("lt", "gt") else 0
    gaps = [gap.plus(number(-strict))] + ([gap.times(-1)] if item.op == "eq" else [])
    found = [_bound(g, varying) for g in gaps]
    return None if None in found else found


def _bound(gap: Linear, varying: frozenset[str]) -> tuple[Expr | None, Expr | None] | None:
    """The bound that gap >= 0 puts on kv_idx."""
    sign, others = gap.coefficient(KEY), gap.without(KEY)
    if sign not in (1, -1) or any(variables(term) & varying for term, _ in others.terms):
        return None
    if sign == 1:
        return to_expr(others.times(-1)), None
    return None, to_expr(others.plus(number(1)))
