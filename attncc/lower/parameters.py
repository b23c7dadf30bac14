"""Compile-time parameters: the caller's values, checked against their declarations, and the defaults."""

from __future__ import annotations

import math
import operator

from attncc.diagnostics import AttnError, Diagnostic, did_you_mean, fail
from attncc.ir.expr import BOOL, FLOAT, INT, Expr, const
from attncc.lower.expressions import constant
from attncc.lower.fold import INT_HIGH, INT_LOW
from attncc.lower.session import Session
from attncc.lower.values import AlreadyReported, Broken, Scope, Value
from attncc.syntax import tree


KEYWORDS = ("target", "attention")
"""Arguments of attncc.compile, which takes parameters by keyword beside them."""


def bind(node: tree.Attention, given: dict[str, object], session: Session) -> dict[str, Value]:
    """Name to constant, in declaration order; a default may use the parameters before it. Problems are reported."""
    names = [p.name for p in node.parameters]
    for name in given:
        if name not in names:
            hint = did_you_mean(name, names) or (f"it has {', '.join(names)}" if names else "it has none")
            message = f"the attention `{node.name}` has no parameter `{name}`"
            session.report(AttnError(Diagnostic("E221", message, argument=str(name), hint=hint)))
    bound: dict[str, Value] = {}
    for p in node.parameters:
        value: Value = Broken()
        try:
            if p.name in KEYWORDS:
                message = f"`{p.name}` is an argument of attncc.compile and cannot be a parameter"
                raise fail("E006", message, p.span, hint=f"rename it, for example `my_{p.name}`")
            if p.name in bound:
                raise fail("E106", f"the parameter `{p.name}` is declared twice", p.span)
            value = _value(p, given, bound, session)
        except AttnError as error:
            session.report(error)
        except AlreadyReported:
            pass
        bound[p.name] = value
    return bound


def _value(p: tree.Parameter, given: dict[str, object], bound: dict[str, Value], session: Session) -> Expr:
    if p.type not in (INT, FLOAT, BOOL):
        hint = did_you_mean(p.type, (INT, FLOAT, BOOL)) or "a parameter of an attention is int, float or bool"
        raise fail(
            "E112", f"`{p.type}` cannot be the type of the parameter `{p.name}` of an attention", p.span, hint=hint
        )
    scope = Scope(bound, {}, "the default of a parameter")
    default = None
    if p.default is not None:
        default = const(constant(p.default, p.type, scope, session, f"the default of `{p.name}`"))
    if p.name in given:
        return _converted(p, given[p.name])
    if default is None:
        message = f"the parameter `{p.name}` has no default and no value is given"
        raise fail("E222", message, p.span, hint=f"pass `{p.name}=...`, or write `{p.name}: {p.type} = ...`")
    return default


def _converted(p: tree.Parameter, value: object) -> Expr:
    """A Python value as a constant of the parameter's type."""
    hint = {INT: f"pass a whole number, {p.name}=3", FLOAT: f"pass a number, {p.name}=0.5", BOOL: f"pass {p.name}=true or false"}[p.type]
    if type(value).__name__ in ("bool_", "bool") and not isinstance(value, bool):  # numpy's
        value = bool(value)
    message = f"the parameter `{p.name}` is {p.type}, found {_shown(value)}"
    wrong = AttnError(Diagnostic("E223", message, p.span, argument=p.name, hint=hint))
    if p.type == BOOL or isinstance(value, bool):
        if p.type == BOOL and isinstance(value, bool):
            return const(value)
        raise wrong
    try:
        if p.type == INT:
            number = operator.index(value)
            if not INT_LOW <= number <= INT_HIGH:
                wide = f"the parameter `{p.name}` does not fit in 32 bits"
                raise fail("E223", wide, p.span, hint=f"pass a number in {INT_LOW}..{INT_HIGH}, or declare `{p.name}: float`")
            return const(number)
        if isinstance(value, (str, bytes)):
            raise wrong
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if math.isnan(number):
        raise wrong
    return const(number)


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
