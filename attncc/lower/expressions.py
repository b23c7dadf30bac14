"""Syntax trees of expressions to typed `Expr`: names, operators, indexing, conditionals, sums over ranges."""

from __future__ import annotations

import math

from attncc.diagnostics import Diagnostic, did_you_mean, fail
from attncc.ir.attention import STORAGE_TYPES
from attncc.ir.expr import BOOL, FALSE, INT, TRUE, ZERO, Expr, as_float, const, load
from attncc.lower import calls
from attncc.lower.fold import SYMBOLS, ConstantError, balanced, build, integer_power, type_error
from attncc.lower.session import Session
from attncc.lower.values import (
    INDICES,
    SCORE,
    SIZES,
    AlreadyReported,
    Broken,
    Lazy,
    Pattern,
    Scope,
    TensorValue,
    Value,
    describe,
)
from attncc.syntax import tree
from attncc.syntax.names import CONSTANT_NAMES

MAX_TERMS = 256
WORDS = {INT: "an int", "float": "a float", BOOL: "a bool"}


def value(node: tree.Expression, scope: Scope, session: Session) -> Value:
    """What `node` stands for: an expression, or a tensor or mask that is only named."""
    session.enter(node.span)
    try:
        return _READERS[type(node)](node, scope, session)
    finally:
        session.leave()


def expr(node: tree.Expression, scope: Scope, session: Session) -> Expr:
    """`value`, which must be an expression."""
    found = value(node, scope, session)
    if isinstance(found, Pattern):
        return found.expr
    if isinstance(found, TensorValue):
        name = found.decl.name
        raise fail(
            "E110", f"`{name}` is a tensor and needs an index", node.span, hint=f"write `{name}{_shape_hint(found)}`"
        )
    return found


def typed(node: tree.Expression, type: str, scope: Scope, session: Session, what: str) -> Expr:
    """`expr` of the wanted type (an int serves as a float); `what` names it in the message."""
    found = expr(node, scope, session)
    if type == "float" and found.type == INT:
        return as_float(found)
    if found.type != type:
        raise fail(
            "E102", f"{what} must be {WORDS[type]}, found {found.type}", node.span, hint=_conversion(type, found.type)
        )
    return found


def _conversion(wanted: str, found: str) -> str | None:
    if wanted == BOOL:
        return "compare it, for example `x != 0`"
    return "`floor(x)` rounds down to an int" if (wanted, found) == (INT, "float") else None


def constant(node: tree.Expression, type: str, scope: Scope, session: Session, what: str):
    """The Python value of an expression of `type` that has to be known at compile time."""
    found = typed(node, type, scope, session, what)
    if found.op != "const":
        hint = "use constants and compile-time parameters only; a value that changes between calls cannot stand here"
        raise fail("E114", f"{what} must be known at compile time", node.span, hint=hint)
    return found.value


def _shape_hint(tensor: TensorValue) -> str:
    return f"[{', '.join('...' for _ in tensor.decl.shape)}]"


def _literal(node: tree.Literal, scope: Scope, session: Session) -> Value:
    return const(node.value)


def _name(node: tree.Name, scope: Scope, session: Session) -> Value:
    name = node.name
    if name in scope.bound:
        return force(scope.bound[name], session)
    if name in scope.implicit:
        return force(scope.implicit[name], session)
    if name == "inf":
        return const(math.inf)
    if name == "s":
        if scope.allows_score:
            return SCORE
        hint = "`s` is the score; only `score` statements and definitions see it"
        raise fail("E101", f"`s` has no meaning in {scope.place}", node.span, hint=hint)
    definition = session.find(name, scope.owner)
    if definition is not None:
        return calls.inline(definition, node, (), (), scope, session)
    if name in INDICES or name in SIZES or name in CONSTANT_NAMES:
        raise fail("E101", f"`{name}` cannot be used in {scope.place}", node.span, hint=f"here are {_listed(scope)}")
    known = [*scope.names(), *session.definitions, *calls.BUILTINS]
    hint = _usual(name, scope) or did_you_mean(name, known) or _declare_hint(scope)
    raise fail("E101", f"unknown name `{name}`", node.span, hint=hint)


_USUAL = {
    "score": "s", "q": "q_idx", "k": "kv_idx", "kv": "kv_idx", "k_idx": "kv_idx", "batch_idx": "b", "head": "h", "head_idx": "h",
    "seqlen_q": "seq_q", "seqlen_k": "seq_kv", "seqlen_kv": "seq_kv", "seq_k": "seq_kv", "num_heads": "heads_q", "True": "true", "False": "false",
}  # fmt: skip
"""What others call things, and their names here."""


def _usual(name: str, scope: Scope) -> str | None:
    here = _USUAL.get(name)
    known = here in ("true", "false") or (scope.allows_score if here == "s" else here in scope.names())
    return f"it is called `{here}` here" if known else None


def _listed(scope: Scope) -> str:
    return ", ".join(f"`{n}`" for n in scope.names()[:12]) or "constants only"


def _declare_hint(scope: Scope) -> str:
    if scope.owner is not None:
        return f"a definition sees its own parameters only; give `{scope.owner.name}` a parameter for it"
    return "declare it with `tensor`, `scalar` or `let`, or as a parameter of the attention"


def force(found: Value, session: Session) -> Value:
    """The value of a `let`, computed when it is first used."""
    if isinstance(found, Lazy):
        if found.state == "running":
            message = f"`{found.node.name}` is defined in terms of itself"
            raise fail("E109", message, found.node.span, hint="a `let` may only use other names")
        if found.state == "new":
            found.state, found.value = "running", Broken()
            try:
                found.value = value(found.node.value, found.scope, session)
            finally:
                found.state = "done"
        return force(found.value, session)
    if isinstance(found, Broken):
        raise AlreadyReported
    return found


def _unary(node: tree.Unary, scope: Scope, session: Session) -> Value:
    operand = expr(node.operand, scope, session)
    if node.operator == "+":
        if operand.type == BOOL:
            raise type_error("neg", (operand,), node.span)
        return operand
    name = "neg" if node.operator == "-" else SYMBOLS[node.operator]
    return build(name, (operand,), node.span)


def _binary(node: tree.Binary, scope: Scope, session: Session) -> Value:
    left = expr(node.left, scope, session)
    if node.operator in ("and", "or"):
        return _logical(node, left, scope, session)
    right = expr(node.right, scope, session)
    if node.operator == "**":
        return integer_power(left, right, node.span)
    return build(SYMBOLS[node.operator], (left, right), node.span)


def _logical(node: tree.Binary, left: Expr, scope: Scope, session: Session) -> Expr:
    """`and`, `or`: where a constant left side settles the result, a right side without value does no harm."""
    settled = TRUE if node.operator == "or" else FALSE
    try:
        right = expr(node.right, scope, session)
    except ConstantError:
        if left is settled:
            return left
        raise
    return build(node.operator, (left, right), node.span)


def _compare(node: tree.Compare, scope: Scope, session: Session) -> Value:
    operands = [expr(o, scope, session) for o in node.operands]
    out = TRUE
    for operator, a, b in zip(node.operators, operands, operands[1:]):
        out = build("and", (out, build(SYMBOLS[operator], (a, b), node.span)), node.span)
    return out


def _conditional(node: tree.Conditional, scope: Scope, session: Session) -> Value:
    condition = expr(node.condition, scope, session)
    taken = condition.value if condition.op == "const" and condition.type == BOOL else None
    branches: list[Expr | None] = []
    for branch, wanted in ((node.then, True), (node.otherwise, False)):
        try:
            branches.append(expr(branch, scope, session))
        except ConstantError:
            if taken is None or taken is wanted:
                raise
            branches.append(None)
    if None in branches:
        return next(b for b in branches if b is not None)
    return build("select", (condition, *branches), node.span)


def _index(node: tree.Index, scope: Scope, session: Session) -> Value:
    found = force(scope.bound[node.tensor], session) if node.tensor in scope.bound else None
    if found is None:
        tensors = [n for n, v in scope.bound.items() if isinstance(v, TensorValue)]
        hint = did_you_mean(node.tensor, tensors) or "declare it: `tensor name: f32[heads_q, seq_kv]`"
        hint = _declare_hint(scope) if scope.owner is not None else hint
        raise fail("E101", f"unknown tensor `{node.tensor}`", node.span, hint=hint)
    if not isinstance(found, TensorValue):
        raise fail("E111", f"`{node.tensor}` is {describe(found)} and cannot be indexed", node.span)
    decl = found.decl
    if len(node.indices) != len(decl.shape):
        message = f"`{decl.name}` has {len(decl.shape)} dimension(s), but {len(node.indices)} index(es) are given"
        raise fail("E110", message, node.span, hint=f"write `{decl.name}{_shape_hint(found)}`")
    indices = []
    for i, (item, extent) in enumerate(zip(node.indices, decl.shape)):
        index = typed(item, INT, scope, session, f"index {i} of `{decl.name}`")
        _check_extent(decl.name, i, index, extent, item)
        indices.append(index)
    return load(decl.name, tuple(indices), STORAGE_TYPES[decl.dtype])


def _check_extent(name: str, axis: int, index: Expr, extent: Expr | None, node: tree.Expression) -> None:
    if index.op != "const":
        return
    too_high = extent is not None and extent.op == "const" and index.value >= extent.value
    if index.value < 0 or too_high:
        bound = f"0..{extent.value}" if extent is not None and extent.op == "const" else "0 and up"
        message = f"index {axis} of `{name}` is {index.value}; it must be in {bound}"
        hint = "indices count from 0 and do not wrap around"
        raise ConstantError(Diagnostic("E110", message, node.span, hint=hint))


def _comprehension(node: tree.Comprehension, scope: Scope, session: Session) -> Value:
    if node.function not in _JOINS:
        hint = did_you_mean(node.function, _JOINS) or "`sum`, `any` and `all` take `x for i in a..b`"
        raise fail("E111", f"`{node.function}` does not take a range", node.span, hint=hint)
    operator, type, empty = _JOINS[node.function]
    low = constant(node.range.low, INT, scope, session, "the start of the range")
    high = constant(node.range.high, INT, scope, session, "the end of the range")
    if high - low > MAX_TERMS:
        message = f"the range has {high - low} terms; it is unrolled, and the limit is {MAX_TERMS}"
        raise fail("E117", message, node.range.span, hint="precompute the sum and pass it as a tensor")
    terms = []
    for i in range(low, high):
        term = expr(node.body, scope.extend(**{node.variable: const(i)}), session)
        if (term.type == BOOL) != (type == BOOL):
            message = f"`{node.function}` takes {'bools' if type == BOOL else 'numbers'}, found {term.type}"
            hint = "compare it, for example `x != 0`" if type == BOOL else "`int(condition)` is 1 or 0"
            raise fail("E102", message, node.body.span, hint=hint)
        terms.append(term)
    return balanced(operator, terms, node.span) if terms else empty


_JOINS = {"sum": ("add", None, ZERO), "any": ("or", BOOL, FALSE), "all": ("and", BOOL, TRUE)}


def _call(node: tree.Call, scope: Scope, session: Session) -> Value:
    return calls.call(node, scope, session)


_READERS = {
    tree.Literal: _literal,
    tree.Name: _name,
    tree.Unary: _unary,
    tree.Binary: _binary,
    tree.Compare: _compare,
    tree.Conditional: _conditional,
    tree.Index: _index,
    tree.Comprehension: _comprehension,
    tree.Call: _call,
}
