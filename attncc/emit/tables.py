"""A schedule's TileTable as flat values for templates/common/tables.py.jinja: prologue kernels that list key tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from attncc.emit.expressions import Names, local_name, to_statements
from attncc.emit.view import DSL_TYPES
from attncc.ir.expr import INT
from attncc.ir.schedule import Schedule
from attncc.ir.tile import TileSummary

LOADS = {"Int32": "load_int", "Float32": "load_float", "Boolean": "load_bool"}


@dataclass(frozen=True)
class SummaryView:
    """The kernel `kernel` writes bounds of `value` over tiles of `size` positions `index` to `workspace`; the
    listing kernel reads
    them with `load` as `low` and `high`, at tile `tile`."""

    kernel: str
    workspace: str
    kind: str
    load: str
    index: str
    length: str
    size: str
    tile: str
    tiles: str
    lines: tuple[str, ...]
    value: str
    low: str
    high: str


@dataclass(frozen=True)
class TableView:
    """`batches` and `heads` are the grid sizes of rows, `group` the query heads that share a key/value head."""

    summaries: tuple[SummaryView, ...]
    batches: str
    heads: str
    group: int
    lines: tuple[str, ...]
    may: str
    must: str


def tables_of(schedule: Schedule, names: Names) -> tuple[TableView, ...]:
    """The view of the schedule's table, or nothing."""
    table = schedule.table
    if table is None:
        return ()
    names = dataclasses.replace(names, temporary="e_")
    lines, (may, must) = to_statements((table.may, table.must), names)
    heads = str(schedule.attention.heads_q) if table.by_head else "1"
    summaries = tuple(_summary(s, names) for s in table.summaries)
    batches = "batch" if table.by_batch else "1"
    return (TableView(summaries, batches, heads, schedule.attention.group, lines, may, must),)


_AXES: Mapping[str, Mapping[str, str]] = {
    "q": {"index": "q_idx", "length": "seq_q", "size": "TILE_M", "tile": "q_tile", "tiles": "q_tiles"},
    "kv": {"index": "kv_idx", "length": "seq_kv", "size": "TILE_N", "tile": "kv_tile", "tiles": "kv_tiles"},
}


def _summary(summary: TileSummary, names: Names) -> SummaryView:
    lines, (value,) = to_statements((summary.expr,), names)
    kind = DSL_TYPES[summary.expr.type]
    return SummaryView(
        kernel=f"summarize_{local_name(summary.name)}",
        workspace=f"summary_{local_name(summary.name)}",
        kind=kind,
        load=LOADS[kind],
        lines=lines,
        value=value,
        low=names.variable(f"{summary.name}_lo", INT),
        high=names.variable(f"{summary.name}_hi", INT),
        **_AXES[summary.axis],
    )
