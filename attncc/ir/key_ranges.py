"""Which key tiles of a query tile may hold a kept cell, and which a masked one, as closed forms.

`key_ranges` solves the mask for the keys it keeps and the negated mask for the keys it removes. Each result is a tuple
of ranges of key tiles [begin, end), disjoint and ascending whatever the values of sizes and scalars are (a range may
be empty). A tile in no `kept` range is empty, one in no `masked` range full.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from attncc.ir.algebra import Algebra, Facts, conjoin, linear, negate
from attncc.ir.attention import Attention
from attncc.ir.expr import BOOL, FALSE, INT, TRUE, ZERO, Expr, apply, floordiv, sub, transform, var, variables, walk
from attncc.ir.intervals import Intervals
from attncc.ir.simplify import promised, simplify
from attncc.ir.solve import INDICES, KV, Piece, Q, TooManyAlternatives, alternatives, atom_expr, depends, piece
from attncc.ir.tile import TileProgram

Range = tuple[Expr, Expr]
MOST_CONDITIONS = 3
"""Conditions without indices (on the head, on run-time scalars) that are told apart case by case."""


@dataclass(frozen=True)
class KeyRanges:
    """Key tiles that may hold a kept and a masked cell; `unused` are the parts of the mask that bound nothing."""

    kept: tuple[Range, ...]
    masked: tuple[Range, ...]
    unused: tuple[Expr, ...]


def program_facts(attention: Attention, tile_m: int, tile_n: int) -> Facts:
    """What holds for every query tile of a program: q_tile names a tile that has a row below seq_q."""
    some = {
        name: (0, None)
        for name in ("b", "q_idx", "kv_idx", "seq_kv", "q_tile", "kv_tile", "t", "kv_tiles", "__rows_left")
    }
    heads = {"h": (0, attention.heads_q - 1), "hkv": (0, attention.heads_kv - 1)}
    ranges = {**some, **heads, **{name: (1, None) for name in ("batch", "seq_q", "q_tiles")}}
    ranges |= {s.name: promised(s) for s in attention.scalars if s.type == INT}
    seq_q = apply("add", apply("add", apply("mul", var("q_tile"), tile_m), 1), var("__rows_left"))
    equal = {
        "kv_tiles": floordiv(apply("add", var("seq_kv"), tile_n - 1), tile_n),
        "seq_q": seq_q,
        "off": sub(var("seq_kv"), seq_q),
    }
    finite = frozenset(d.name for d in (*attention.tensors, *attention.scalars) if d.low is not None)
    return Facts(ranges, {t.name: promised(t) for t in attention.tensors}, equal, finite)


def query_rows(tile_m: int, algebra: Algebra) -> tuple[Expr, Expr]:
    """First and last row of the query tile that exist."""
    first = apply("mul", var("q_tile"), tile_m)
    return first, algebra.shift(algebra.minimum(algebra.shift(first, tile_m), var("seq_q")), -1)


def key_ranges(program: TileProgram) -> KeyRanges:
    """The closed forms of a program's key tiles."""
    return ranges_of(program.attention, program.tile_m, program.tile_n)


@functools.lru_cache(maxsize=64)
def ranges_of(attention: Attention, tile_m: int = 128, tile_n: int = 64) -> KeyRanges:
    """The closed forms of the key tiles of an attention, for tiles of that size."""
    return _Ranges(attention, tile_m, tile_n).find(attention.mask, MOST_CONDITIONS)


class _Ranges:
    def __init__(self, attention: Attention, tile_m: int, tile_n: int):
        self.tile_n = tile_n
        self.algebra = Algebra(program_facts(attention, tile_m, tile_n))
        self.rows = query_rows(tile_m, self.algebra)
        self.padded = apply("mul", var("kv_tiles"), tile_n)
        self.unused: list[Expr] = []

    def find(self, mask: Expr, cases: int) -> KeyRanges:
        """Conditions without indices first: each is decided both ways, and chosen between at the end."""
        condition = _loose_condition(mask) if cases else None
        if condition is None:
            kept, masked = self.reach(mask, True), self.reach(mask, False)
            return KeyRanges(kept, masked, _without_opposites(self.unused))
        yes, no = (self.find(_assume(mask, condition, value), cases - 1) for value in (TRUE, FALSE))
        return KeyRanges(
            self.choose(condition, yes.kept, no.kept), self.choose(condition, yes.masked, no.masked),
            _without_opposites(self.unused),
        )  # fmt: skip

    def choose(self, condition: Expr, a: tuple[Range, ...], b: tuple[Range, ...]) -> tuple[Range, ...]:
        length = max(len(a), len(b))
        # padding goes after the last range, where an empty range keeps the order
        a, b = (x + ((ZERO if not x else x[-1][1],) * 2,) * (length - len(x)) for x in (a, b))
        pick = self.algebra.select
        return tuple((pick(condition, x[0], y[0]), pick(condition, x[1], y[1])) for x, y in zip(a, b))

    def reach(self, mask: Expr, wanted: bool) -> tuple[Range, ...]:
        """Key tiles that may hold a cell where the mask is `wanted`; columns past seq_kv count as masked."""
        last = self.algebra.shift(var("seq_kv") if wanted else self.padded, -1)
        found = [] if wanted else [(var("seq_kv"), self.padded)]
        try:
            pieces = [piece(c, self.algebra, self.rows, (ZERO, last)) for c in alternatives(mask, wanted, self.algebra)]
        except TooManyAlternatives:
            self.unused.append(mask)
            return ((ZERO, var("kv_tiles")),)
        found += [r for p in pieces for r in self.interval(p)]
        return self.disjoint([self.tiles(*r) for r in self.merged(found)])

    def interval(self, p: Piece) -> list[Range]:
        """[begin, end) of a piece's keys; empty where its condition fails."""
        when = p.when
        over = Intervals(self.algebra, {Q: p.rows, KV: p.keys})
        for atom in p.unused:
            reached = over.may(atom_expr(atom))
            if KV not in depends(atom) or reached is FALSE:
                when = conjoin(when, reached)
            if reached is TRUE or KV in depends(atom):
                self.unused.append(atom_expr(atom))
        begin, end = p.keys[0], self.algebra.shift(p.keys[1], 1)
        if when is FALSE or self.algebra.proves_le(end, begin):
            return []
        if end is self.padded:
            return [(self.algebra.select(when, begin, end), end)]
        return [(begin, self.algebra.select(when, end, begin))]

    def merged(self, ranges: list[Range]) -> list[Range]:
        """Fewer ranges with the same union, where it is known how they lie to each other."""
        out: list[Range] = []
        for r in ranges:
            for other in list(out):
                joined = self.joined(other, r)
                if joined is not None:
                    out.remove(other)
                    r = joined
            out.append(r)
        return out

    def joined(self, x: Range, y: Range) -> Range | None:
        le = self.algebra.proves_le
        if x[1] is y[1]:
            return self.algebra.minimum(x[0], y[0]), x[1]
        if x[0] is y[0]:
            return x[0], self.algebra.maximum(x[1], y[1])
        for (a, b), (c, d) in ((x, y), (y, x)):
            if le(a, c) and (le(c, b) or le(d, b)):
                return a, self.algebra.maximum(b, d)
        return None

    def tiles(self, begin: Expr, end: Expr) -> Range:
        """The tiles that keys [begin, end) touch; none when end <= begin."""
        n, algebra = self.tile_n, self.algebra
        first, last = algebra.floordiv(begin, n), algebra.ceildiv(end, n)
        aligned = algebra.mod(begin, n) is ZERO or (algebra.mod(end, n) is ZERO and algebra.proves_le(begin, end))
        if aligned:
            return first, last
        return first, algebra.select(algebra.le(end, begin), first, last)

    def disjoint(self, ranges: list[Range]) -> tuple[Range, ...]:
        """The ranges in ascending order, each cut to begin where those before it end."""
        ordered = self.ascending(ranges)
        out: list[Range] = []
        for begin, end in ordered:
            if out:
                begin = self.algebra.maximum(begin, out[-1][1])
            end = self.algebra.maximum(begin, end)
            if out and out[-1][1] is begin:
                begin = out.pop()[0]
            if end is not begin:
                out.append((begin, end))
        return tuple(out)

    def ascending(self, ranges: list[Range]) -> list[Range]:
        """Sorted by begin: by proof where possible, else by exchanging neighbours under a condition."""
        out = list(ranges)
        pick = self.algebra.select
        for top in range(len(out) - 1, 0, -1):
            for i in range(top):
                x, y = out[i], out[i + 1]
                swap = TRUE if self.algebra.proves_le(y[0], x[0]) else negate(self.algebra.le(x[0], y[0]))
                out[i] = (pick(swap, y[0], x[0]), pick(swap, y[1], x[1]))
                out[i + 1] = (pick(swap, x[0], y[0]), pick(swap, x[1], y[1]))
        return out


def _without_opposites(conditions: list[Expr]) -> tuple[Expr, ...]:
    """Each condition once; of a condition and its negation the first."""
    out: list[Expr] = []
    for item in conditions:
        if not any(item is other or _opposite(item, other) for other in out):
            out.append(item)
    return tuple(out)


def _opposite(a: Expr, b: Expr) -> bool:
    """Whether `a` is `not b`; 0 <= x is the opposite of 0 <= -x - 1."""
    if a.op == b.op == "le" and a.args[0] is b.args[0] is ZERO:
        both = linear(a.args[1]).plus(linear(b.args[1]))
        return not both.terms and both.constant == -1
    return a is negate(b)


def _loose_condition(mask: Expr) -> Expr | None:
    """A condition of the mask that no index enters, the largest such."""
    for node in reversed(tuple(walk(mask))):
        if node.type == BOOL and node.op != "const" and not variables(node) & INDICES:
            return node
    return None


def _assume(mask: Expr, condition: Expr, value: Expr) -> Expr:
    return simplify(transform(mask, lambda n: value if n is condition else n))


__all__ = ["KeyRanges", "Range", "key_ranges", "program_facts", "query_rows"]
