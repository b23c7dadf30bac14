"""What a schedule with tensor memory adds to a view: links between roles, their phases, and who does what."""

from __future__ import annotations

from attncc.emit.expressions import Names, to_statements
from attncc.emit.view import BYTES, DSL_TYPES, ChannelView, PhaseView, SharedTile, Step
from attncc.ir import schedule as l3
from attncc.ir.schedule import Channel, Role, Schedule
from attncc.ir.schedule_ops import operations, parts, tensor_places
from attncc.ir.tile import TENSOR

WARP = 32
LEAST_COLUMNS = 32
"""Tensor memory is allocated by powers of two from this on."""


def issues_products(schedule: Schedule, role: Role) -> bool:
    """Whether the role's products go to tensor memory."""
    return any(isinstance(op, l3.Mma) and schedule.buffer(op.dst).space == TENSOR for op in operations(role.body))


def role_macro(schedule: Schedule, role: Role) -> str:
    """The macro that prints a role's frame."""
    if role.rows_per_group:
        return "consumer"
    if issues_products(schedule, role):
        return "issuer"
    return "corrector" if any(isinstance(op, l3.Convert) for op in operations(role.body)) else "producer"


def owned_cells(schedule: Schedule, role: Role, score_columns: list[int]) -> dict[str, int]:
    """Rows and columns of a score tile of which one thread owns a part: whole rows where scores come from tensor memory."""
    if any(b.space == TENSOR for b in schedule.buffers):
        computes = role.rows_per_group > 0
        return {"rows": int(computes), "columns": schedule.tile_n if computes else 0}
    group_warps = role.warps // max(role.groups, 1)
    return {"rows": role.rows_per_group // 8 // group_warps, "columns": score_columns[0] // 4 if score_columns else 0}


def link_view(schedule: Schedule, channel: Channel) -> ChannelView:
    """A private channel: no tensor of the caller comes through it."""

    def arrivals(name: str) -> int:
        role = next(r for r in schedule.roles if r.name == name)
        blocks = schedule.cluster if channel.pair else 1
        return 1 if issues_products(schedule, role) else blocks * role.warps // role.groups

    return ChannelView(
        name=channel.name, kind=channel.kind, buffer=None, stages=channel.stages, arrivals=channel.arrivals, bytes=0, tensor="",
        head="", boxes=0, producer=channel.producer, consumer=channel.consumer, parts=parts(schedule),
        full_arrivals=arrivals(channel.producer), empty_arrivals=arrivals(channel.consumer), pair=channel.pair,
    )  # fmt: skip


def copy_steps(channel: Channel, copy: l3.Copy, names: Names) -> dict[str, object]:
    """How a channel's copies are made: by a block alone or in a pair, of whole rows or of a piece of each."""
    atom = Step("load_atom_pair" if channel.pair else "load_atom_alone", {})
    if copy.column is None:
        return {"pair": channel.pair, "atom": atom, "sides": Step("sides_whole", {})}
    return {"pair": channel.pair, "atom": atom, "sides": Step("sides_of_piece", {"column": to_statements((copy.column,), names)[1][0]})}


def phases_of(schedule: Schedule, role: Role, used: set[str]) -> tuple[PhaseView, ...]:
    """A role of several groups is in one ring of each private channel, others are in the rings of all parts."""
    count = 1 if role.rows_per_group else parts(schedule)
    links = [c for c in schedule.channels if c.private and c.name in used]
    return tuple(PhaseView(c.name, i * count, count, int(c.producer == role.name)) for i, c in enumerate(links))


def tensor_view(schedule: Schedule, channels: dict[str, ChannelView]) -> dict[str, object]:
    """The fields of a View that only such a schedule has."""
    places = tensor_places(schedule).values()
    if not places:
        return {}
    columns = LEAST_COLUMNS
    while columns < max(end for _, end in places):
        columns *= 2
    vectors = tuple(
        SharedTile(b.name, b.rows, 1, DSL_TYPES[b.dtype], 1, b.rows, b.name, b.rows * BYTES[b.dtype])
        for b in schedule.buffers
        if b.space == "shared" and b.cols == 1
    )
    issuer = next(r.first_warp for r in schedule.roles if issues_products(schedule, r))
    links = tuple(c for c in channels.values() if not c.tensor)
    fields = {"issuer": issuer, "tensor_columns": columns}
    together = "alone" if schedule.cluster == 1 else "pair"
    return {
        "links": links, "vectors": vectors, **fields, "clusters": (schedule.cluster,) if schedule.cluster > 1 else (),
        "begin": Step(f"begin_{together}", fields), "end": Step(f"end_{together}", fields),
    }  # fmt: skip
