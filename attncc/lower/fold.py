"""Typed construction of expressions: type errors in words, and constants computed at once.

Only constants are folded here (and `and`, `or`, conditionals with a constant side). Algebra is for `passes/attention`.
"""

from __future__ import annotations

import math

from attncc.diagnostics import AttnError, Diagnostic, Span
from attncc.ir.expr import BOOL, FLOAT, INT, OPS, Expr, ExprTypeError, apply, as_float, const, promote, result_type

INT_LOW, INT_HIGH = -(2**31), 2**31 - 1
MAX_POWER = 16
SYMBOLS = {op.symbol: op.name for op in OPS.values() if op.symbol and op.name not in ("neg",)}
"""From the spelling of a binary (or unary `not`, `~`) operator to its name."""


class ConstantError(AttnError):
    """A constant expression has no value (division by zero, overflow). Harmless in a branch that is never taken."""


def build(name: str, args: tuple[Expr, ...], span: Span) -> Expr:
    """`OPS[name]` applied to `args`, folded when they are constants. Raises AttnError with `span`."""
    operands = promote(name, args)
    try:
        result_type(name, tuple(a.type for a in operands))
    except ExprTypeError:
        raise type_error(name, args, span) from None
    short = _short_circuit(name, operands)
    if short is not None:
        return short
    _check_constant_operand(name, operands, span)
    if all(a.op == "const" for a in operands):
        return _fold(name, operands, span)
    return apply(name, *operands)


def _short_circuit(name: str, args: tuple[Expr, ...]) -> Expr | None:
    """The result where a constant condition or operand settles it."""
    if name == "select":
        if args[0].op == "const":
            return args[1] if args[0].value else args[2]
        return args[1] if args[1] is args[2] else None
    if name in ("and", "or"):
        settles = name == "or"
        for this, other in (args, args[::-1]):
            if this.op == "const":
                return this if this.value is settles else other
    return None


def _check_constant_operand(name: str, args: tuple[Expr, ...], span: Span) -> None:
    if name in ("div", "floordiv", "mod") and args[1].op == "const" and args[1].value == 0:
        raise ConstantError(Diagnostic("E115", "division by zero", span, hint="the divisor must not be 0"))
    if name in ("shl", "shr") and args[1].op == "const" and not 0 <= args[1].value <= 31:
        message = f"the shift count is {args[1].value}; it must be in 0..31"
        raise ConstantError(Diagnostic("E116", message, span))


def _fold(name: str, args: tuple[Expr, ...], span: Span) -> Expr:
    values = [a.value for a in args]
    try:
        value = OPS[name].evaluate(*values)
    except OverflowError:
        value = _overflowed(name, values)
    except ZeroDivisionError:
        value = math.inf
    except ValueError:
        value = _at_domain_edge(name, values)
    return checked(value, result_type(name, tuple(a.type for a in args)), span)


def checked(value, type: str, span: Span) -> Expr:
    """A constant of `type`; an error when an int needs more than 32 bits or a float is not a number."""
    if type == INT:
        if isinstance(value, float) or not INT_LOW <= value <= INT_HIGH:
            message = "the constant does not fit in a 32-bit integer"
            raise ConstantError(Diagnostic("E116", message, span, hint="compute it in floats: 1.0 * a * b"))
        return const(int(value))
    if type == BOOL:
        return const(bool(value))
    if isinstance(value, complex) or math.isnan(value):
        raise ConstantError(Diagnostic("E116", "the constant expression is not a real number", span))
    return const(float(value))


def _overflowed(name: str, values) -> float:
    if name == "sigmoid":
        return 0.0
    return -math.inf if name == "pow" and values[0] < 0 and values[1] % 2 == 1 else math.inf


def _at_domain_edge(name: str, values) -> float:
    return -math.inf if name in ("log", "log2") and values[0] == 0 else math.nan


def integer_power(base: Expr, exponent: Expr, span: Span) -> Expr:
    """`base ** exponent`: any constants, or a small constant int exponent (squared and multiplied)."""
    for side in (base, exponent):
        if side.type == BOOL:
            raise type_error("pow", (base, exponent), span)
    if base.op == "const" and exponent.op == "const":
        if base.type == exponent.type == INT and 0 <= exponent.value <= 64:
            return checked(base.value**exponent.value, INT, span)
        return build("pow", (as_float(base), as_float(exponent)), span)
    if exponent.op != "const" or exponent.type != INT or not 0 <= exponent.value <= MAX_POWER:
        message = f"the exponent of `**` must be a constant int in 0..{MAX_POWER} here"
        raise AttnError(Diagnostic("E114", message, span, hint="write `pow(x, y)` for a real exponent"))
    out, square, bits = None, base, exponent.value
    while bits:
        if bits & 1:
            out = square if out is None else build("mul", (out, square), span)
        bits >>= 1
        if bits:
            square = build("mul", (square, square), span)
    return const(1 if base.type == INT else 1.0) if out is None else out


def balanced(name: str, terms: list[Expr], span: Span) -> Expr:
    """`terms` joined by an associative operator as a tree of logarithmic depth, neighbours first."""
    while len(terms) > 1:
        pairs = [build(name, (a, b), span) for a, b in zip(terms[::2], terms[1::2])]
        terms = pairs + terms[len(pairs) * 2 :]
    return terms[0]


_WANTED = {
    "number": "numbers", "float": "numbers", "int": "ints", "bool": "bools", "compare": "two numbers",
    "int->float": "an int", "float->int": "a float",
}  # fmt: skip


def type_error(name: str, args: tuple[Expr, ...], span: Span) -> AttnError:
    """What operator `name` takes, what it was given, and what to write instead."""
    op, found = OPS[name], " and ".join(a.type for a in args)
    if op.takes == "select":
        if args[0].type != BOOL:
            message = f"the condition must be bool, found {args[0].type}"
            return AttnError(Diagnostic("E102", message, span, hint="compare it, for example `x > 0`"))
        message = f"both branches must have one type, found {args[1].type} and {args[2].type}"
        return AttnError(Diagnostic("E102", message, span))
    shown = {"pow": "**"}.get(name, op.symbol or name)
    message = f"`{shown}` takes {_WANTED[op.takes]}, found {found}"
    return AttnError(Diagnostic("E102", message, span, hint=_type_hint(op.takes, name, [a.type for a in args])))


def _type_hint(takes: str, name: str, types: list[str]) -> str | None:
    if BOOL in types and takes in ("number", "float"):
        return "`int(condition)` is 1 or 0; `a if condition else b` chooses"
    if name in ("bitand", "bitor", "bitnot", "bitxor") and set(types) == {BOOL}:
        return f"write `{ {'bitand': 'and', 'bitor': 'or', 'bitnot': 'not', 'bitxor': '!='}[name] }` between bools"
    if takes == "int" and FLOAT in types:
        return "`floor(x)` makes an int; `floor(a / b)` divides floats"
    if takes == "bool":
        return "compare it, for example `x != 0`"
    if takes == "compare" and BOOL in types:
        return "bools can only be compared with bools, by `==` and `!=`"
    return None
