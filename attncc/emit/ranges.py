"""The part of a mask that keeps one range of keys in each row.

A causal mask, a window or the end of the sequence compares kv_idx with a number that is the same for a whole row. All such conjuncts
together keep low <= kv_idx < high, and a thread needs one word of bits a row for that instead of a few comparisons an element.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc.ir.expr import Expr, all_of, conjuncts, maximum, minimum
from attncc.ir.key_words import KEY, bounds, remainders


@dataclass(frozen=True)
class KeyRange:
    """Keys low <= kv_idx < high (None: no bound); the same of kv_idx % period, by period; and the conjuncts `rest` that are
    neither."""

    low: Expr | None
    high: Expr | None
    phases: tuple[tuple[int, Expr | None, Expr | None], ...]
    rest: Expr


def key_range(mask: Expr, varying: frozenset[str], tile_n: int = 0) -> KeyRange:
    """Splits `mask`; `varying` names the variables other than kv_idx that differ between the keys of a row.

    A key tile begins at a multiple of `tile_n`. So where a period divides that, kv_idx % period does not change from tile to tile (the
    columns of an image that is stored row by row).
    """
    varying = varying | {"kv_idx", "qk"}
    found: dict[Expr, tuple[Expr | None, Expr | None]] = {KEY: (None, None)}
    rest = []
    for item in conjuncts(mask):
        key = next((k for k in (KEY, *remainders(item, tile_n)) if bounds(item, k, varying) is not None), None)
        if key is None:
            rest.append(item)
            continue
        low, high = found.get(key, (None, None))
        for lower, upper in bounds(item, key, varying):
            low = lower if low is None else low if lower is None else maximum(low, lower)
            high = upper if high is None else high if upper is None else minimum(high, upper)
        found[key] = low, high
    low, high = found.pop(KEY)
    return KeyRange(low, high, tuple((k.args[1].value, *ends) for k, ends in found.items()), all_of(*rest))
