"""Checks of definitions on their own: double names, parameter types, and the bodies of those that nobody uses."""

from __future__ import annotations

from attncc.diagnostics import AttnError, did_you_mean, fail
from attncc.ir.expr import BOOL, FLOAT, INT, var
from attncc.lower import calls
from attncc.lower.fold import ConstantError
from attncc.lower.session import Session
from attncc.lower.values import INDICES, SIZES, AlreadyReported, Pattern, Scope
from attncc.syntax import tree
from attncc.syntax.names import CONSTANT_NAMES, TYPE_NAMES

RESULTS = (INT, FLOAT, BOOL)


def definitions(file: tree.File, session: Session) -> None:
    """Put the definitions of `file` in reach; they take precedence over those of the prelude."""
    own: set[str] = set()
    for definition in file.definitions:
        try:
            if definition.name in own:
                raise fail("E106", f"`{definition.name}` is defined twice", definition.span)
            _signature(definition)
        except AttnError as error:
            session.report(error)
            session.broken.add(definition.span)
        own.add(definition.name)
        session.definitions[definition.name] = definition
    names: set[str] = set()
    for attention in file.attentions:
        if attention.name in names:
            session.report(fail("E106", f"the attention `{attention.name}` stands twice", attention.span))
        names.add(attention.name)


def _signature(definition: tree.Definition) -> None:
    names: set[str] = set()
    for item in (*definition.parameters, *definition.lets):
        if item.name in names:
            raise fail("E106", f"`{item.name}` is declared twice in `{definition.name}`", item.span)
        names.add(item.name)
    for p in definition.parameters:
        if p.type not in TYPE_NAMES:
            hint = did_you_mean(p.type, TYPE_NAMES) or f"known are {', '.join(TYPE_NAMES)}"
            raise fail("E112", f"unknown type `{p.type}` of the parameter `{p.name}`", p.span, hint=hint)
    if definition.result is None:
        return
    expected = {"mask": BOOL, "score": FLOAT, "bias": FLOAT}.get(definition.kind)
    if definition.result not in RESULTS or (expected and definition.result != expected):
        wanted = expected or ", ".join(RESULTS)
        raise fail(
            "E112",
            f"the result of `{definition.name}` cannot be `{definition.result}`",
            definition.span,
            hint=f"write {wanted}",
        )


PROBLEMS_OF_GENERIC_VALUES = ("E114",)


def unused_definitions(file: tree.File, session: Session) -> None:
    """Check the body of a definition that nothing used, with unknown values for its parameters.

    One that takes a tensor is left alone: its rank and element type are those of the argument.
    """
    used = {key[0] for key in session.inlined} | session.failed | session.broken
    for definition in file.definitions:
        if definition.span in used or any(p.type not in (*RESULTS, "mask", "bias") for p in definition.parameters):
            continue
        constants = {n: var(n) for n in CONSTANT_NAMES}
        bound = {p.name: _unknown(p) for p in definition.parameters}
        is_score = definition.kind == "score"
        scope = Scope(bound, {**INDICES, **SIZES, **constants}, calls.place(definition), is_score, definition)
        session.active.append(definition)
        try:
            calls.body(definition, scope, session)
        except (ConstantError, AlreadyReported):
            pass
        except AttnError as error:
            if error.diagnostics[0].code not in PROBLEMS_OF_GENERIC_VALUES:
                session.report(error)
        finally:
            session.active.pop()


def _unknown(p: tree.Parameter):
    if p.type in ("mask", "bias"):
        return Pattern(var(p.name, BOOL if p.type == "mask" else FLOAT))
    return var(p.name, p.type)
