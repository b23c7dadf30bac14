"""When each warp group of a block does what: the schedule's operations for one block, run on a clock.

Durations come from the target's rates: products share the matrix units, copies the way from the L2 cache; instructions go
through the issue slots. What waits for what is the schedule's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch

from attncc.formats import bytes_of
from attncc.interp.schedule_state import Worker
from attncc.interp.schedule_trace import blocks_of, call_of, trace
from attncc.ir import schedule as l3
from attncc.ir import tile as l2
from attncc.ir.schedule import Schedule
from attncc.ir.schedule_ops import without_repairs
from attncc.targets import Target
from attncc.targets.cost import element_cost

L2_BYTES = 64.0
"""Bytes a clock that an SM gets from the L2 cache."""
COPY, MMA, SOFTMAX, WAIT, OTHER = "copy", "mma", "softmax", "wait", "other"


@dataclass(frozen=True)
class Event:
    """Something that takes time: `lane` does `label` from cycle `begin` to `end`; `kind` is one of the above."""

    lane: str
    kind: str
    label: str
    begin: float
    end: float


@dataclass
class _Ring:
    """A channel over time: when each tile became full, who released it when, and copies not yet committed."""

    full: list[float] = field(default_factory=list)
    released: dict[int, list[float]] = field(default_factory=dict)
    landing: float = 0.0


@dataclass
class _Lane:
    """One worker: its clock, position in its operations and in each channel, unfinished products and copy groups."""

    worker: Worker
    clock: float = 0.0
    at: int = 0
    made: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    products: list[float] = field(default_factory=list)
    groups: list[float] = field(default_factory=list)
    meeting: tuple | None = None

    @property
    def op(self):
        return self.worker.ops[self.at]

    @property
    def done(self) -> bool:
        return self.at >= len(self.worker.ops)


def run_clock(
    schedule: Schedule, target: Target, sizes: tuple[int, int, int], inputs: dict, where: dict[str, int]
) -> list[Event]:
    """The events of the block that computes the query tile `where` ({"b", "h", "q_tile"}) in a call of (batch, seq_q, seq_kv).

    Where blocks work on several query tiles: those of the first block. Of a pair the first block, as if its partner kept step with it.
    """
    where = {name: value // schedule.cluster * schedule.cluster if name == "q_tile" else value for name, value in where.items()}
    call = call_of(schedule, *sizes, inputs, torch.float32)
    blocks = blocks_of(schedule, call)
    named = [blocks[name].reshape(-1) == value for name, value in where.items() if name in blocks]
    first = torch.arange(blocks["block_x"].shape[0]) == 0
    same = torch.stack(named or [first]).all(0)
    chosen = {name: x[same][:1] for name, x in blocks.items()}
    roles = tuple(dataclasses.replace(r, body=without_repairs(r.body)) for r in schedule.roles)
    schedule = dataclasses.replace(schedule, roles=roles)
    workers = tuple(w for w in trace(schedule, call, chosen)[0] if w.half == 0)
    return _Clock(schedule, target, workers).run()


class _Clock:
    def __init__(self, schedule: Schedule, target: Target, workers: tuple[Worker, ...]):
        self.schedule, self.target = schedule, target
        self.lanes = [_Lane(w) for w in workers]
        self.rings = {c.name: _Ring() for c in schedule.channels}
        self.channels = {c.name: c for c in schedule.channels}
        self.buffers = {b.name: b for b in schedule.buffers}
        self.barriers = {b.name: b for b in schedule.barriers} | {"block": l3.Barrier("block", schedule.threads)}
        self.rounds: dict[tuple[str, int], tuple[int, int, float]] = {}
        self.met: dict[tuple[str, int, int], float] = {}
        self.matrix_free = self.copies_free = 0.0
        self.events: list[Event] = []
        self.extra = element_cost(schedule.attention)

    def run(self) -> list[Event]:
        """Always lets the worker go on that can do so earliest."""
        while True:
            ready = [
                (t, i) for i, lane in enumerate(self.lanes) if not lane.done and (t := self.ready(lane)) is not None
            ]
            if not ready:
                return self.events
            start, i = min(ready)
            lane = self.lanes[i]
            self.note(lane, WAIT, type(lane.op).__name__, lane.clock, start)
            lane.clock = start
            self.perform(lane, lane.op)
            lane.at += 1

    def note(self, lane: _Lane, kind: str, label: str, begin: float, end: float) -> None:
        if end > begin:
            self.events.append(Event(_name(lane.worker, self.schedule), kind, label, begin, end))

    def ready(self, lane: _Lane) -> float | None:
        """When the lane's next operation can begin; None while something it waits for has not happened."""
        op, when = lane.op, lane.clock
        if isinstance(op, l3.Wait):
            full, n = self.rings[op.channel].full, lane.used.get(op.channel, 0)
            return max(when, full[n]) if n < len(full) else None
        if isinstance(op, l3.Acquire):
            return self._emptied(lane, op.channel)
        if isinstance(op, l3.Sync):
            return self._met(lane, op)
        if isinstance(op, l3.MmaWait):
            return max([when, *lane.products[: len(lane.products) - op.pending]])
        if isinstance(op, l3.CopyWait):
            return max([when, *lane.groups[: len(lane.groups) - op.pending]])
        return when

    def _emptied(self, lane: _Lane, name: str) -> float | None:
        channel, n = self.channels[name], lane.made.get(name, 0)
        before = n - channel.stages
        if before < 0 or channel.kind == "cp_async":
            return lane.clock
        left = self.rings[name].released.get(before, [])
        return max(lane.clock, *left) if len(left) >= channel.arrivals else None

    def _met(self, lane: _Lane, op: l3.Sync) -> float | None:
        if lane.meeting is None:
            lane.meeting = self._arrive(op.barrier, lane, lane.worker.group)
        when = self.met.get(lane.meeting)
        return None if when is None else max(lane.clock, when)

    def _arrive(self, name: str, lane: _Lane, copy: int) -> tuple[str, int, int]:
        barrier = self.barriers[name]
        key = (name, copy % barrier.copies)
        number, threads, last = self.rounds.get(key, (0, 0, 0.0))
        threads, last = threads + lane.worker.threads, max(last, lane.clock)
        if threads >= barrier.threads:
            self.met[(*key, number)] = last
            self.rounds[key] = (number + 1, 0, 0.0)
        else:
            self.rounds[key] = (number, threads, last)
        return (*key, number)

    def perform(self, lane: _Lane, op) -> None:
        """Does the operation at the lane's clock, which moves on by the time the lane itself is busy."""
        action = getattr(self, f"do_{type(op).__name__}", None)
        if action is not None:
            action(lane, op)
        else:
            self.compute(lane, op)

    def do_Copy(self, lane: _Lane, op: l3.Copy) -> None:
        ring, channel = self.rings[op.channel], self.channels[op.channel]
        buffer = self.buffers[channel.buffer]
        sharing = sum(1 for x in self.lanes if x.worker.role == channel.producer) if channel.kind == "cp_async" else 1
        cycles = buffer.rows * buffer.cols * bytes_of(buffer.dtype) / L2_BYTES / sharing
        begin = max(lane.clock, self.copies_free)
        self.copies_free = begin + cycles
        ring.landing = begin + cycles + self.target.rates.copy_cycles
        self.events.append(Event("copies", COPY, f"{op.tensor} tile", begin, begin + cycles))

    def do_Commit(self, lane: _Lane, op: l3.Commit) -> None:
        ring = self.rings[op.channel]
        lane.made[op.channel] = lane.made.get(op.channel, 0) + 1
        lane.groups.append(ring.landing)
        if len(ring.full) < lane.made[op.channel]:
            ring.full.append(ring.landing)

    def do_Release(self, lane: _Lane, op: l3.Release) -> None:
        n = lane.used.get(op.channel, 0)
        lane.used[op.channel] = n + 1
        self.rings[op.channel].released.setdefault(n, []).append(lane.clock)

    def do_Sync(self, lane: _Lane, op: l3.Sync) -> None:
        lane.meeting = None

    def do_Arrive(self, lane: _Lane, op: l3.Arrive) -> None:
        self._arrive(op.barrier, lane, lane.worker.group + 1)

    def do_Mma(self, lane: _Lane, op: l3.Mma) -> None:
        dst, a = self.buffers[op.dst], self.buffers[op.a]
        r = self.target.rates
        cycles = 2.0 * dst.rows * dst.cols * a.cols / (r.tensor_flops * r.tensor_share)
        begin = max(lane.clock, self.matrix_free)
        end = self.matrix_free = begin + cycles
        what = f"{op.dst} {'+=' if op.accumulate else '='} {op.a} {op.b}"
        if op.asynchronous:
            lane.products.append(end)
            self.events.append(Event("matrix units", MMA, f"{_name(lane.worker, self.schedule)}: {what}", begin, end))
        else:
            self.note(lane, MMA, what, lane.clock, end)
            lane.clock = end

    def do_Wait(self, lane: _Lane, op) -> None: ...

    do_Acquire = do_Drain = do_MmaWait = do_CopyWait = do_SetRegisters = do_Wait

    def compute(self, lane: _Lane, op) -> None:
        """Instructions on the operation's register tile, through the issue slots that the lane's warps get."""
        kind, instructions = self._instructions(op)
        r, warps = self.target.rates, max(1, lane.worker.threads // 32)
        busy = sum(1 for x in self.lanes if x.worker.role == lane.worker.role) * warps
        share = r.issue_share[min(3, max(0, busy // r.issue - 1))] * warps / busy
        rows_cols = self._elements(op) / max(1, lane.worker.threads)
        cycles = instructions * rows_cols * warps / (r.issue * share)
        self.note(lane, kind, type(op).__name__, lane.clock, lane.clock + cycles)
        lane.clock += cycles

    def _instructions(self, op) -> tuple[str, float]:
        """(kind, instructions for each element)."""
        if isinstance(op, (l3.SoftmaxStep, l2.Weights)):
            return SOFTMAX, self.target.rates.element_instructions - 0.5
        if isinstance(op, l2.Score):
            return SOFTMAX, max(0.5, float(self.extra.instructions))
        if isinstance(op, l2.Mask):
            return SOFTMAX, 2.0
        return OTHER, 1.0 if isinstance(op, (l3.Rescale, l2.Finalize, l2.Store)) else 0.5

    def _elements(self, op) -> int:
        for name in ("scores", "dst", "accumulator", "src"):
            buffer = self.buffers.get(getattr(op, name, None))
            if buffer is not None:
                return buffer.rows * buffer.cols
        return 0


def _name(worker: Worker, schedule: Schedule) -> str:
    groups = next(r.groups for r in schedule.roles if r.name == worker.role)
    return worker.role if groups <= 1 else f"{worker.role} {worker.group}"
