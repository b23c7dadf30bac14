"""Diagnostics: an error is data (code, message, place, notes, a way out); one renderer turns it into text."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_TEXT = 1_000_000
"""Characters of the longest text that is read."""


@dataclass(frozen=True)
class Source:
    """A text that was compiled: the name shown in messages (a path, or `<text>`) and its contents."""

    name: str
    text: str

    def line(self, number: int) -> str:
        """Line `number`, counted from 1; empty past the end. Only `\\n` ends a line, as in the parser."""
        lines = self.text.split("\n")
        return lines[number - 1].removesuffix("\r") if 0 < number <= len(lines) else ""


@dataclass(frozen=True)
class Span:
    """A stretch of one source line or several; lines and columns count from 1, `end_column` is exclusive."""

    source: Source = field(repr=False)
    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True)
class Diagnostic:
    """One finding.

    code      stable, such as `E101`; listed in spec/errors.md
    message   one sentence: what is wrong, with what was found and what was expected
    span      where in the `.attn` text, or None (then `argument` names the call argument, if it is about one)
    notes     further facts, each one line
    hint      a way out, or None
    """

    code: str
    message: str
    span: Span | None = None
    argument: str | None = None
    notes: tuple[str, ...] = ()
    hint: str | None = None


class AttnError(Exception):
    """One or more diagnostics. `str(error)` is the rendered text."""

    def __init__(self, *diagnostics: Diagnostic):
        self.diagnostics = diagnostics
        super().__init__("\n".join(render(d) for d in diagnostics))

    def __reduce__(self):
        return (AttnError, self.diagnostics)


def fail(code: str, message: str, span: Span | None = None, **details) -> AttnError:
    """An AttnError with one diagnostic, to be raised by the caller."""
    return AttnError(Diagnostic(code, message, span, **details))


def render(diagnostic: Diagnostic) -> str:
    """The text of a diagnostic: a headline, the source line with a caret, notes and the hint."""
    d = diagnostic
    lines = [f"error[{d.code}]: {d.message}"]
    if d.span is not None:
        lines += _excerpt(d.span)
    elif d.argument is not None:
        lines.append(f"  --> argument `{d.argument}`")
    lines += [f"  note: {note}" for note in d.notes]
    if d.hint:
        lines.append(f"  help: {d.hint}")
    return "\n".join(lines)


MAX_EXCERPT = 160


def _excerpt(span: Span) -> list[str]:
    text = span.source.line(span.line)
    number = str(span.line)
    margin = " " * len(number)
    end = span.end_column if span.end_line == span.line else len(text) + 1
    first = max(0, span.column - 1 - MAX_EXCERPT // 2) if len(text) > MAX_EXCERPT else 0
    shown = _printable(text[first : first + MAX_EXCERPT])
    lead = "".join("\t" if c == "\t" else " " for c in shown[: span.column - 1 - first])
    width = max(1, min(end - span.column, len(shown) - len(lead)))
    return [
        f"{margin}--> {span.source.name}:{span.line}:{span.column}",
        f"{margin} |",
        f"{number} | {shown}",
        f"{margin} | {lead}{'^' * width}",
    ]


def _printable(text: str) -> str:
    """`text` with control characters and lone surrogates, which would upset a terminal, replaced one for one."""
    return "".join(c if c == "\t" or c.isprintable() else "\ufffd" for c in text)


def did_you_mean(name: str, known) -> str | None:
    """A hint naming the closest of `known`, or None when nothing is close."""
    import difflib

    if not isinstance(name, str):
        return None
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else None
