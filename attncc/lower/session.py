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

    definitions   name to definition: those of the text before those of the prelude
    prelude       the sources of the prelude, to tell the user's lines from ours
    inlined       results of calls already inlined, by definition and arguments
    active        definitions being inlined now, outermost first
    broken        names of definitions whose heading is wrong (reported already)
    """

    definitions: dict[str, tree.Definition]
    prelude: frozenset[str]
    problems: list[Diagnostic] = field(default_factory=list)
    inlined: dict[tuple, Expr] = field(default_factory=dict)
    active: list[tree.Definition] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    steps: int = 0
    nesting: int = 0

    def enter(self, span: Span) -> None:
        """Count one step; refuse texts that unfold without end."""
        self.steps += 1
        self.nesting += 1
        if self.steps > MAX_STEPS:
            hint = "shorten the ranges of sum, any and all, or read a tensor instead"
            raise AttnError(Diagnostic("E118", "the text unfolds into too large an expression", span, hint=hint))
        if self.nesting > MAX_NESTING:
            hint = "name parts of it with `let`"
            raise AttnError(Diagnostic("E004", f"expressions nest more than {MAX_NESTING} levels deep", span, hint=hint))

    def leave(self) -> None:
        self.nesting -= 1

    def report(self, error: AttnError) -> None:
        """Keep the findings of `error`, each once."""
        self.problems += [d for d in error.diagnostics if d not in self.problems]

    def is_prelude(self, definition: tree.Definition) -> bool:
        return definition.span.source.name in self.prelude
