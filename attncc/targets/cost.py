"""Work of a score program per element, as the resource model counts it. No torch, no IR passes: only the expression."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.ir.attention import Attention
from attncc.ir.expr import Expr, variables, walk

SPECIAL = {"exp": 1, "exp2": 1, "log": 1, "log2": 1, "tanh": 1, "sqrt": 1, "div": 1, "sigmoid": 2, "sin": 1, "cos": 1, "pow": 2}
"""Results of the special function unit that an operator takes."""
SLOW = {"erf": 12, "floordiv": 4, "mod": 5, "pow": 3, "sigmoid": 2, "div": 1}
"""Instructions that an operator takes beyond the one that most take."""
LOAD_INSTRUCTIONS = 3


@dataclass(frozen=True)
class ElementCost:
    """Work for one score element beyond the plain softmax: instructions, special function results, and numbers of a column that
    are kept in registers."""

    instructions: float = 0.0
    special: float = 0.0
    columns: int = 0


def element_cost(attention: Attention) -> ElementCost:
    """What the score expression adds per element; a multiplication by a constant is part of softmax and free.

    `columns` counts the values of a key that it needs, and one for each tensor whose elements are gathered one by one. Values
    that only the mask needs do not count: they are not alive beside other tiles, and partial tiles are few.
    """
    varying = frozenset({"qk", "kv_idx"})
    cost = {"instructions": 0.0, "special": 0.0}
    depends: dict[Expr, frozenset[str]] = {}
    for node in walk(attention.score):
        own = frozenset({node.value}) & varying if node.op == "var" else frozenset()
        depends[node] = own.union(*(depends[a] for a in node.args))
        per_element = "qk" in depends[node] or (depends[node] and _sees_row(node))
        if not per_element or node.op in ("var", "const") or _is_scaling(node):
            continue
        cost["instructions"] += LOAD_INSTRUCTIONS if node.op == "load" else 1 + SLOW.get(node.op, 0)
        cost["special"] += SPECIAL.get(node.op, 0)
    gathers = {n for n in walk(attention.score) if n.op == "load" and _sees_row(n) and _sees_key(n)}
    return ElementCost(cost["instructions"], cost["special"], len(column_values(attention.score)) + len(gathers))


def column_values(root: Expr) -> frozenset[Expr]:
    """The largest parts of `root` that depend on the key index alone and are worth a register for each column.

    A sum of kv_idx and constants is not: it is one register and an immediate for each column.
    """
    parents = [(n, a) for n in walk(root) for a in n.args]
    alone = {n for n in walk(root) if _sees_key(n) and not _sees_row(n) and not _sees_score(n)}
    largest = {a for n, a in parents if a in alone and n not in alone} | ({root} & alone)
    return frozenset(n for n in largest if not _is_affine(n) and not _compares_affine(n))


def _is_affine(n: Expr) -> bool:
    """kv_idx times a constant plus what does not depend on it."""
    if not _sees_key(n):
        return True
    if n.op in ("add", "sub", "neg", "to_float"):
        return all(_is_affine(a) for a in n.args)
    return n.op == "var" or (n.op == "mul" and any(a.op == "const" for a in n.args) and all(_is_affine(a) for a in n.args))


def _compares_affine(n: Expr) -> bool:
    """A condition that is settled by comparing such sums."""
    if n.op in ("and", "or", "not"):
        return all(_compares_affine(a) for a in n.args)
    return not _sees_key(n) or (n.op in ("lt", "le", "gt", "ge", "eq", "ne") and all(_is_affine(a) for a in n.args))


def _sees_row(node: Expr) -> bool:
    return "q_idx" in variables(node)


def _sees_key(node: Expr) -> bool:
    return "kv_idx" in variables(node)


def _sees_score(node: Expr) -> bool:
    return "qk" in variables(node)


def _is_scaling(node: Expr) -> bool:
    """qk times a constant, which folds into the exponent's multiplier."""
    return node.op == "mul" and any(a.op == "const" for a in node.args) and any(a.op == "var" for a in node.args)
