"""Key tiles that depend on tensors come from lists that a prologue kernel makes."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.expr import INT, ZERO, Expr, const, load, var
from attncc.ir.key_ranges import KeyRanges, key_ranges
from attncc.ir.tile import (
    FULL,
    PARTIAL,
    TILE_COUNT,
    TILE_LIST,
    Mask,
    Remark,
    Segment,
    TileProgram,
    TileTable,
)  # fmt: skip
from attncc.ir.tile_table import TileBounds, tile_table

MOST_PARTIAL = 4
"""Up to so many partial segments (ranges of kept times ranges of masked tiles) a closed form is worth its length."""


def list_tiles(program: TileProgram) -> TileProgram:
    """A program whose mask has no good closed form gets a TileTable and reads its two lists.

    Before, `mask doc_q[b, q_idx] == doc_kv[b, kv_idx]`:
        segment kind=partial, count=kv_tiles, tile=t { ... }
    After:
        segment kind=partial, count=tile_count[b, 0, q_tile, 0], tile=tile_list[b, 0, q_tile, 0, t] { ... }
        segment kind=full, count=tile_count[b, 0, q_tile, 1], tile=tile_list[b, 0, q_tile, 1, t] { ... no mask ... }
        table { may = summary_0_lo <= summary_1_hi and ..., must = ... }

    The rule: a table is made when part of the mask gives no range of keys, but bounds over a tile (of tensor elements,
    products, remainders that do not go round within a tile); or when the closed form takes more than four partial
    segments. What neither can bound is told in a remark: those tiles run as partial ones.
    """
    if program.table is not None or len(program.segments) != 1:
        return program
    found = key_ranges(program)
    bounds = TileBounds(program)
    bounded = tuple(e for e in found.unused if bounds.gains(e))
    if not bounded and not _too_long(found):
        return program
    out = with_table(program)
    return replace(out, remarks=out.remarks + _remarks(found, bounded, out.table))


def with_table(program: TileProgram) -> TileProgram:
    """The naive program with lists in place of its loop, whether it is worth it or not."""
    table = tile_table(program)
    body = program.segments[0].body
    segments = (
        _segment(PARTIAL, 0, table, body),
        _segment(FULL, 1, table, tuple(op for op in body if not isinstance(op, Mask))),
    )
    return replace(program, segments=segments, table=table)


def _too_long(found: KeyRanges) -> bool:
    return len(found.kept) * len(found.masked) > MOST_PARTIAL


def _segment(kind: str, number: int, table: TileTable, body: tuple) -> Segment:
    where = (_index(table.by_batch, "b"), _index(table.by_head, "h"), var("q_tile"), const(number))
    return Segment(kind, load(TILE_COUNT, where, INT), load(TILE_LIST, (*where, var("t")), INT), body)


def _index(used: bool, name: str) -> Expr:
    return var(name) if used else ZERO


def _remarks(found: KeyRanges, bounded: tuple[Expr, ...], table: TileTable) -> tuple[Remark, ...]:
    read = ", ".join(f"`{s.expr}` per {'query' if s.axis == 'q' else 'key'} tile" for s in table.summaries)
    why = "the mask depends on " + read if read else "its closed form would be long"
    lists = Remark("list_tiles", f"key tiles are listed by a prologue kernel: {why}")
    loose = (
        Remark("list_tiles", f"`{e}` has no bounds over a tile; tiles are partial where only it decides")
        for e in found.unused
        if e not in bounded
    )
    return (lists, *loose)
