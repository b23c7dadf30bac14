"""What is printed for a mask. `flat` is the Flattener."""

from __future__ import annotations

from attncc.emit.expressions import Names, to_statements
from attncc.emit.ranges import KeyRange, key_range
from attncc.emit.view import Step
from attncc.ir.expr import TRUE, Expr, all_of, conjuncts
from attncc.ir.key_words import Column, Combined, Range, Row, Words, in_words

SYMBOLS = {"and": "&", "or": "|", "ne": "^"}


def view_mask(flat, op) -> tuple[str, dict]:
    """Bounds of a row on the keys it keeps, then what is left as a condition on each element. Where a thread owns whole rows, all that can
    be worked out as words of bits is."""
    columns = frozenset(name for name, text in flat.element_lets.items() if "cols_" in text)
    tile_n = flat.schedule.tile_n
    found = key_range(op.expr, columns, tile_n)
    words, rest = {}, found.rest
    if flat.owns_rows and rest is not TRUE:
        each = {c: in_words(c, columns, frozenset(flat.words), tile_n) for c in conjuncts(rest)}
        words = {c: w for c, w in each.items() if w is not None}
        rest = all_of(*(c for c in each if c not in words))
    names = flat.names(f"e{flat.count}k", flat.variables(op))
    parts = []
    given = {side: bound for side, bound in (("low", found.low), ("high", found.high)) if bound is not None}
    if found.phases or words:
        parts.append(mask_words(flat, op.dst, found, tuple(words.values()), names))
    elif given:
        macro = "mask_between" if len(given) == 2 else {"low": "mask_from", "high": "mask_below"}[next(iter(given))]
        lines, texts = to_statements(tuple(given.values()), names)
        parts.append(Step(macro, {"dst": op.dst, "lines": lines, **dict(zip(given, texts))}))
    if rest is not TRUE:
        lines, (text,) = to_statements((rest,), names)
        macro = "mask_rolled" if op.rolled else "mask_elements"
        parts.append(Step(macro, {"dst": op.dst, "lines": lines, "expr": text}))
    return "mask", {"parts": tuple(parts)}


def mask_words(flat, dst: str, found: KeyRange, words: tuple[Words, ...], names: Names) -> Step:
    """Bounds on the key and on its remainders, and other conditions, as words of bits, and one choice for each element."""
    ranges = [Range(b, None) for b in (found.low,) if b is not None] + [Range(None, b) for b in (found.high,) if b is not None]
    all_words = (*ranges, *(Range(low, high, period) for period, low, high in found.phases), *words)
    numbers = tuple(number for w in all_words for number in _numbers(w))
    lines, texts = to_statements(numbers, names)
    texts = iter(texts)
    bits = " & ".join(_text(w, texts, flat.words) for w in all_words)
    return Step("mask_words", {"dst": dst, "lines": lines, "bits": bits})


def _numbers(words: Words) -> tuple[Expr, ...]:
    """The numbers and conditions of the row that words of bits are made of, in the order in which they are printed."""
    if isinstance(words, Range):
        return tuple(n for n in (words.low, words.high) if n is not None)
    if isinstance(words, Row):
        return (words.condition,)
    return tuple(n for w in words.args for n in _numbers(w)) if isinstance(words, Combined) else ()


def _text(words: Words, numbers, columns: dict[str, str]) -> str:
    """The text for one word; `numbers` gives the texts of `_numbers`, `columns` are the words of conditions on the key."""
    if isinstance(words, Column):
        return f"{columns[words.name]}[word]"
    if isinstance(words, Row):
        return f"softmax.all_bits({next(numbers)})"
    if isinstance(words, Combined):
        inner = [_text(w, numbers, columns) for w in words.args]
        return f"~{inner[0]}" if words.op == "not" else f"({f' {SYMBOLS[words.op]} '.join(inner)})"
    low, high = (None if n is None else next(numbers) for n in (words.low, words.high))
    if words.period is not None:
        return f"softmax.bits_of_period({low or 0}, {high or words.period}, {words.period}, thread, word)"
    name, end = ("bits_below", high) if low is None else ("bits_from", low)
    return f"softmax.{name}({end} - kv_first, word)"


__all__ = ["view_mask"]
