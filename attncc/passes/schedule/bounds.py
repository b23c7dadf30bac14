"""Upper bounds of tile counts, as far as their shape gives them away."""

from __future__ import annotations

from attncc.ir.expr import Expr


def largest(e: Expr, lets: dict[str, Expr]) -> int | None:
    """A number that integer expression `e` never exceeds; None when none is known. `lets` defines bound names."""
    if e.op == "const":
        return int(e.value)
    if e.op == "var":
        return largest(lets[e.value], lets) if e.value in lets else None
    if e.op == "min":
        known = [b for b in (largest(a, lets) for a in e.args) if b is not None]
        return min(known, default=None)
    if e.op in ("select", "max"):
        both = [largest(a, lets) for a in e.args[-2:]]
        return None if None in both else max(both)
    if e.op == "sub":
        return _difference(*e.args, lets)
    if e.op == "add":
        both = [largest(a, lets) for a in e.args]
        return None if None in both else sum(both)
    return None


def _difference(a: Expr, b: Expr, lets: dict[str, Expr]) -> int | None:
    """ceil(x / n) - floor(x / n) is at most 1; c - d for constants."""
    a, b = _resolve(a, lets), _resolve(b, lets)
    if a.op == b.op == "floordiv" and a.args[1] is b.args[1] and a.args[1].op == "const":
        n = a.args[1].value
        x, y = a.args[0], b.args[0]
        if x.op == "add" and x.args[0] is y and x.args[1].op == "const" and 0 <= x.args[1].value < n:
            return 1
    return a.value - b.value if a.op == b.op == "const" else None


def _resolve(e: Expr, lets: dict[str, Expr]) -> Expr:
    while e.op == "var" and e.value in lets:
        e = lets[e.value]
    return e
