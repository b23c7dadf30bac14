"""Calls: built-in functions, masks asked at other positions, and definitions, which are inlined."""

from __future__ import annotations

from dataclasses import replace

from attncc.diagnostics import AttnError, Span, did_you_mean, fail
from attncc.ir.expr import BOOL, FLOAT, INT, ZERO, Expr, as_float, const, walk
from attncc.lower import expressions
from attncc.lower.fold import build
from attncc.lower.session import Session
from attncc.lower.values import INDICES, SIZES, AlreadyReported, Lazy, Pattern, Scope, TensorValue, Value, describe
from attncc.syntax import tree

UNARY = ("exp", "exp2", "log", "log2", "sqrt", "tanh", "sigmoid", "erf", "sin", "cos", "abs")
BUILTINS = (*UNARY, "min", "max", "pow", "floor", "float", "int", "sum", "any", "all")


def call(node: tree.Call, scope: Scope, session: Session) -> Value:
    """The value of `function(arguments)`."""
    name = node.function
    if name in scope.bound:
        found = expressions.force(scope.bound[name], session)
        if not isinstance(found, Pattern):
            raise fail(
                "E111", f"`{name}` is {describe(found)}, not a function", node.span, hint=_index_hint(name, found)
            )
        return _at_positions(name, found, node, scope, session)
    if name in BUILTINS:
        return _builtin(node, scope, session)
    definition = session.find(name, scope.owner)
    if definition is None:
        known = [*session.definitions, *BUILTINS, *(n for n, v in scope.bound.items() if isinstance(v, Pattern))]
        raise fail(
            "E101", f"unknown function `{name}`", node.span, hint=did_you_mean(name, known) or "define it with `def`"
        )
    if not definition.parameters and definition.kind in ("mask", "bias") and len(node.arguments) == 2:
        pattern = Pattern(expressions.expr(tree.Name(node.span, 1, name), scope, session))
        return _at_positions(name, pattern, node, scope, session)
    return inline(definition, node, node.arguments, node.keywords, scope, session)


def _index_hint(name: str, found: Value) -> str | None:
    return f"index it with brackets: `{name}[...]`" if isinstance(found, TensorValue) else None


def _at_positions(name: str, pattern: Pattern, node: tree.Call, scope: Scope, session: Session) -> Expr:
    if len(node.arguments) != 2 or node.keywords:
        raise fail("E107", f"`{name}` is asked at two positions: `{name}(q, k)`, or used alone", node.span)
    q, k = (expressions.typed(a, INT, scope, session, "a position") for a in node.arguments)
    session.spend(sum(1 for _ in walk(pattern.expr)), node.span)
    return pattern.at(q, k)


def _builtin(node: tree.Call, scope: Scope, session: Session) -> Expr:
    name = node.function
    if node.keywords:
        raise fail("E108", f"`{name}` takes no keyword arguments", node.keywords[0].span)
    args = tuple(expressions.expr(a, scope, session) for a in node.arguments)
    wanted = {"min": "2 or more", "max": "2 or more", "pow": "2", "sum": "a range", "any": "a range", "all": "a range"}
    ok = len(args) >= 2 if name in ("min", "max") else len(args) == (2 if name == "pow" else 1)
    if name in ("sum", "any", "all"):
        raise fail("E107", f"`{name}` takes a range", node.span, hint=f"write `{name}(x for i in 0..n)`")
    if not ok:
        raise fail("E107", f"`{name}` takes {wanted.get(name, '1')} argument(s), found {len(args)}", node.span)
    if name in ("floor", "int", "float"):
        return _convert(name, args[0], node.span)
    if name in ("min", "max"):
        out = args[0]
        for other in args[1:]:
            out = build(name, (out, other), node.span)
        return out
    return build(name, args, node.span)


def _convert(name: str, arg: Expr, span: Span) -> Expr:
    """floor: down; int: toward zero, and bools to 0 and 1; float: exactly where 24 bits suffice."""
    if name == "floor":
        return arg if arg.type == INT else build("to_int", (arg,), span)
    one, zero = (const(1), ZERO) if name == "int" else (const(1.0), const(0.0))
    if arg.type == BOOL:
        return build("select", (arg, one, zero), span)
    if name == "float":
        return as_float(arg)
    if arg.type == INT:
        return arg
    up = build("neg", (build("to_int", (build("neg", (arg,), span),), span),), span)
    return build("select", (build("lt", (arg, const(0.0)), span), up, build("to_int", (arg,), span)), span)


# Definitions


def signature(definition: tree.Definition) -> str:
    """How to call it, for messages."""
    parts = (f"{p.name}: {p.type}" + (" = ..." if p.default is not None else "") for p in definition.parameters)
    return f"{definition.name}({', '.join(parts)})"


def inline(
    definition: tree.Definition,
    node: tree.Expression,
    arguments: tuple[tree.Expression, ...],
    keywords: tuple[tree.Keyword, ...],
    scope: Scope,
    session: Session,
) -> Expr:
    """The body of `definition` with `arguments` for its parameters."""
    if definition.span in session.broken:
        raise AlreadyReported
    if definition.kind == "score" and not scope.allows_score:
        hint = "a score rewrites `s`; use it in a `score` statement"
        raise fail("E101", f"the score `{definition.name}` cannot be used in {scope.place}", node.span, hint=hint)
    _check_recursion(definition, node, session)
    given = _match(definition, node, arguments, keywords)
    inner = Scope(
        {}, {**INDICES, **SIZES, **_constants(scope)}, place(definition), definition.kind == "score", definition
    )
    bound: dict[str, Value] = {}
    for parameter in definition.parameters:
        argument, where = given.get(parameter.name), scope
        if argument is None:
            argument, where = parameter.default, inner.extend(**bound)
        bound[parameter.name] = _argument(definition, parameter, argument, where, session)
    key = (definition.span, tuple((n, _key(v)) for n, v in bound.items()))
    if key not in session.inlined:
        session.enter(node.span)
        session.active.append(definition)
        try:
            session.inlined[key] = body(definition, inner.extend(**bound), session)
        except AttnError as error:
            session.failed.add(definition.span)
            raise _blame(error, definition, node.span, session) from None
        finally:
            session.active.pop()
            session.leave()
    return session.inlined[key]


def _constants(scope: Scope) -> dict[str, Expr]:
    """`heads_q`, `group`, ... as the surrounding attention fixed them."""
    return {n: e for n, e in scope.implicit.items() if n not in INDICES and n not in SIZES}


def place(definition: tree.Definition) -> str:
    return f"the {'function' if definition.kind == 'def' else definition.kind} `{definition.name}`"


def _key(value: Value):
    return value.decl.name if isinstance(value, TensorValue) else value


def _check_recursion(definition: tree.Definition, node: tree.Expression, session: Session) -> None:
    if definition in session.active:
        chain = [d.name for d in session.active[session.active.index(definition) :]]
        path = " -> ".join([*chain, definition.name])
        hint = "definitions are inlined and cannot call themselves; use `sum`, `any` or `all` over a range"
        raise fail("E109", f"`{definition.name}` is recursive: {path}", node.span, hint=hint)


def _match(definition, node, arguments, keywords) -> dict[str, tree.Expression]:
    """Which argument goes to which parameter."""
    names, usage = [p.name for p in definition.parameters], f"it is `{signature(definition)}`"
    if len(arguments) > len(names):
        message = f"`{definition.name}` takes {len(names)} argument(s), found {len(arguments)}"
        raise fail("E107", message, node.span, hint=usage)
    given = dict(zip(names, arguments))
    for k in keywords:
        if k.name not in names:
            hint = did_you_mean(k.name, names) or usage
            raise fail("E108", f"`{definition.name}` has no parameter `{k.name}`", k.span, hint=hint)
        if k.name in given:
            raise fail("E107", f"the parameter `{k.name}` of `{definition.name}` is given twice", k.span, hint=usage)
        given[k.name] = k.value
    missing = [p.name for p in definition.parameters if p.name not in given and p.default is None]
    if missing:
        listed = ", ".join(f"`{m}`" for m in missing)
        raise fail("E107", f"`{definition.name}` needs a value for {listed}", node.span, hint=usage)
    return given


def _argument(definition, parameter: tree.Parameter, node: tree.Expression, scope: Scope, session: Session) -> Value:
    what = f"`{parameter.name}` of `{definition.name}`"
    if parameter.type == "tensor":
        found = expressions.value(node, scope, session)
        if not isinstance(found, TensorValue):
            hint = "name a tensor, without an index"
            raise fail("E102", f"{what} must be a tensor, found {describe(found)}", node.span, hint=hint)
        return found
    if parameter.type == "mask":
        return Pattern(expressions.typed(node, BOOL, scope, session, f"{what} (a mask)"))
    if parameter.type == "bias":
        return Pattern(expressions.typed(node, FLOAT, scope, session, f"{what} (a bias)"))
    return expressions.typed(node, parameter.type, scope, session, what)


def body(definition: tree.Definition, scope: Scope, session: Session) -> Expr:
    """The value of the body, of the type that the kind of definition or its `->` asks for."""
    inner = scope.extend(**{let.name: None for let in definition.lets})
    for let in definition.lets:
        inner.bound[let.name] = Lazy(let, inner)
    wanted = {"mask": BOOL, "score": FLOAT, "bias": FLOAT}.get(definition.kind, definition.result)
    if wanted is None:
        return expressions.expr(definition.body, inner, session)
    found = expressions.expr(definition.body, inner, session)
    if wanted == FLOAT and found.type == INT:
        return as_float(found)
    if found.type != wanted:
        code = {"mask": "E103", "score": "E104", "bias": "E104"}.get(definition.kind, "E102")
        message = f"{place(definition)} must give {expressions.WORDS[wanted]}, but it gives {found.type}"
        raise fail(code, message, definition.body.span)
    return found


def _blame(error: AttnError, definition: tree.Definition, span: Span, session: Session) -> AttnError:
    """Tell how the definition was reached; inside the prelude, point at the call, which is what the user wrote."""
    out = []
    for d in error.diagnostics:
        if d.span is not None and session.is_prelude(definition) and d.span.source is definition.span.source:
            text = d.span.source.line(d.span.line).strip()
            note = f"found in {d.span.source.name}, line {d.span.line}: {text}"
            out.append(replace(d, span=span, notes=(*d.notes, note)))
        elif len(d.notes) < 6:
            out.append(
                replace(d, notes=(*d.notes, f"in `{definition.name}`, used in line {span.line} of {span.source.name}"))
            )
        else:
            out.append(d)
    return type(error)(*out)
