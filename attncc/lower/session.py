"""One run of the lowering: the definitions in reach, the diagnostics so far, and the budgets that keep it finite."""

from __future__ import annotations

from dataclasses import dataclass, field

from attncc.diagnostics import AttnError, Diagnostic, Span
from attncc.ir.expr import Expr
from attncc.syntax import tree

MAX_STEPS = 200_000
MAX_NESTING = 150


@dataclass
class Session:
    """State shared by everything that is lowered from one text.

    prelude       the definitions of the prelude, by name
    definitions   those and the text's own, which take precedence
    inlined       results of calls already inlined, by definition and arguments
    active        definitions being inlined now, outermost first
    broken        definitions with a wrong heading, by span (reported already; using them says nothing more)
    failed        definitions whose body failed at least once, by span
    """

    prelude: dict[str, tree.Definition]
    definitions: dict[str, tree.Definition]
    problems: list[Diagnostic] = field(default_factory=list)
    inlined: dict[tuple, Expr] = field(default_factory=dict)
    active: list[tree.Definition] = field(default_factory=list)
    broken: set[Span] = field(default_factory=set)
    failed: set[Span] = field(default_factory=set)
    steps: int = 0
    nesting: int = 0

    def enter(self, span: Span) -> None:
        """Go one level deeper; `leave` comes back. Refuses texts that nest too deep."""
        self.spend(1, span)
        if self.nesting >= MAX_NESTING:
            message = f"expressions nest more than {MAX_NESTING} levels deep"
            raise AttnError(Diagnostic("E004", message, span, hint="name parts of it with `let`"))
        self.nesting += 1

    def spend(self, steps: int, span: Span) -> None:
        """Count work; refuses texts that unfold without end."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            hint = "shorten the ranges of sum, any and all, or read a tensor instead"
            raise AttnError(Diagnostic("E118", "the text unfolds into too large an expression", span, hint=hint))

    def leave(self) -> None:
        self.nesting -= 1

    def report(self, error: AttnError) -> None:
        """Keep the findings of `error`, each once (the way they were reached does not make them different)."""
        known = {(d.code, d.message, d.span) for d in self.problems}
        self.problems += [d for d in error.diagnostics if (d.code, d.message, d.span) not in known]

    def find(self, name: str, user: tree.Definition | None) -> tree.Definition | None:
        """The definition called `name`, as seen by the definition `user`: the prelude keeps to itself."""
        reach = self.prelude if user is not None and self.is_prelude(user) else self.definitions
        return reach.get(name)

    def is_prelude(self, definition: tree.Definition) -> bool:
        return self.prelude.get(definition.name) is definition
