"""What generated expressions are made of: text with a bound of its magnitude, and the names that may be used."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

LONGEST = 300
"""No generated sequence is longer; the magnitude of an index or size."""
EXTENTS = {"batch": "b", "heads_q": "h", "heads_kv": "hkv", "seq_q": "q_idx", "seq_kv": "kv_idx"}
"""Extent of a tensor dimension -> the index that runs over it."""


@dataclass(frozen=True)
class Term:
    """An expression's text, and a bound of its magnitude (0 for booleans)."""

    text: str
    size: float = 0.0

    @property
    def tight(self) -> str:
        """The text as an operand: in parentheses unless it is a name, a literal or one call."""
        plain = self.text.replace("_", "").replace(".", "").isalnum()
        return self.text if plain or _one_call(self.text) else f"({self.text})"


def _one_call(text: str) -> bool:
    """Whether the whole text is one call, index or parenthesis: its last bracket closes the first one."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        if depth == 0 and c in ")]":
            return i == len(text) - 1
        if depth == 0 and not (c.isalnum() or c == "_"):
            return False
    return False


@dataclass(frozen=True)
class Tensor:
    """A tensor that expressions may read. `extents` are texts; `high` is the text of an int tensor's exclusive upper bound."""

    name: str
    dtype: str
    extents: tuple[str, ...]
    kind: str
    high: str | None = None
    sorted: bool = False

    @property
    def size(self) -> float:
        """Bound of an element's magnitude."""
        if self.kind != "int":
            return 8.0
        return float(self.high) if self.high and self.high.isdigit() else LONGEST


@dataclass(frozen=True)
class Scope:
    """What an expression may name. `ints`, `floats` and `bools` are scalars, parameters and loop variables.

    `locals` are lets, (kind, term): they may depend on any index, so a scope of fewer indices leaves them out.
    """

    tensors: tuple[Tensor, ...] = ()
    ints: tuple[Term, ...] = ()
    floats: tuple[Term, ...] = ()
    bools: tuple[Term, ...] = ()
    locals: tuple[tuple[str, Term], ...] = ()
    indices: tuple[str, ...] = ("b", "h", "hkv", "q_idx", "kv_idx")
    sizes: tuple[str, ...] = ("seq_q", "seq_kv", "off", "batch")
    heads: tuple[int, int] = (1, 1)

    def named(self, kind: str) -> tuple[Term, ...]:
        """Every name of a kind, lets included."""
        return {"int": self.ints, "float": self.floats, "bool": self.bools}[kind] + tuple(t for k, t in self.locals if k == kind)


def choose(draw, options):
    """One of a sequence, by position. (st.sampled_from would do, but what it draws next depends on the hashes of its options,
    and those of texts and functions differ between processes: the same seed has to draw the same cases.)"""
    return options[draw(st.integers(0, len(options) - 1))]
