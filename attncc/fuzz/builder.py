"""The state of one generated spec while it is drawn: what is declared so far."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from attncc.fuzz.conditions import Maker
from attncc.fuzz.terms import Scope, Tensor, choose

HEADS = ((1, 1), (2, 2), (4, 1), (2, 1), (7, 1), (8, 2), (6, 3), (14, 2))
"""(query, key/value) head counts: groups of 1, 2, 4 and 7."""
REALS = ("f32", "bf16", "f16", "f32")
INTEGERS = ("i32", "i64", "i16", "i8", "u8", "i32")


class Builder:
    """Collects the statements of one attention. `infinite` says that a score may be -inf already."""

    def __init__(self, draw):
        self.draw = draw
        self.head: list[str] = []
        self.required: list[str] = []
        self.definitions: list[str] = []
        self.parameters: list[str] = []
        self.infinite = False
        self.scope = Scope(heads=choose(draw, HEADS))

    def one(self, *options):
        """One of `options`; one given several times weighs more. Shrinks towards the first."""
        return choose(self.draw, options)

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def count(self, *options: int) -> range:
        return range(self.one(*options))

    def maker(self, *indices: str) -> Maker:
        """A maker over what is declared so far; with `indices`, over those alone."""
        return Maker(self.draw, replace(self.scope, indices=indices, locals=()) if indices else self.scope)

    def require(self, mask: str) -> None:
        """A mask without which an expression of the spec would read out of range."""
        if mask not in self.required:
            self.required.append(mask)

    def fresh(self, kind: str, extents: tuple[str, ...], high: str | None = None, in_order: bool = False) -> str:
        """Declares a tensor for the use at hand; its name."""
        name = f"for{len(self.head)}"
        self.declare(name, kind, extents, high, in_order)
        return name

    def declare(self, name: str, kind: str, extents: tuple[str, ...], high: str | None = None, in_order: bool = False) -> Tensor:
        """Declares a tensor. An int tensor holds 0..high."""
        shape = f"[{', '.join(extents)}]"
        if kind == "bool":
            text, dtype = f"bool{shape}", "bool"
        elif kind == "float":
            dtype = self.one(*REALS)
            text = dtype + shape + self.one("", "", " in -1.0..1.0", " in 0.0..2.0")
        else:
            high = high or self.one("4", "8", "seq_kv", "seq_q", "3")
            dtype = self.one(*INTEGERS)
            if dtype in ("i8", "u8") and not high.isdigit():
                dtype = "i32"
            text = f"{dtype}{shape} in 0..{high}" + (" sorted" if in_order else "")
        self.head.append(f"tensor {name}: {text}")
        return Tensor(name, dtype, extents, kind, high, in_order)
