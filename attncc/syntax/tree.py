"""L0: the syntax tree. Frozen dataclasses, one per construct of `spec/attn.lark`, each with the span it was written at.

Nothing is resolved here: names are text, types are names, numbers are Python numbers. `attncc/lower` gives them meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from attncc.diagnostics import Source, Span


@dataclass(frozen=True)
class Node:
    """What every part of the tree has: where it was written."""

    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Expression(Node):
    """An expression; `depth` is how deep it nests (bounded by the parser, so that a recursive reader is safe)."""

    depth: int = field(compare=False, repr=False)


@dataclass(frozen=True)
class Literal(Expression):
    value: object


@dataclass(frozen=True)
class Name(Expression):
    name: str


@dataclass(frozen=True)
class Unary(Expression):
    """`operator` is `-`, `+`, `~` or `not`."""

    operator: str
    operand: Expression


@dataclass(frozen=True)
class Binary(Expression):
    operator: str
    left: Expression
    right: Expression


@dataclass(frozen=True)
class Compare(Expression):
    """A chain such as `a <= b < c`: operands a, b, c and operators `<=`, `<`."""

    operands: tuple[Expression, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True)
class Conditional(Expression):
    """`then if condition else otherwise`."""

    condition: Expression
    then: Expression
    otherwise: Expression


@dataclass(frozen=True)
class Keyword(Node):
    """`name = value`, in a call or in a statement such as `heads`."""

    name: str
    value: Expression


@dataclass(frozen=True)
class Call(Expression):
    function: str
    arguments: tuple[Expression, ...]
    keywords: tuple[Keyword, ...]


@dataclass(frozen=True)
class Range(Node):
    """`in low..high`: low <= x < high."""

    low: Expression
    high: Expression


@dataclass(frozen=True)
class Comprehension(Expression):
    """`function(body for variable in low..high)`."""

    function: str
    body: Expression
    variable: str
    range: Range


@dataclass(frozen=True)
class Index(Expression):
    tensor: str
    indices: tuple[Expression, ...]


@dataclass(frozen=True)
class AnySize(Node):
    """`?` in a tensor's shape."""


@dataclass(frozen=True)
class Feature(Node):
    """A name with options, as in `softmax(sink = x)` or `top_k(16)`."""

    name: str
    arguments: tuple[Expression, ...]
    keywords: tuple[Keyword, ...]


@dataclass(frozen=True)
class Setting(Node):
    """`name = feature` in a `quantize` statement."""

    name: str
    feature: Feature


@dataclass(frozen=True)
class Statement(Node):
    """A line of an attention."""


@dataclass(frozen=True)
class Heads(Statement):
    keywords: tuple[Keyword, ...]


@dataclass(frozen=True)
class Dim(Statement):
    """`dim value`, or `dim qk = ..., v = ...` with `value` None."""

    value: Expression | None
    keywords: tuple[Keyword, ...]


@dataclass(frozen=True)
class Dtype(Statement):
    name: str


@dataclass(frozen=True)
class Scale(Statement):
    value: Expression


@dataclass(frozen=True)
class Tensor(Statement):
    name: str
    dtype: str
    shape: tuple[Expression | AnySize, ...]
    range: Range | None
    is_sorted: bool


@dataclass(frozen=True)
class Scalar(Statement):
    name: str
    type: str
    range: Range | None


@dataclass(frozen=True)
class Score(Statement):
    value: Expression


@dataclass(frozen=True)
class Bias(Statement):
    value: Expression


@dataclass(frozen=True)
class Mask(Statement):
    value: Expression


@dataclass(frozen=True)
class Reduction(Statement):
    feature: Feature


@dataclass(frozen=True)
class Sparsity(Statement):
    feature: Feature


@dataclass(frozen=True)
class Quantize(Statement):
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Target(Statement):
    feature: Feature


@dataclass(frozen=True)
class Let(Statement):
    name: str
    value: Expression


@dataclass(frozen=True)
class Parameter(Node):
    name: str
    type: str
    default: Expression | None


@dataclass(frozen=True)
class Definition(Node):
    """`kind name(parameters) -> result = { lets; body }`; kind is def, mask, score or bias."""

    kind: str
    name: str
    parameters: tuple[Parameter, ...]
    result: str | None
    lets: tuple[Let, ...]
    body: Expression


@dataclass(frozen=True)
class Attention(Node):
    name: str
    parameters: tuple[Parameter, ...]
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class File:
    """A whole text."""

    source: Source
    definitions: tuple[Definition, ...]
    attentions: tuple[Attention, ...]
