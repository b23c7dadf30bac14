"""Work of a score program per element, as the resource model counts it. No torch, no IR passes: only the expression."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.ir.attention import Attention
from attncc.ir.expr import Expr, walk

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
    """What the score expression adds per element; a multiplication by a constant is part of softmax and free."""
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
    columns = int(any(n.op == "var" and n.value == "kv_idx" for n in walk(attention.score)))
    return ElementCost(cost["instructions"], cost["special"], columns)


def _sees_row(node: Expr) -> bool:
    return any(n.op == "var" and n.value == "q_idx" for n in walk(node))


def _is_scaling(node: Expr) -> bool:
    """qk times a constant, which folds into the exponent's multiplier."""
    return node.op == "mul" and any(a.op == "const" for a in node.args) and any(a.op == "var" for a in node.args)
