"""Every interleaving of a schedule's workers, for small trip counts and without numbers.

Breadth-first over the states of `schedule_machine.Machine`. Operations that no other worker can notice are made at once
after the one before them, since their order with others changes nothing; so is the passing of a barrier at which everybody
has arrived (arriving there in any order is what is tried). Copies land when they start, since a copy that lands late only
keeps its reader waiting, which is one of the interleavings anyway.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from attncc.interp.run_schedule import alike
from attncc.interp.schedule_machine import Machine
from attncc.interp.schedule_state import Fault, Worker
from attncc.interp.schedule_trace import blocks_of, call_of
from attncc.ir import schedule as l3

MOST_STATES = 200_000


@dataclass(frozen=True)
class Exploration:
    """How many states were reached, in how many different ways through the control flow; `complete` unless a limit cut it."""

    states: int
    ways: int
    complete: bool


def explore(
    schedule: l3.Schedule, batch: int, seq_q: int, seq_kv: int, inputs: dict[str, object] | None = None,
    limit: int = MOST_STATES,
) -> Exploration:  # fmt: skip
    """Goes through every interleaving of every block of a call; raises Fault for the first thing that can go wrong.

    Blocks that take the same way are looked at once. `limit` bounds the states of one way.
    """
    call = call_of(schedule, batch, seq_q, seq_kv, inputs, torch.float64)
    seen: set[tuple] = set()
    states, complete = 0, True
    for _, workers, _ in alike(schedule, call, blocks_of(schedule, call)):
        key = tuple(w.ops for w in workers)
        if key in seen:
            continue
        seen.add(key)
        count, whole = explore_workers(schedule, workers, limit)
        states, complete = states + count, complete and whole
    return Exploration(states, len(seen), complete)


def explore_workers(schedule: l3.Schedule, workers: tuple[Worker, ...], limit: int = MOST_STATES) -> tuple[int, bool]:
    """(states reached, whether these are all) for workers whose control flow is settled. Raises Fault."""
    start = Machine(schedule, workers)
    for i in range(len(workers)):
        _run_silent(start, i)
    waiting, known = deque([start]), {start.key()}
    while waiting:
        machine = waiting.popleft()
        moved = False
        for i in range(len(workers)):
            if machine.done(i):
                continue
            after = machine.clone()
            if not after.step(i) and after.key() == machine.key():
                continue
            for other in range(len(workers)):
                _run_silent(after, other)
            moved = True
            key = after.key()
            if key not in known:
                known.add(key)
                waiting.append(after)
        if not moved:
            _ended(machine)
        if len(known) > limit:
            return len(known), False
    return len(known), True


def _run_silent(machine: Machine, i: int) -> None:
    """Worker `i` makes the operations that nobody else can notice, and leaves a barrier where all have met."""
    while not machine.done(i) and (machine.may_pass(i) or not machine.is_visible(i)):
        machine.step(i)


def _ended(machine: Machine) -> None:
    """No worker can move: the end, or a deadlock."""
    if not all(machine.done(i) for i in range(len(machine.workers))):
        raise Fault("deadlock", machine.blocked())
    machine.finish()
