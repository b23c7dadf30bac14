"""The part of a mask that keeps one range of keys in each row.

A causal mask, a window or the end of the sequence compares kv_idx with a number that is the same for a whole row. All such conjuncts
together keep low <= kv_idx < high, and a thread needs one word of bits a row for that instead of a few comparisons an element.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc.ir.algebra import Linear, linear, number, to_expr
from attncc.ir.expr import INT, Expr, all_of, conjuncts, maximum, minimum, var, variables, walk

KEY = var("kv_idx")


@dataclass(frozen=True)
class KeyRange:
    """Keys low <= kv_idx < high (None: no bound); the same of kv_idx % period, by period; and the conjuncts `rest` that are
    neither."""

    low: Expr | None
    high: Expr | None
    phases: tuple[tuple[int, Expr | None, Expr | None], ...]
    rest: Expr


LARGEST_PERIOD = 128
"""Keys whose bits a word holds for a thread that owns a quarter of the columns."""


def key_range(mask: Expr, varying: frozenset[str], tile_n: int = 0) -> KeyRange:
    """Splits `mask`; `varying` names the variables other than kv_idx that differ between the keys of a row.

    A key tile begins at a multiple of `tile_n`. So where a period divides that, kv_idx % period does not change from tile to tile (the
    columns of an image that is stored row by row).
    """
    varying = varying | {"kv_idx", "qk"}
    found: dict[Expr, tuple[Expr | None, Expr | None]] = {KEY: (None, None)}
    rest = []
    for item in conjuncts(mask):
        key = next((k for k in (KEY, *_remainders(item, tile_n)) if _bounds(item, k, varying) is not None), None)
        if key is None:
            rest.append(item)
            continue
        low, high = found.get(key, (None, None))
        for lower, upper in _bounds(item, key, varying):
            low = lower if low is None else low if lower is None else maximum(low, lower)
            high = upper if high is None else high if upper is None else minimum(high, upper)
        found[key] = low, high
    low, high = found.pop(KEY)
    return KeyRange(low, high, tuple((k.args[1].value, *ends) for k, ends in found.items()), all_of(*rest))


def _remainders(item: Expr, tile_n: int) -> tuple[Expr, ...]:
    """The remainders of kv_idx in `item` by powers of two from 8 on that divide a tile."""
    mods = (n for n in walk(item) if n.op == "mod" and n.args[0] is KEY and n.args[1].op == "const")
    return tuple(n for n in mods if _is_period(n.args[1].value, tile_n))


def _is_period(c: int, tile_n: int) -> bool:
    return 8 <= c <= LARGEST_PERIOD and c & (c - 1) == 0 and tile_n > 0 and tile_n % c == 0


def _bounds(item: Expr, key: Expr, varying: frozenset[str]) -> list[tuple[Expr | None, Expr | None]] | None:
    """The bounds (low, high) that a comparison gives, or None when it is no bound of `key`."""
    if item.op not in ("le", "lt", "ge", "gt", "eq") or item.args[0].type != INT:
        return None
    a, b = item.args if item.op not in ("ge", "gt") else item.args[::-1]
    gap = linear(b).plus(linear(a), -1)
    strict = 1 if item.op in ("lt", "gt") else 0
    gaps = [gap.plus(number(-strict))] + ([gap.times(-1)] if item.op == "eq" else [])
    found = [_bound(g, key, varying) for g in gaps]
    return None if None in found else found


def _bound(gap: Linear, key: Expr, varying: frozenset[str]) -> tuple[Expr | None, Expr | None] | None:
    """The bound that gap >= 0 puts on `key`."""
    sign, others = gap.coefficient(key), gap.without(key)
    if sign not in (1, -1) or any(variables(term) & varying for term, _ in others.terms):
        return None
    if sign == 1:
        return to_expr(others.times(-1)), None
    return None, to_expr(others.plus(number(1)))
