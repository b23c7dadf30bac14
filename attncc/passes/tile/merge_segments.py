"""Segments that run the same body become one loop."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.algebra import Algebra, linear, to_expr
from attncc.ir.expr import Expr, apply, select, substitute, var, variables
from attncc.ir.key_ranges import program_facts
from attncc.ir.tile import Segment, TileProgram
from attncc.passes.tile.segments import Names


def merge_segments(program: TileProgram) -> TileProgram:
    """Neighbouring segments of one kind and one body become one, whose tile number is chosen by the position.

    Before, a causal sliding window:
        segment kind=partial, count=bound_3 - bound_2, tile=bound_3 - t - 1 { ... }
        segment kind=partial, count=bound_4 - bound_0, tile=bound_4 - t - 1 { ... }
        segment kind=full, ...
    After:
        let name=bound_5, expr=bound_3 - bound_2
        let name=bound_6, expr=bound_4 + bound_5
        segment kind=partial, count=bound_4 + bound_5 - bound_0, tile=select(t < bound_5, bound_3, bound_6) - t - 1
        segment kind=full, ...

    Fewer loops mean less code in the kernel, and one place where the copies run ahead of the computation.
    """
    names = Names(program)
    algebra = Algebra(program_facts(program.attention, program.tile_m, program.tile_n))
    out: list[Segment] = []
    for segment in program.segments:
        if out and out[-1].kind == segment.kind and out[-1].body == segment.body:
            segment = _joined(out.pop(), segment, names, algebra)
        out.append(segment)
    return names.finish(replace(program, segments=tuple(out)))


def _joined(a: Segment, b: Segment, names: Names, algebra: Algebra) -> Segment:
    first = names.of(a.count)
    later = substitute(b.tile, {"t": algebra.sub(var("t"), first)})
    return Segment(a.kind, algebra.add(b.count, first), _chosen(first, a.tile, later, names), a.body)


def _chosen(first: Expr, a: Expr, b: Expr, names: Names) -> Expr:
    """`a` where t < first, else `b`; a common `- t` stays outside."""
    ends = [linear(x).plus(linear(apply("add", var("t"), 1))) for x in (a, b)]
    before = apply("lt", var("t"), first)
    if any("t" in variables(term) for end in ends for term, _ in end.terms):
        return select(before, a, b)
    return apply("sub", apply("sub", select(before, *(names.of(to_expr(e)) for e in ends)), var("t")), 1)
