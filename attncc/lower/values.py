"""What a name can stand for while a text is lowered, and the scope that resolves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from attncc.ir.attention import TensorDecl
from attncc.ir.expr import FLOAT, ZERO, Expr, substitute, var
from attncc.syntax import names, tree

SCORE = var("s", FLOAT)
"""The score so far, in a `score` statement or definition; replaced by its expression where the statement stands."""


@dataclass(frozen=True)
class TensorValue:
    """A declared tensor."""

    decl: TensorDecl


@dataclass(frozen=True)
class Pattern:
    """A mask or bias given to a definition: an expression of b, h, q_idx, kv_idx that can be asked at other positions."""

    expr: Expr

    def at(self, q: Expr, k: Expr) -> Expr:
        """Its value at explicit positions. They need no alignment any more, so `off` is 0."""
        return substitute(self.expr, {"q_idx": q, "kv_idx": k, "off": ZERO})


@dataclass
class Lazy:
    """A `let` that nobody has asked for yet."""

    node: tree.Let
    scope: Scope
    state: str = "new"
    value: object = None


@dataclass(frozen=True)
class Broken:
    """Something that was already reported; using it says nothing more."""


class AlreadyReported(Exception):
    """Raised where a `Broken` value is used: the statement is given up without another message."""


Value = Expr | TensorValue | Pattern | Lazy | Broken


@dataclass(frozen=True)
class Scope:
    """Names and what they stand for.

    bound      parameters, lets, tensors, scalars, loop variables
    implicit   names the language gives a meaning (`q_idx`, `seq_kv`, ...), as far as they may be used here
    place      what this scope is for, in messages ("a mask", "the shape of a tensor")
    """

    bound: Mapping[str, Value]
    implicit: Mapping[str, Value]
    place: str
    allows_score: bool = False
    owner: tree.Definition | None = field(default=None, compare=False)

    def extend(self, **more: Value) -> Scope:
        return Scope({**self.bound, **more}, self.implicit, self.place, self.allows_score, self.owner)

    def names(self) -> list[str]:
        return [*self.bound, *self.implicit]


INDICES: dict[str, Expr] = {n: var(n) for n in names.INDEX_NAMES}
SIZES: dict[str, Expr] = {n: var(n) for n in names.SIZE_NAMES}


def describe(value: Value) -> str:
    """The type of `value`, in words."""
    if isinstance(value, TensorValue):
        return f"a tensor ({value.decl.dtype}, {len(value.decl.shape)} dimensions)"
    if isinstance(value, Pattern):
        return "a mask" if value.expr.type == "bool" else "a bias"
    return value.type if isinstance(value, Expr) else "an error"
