"""From the parse tree of lark to the syntax tree: one method for each rule of the grammar.

The walk is a loop and every token is kept, so a text may nest as deep as it likes and every node knows its place.
"""

from __future__ import annotations

import math
import re

from lark import Token, Transformer_NonRecursive

from attncc.diagnostics import AttnError, Diagnostic, Source, Span
from attncc.syntax import tree
from attncc.syntax.names import check_name

MAX_DEPTH = 100
INT_LIMIT = 2**31


class Builder(Transformer_NonRecursive):
    """Makes the tree of one text. Errors that do not stop the parse are collected in `problems`."""

    def __init__(self, source: Source, problems: list[Diagnostic]):
        super().__init__()
        self.source, self.problems = source, problems

    # Places

    def span(self, parts) -> Span:
        """From the first to the last of `parts` (tokens, nodes, lists of them, None)."""
        ends = [_ends(p) for p in parts if p is not None and p != []]
        (line, column), (end_line, end_column) = ends[0][0], ends[-1][1]
        return Span(self.source, line, column, end_line, end_column)

    def report(self, code: str, message: str, span: Span, hint: str | None = None) -> None:
        self.problems.append(Diagnostic(code, message, span, hint=hint))

    def declare(self, token: Token) -> str:
        """The name a declaration introduces, reported when it may not be used."""
        problem = check_name(str(token))
        if problem is not None:
            self.report("E006", problem[0], self.span([token]), problem[1])
        return str(token)

    def expression(self, node_type, parts, *fields) -> tree.Expression:
        depth = 1 + max((d for d in map(_depth, parts)), default=0)
        span = self.span(parts)
        if depth > MAX_DEPTH:
            hint = "name parts of it with `let` or `def`, or use `any`, `all` or `sum` over a range"
            raise AttnError(
                Diagnostic("E004", f"the expression nests more than {MAX_DEPTH} levels deep", span, hint=hint)
            )
        return node_type(span, depth, *fields)

    # Expressions

    def number(self, parts):
        return self.expression(tree.Literal, parts, self.numeric(str(parts[0]), self.span(parts)))

    def numeric(self, text: str, span: Span):
        """The value of a literal; out of range values are reported and read as 1."""
        if re.fullmatch(r"0[xX][0-9a-fA-F]+|[0-9]+", text):
            digits = text[2:] if text[:2] in ("0x", "0X") else text
            if len(digits.lstrip("0")) <= 10:
                value = int(digits, 16) if digits is not text else int(text)
                if value < INT_LIMIT:
                    return value
            self.report(
                "E005",
                "the integer does not fit in 32 bits",
                span,
                "integers are below 2147483648; write a float: 1e10",
            )
            return 1
        value = float(text)
        if math.isinf(value):
            self.report("E005", "the number is too large for a float", span, "write `inf` for infinity")
            return 1.0
        return value

    def true(self, parts):
        return self.expression(tree.Literal, parts, True)

    def false(self, parts):
        return self.expression(tree.Literal, parts, False)

    def name(self, parts):
        return self.expression(tree.Name, parts, str(parts[0]))

    def group(self, parts):
        return self.widen(parts[1], parts)

    def widen(self, node, parts):
        """The expression inside parentheses, one level deeper, its span with the parentheses."""
        fields = [getattr(node, f) for f in node.__dataclass_fields__ if f not in ("span", "depth")]
        return self.expression(type(node), parts, *fields)

    def unary(self, parts):
        return self.expression(tree.Unary, parts, str(parts[0]), parts[1])

    def binary(self, parts):
        left, operator, right = parts
        return self.expression(tree.Binary, parts, str(operator), left, right)

    def compare(self, parts):
        return self.expression(tree.Compare, parts, tuple(parts[::2]), tuple(map(str, parts[1::2])))

    def conditional(self, parts):
        then, _, condition, _, otherwise = parts
        return self.expression(tree.Conditional, parts, condition, then, otherwise)

    def call(self, parts):
        return self.expression(tree.Call, parts, str(parts[0]), *_arguments(parts[1]))

    def comprehension(self, parts):
        function, _, body, _, variable, range, _ = parts
        return self.expression(tree.Comprehension, parts, str(function), body, self.declare(variable), range)

    def index(self, parts):
        return self.expression(tree.Index, parts, str(parts[0]), tuple(_nodes(parts)))

    def arguments(self, parts):
        return list(parts)

    def keyword(self, parts):
        return tree.Keyword(self.span(parts), str(parts[0]), parts[2])

    def range(self, parts):
        return tree.Range(self.span(parts), parts[1], parts[3])

    def any_size(self, parts):
        return tree.AnySize(self.span(parts))

    # Statements

    def heads(self, parts):
        return tree.Heads(self.span(parts), tuple(_nodes(parts)))

    def dim(self, parts):
        return tree.Dim(self.span(parts), parts[1], ())

    def dims(self, parts):
        return tree.Dim(self.span(parts), None, tuple(_nodes(parts)))

    def dtype(self, parts):
        return tree.Dtype(self.span(parts), str(parts[1]))

    def scale(self, parts):
        return tree.Scale(self.span(parts), parts[1])

    def shape(self, parts):
        return list(parts)

    def tensor(self, parts):
        _, name, _, dtype, shape, range, is_sorted = parts
        span, extents = self.span(parts), tuple(_nodes(shape))
        return tree.Tensor(span, self.declare(name), str(dtype), extents, range, is_sorted is not None)

    def scalar(self, parts):
        _, name, _, type, range = parts
        return tree.Scalar(self.span(parts), self.declare(name), str(type), range)

    def score(self, parts):
        return tree.Score(self.span(parts), parts[1])

    def bias(self, parts):
        return tree.Bias(self.span(parts), parts[1])

    def mask(self, parts):
        return tree.Mask(self.span(parts), parts[1])

    def reduction(self, parts):
        return tree.Reduction(self.span(parts), parts[1])

    def sparsity(self, parts):
        return tree.Sparsity(self.span(parts), parts[1])

    def quantize(self, parts):
        return tree.Quantize(self.span(parts), tuple(_nodes(parts)))

    def target(self, parts):
        return tree.Target(self.span(parts), parts[1])

    def let(self, parts):
        return tree.Let(self.span(parts), self.declare(parts[1]), parts[3])

    def feature(self, parts):
        return tree.Feature(self.span(parts), str(parts[0]), *_arguments(parts[1] or []))

    def setting(self, parts):
        return tree.Setting(self.span(parts), str(parts[0]), parts[2])

    # Items

    def result(self, parts):
        return str(parts[1])

    def parameter(self, parts):
        name, _, type, _, default = (*parts, None, None)[:5]
        return tree.Parameter(self.span(parts), self.declare(name), str(type), default)

    def parameters(self, parts):
        return tuple(_nodes(parts))

    def block(self, parts):
        *lets, body = _nodes(parts)
        return tuple(lets), body

    def definition(self, parts):
        kind, name, parameters, result, _, body = parts
        lets, value = body if isinstance(body, tuple) else ((), body)
        span = self.span([kind, name])
        return tree.Definition(span, str(kind), self.declare(name), parameters or (), result, lets, value)

    def attention(self, parts):
        name, parameters = parts[1], parts[2]
        statements = tuple(p for p in parts if isinstance(p, tree.Statement))
        return tree.Attention(self.span(parts[:2]), self.declare(name), parameters or (), statements)

    def start(self, parts):
        definitions = tuple(p for p in parts if isinstance(p, tree.Definition))
        return tree.File(self.source, definitions, tuple(p for p in parts if isinstance(p, tree.Attention)))


def _nodes(parts) -> list[tree.Node]:
    return [p for p in parts if isinstance(p, tree.Node)]


def _arguments(parts) -> tuple[tuple, tuple]:
    """Positional and keyword arguments of a parenthesised list."""
    nodes = _nodes(parts)
    keywords = tuple(n for n in nodes if isinstance(n, tree.Keyword))
    return tuple(n for n in nodes if not isinstance(n, tree.Keyword)), keywords


def _ends(part) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(part, list):
        return _ends(part[0])[0], _ends(part[-1])[1]
    if isinstance(part, Token):
        return (part.line, part.column), (part.end_line, part.end_column)
    span = part.span
    return (span.line, span.column), (span.end_line, span.end_column)


def _depth(part) -> int:
    if isinstance(part, tree.Expression):
        return part.depth
    if isinstance(part, tree.Keyword):
        return part.value.depth
    if isinstance(part, tree.Range):
        return max(part.low.depth, part.high.depth)
    if isinstance(part, list):
        return max(map(_depth, part), default=0)
    return 0
