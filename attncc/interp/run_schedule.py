"""Runs an L3 schedule on the CPU: the roles of each block side by side, in an order drawn by a seed.

A step that must wait lets another worker go on; copies land at random moments. What the hardware would get wrong (a stage
overwritten while it is read, a result read before its wait, roles that wait for each other) is a Fault; the numbers are
those of the operations in the order that happened.
"""

from __future__ import annotations

import random

import torch

from attncc.interp.packed import sequences, spread
from attncc.interp.schedule_machine import Machine
from attncc.interp.schedule_numbers import Numbers, padded
from attncc.interp.schedule_state import Fault, Worker
from attncc.interp.schedule_trace import Call, Split, blocks_of, call_of, trace
from attncc.ir import schedule as l3
from attncc.ir.packing import MAX_KV, MAX_Q

NAN = float("nan")
MODES = ("random", "in_order")
LONGEST_BURST = 12
"""Steps that a worker may make before another is drawn."""


def run_schedule(
    schedule: l3.Schedule,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    inputs: dict[str, object] | None = None,
    *,
    seed: int = 0,
    mode: str = "random",
    dtype: torch.dtype = torch.float64,
    round_weights: bool = False,
    strict: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse): out (batch, seq_q, heads_q, dim_v), lse (batch, heads_q, seq_q), both of `dtype`. Of packed sequences q, k, v and
    out are (total, heads, dim), lse (heads, total).

    q, k, v        (batch, seq, heads, dim)
    inputs         tensor and scalar arguments by name
    seed, mode     "random" draws the interleaving; "in_order" lets each worker run until it must wait
    round_weights  round weights and output to the attention's dtype where the kernel does
    strict         every tensor index must be in range at masked and padded positions too
    Raises Fault.
    """
    rows = None
    if schedule.attention.packed:
        rows = sequences(inputs)
        q = spread(q, [s.q for s in rows], inputs[MAX_Q])
        k, v = (spread(x, [s.kv for s in rows], inputs[MAX_KV]) for x in (k, v))
    call = call_of(schedule, q.shape[0], q.shape[1], k.shape[1], inputs, dtype, strict)
    operands = {"q": q.to(dtype), "k": k.to(dtype), "v": v.to(dtype)}
    outputs = {
        "o": torch.full((*q.shape[:3], v.shape[-1]), NAN, dtype=dtype),
        "lse": torch.full((q.shape[0], q.shape[2], q.shape[1]), NAN, dtype=dtype),
        "stores": torch.zeros(q.shape[:3], dtype=torch.int64),
    }
    if q.shape[0] and q.shape[1]:
        operands = padded(schedule, operands)
        blocks = blocks_of(schedule, call)
        for part, workers, steps in alike(schedule, call, blocks):
            machine = Machine(schedule, workers, instant=False)
            numbers = Numbers(machine, call, operands, outputs, round_weights)
            Interleaving(machine, numbers, steps, seed, mode).run()
            seed += 1
    wanted = torch.ones_like(outputs["stores"])
    for b, s in enumerate(rows or ()):
        wanted[b, s.q.stop - s.q.start :] = 0
    wrong = outputs["stores"] != wanted
    if bool(wrong.any()):
        where = torch.nonzero(wrong)[0].tolist()
        raise Fault("never read", f"output row (b, q_idx, h) = {where} is stored {int(outputs['stores'][tuple(where)])} times")
    return (outputs["o"], outputs["lse"]) if rows is None else _packed(outputs, rows)


def _packed(outputs: dict[str, torch.Tensor], rows: list) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of all sequences one after another."""
    parts = [(b, s.q.stop - s.q.start) for b, s in enumerate(rows)]
    out = torch.cat([outputs["o"][b, :n] for b, n in parts])
    return out, torch.cat([outputs["lse"][b, :, :n] for b, n in parts], dim=-1)


def alike(schedule: l3.Schedule, call: Call, blocks: dict[str, torch.Tensor]):
    """Sets of blocks that take the same way, each as (blocks, workers, steps)."""
    waiting = [blocks]
    while waiting:
        part = waiting.pop()
        try:
            workers, steps = trace(schedule, call, part)
        except Split as split:
            for label in split.labels.unique().tolist():
                waiting.append({name: x[split.labels == label] for name, x in part.items()})
        else:
            yield part, workers, steps


class Interleaving:
    """One way through the steps of all workers."""

    def __init__(self, machine: Machine, numbers: Numbers | None, steps: tuple, seed: int, mode: str):
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
        self.machine, self.numbers, self.steps = machine, numbers, steps
        self.random = random.Random(seed)
        self.mode = mode
        self.stuck: set[int] = set()

    def run(self) -> None:
        """Runs every worker to its end; Fault otherwise."""
        machine = self.machine
        while True:
            ready = [i for i in range(len(machine.workers)) if not machine.done(i) and i not in self.stuck]
            if not ready and not machine.flying:
                break
            if machine.flying and (not ready or self.random.random() < 0.25):
                self.land()
            elif ready:
                self.burst(ready[0] if self.mode == "in_order" else self.random.choice(ready))
        if self.stuck:
            raise Fault("deadlock", machine.blocked())
        machine.finish()

    def land(self) -> None:
        self.stuck.clear()
        name, position = self.machine.land(self.random.randrange(len(self.machine.flying)))
        if self.numbers is not None:
            self.numbers.land(name, position)

    def burst(self, i: int) -> None:
        """Worker `i` goes on for a while, or until it must wait."""
        machine = self.machine
        length = len(self.steps[i]) if self.mode == "in_order" else self.random.randint(1, LONGEST_BURST)
        for _ in range(length):
            if machine.done(i):
                return
            step = self.steps[i][machine.own[i].pc]
            arrivals = dict(machine.rounds)
            if not machine.step(i):
                if arrivals != machine.rounds:
                    self.stuck.clear()
                self.stuck.add(i)
                return
            self.stuck.clear()
            if self.numbers is not None:
                self.numbers.apply(i, step)


__all__ = ["Fault", "Worker", "alike", "run_schedule"]
