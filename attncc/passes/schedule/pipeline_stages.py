"""Gives the rings of K and V as many stages as shared memory holds, up to what the target (or a hint) asks for.

    before  channel name=K, stages=1          after  channel name=K, stages=2
            buffer name=K, stages=1                  buffer name=K, stages=2

Without this pass there is one stage: the copy of the next tile starts only when the present one has been used.
"""

from __future__ import annotations

import dataclasses

from attncc.formats import bytes_of
from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import operations, remark, shared_bytes
from attncc.targets import Target
from attncc.targets.fit import hints, shared_memory


def pipeline_stages(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with stages added to the channels that are filled in loops, all alike."""
    wanted = hints(schedule.attention, target).stages or target.stages
    rings = looped_channels(schedule)
    best = schedule
    for stages in range(2, wanted + 1):
        deeper = with_stages(schedule, rings, stages)
        if max(shared_bytes(deeper, bytes_of), _with_output(schedule, target, stages)) > target.shared_limit:
            break
        best = deeper
    stages = max((best.channel(name).stages for name in rings), default=1)
    return remark(best, "pipeline_stages", f"{stages} stage(s) of {', '.join(sorted(rings))}")


def _with_output(schedule: l3.Schedule, target: Target, stages: int) -> int:
    """Bytes of shared memory once the output tile, which a later pass stages, has taken Q's place."""
    a = schedule.attention
    return shared_memory(target, a.dim_qk, a.dim_v, a.dtype, schedule.tile_m, schedule.tile_n, stages)


def looped_channels(schedule: l3.Schedule) -> frozenset[str]:
    """Channels that some role fills inside a loop."""
    loops = (op for r in schedule.roles for op in operations(r.body) if isinstance(op, l3.For))
    return frozenset(op.channel for loop in loops for op in operations(loop.body) if isinstance(op, l3.Commit))


def with_stages(schedule: l3.Schedule, channels: frozenset[str], stages: int) -> l3.Schedule:
    """`schedule` with `stages` stages in each of `channels` and their buffers."""
    buffers = {c.buffer for c in schedule.channels if c.name in channels}
    return dataclasses.replace(
        schedule,
        channels=tuple(dataclasses.replace(c, stages=stages) if c.name in channels else c for c in schedule.channels),
        buffers=tuple(dataclasses.replace(b, stages=stages) if b.name in buffers else b for b in schedule.buffers),
    )
