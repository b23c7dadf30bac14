"""Terms of a score that depend on the distance kv_idx - q_idx alone, and are worth computing once for each distance.

A tile of rows x columns has rows * columns elements but only rows + columns - 1 distances. Relative position tables, T5's buckets and
Sandwich's sum of cosines are such terms.
"""

from __future__ import annotations

from attncc.ir.algebra import linear
from attncc.ir.expr import FLOAT, INT, ZERO, Expr, add, apply, const, rebuild, sub, substitute, var, variables, walk
from attncc.ir.tile import COLUMN_FIRST, COLUMN_STEP

Q, KV = var("q_idx"), var("kv_idx")
DISTANCE = "distance"
LEAST_COST = 6
"""Operations from which a term without loads is worth sharing."""
_SAME, _DIAGONAL, _OTHER = range(3)


def split_diagonals(expr: Expr, varying: frozenset[str]) -> tuple[Expr, tuple[Expr, ...]]:
    """`expr` with its costly diagonal terms replaced by the variables diagonal_0, ... , and those terms over `distance`.

    `varying` names the variables that differ between the elements of a tile, besides q_idx and kv_idx.
    """
    classes = _classes(expr, varying | {"qk", COLUMN_FIRST, COLUMN_STEP})
    found: dict[Expr, Expr] = {}

    def rewrite(node: Expr) -> Expr:
        if classes[node] == _DIAGONAL and node.type == FLOAT and _cost(node) >= LEAST_COST:
            return found.setdefault(node, var(f"diagonal_{len(found)}", FLOAT))
        return rebuild(node, tuple(rewrite(a) for a in node.args)) if node.args else node

    out = rewrite(expr)
    at_distance = {"q_idx": ZERO, "kv_idx": var(DISTANCE)}
    return out, tuple(substitute(node, at_distance) for node in found)


def distances_of_tile(tile_m: int, tile_n: int, rows: int) -> tuple[Expr, Expr]:
    """The least and the greatest distance of a group's `rows` rows of query tile q_tile and the keys of tile kv_tile (L3)."""
    keys = apply("mul", var("kv_tile"), tile_n)
    queries = add(apply("mul", var("q_tile"), tile_m), apply("mul", var("group"), rows))
    return sub(keys, add(queries, const(rows - 1))), add(sub(keys, queries), const(tile_n - 1))


def _classes(expr: Expr, varying: frozenset[str]) -> dict[Expr, int]:
    """Whether each node is the same for all elements, a function of the distance, or neither."""
    classes: dict[Expr, int] = {}
    for node in walk(expr):
        if not variables(node) & (varying | {"q_idx", "kv_idx"}):
            classes[node] = _SAME
        elif node.type == INT and node.op in ("add", "sub", "neg", "mul", "shl"):
            classes[node] = _of_linear(node, classes)
        else:
            parts = [classes[a] for a in node.args]
            classes[node] = _DIAGONAL if parts and _OTHER not in parts else _OTHER
    return classes


def _of_linear(node: Expr, classes: dict[Expr, int]) -> int:
    form = linear(node)
    if form.coefficient(Q) != -form.coefficient(KV):
        return _OTHER
    others = form.without(Q).without(KV).terms
    return _DIAGONAL if all(classes.get(t, _OTHER) != _OTHER for t, _ in others) else _OTHER


def _cost(node: Expr) -> int:
    """Operations that are no sums; a load by the distance counts for all of LEAST_COST."""
    loads = sum(n.op == "load" and bool(variables(n) & {"q_idx", "kv_idx"}) for n in walk(node))
    return LEAST_COST * loads + sum(n.op not in ("const", "var", "add", "sub", "load") for n in walk(node))
