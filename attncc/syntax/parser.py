"""Text to L0 tree: lark does the parsing; here are the layout rule, the error messages and the recovery.

After a syntax error the offending line is blanked and the text is read again, so that one run reports several mistakes.
"""

from __future__ import annotations

import re
from functools import lru_cache

from lark import Lark
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, VisitError

from attncc.diagnostics import MAX_TEXT, AttnError, Diagnostic, Source, Span, did_you_mean, fail
from attncc.syntax import tree
from attncc.syntax.build import Builder
from attncc.syntax.resources import spec_text

MAX_ERRORS = 10
STATEMENTS = (
    "heads", "dim", "dtype", "scale", "tensor", "scalar", "score", "bias", "mask", "reduction",
    "sparsity", "quantize", "target", "let",
)  # fmt: skip
ITEMS = ("attention", "def", "mask", "score", "bias")


def parse(text: str, name: str = "<text>") -> tree.File:
    """The syntax tree of `text`; `name` is what messages call it. Raises AttnError with every mistake found."""
    if len(text) > MAX_TEXT:
        raise fail("E003", f"the text is {len(text)} characters long; the limit is {MAX_TEXT}")
    source = Source(name, text)
    lines = text.split("\n")
    if lines[0].startswith("\ufeff"):
        lines[0] = " " + lines[0][1:]
    problems: list[Diagnostic] = []
    while len(problems) < MAX_ERRORS:
        found = _attempt(lines, source, problems)
        if isinstance(found, tree.File):
            if problems:
                break
            return found
        if not found:
            break
        problems += found
        if not _blank(lines, found[-1].span):
            break
    raise AttnError(*sorted(problems, key=lambda d: (d.span.line, d.span.column)))


def _attempt(lines: list[str], source: Source, known: list[Diagnostic]) -> tree.File | list[Diagnostic]:
    """The tree, or what was found wrong this time beyond `known`; an empty list when there is nothing new to say."""
    found: list[Diagnostic] = []
    try:
        file = Builder(source, found).transform(_parser().parse("\n".join(lines)))
        return found or file
    except UnexpectedInput as error:
        problem = _describe(error, source, lines, _accepted(error))
    except VisitError as error:
        if not isinstance(error.orig_exc, AttnError):
            raise error.orig_exc
        problem = error.orig_exc.diagnostics[0]
    if any(problem.span.line <= d.span.line for d in known):
        return []
    return [*found, problem]


class Layout:
    """A newline inside parentheses or brackets does not end a line."""

    always_accept = ("_SEP",)

    def process(self, stream):
        depth = 0
        for token in stream:
            if token.type in ("LPAR", "LSQB"):
                depth += 1
            elif token.type in ("RPAR", "RSQB"):
                depth -= 1
            if token.type != "_SEP" or depth <= 0:
                yield token


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark(spec_text("attn.lark"), parser="lalr", postlex=Layout(), keep_all_tokens=True, maybe_placeholders=True)


def _blank(lines: list[str], span: Span) -> bool:
    """Empty the line at fault, so that the rest can be read; False when that would unbalance the text."""
    index = span.line - 1
    if index >= len(lines) or not lines[index].strip() or set(lines[index]) & set("{}"):
        return False
    if lines[index].count("(") != lines[index].count(")") or lines[index].count("[") != lines[index].count("]"):
        return False
    lines[index] = ""
    return True


def _accepted(error: UnexpectedInput) -> set[str]:
    """The terminals that may really stand there (the table of an LALR parser merges contexts)."""
    if isinstance(error, UnexpectedCharacters) or error.interactive_parser is None:
        return set()
    return error.interactive_parser.accepts()


def _describe(error: UnexpectedInput, source: Source, lines: list[str], expected: set[str]) -> Diagnostic:
    if isinstance(error, UnexpectedCharacters):
        return _bad_character(error, source)
    token = error.token
    if token.type == "$END":
        return _bad_end(expected, source, lines)
    span = Span(source, token.line, token.column, token.end_line, token.end_column)
    if token.type == "NAME" and "HEADS" in expected:
        hint = did_you_mean(token, STATEMENTS) or f"statements begin with {_listed(STATEMENTS)}"
        return Diagnostic("E105", f"unknown statement `{_shown(token)}`", span, hint=hint)
    if token.type == "NAME" and "ATTENTION" in expected:
        hint = did_you_mean(token, ITEMS) or f"write {_listed(ITEMS)}"
        return Diagnostic("E105", f"`{_shown(token)}` does not begin a definition", span, hint=hint)
    hint = _advice(str(token), expected) or _unbalanced(source, token) or _form(source, token, expected)
    if token.type == "_SEP":
        span = Span(source, token.line, token.column, token.line, token.column + 1)
        return Diagnostic("E001", f"the line ends too early; expected {_expected(expected)}", span, hint=hint)
    return Diagnostic("E001", f"unexpected `{_shown(token)}`; expected {_expected(expected)}", span, hint=hint)


def _bad_end(expected: set[str], source: Source, lines: list[str]) -> Diagnostic:
    last = max((i for i, line in enumerate(lines) if line.strip()), default=0)
    column = len(lines[last].rstrip("\r")) + 1
    span = Span(source, last + 1, column, last + 1, column + 1)
    return Diagnostic(
        "E002", f"the text ends too early; expected {_expected(expected)}", span, hint=_unbalanced(source)
    )


def _unbalanced(source: Source, token=None) -> str | None:
    """Which bracket was left open before `token` (or the end), if one was."""
    text = source.text if token is None else source.text[: token.start_pos - (token.column - 1)]  # the lines before it
    text = re.sub(r"#[^\n]*", "", text)
    starts_item = token is None or source.line(token.line).startswith(ITEMS)
    for opening, closing in (("(", ")"), ("[", "]"), ("{", "}")):
        if text.count(opening) > text.count(closing) and (token is None or starts_item and opening == "{"):
            return f"a `{opening}` before it has no `{closing}`"
    return None


def _bad_character(error: UnexpectedCharacters, source: Source) -> Diagnostic:
    character, span = error.char, Span(source, error.line, error.column, error.line, error.column + 1)
    if character in "\"'":
        hint = "there are no strings in this language"
    elif character in "!&|":
        hint = "write `not`, `and`, `or`"
    elif character == "." and re.search(r"[A-Za-z_)\]]\w*$", source.line(error.line)[: error.column - 1]):
        hint = "values have no attributes or methods"
    elif character == ".":
        hint = "a number has digits on both sides of the point: 0.5, 1.0"
    elif ord(character) > 126:
        hint = "names and operators are ASCII; other characters may stand in comments only"
    else:
        hint = None
    shown = character if " " < character <= "~" else f"U+{ord(character):04X}"
    return Diagnostic("E001", f"unexpected character `{shown}`", span, hint=hint)


_SPELLED = {
    "_SEP": "the end of the line", "$END": "the end of the text", "NAME": "a name", "NUMBER": "a number",
    "LPAR": "`(`", "RPAR": "`)`", "LSQB": "`[`", "RSQB": "`]`", "LBRACE": "`{`", "RBRACE": "`}`", "COMMA": "`,`",
    "COLON": "`:`", "EQUAL": "`=`", "COMPARE": "a comparison", "ANY": "`?`",
    "QMARK": "`?`", "POWER": "`**`", "SIGN": "`+` or `-`", "TILDE": "`~`", "DOTS": "`..`", "ARROW": "`->`",
}  # fmt: skip
_OPERATORS = {"SIGN", "FACTOR", "SHIFT", "COMPARE", "VBAR", "CIRCUMFLEX", "AMPERSAND", "AND", "OR", "IF"}
_STARTS = {"NUMBER", "TRUE", "FALSE", "TILDE", "LPAR", "SIGN", "NAME"}


def _expected(terminals) -> str:
    """What could have stood there, in words: an operand and the operators are named as groups."""
    names, words = set(terminals), []
    if "HEADS" in names:
        words, names = ["a statement"], names - {s.upper() for s in STATEMENTS}
    if _STARTS <= names:
        words, names = [*words, "an expression"], names - _STARTS - {"NOT"}
    if len(names & _OPERATORS) > 3:
        words, names = [*words, "an operator"], names - _OPERATORS
    words += sorted(_SPELLED.get(t, f"`{t.lower()}`") for t in names)
    return _listed(words, quote="") if words else "something else"


def _listed(words, quote: str = "`") -> str:
    words = [f"{quote}{w}{quote}" for w in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _advice(token: str, expected) -> str | None:
    if token == "=" and "COMPARE" in expected:
        return "write `==` to compare"
    if token in ("&", "|"):
        return "write `and`, `or`"
    if token == "?":
        return "write `a if condition else b`"
    if token == "let":
        return "a `let` stands on a line of its own"
    if token == "[":
        return "only a tensor's name can be indexed"
    return None


_FORMS = {
    "heads": "heads q = 8, kv = 8", "dim": "dim 128", "dtype": "dtype bf16", "scale": "scale 0.125", "let": "let name = expression",
    "tensor": "tensor name: f32[heads_q, seq_kv]", "scalar": "scalar name: float", "reduction": "reduction softmax",
}  # fmt: skip


def _form(source: Source, token, expected: set[str]) -> str | None:
    """How the statement around `token` is written, where it is not an expression that went wrong."""
    found = re.findall(r"(?:^|[;{])\s*(\w+)([^;{]*)$", source.line(token.line)[: token.column - 1])
    form = _FORMS.get(found[0][0]) if found else None
    in_expression = len(expected & _OPERATORS) > 3 or _STARTS <= expected and found and found[0][1].strip()
    return None if form is None or in_expression else f"it is written like `{form}`"


def _shown(token: str) -> str:
    return token if len(token) <= 40 else token[:37] + "..."
