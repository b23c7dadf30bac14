"""Conditions on the key as words of bits, where a thread owns whole rows.

A comparison of kv_idx with a number of the row keeps a range of bits, a condition on the key alone has its bits from the thread that
computed them for all rows, one on the row alone keeps all bits or none; and, or, not work on whole words. So a mask made of those takes a
few instructions for 32 keys, however many comparisons it has, and one choice for each score.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc.ir.algebra import Linear, linear, number, to_expr
from attncc.ir.expr import BOOL, INT, Expr, var, variables, walk

KEY = var("kv_idx")
LARGEST_PERIOD = 128
"""Keys whose bits a word holds for a thread that owns a quarter of the columns."""


@dataclass(frozen=True)
class Range:
    """Keys low <= kv_idx or kv_idx < high (the other is None), or with a period those of whose remainder that, or both, holds."""

    low: Expr | None
    high: Expr | None
    period: int | None = None


@dataclass(frozen=True)
class Column:
    """Keys whose condition of this name holds."""

    name: str


@dataclass(frozen=True)
class Row:
    """All keys where the condition, which is the same for a whole row, holds; else none."""

    condition: Expr


@dataclass(frozen=True)
class Combined:
    """`op` is "and", "or", "not" or "ne" (one of two)."""

    op: str
    args: tuple


Words = Range | Column | Row | Combined


def in_words(mask: Expr, varying: frozenset[str], conditions: frozenset[str], tile_n: int) -> Words | None:
    """`mask` as words of bits, None where it is made of anything else.

    `varying` names the variables other than kv_idx that differ between the keys of a row, `conditions` those of them that are kept as words
    of bits. A key tile begins at a multiple of `tile_n`.
    """
    names = variables(mask)
    if not names & (varying | {"kv_idx", "qk"}):
        return Row(mask)
    if mask.op == "var":
        return Column(mask.value) if mask.value in conditions else None
    if mask.op in ("and", "or", "not") or mask.op in ("eq", "ne") and mask.args[0].type == BOOL:
        args = tuple(in_words(a, varying, conditions, tile_n) for a in mask.args)
        if None in args:
            return None
        return Combined("not", (Combined("ne", args),)) if mask.op == "eq" else Combined(mask.op, args)
    if mask.op == "select":
        kept, *others = (in_words(a, varying, conditions, tile_n) for a in mask.args)
        if None in (kept, *others):
            return None
        yes, no = Combined("and", (kept, others[0])), Combined("and", (Combined("not", (kept,)), others[1]))
        return Combined("or", (yes, no))
    return _ranges(mask, varying | {"kv_idx", "qk"}, tile_n)


def _ranges(item: Expr, varying: frozenset[str], tile_n: int) -> Words | None:
    for key in (KEY, *remainders(item, tile_n)):
        found = bounds(item, key, varying)
        if found is not None:
            period = None if key is KEY else key.args[1].value
            ranges = tuple(Range(low, high, period) for low, high in found)
            return ranges[0] if len(ranges) == 1 else Combined("and", ranges)
    return None


def remainders(item: Expr, tile_n: int) -> tuple[Expr, ...]:
    """The remainders of kv_idx in `item` by powers of two from 8 on that divide a tile."""
    mods = (n for n in walk(item) if n.op == "mod" and n.args[0] is KEY and n.args[1].op == "const")
    return tuple(n for n in mods if _is_period(n.args[1].value, tile_n))


def _is_period(c: int, tile_n: int) -> bool:
    return 8 <= c <= LARGEST_PERIOD and c & (c - 1) == 0 and tile_n > 0 and tile_n % c == 0


def bounds(item: Expr, key: Expr, varying: frozenset[str]) -> list[tuple[Expr | None, Expr | None]] | None:
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
