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
from attncc.ir.tile import BLOCK
from attncc.targets import Target
from attncc.targets.fit import hints, shared_memory


def pipeline_stages(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with stages added to the channels that are filled in loops, all alike."""
    wanted = hints(schedule.attention, target).stages or target.stages
    looped = looped_channels(schedule)
    blocks = frozenset(name for name in looped if name.startswith(BLOCK))
    best = schedule
    for rings in (looped - blocks, blocks):  # keys and values first: their copies take longer than a bias's
        for stages in range(2, wanted + 1 if rings else 2):
            deeper = with_stages(best, rings, stages)
            if max(shared_bytes(deeper, bytes_of), _with_output(deeper, target)) > target.shared_limit:
                break
            best = deeper
    counts = sorted({best.channel(name).stages for name in looped}, reverse=True)
    texts = (f"{n} stage(s) of {', '.join(sorted(c for c in looped if best.channel(c).stages == n))}" for n in counts)
    return remark(best, "pipeline_stages", "; ".join(texts) or "no loop copies")


def _with_output(schedule: l3.Schedule, target: Target) -> int:
    """Bytes of shared memory once the output tile, which a later pass stages, has taken Q's place."""
    a = schedule.attention
    stages = max((c.stages for c in schedule.channels if not c.name.startswith(BLOCK)), default=1)
    blocks = sum(b.rows * b.cols * b.stages * bytes_of(b.dtype) for b in schedule.buffers if b.name.startswith(BLOCK))
    return blocks + shared_memory(target, a.dim_qk, a.dim_v, a.dtype, schedule.tile_m, schedule.tile_n, stages)


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
