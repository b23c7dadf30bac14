"""Bounds of a mask over one (query tile, key tile) pair, for masks whose extent depends on tensors.

The same alternatives that give closed forms are looked at inside the box of a tile pair; what a conjunction does not
solve is bounded by intervals, tensor elements by their least and greatest value over a tile (`TileSummary`). So
both routes know the same, and this one also what tensors say.
"""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.algebra import Algebra, conjoin, disjoin, negate
from attncc.ir.expr import FALSE, INT, TRUE, Expr, apply, var, variables, walk
from attncc.ir.intervals import Interval, Intervals
from attncc.ir.key_ranges import program_facts, query_rows
from attncc.ir.solve import INDICES, KV, Piece, Q, TooManyAlternatives, alternatives, atom_expr, piece
from attncc.ir.tile import TileProgram, TileSummary, TileTable


class Summaries:
    """The summaries that bounds refer to: one for each distinct expression."""

    def __init__(self):
        self.found: dict[Expr, TileSummary] = {}

    def __call__(self, expr: Expr, axis: str) -> Interval:
        if expr not in self.found:
            self.found[expr] = TileSummary(f"summary_{len(self.found)}", "q" if axis == Q else "kv", expr)
        name = self.found[expr].name
        return var(f"{name}_lo", expr.type), var(f"{name}_hi", expr.type)

    def used_by(self, *exprs: Expr) -> tuple[TileSummary, ...]:
        names = frozenset().union(*(variables(e) for e in exprs))
        return tuple(s for s in self.found.values() if {f"{s.name}_lo", f"{s.name}_hi"} & names)


class TileBounds:
    """`may` and `must` of a program's mask over the tile pair (q_tile, kv_tile)."""

    def __init__(self, program: TileProgram):
        facts = program_facts(program.attention, program.tile_m, program.tile_n)
        first = apply("mul", var("kv_tile"), program.tile_n)
        here = apply("add", apply("add", first, 1), var("__cols_left"))
        equal = {name: e for name, e in facts.equal.items() if name != "off"}
        off = apply("sub", here, facts.equal["seq_q"])
        ranges = {**facts.ranges, "seq_kv": (1, None), "kv_tiles": (1, None), "__cols_left": (0, None)}
        self.program = program
        self.algebra = Algebra(replace(facts, ranges=ranges, equal={**equal, "off": off, "seq_kv": here}))
        self.summaries = Summaries()
        self.rows = query_rows(program.tile_m, self.algebra)
        past = self.algebra.shift(first, program.tile_n)
        self.keys = first, self.algebra.shift(self.algebra.minimum(past, var("seq_kv")), -1)
        self.inside = apply("le", past, var("seq_kv"))

    def may(self, wanted: bool = True) -> Expr:
        """Whether a cell of the pair may be kept (`wanted`) or masked; false is a proof that none is."""
        mask = self.program.attention.mask
        try:
            found = alternatives(mask, wanted, self.algebra)
        except TooManyAlternatives:
            box = Intervals(self.algebra, {Q: self.rows, KV: self.keys}, self.summaries)
            return box.may(mask) if wanted else negate(box.must(mask))
        return disjoin(*(self.reached(c) for c in found))

    def reached(self, conjunction) -> Expr:
        p = piece(conjunction, self.algebra, self.rows, self.keys, self.summaries)
        return conjoin(p.when, self.algebra.le(*p.keys), *(self.atom(p, a) for a in p.unused))

    def atom(self, p: Piece, atom) -> Expr:
        return Intervals(self.algebra, {Q: p.rows, KV: p.keys}, self.summaries).may(atom_expr(atom))

    def gains(self, atom: Expr) -> bool:
        """Whether tile bounds of a condition that no range follows from can tell tiles apart.

        They can not where nothing bounds it, and not where a remainder takes all its values within a tile.
        """
        box = Intervals(self.algebra, {Q: self.rows, KV: self.keys}, self.summaries)
        if box.may(atom) is TRUE and box.must(atom) is FALSE:
            return False
        remainders = [n for n in walk(atom) if n.op == "mod" and variables(n) & INDICES and not box.wants_summary(n)]
        return all(self.narrow(n) for n in remainders)

    def narrow(self, remainder: Expr) -> bool:
        """Whether x moves by less than c - 1 within a tile, for x % c."""
        width, by = self.width(remainder.args[0]), remainder.args[1]
        return width is not None and by.op == "const" and width + 1 < by.value

    def width(self, expr: Expr) -> int | None:
        """How far an expression moves within the tile at most; None where that is not plain."""
        if not variables(expr) & INDICES:
            return 0
        if expr.op == "var":
            return (self.program.tile_m if expr.value == Q else self.program.tile_n) - 1
        parts = [self.width(a) for a in expr.args]
        if None in parts or expr.type != INT:
            return None
        if expr.op in ("add", "sub", "neg"):
            return sum(parts)
        if expr.op == "mul" and expr.args[1].op == "const":
            return parts[0] * abs(expr.args[1].value)
        if expr.op == "floordiv" and expr.args[1].op == "const" and expr.args[1].value > 0:
            return -(-parts[0] // expr.args[1].value)
        return None


def tile_table(program: TileProgram) -> TileTable:
    """The table of a program's mask."""
    bounds = TileBounds(program)
    may, must = bounds.may(True), conjoin(bounds.inside, negate(bounds.may(False)))
    summaries = bounds.summaries.used_by(may, must)
    names = frozenset().union(*(variables(e) for e in (may, must, *(s.expr for s in summaries))))
    return TileTable(may, must, program.attention.packed or "b" in names, bool(names & {"h", "hkv"}), summaries)
