"""How many instructions an expression takes, roughly, and from where on a column's number is worth keeping."""

from __future__ import annotations

from attncc.ir.expr import Expr

CHEAP_COLUMN = 6
"""Cost up to which a value is not worth a register for every column: loads and transcendental functions cost more,
and the rows of a column share plain arithmetic anyway once the loop over elements is unrolled."""
_COST = {
    "load": 8, "exp": 8, "exp2": 4, "log": 8, "log2": 4, "sqrt": 4, "tanh": 4, "sigmoid": 8, "erf": 16, "sin": 8,
    "cos": 8, "pow": 12, "div": 8, "floordiv": 4, "mod": 4, "const": 0, "var": 0,
}  # fmt: skip


def cost(expr: Expr) -> int:
    """A rough count of instructions; shared parts count each time."""
    own = _COST.get(expr.op, 1)
    if (
        expr.op in ("floordiv", "mod")
        and expr.args[1].op == "const"
        and expr.args[1].value & (expr.args[1].value - 1) == 0
    ):
        own = 1
    return own + sum(cost(a) for a in expr.args)
