"""What an expression depends on, from nothing to the single element."""

from __future__ import annotations

from attncc.ir.algebra import Linear, linear, to_expr
from attncc.ir.expr import INT, Expr, transform, variables, walk
from attncc.ir.tile import COLUMN_FIRST, COLUMN_STEP, ELEMENT

CONSTANT, HEAD, ROW, COLUMN, DIAGONAL, ELEMENTWISE = "constant", "head", "row", "column", "diagonal", "element"
CLASSES = (CONSTANT, HEAD, ROW, COLUMN, DIAGONAL, ELEMENTWISE)
"""constant: literals, sizes and run-time scalars; head: also b, h, hkv and the tile's own number; row: also q_idx;
column: also kv_idx; diagonal: q_idx and kv_idx through their difference only; element: the rest, the score itself
included."""

_PER_TILE = frozenset(("b", "h", "hkv", "q_tile"))
_PER_COLUMN = frozenset(("kv_idx", "kv_tile", "t", COLUMN_FIRST, COLUMN_STEP))


def dependence(expr: Expr, bound: dict[str, str] | None = None) -> str:
    """The class of `expr`; `bound` gives the classes of names bound by lets."""
    names = variables(expr)
    kinds = {(bound or {}).get(name) or _class_of(name) for name in names}
    if ELEMENTWISE in kinds:
        return ELEMENTWISE
    if ROW in kinds and COLUMN in kinds:
        return DIAGONAL if _along_diagonal(expr) else ELEMENTWISE
    for kind in (COLUMN, ROW, HEAD):
        if kind in kinds:
            return kind
    return CONSTANT


def _class_of(name: str) -> str:
    if name == ELEMENT:
        return ELEMENTWISE
    if name == "q_idx":
        return ROW
    if name in _PER_COLUMN:
        return COLUMN
    return HEAD if name in _PER_TILE else CONSTANT


def _along_diagonal(expr: Expr) -> bool:
    """Whether q_idx and kv_idx occur only in sums where their coefficients are opposite."""
    rest = transform(expr, _without_difference)
    return not variables(rest) & {"q_idx", "kv_idx"}


def _without_difference(node: Expr) -> Expr:
    if node.type != INT or node.op not in ("add", "sub"):
        return node
    form = linear(node)
    k = {t.value: c for t, c in form.terms if t.op == "var"}
    if k.get("q_idx") and k.get("q_idx") == -k.get("kv_idx", 0):
        rest = tuple((t, c) for t, c in form.terms if not (t.op == "var" and t.value in ("q_idx", "kv_idx")))
        return to_expr(Linear(rest, form.constant))
    return node


def classify(expr: Expr) -> dict[Expr, str]:
    """The class of every sub-expression, for reports."""
    return {node: dependence(node) for node in walk(expr)}


__all__ = ["CLASSES", "classify", "dependence"]
