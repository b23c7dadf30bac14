"""The part of a score that is a multiple of the product and a term of its own, for code that makes two elements by one instruction."""

from __future__ import annotations

from attncc.ir.expr import FLOAT, Expr, add, apply, rebuild, var, variables
from attncc.ir.tile import ELEMENT

QK = var(ELEMENT, FLOAT)


def split_scaled(expr: Expr) -> tuple[float, Expr | None, Expr] | None:
    """(factor, term, what is left), so that `expr` is what is left with factor * qk + term in the place of qk; None when no such
    part holds every qk, or when it is qk itself.

        qk * 0.125 + slope * kv_idx      (0.125, slope * kv_idx, qk)
        tanh(qk * 0.002) + bias          (0.002, None, tanh(qk) + bias)
    """
    parts: dict[Expr, tuple[float, Expr | None]] = {}

    def visit(node: Expr) -> Expr:
        if ELEMENT not in variables(node):
            return node
        found = _scaled(node)
        if found is not None:
            parts[node] = found
            return QK
        return rebuild(node, tuple(visit(a) for a in node.args))

    left = visit(expr)
    if len(parts) != 1:
        return None
    ((factor, term),) = parts.values()
    return None if factor == 1.0 and term is None else (factor, term, left)


def _scaled(node: Expr) -> tuple[float, Expr | None] | None:
    """(factor, term) when `node` is factor * qk + term and the term does not depend on qk."""
    if node is QK or node == QK:
        return 1.0, None
    if node.op not in ("add", "sub", "mul"):
        return None
    a, b = node.args
    if ELEMENT in variables(a) and ELEMENT in variables(b):
        return None
    if node.op == "mul":
        inner, other = (a, b) if ELEMENT in variables(a) else (b, a)
        found = _scaled(inner)
        return (found[0] * other.value, None) if found and other.op == "const" and found[1] is None else None
    if ELEMENT not in variables(a):
        if node.op == "sub":
            return None
        a, b = b, a
    found = _scaled(a)
    if found is None:
        return None
    factor, term = found
    other = apply("neg", b) if node.op == "sub" else b
    return factor, other if term is None else add(term, other)
