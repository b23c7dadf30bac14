"""Key tiles without a masked cell run no mask."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.algebra import Algebra
from attncc.ir.expr import ZERO, substitute, var
from attncc.ir.key_ranges import Range, key_ranges, program_facts
from attncc.ir.tile import FULL, PARTIAL, Let, Mask, Segment, TileProgram
from attncc.passes.tile.segments import Names, descending, span


def peel_masked_tiles(program: TileProgram) -> TileProgram:
    """Each partial segment is cut where masked cells begin and end; what lies between becomes full segments.

    Before, `mask kv_idx <= q_idx`, tile_m = tile_n = 64:
        segment kind=partial, count=bound_0, tile=bound_0 - 1 - t { ... score ... mask ... }
    After:
        let name=bound_1, expr=min(q_tile, seq_kv // 64)
        segment kind=partial, count=bound_0 - bound_1, tile=bound_0 - 1 - t { ... score ... mask ... }
        segment kind=full, count=bound_1, tile=bound_1 - 1 - t { ... score ... }

    Partial segments come first, the last key tiles first, so that the tile at the diagonal is the first one.
    """
    if program.table is not None or not program.segments:
        return program
    algebra = Algebra(program_facts(program.attention, program.tile_m, program.tile_n))
    masked = key_ranges(program).masked
    lets = {op.name: op.expr for op in program.prologue if isinstance(op, Let)}
    names = Names(program)
    spans = [span(segment, algebra) if segment.kind == PARTIAL else None for segment in program.segments]
    if None in spans:
        return program
    segments: list[Segment] = []
    for segment, whole in zip(program.segments, spans):
        ends = tuple(algebra.shift(substitute(end, lets), 0) for end in whole)
        for begin, end in reversed(_within(masked, ends, algebra)):
            segments.append(descending(PARTIAL, names.of(begin), names.of(end), segment.body, algebra))
    # a full tile has a kept cell, so it lies in some segment: there is no need to cut
    for begin, end in reversed(_within(_between(masked), (ZERO, var("kv_tiles")), algebra)):
        body = tuple(op for op in program.segments[0].body if not isinstance(op, Mask))
        segments.append(descending(FULL, names.of(begin), names.of(end), body, algebra))
    return replace(names.finish(program), segments=tuple(segments) or program.segments)


def _between(ranges: tuple[Range, ...]) -> tuple[Range, ...]:
    """What disjoint ascending ranges leave of all key tiles."""
    begins = [ZERO] + [end for _, end in ranges]
    ends = [begin for begin, _ in ranges] + [var("kv_tiles")]
    return tuple(zip(begins, ends))


def _within(ranges: tuple[Range, ...], whole: Range, algebra: Algebra) -> list[Range]:
    """The parts of `ranges` inside `whole`; those known to be empty are left out."""
    out = []
    for begin, end in ranges:
        begin, end = algebra.maximum(begin, whole[0]), algebra.minimum(end, whole[1])
        end = algebra.maximum(begin, end)
        if end is not begin:
            out.append((begin, end))
    return out
