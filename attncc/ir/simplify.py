"""Simplification of expressions: constants, neutral elements, conditions, and what the ranges of integers decide.

Integer rules are exact on 32-bit words. Float rules change a result by rounding at most: constant factors are gathered
(`(x * a) / b` becomes `x * (a / b)`), which every compiler of tensor programs does; a division by a constant that is no
power of two stays a division. `not` of a float comparison stays, because of NaN.
"""

from __future__ import annotations

import math

from attncc.ir.algebra import INT_HIGH, INT_LOW, Algebra, conjoin, disjoin, linear, negate
from attncc.ir.expr import BOOL, FALSE, FLOAT, INT, OPS, TRUE, ZERO, Expr, apply, const, select, transform


def simplify(root: Expr, algebra: Algebra | None = None) -> Expr:
    """An equal expression that is no larger; `algebra` brings facts about the ranges of integers."""
    return transform(root, lambda node: _rewrite(node, algebra))


def promised(declared) -> tuple[int | None, int | None]:
    """Numeric bounds that the declaration of an int tensor or scalar promises, (least, greatest)."""
    low, high = declared.low, declared.high
    return (
        low.value if low is not None and low.op == "const" and low.type == INT else None,
        high.value - 1 if high is not None and high.op == "const" and high.type == INT else None,
    )


def _rewrite(node: Expr, algebra: Algebra | None) -> Expr:
    for _ in range(8):
        new = _once(node, algebra)
        if new is node:
            return node
        node = new
    return node


def _once(node: Expr, algebra: Algebra | None) -> Expr:
    if node.op in ("const", "var", "load"):
        return node
    if all(a.op == "const" for a in node.args):
        return _folded(node)
    rule = _RULES.get(node.op)
    new = rule(node) if rule else node
    if new is node and algebra is not None:
        new = _by_range(node, algebra)
    return new


def _folded(node: Expr) -> Expr:
    """The constant a node of constants is; the node itself where Python and the GPU could differ."""
    values = [a.value for a in node.args]
    if node.op in ("shl", "shr") and not 0 <= values[1] <= 31:
        return node
    try:
        value = OPS[node.op].evaluate(*values)
    except (ValueError, ZeroDivisionError, OverflowError):
        return node
    if isinstance(value, complex):
        return node
    if node.type == INT:
        return const(int(value)) if INT_LOW <= value <= INT_HIGH else node
    if node.type == FLOAT:
        return const(float(value)) if math.isfinite(value) or any(math.isinf(v) for v in values) else node
    return const(bool(value))


def _is(node: Expr, value) -> bool:
    return node.op == "const" and node.type != BOOL and node.value == value


def _and(node: Expr) -> Expr:
    a, b = node.args
    return FALSE if a is negate(b) else conjoin(a, b) if TRUE in node.args or FALSE in node.args or a is b else node


def _or(node: Expr) -> Expr:
    a, b = node.args
    return TRUE if a is negate(b) else disjoin(a, b) if TRUE in node.args or FALSE in node.args or a is b else node


def _not(node: Expr) -> Expr:
    return negate(node.args[0])


def _select(node: Expr) -> Expr:
    c, a, b = node.args
    if c.op == "const":
        return a if c.value else b
    if a is b:
        return a
    if c.op == "not":
        return select(c.args[0], b, a)
    if a.type == BOOL and a.op == "const":
        return disjoin(c, b) if a.value else conjoin(negate(c), b)
    if b.type == BOOL and b.op == "const":
        return disjoin(negate(c), a) if b.value else conjoin(c, a)
    return node


def _add(node: Expr) -> Expr:
    a, b = node.args
    if _is(b, 0):
        return a
    if _is(a, 0):
        return b
    if b.op == "neg":
        return apply("sub", a, b.args[0])
    if node.type == INT:
        return _gather(node)
    return node


def _sub(node: Expr) -> Expr:
    a, b = node.args
    if _is(b, 0):
        return a
    if a is b and node.type == INT:
        return ZERO
    if b.op == "neg":
        return apply("add", a, b.args[0])
    return _gather(node) if node.type == INT else node


def _gather(node: Expr) -> Expr:
    """(x + 3) - 1 -> x + 2: constants of a sum meet, the rest keeps its shape."""
    a, b = node.args
    sign = 1 if node.op == "add" else -1
    if b.op != "const":
        return apply("add", b, a) if a.op == "const" and node.op == "add" else node
    if a.op in ("add", "sub") and a.args[1].op == "const":
        total = (1 if a.op == "add" else -1) * a.args[1].value + sign * b.value
        if INT_LOW < total <= INT_HIGH:
            return a.args[0] if total == 0 else apply("add" if total > 0 else "sub", a.args[0], abs(total))
    if INT_LOW < b.value < 0:
        return apply("sub" if sign > 0 else "add", a, -b.value)
    return node


def _mul(node: Expr) -> Expr:
    a, b = node.args
    if a.op == "const":
        return apply("mul", b, a)
    if _is(b, 1):
        return a
    if _is(b, 0) and node.type == INT:
        return ZERO
    if _is(b, -1):
        return apply("neg", a)
    if b.op == "const" and node.type == FLOAT:
        return _factor(a, b.value, node)
    return node


def _div(node: Expr) -> Expr:
    a, b = node.args
    if b.op != "const" or b.value == 0.0 or not math.isfinite(b.value):
        return node
    if math.frexp(b.value)[0] in (0.5, -0.5):
        return apply("mul", a, 1.0 / b.value)
    if a.op == "mul" and a.args[1].op == "const":
        return apply("mul", a.args[0], a.args[1].value / b.value)
    return node


def _factor(a: Expr, by: float, node: Expr) -> Expr:
    """a * by with the constant factor of `a` taken in."""
    inner = a.args[1].value if a.op in ("mul", "div") and a.args[1].op == "const" else None
    if inner is None or inner == 0.0:
        return node
    total = inner * by if a.op == "mul" else by / inner
    return apply("mul", a.args[0], total) if total != 0.0 and math.isfinite(total) else node


def _neg(node: Expr) -> Expr:
    a = node.args[0]
    if a.op == "neg":
        return a.args[0]
    if a.op == "sub" and node.type == INT:
        return apply("sub", a.args[1], a.args[0])
    return node


def _floordiv(node: Expr) -> Expr:
    a, b = node.args
    if _is(b, 1):
        return a
    if b.op == "const" and b.value > 0 and a.op == "floordiv" and a.args[1].op == "const" and a.args[1].value > 0:
        total = a.args[1].value * b.value
        return apply("floordiv", a.args[0], total) if total <= INT_HIGH else node
    return node


def _mod(node: Expr) -> Expr:
    a, b = node.args
    if _is(b, 1):
        return ZERO
    return a if a.op == "mod" and a.args[1] is b else node


def _extreme(node: Expr) -> Expr:
    a, b = node.args
    if a is b:
        return a
    if a.op == "const" and node.type == INT:
        return apply(node.op, b, a)
    if b.op == "const" and a.op == node.op and a.args[1].op == "const":
        pick = min if node.op == "min" else max
        return apply(node.op, a.args[0], pick(a.args[1].value, b.value))
    return node


def _compare(node: Expr) -> Expr:
    a, b = node.args
    if a is b and a.type in (INT, BOOL):
        return const(node.op in ("eq", "le", "ge"))
    if a.type == BOOL:
        for x, y in ((a, b), (b, a)):
            if y.op == "const":
                return x if y.value == (node.op == "eq") else negate(x)
    return node


def _by_range(node: Expr, algebra: Algebra) -> Expr:
    if node.op in ("lt", "le", "gt", "ge", "eq", "ne") and node.args[0].type == INT:
        return _decided(node, algebra)
    if node.op in ("min", "max") and node.type == INT:
        a, b = node.args
        least, greatest = (a, b) if algebra.proves_le(a, b) else (b, a) if algebra.proves_le(b, a) else (node, node)
        return least if node.op == "min" else greatest
    if node.op in ("floordiv", "mod") and node.args[1].op == "const" and node.args[1].value > 0:
        low, high = algebra.range(node.args[0])
        if low is not None and high is not None and 0 <= low and high < node.args[1].value:
            return ZERO if node.op == "floordiv" else node.args[0]
    if node.op == "abs" and node.type == INT and (algebra.range(node.args[0])[0] or -1) >= 0:
        return node.args[0]
    return node


def _decided(node: Expr, algebra: Algebra) -> Expr:
    """A comparison that numeric ranges of its two sides decide."""
    if not algebra.trusted(node):
        return node
    low, high = algebra.form_range(linear(node.args[0]).plus(linear(node.args[1]), -1))
    below, above = high is not None and high < 0, low is not None and low > 0
    at_most, at_least = high is not None and high <= 0, low is not None and low >= 0
    yes = {"lt": below, "le": at_most, "gt": above, "ge": at_least, "eq": at_most and at_least, "ne": below or above}
    no = {"lt": at_least, "le": above, "gt": at_most, "ge": below, "eq": below or above, "ne": at_most and at_least}
    return TRUE if yes[node.op] else FALSE if no[node.op] else node


_RULES = {
    "and": _and, "or": _or, "not": _not, "select": _select, "add": _add, "sub": _sub, "mul": _mul, "div": _div,
    "neg": _neg,
    "floordiv": _floordiv, "mod": _mod, "min": _extreme, "max": _extreme,
    **{op: _compare for op in ("eq", "ne", "lt", "le", "gt", "ge")},
}  # fmt: skip
