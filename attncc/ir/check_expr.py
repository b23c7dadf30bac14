"""Checks that L1 and L2 share: every node of an expression is well typed and names only what is bound."""

from __future__ import annotations

from collections.abc import Mapping

from attncc.diagnostics import AttnError, Diagnostic
from attncc.ir.attention import STORAGE_TYPES, Attention
from attncc.ir.expr import OPS, Expr, ExprTypeError, result_type, walk


class IllegalProgram(AttnError):
    """A program that breaks a rule of its level: an error of the compiler, not of a spec."""

    def __init__(self, where: str, *problems: str):
        super().__init__(*(Diagnostic("E901", f"{where}: {problem}") for problem in problems))


def expression_problems(what: str, expr: Expr, type: str, names: Mapping[str, str], attention: Attention, lists=()):
    """What is wrong with an expression that should have `type` and may use `names` (name -> type), as sentences.

    `lists` are tensors of the compiler's own that may be read besides the declared ones.
    """
    if expr.type != type:
        yield f"{what} is {expr.type}, expected {type}"
    for node in walk(expr):
        if node.op == "var":
            if names.get(node.value) != node.type:
                known = (
                    "not bound here"
                    if node.value not in names
                    else f"bound as {names[node.value]}, used as {node.type}"
                )
                yield f"{what}: `{node.value}` is {known}"
        elif node.op == "load" and node.value not in lists:
            yield from load_problems(what, node, attention)
        elif node.op not in ("const", "load"):
            yield from operator_problems(what, node)


def operator_problems(what: str, node: Expr):
    if node.op not in OPS:
        yield f"{what}: unknown operator `{node.op}`"
        return
    try:
        found = result_type(node.op, tuple(a.type for a in node.args))
    except ExprTypeError as error:
        yield f"{what}: {error}"
        return
    if found != node.type:
        yield f"{what}: `{node.op}` gives {found}, the node says {node.type}"


def load_problems(what: str, node: Expr, attention: Attention):
    """A load names a declared tensor with as many int indices as it has dimensions."""
    declared = next((t for t in attention.tensors if t.name == node.value), None)
    if declared is None:
        yield f"{what}: `{node.value}` is not a tensor"
        return
    if len(node.args) != len(declared.shape):
        yield f"{what}: `{node.value}` has {len(declared.shape)} dimension(s), is indexed with {len(node.args)}"
    if node.type != STORAGE_TYPES[declared.dtype]:
        yield f"{what}: `{node.value}` reads as {STORAGE_TYPES[declared.dtype]}, the node says {node.type}"
    for index in node.args:
        if index.type != "int":
            yield f"{what}: `{node.value}` is indexed with a {index.type}"
