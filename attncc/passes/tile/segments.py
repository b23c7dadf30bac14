"""What the passes over segments share: a segment as a range of key tiles, and names for the range's ends."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.algebra import Algebra, linear, to_expr
from attncc.ir.expr import ZERO, Expr, substitute, transform, var
from attncc.ir.key_ranges import Range
from attncc.ir.tile import Let, Segment, TileProgram


def span(segment: Segment, algebra: Algebra) -> Range | None:
    """[begin, end) of the key tiles a segment visits, when it goes through them one by one."""
    steps = linear(segment.tile).coefficient(var("t"))
    first = algebra.shift(substitute(segment.tile, {"t": ZERO}), 0)
    if steps == 1:
        return first, algebra.add(first, segment.count)
    if steps == -1:
        end = algebra.shift(first, 1)
        return algebra.sub(end, segment.count), end
    return None


def descending(kind: str, begin: Expr, end: Expr, body: tuple, algebra: Algebra) -> Segment:
    """A segment from the last tile of [begin, end) down to the first."""
    tile = to_expr(linear(algebra.shift(end, -1)).plus(linear(var("t")), -1))
    return Segment(kind, algebra.sub(end, begin), tile, body)


class Names:
    """Lets for the ends of ranges: one name for each distinct expression that is more than a name or a number."""

    def __init__(self, program: TileProgram, prefix: str = "bound"):
        self.program, self.prefix = program, prefix
        self.known = {op.expr: op.name for op in program.prologue if isinstance(op, Let)}
        self.added: list[Let] = []

    def of(self, expr: Expr) -> Expr:
        """The name of `expr`, written with the names of its parts; names and numbers stay as they are."""
        if expr.op in ("var", "const"):
            return expr
        if expr not in self.known:
            taken = set(self.known.values())
            number = next(i for i in range(len(taken) + 1) if f"{self.prefix}_{i}" not in taken)
            short = transform(expr, lambda node: self.known_var(node))
            self.known[expr] = f"{self.prefix}_{number}"
            self.added.append(Let(self.known[expr], short))
        return var(self.known[expr], expr.type)

    def known_var(self, node: Expr) -> Expr:
        return var(self.known[node], node.type) if node in self.known else node

    def finish(self, program: TileProgram) -> TileProgram:
        lets = tuple(op for op in program.prologue if isinstance(op, Let))
        others = tuple(op for op in program.prologue if not isinstance(op, Let))
        return replace(program, prologue=lets + tuple(self.added) + others)


__all__ = ["Names", "descending", "span"]
