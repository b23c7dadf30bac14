"""Empty key tiles are not visited."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.algebra import Algebra
from attncc.ir.expr import ZERO
from attncc.ir.key_ranges import key_ranges, program_facts
from attncc.ir.tile import PARTIAL, Remark, TileProgram
from attncc.passes.tile.segments import Names, descending


def skip_empty_tiles(program: TileProgram) -> TileProgram:
    """The loop over all key tiles becomes loops over the ranges that may hold a kept cell, the last range first.

    Before, `mask kv_idx <= q_idx`, tile_m = tile_n = 64:
        segment kind=partial, count=kv_tiles, tile=t
    After:
        let name=bound_0, expr=min(q_tile + 1, kv_tiles)
        segment kind=partial, count=bound_0, tile=bound_0 - 1 - t

    A mask that keeps nothing leaves one segment without tiles. Applies to the naive program (one segment over all
    tiles); key tiles listed by a table are left alone.
    """
    if program.table is not None or len(program.segments) != 1:
        return program
    found = key_ranges(program)
    algebra = Algebra(program_facts(program.attention, program.tile_m, program.tile_n))
    names = Names(program)
    body = program.segments[0].body
    ends = [(names.of(begin), names.of(end)) for begin, end in found.kept]
    segments = tuple(descending(PARTIAL, begin, end, body, algebra) for begin, end in reversed(ends))
    segments = segments or (descending(PARTIAL, ZERO, ZERO, body, algebra),)
    remarks = tuple(
        Remark("skip_empty_tiles", f"`{e}` gives no range of key tiles; the tiles that only it empties are visited")
        for e in found.unused
    )
    return replace(names.finish(program), segments=segments, remarks=program.remarks + remarks)
