"""What each worker of a block does, with loops unrolled and conditions settled, for many blocks at once.

Values have the axes (block, row, column). Blocks whose control flow is the same are run together; `Split` says that a set of
blocks must be divided.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attncc.interp.evaluate import UNUSED, evaluate
from attncc.interp.guarded import evaluate_everywhere
from attncc.interp.packed import sequences
from attncc.interp.schedule_machine import Worker
from attncc.interp.tile_classes import table_tensors, tile_environment
from attncc.ir import schedule as l3
from attncc.ir.attention import Attention
from attncc.ir.expr import Expr
from attncc.ir.schedule_ops import PLACE, parts
from attncc.ir.tile import COLUMN_FIRST, COLUMN_STEP, TILE_COUNT, TILE_LIST, ColLet, Let, RowLet

MOST_ITERATIONS = 1 << 16


class Split(Exception):
    """Blocks take different ways; `labels` is an integer for each block."""

    def __init__(self, labels: torch.Tensor):
        super().__init__("blocks differ in their control flow")
        self.labels = labels


@dataclass(frozen=True)
class Call:
    """The arguments of one run: variables that are the same for all blocks, tensors, lengths, and the type of numbers."""

    attention: Attention
    env: dict[str, object]
    tensors: dict[str, torch.Tensor]
    dtype: torch.dtype
    strict: bool = False

    def value(self, expr: Expr, env: dict[str, object]) -> torch.Tensor:
        """`expr` with the variables of `env` (which includes the call's)."""
        if self.strict:
            return evaluate_everywhere(expr, env, self.tensors, self.dtype)
        return evaluate(expr, env, self.tensors, valid=UNUSED, dtype=self.dtype)


@dataclass(frozen=True)
class Step:
    """One operation of a worker, and the variables where it stands."""

    op: object
    env: dict[str, object]
    part: int = 0
    """The part of the query tile that it works on: the worker's group, or that of a ForParts."""


def call_of(schedule: l3.Schedule, batch: int, seq_q: int, seq_kv: int, inputs, dtype, strict=False) -> Call:
    """The call of `schedule` on these lengths and arguments."""
    env, tensors = tile_environment(schedule, batch, seq_q, seq_kv, inputs or {})
    if schedule.table is not None and schedule.attention.packed:
        tensors |= _tables_of_sequences(schedule, batch, env, inputs)
    elif schedule.table is not None:
        tensors |= table_tensors(schedule, env, tensors)
    for name in ("b", "h", "hkv", "kv_tiles"):
        env.pop(name)
    return Call(schedule.attention, env, tensors, dtype, strict)


def _tables_of_sequences(schedule: l3.Schedule, batch: int, whole: dict, inputs: dict) -> dict[str, torch.Tensor]:
    """The lists of packed sequences, each made with its own lengths and laid out for the longest."""
    q_tiles, kv_tiles = whole["q_tiles"], whole["kv_tiles"]
    counts, lists = [], []
    for s in sequences(inputs):
        lengths = (s.q.stop - s.q.start, s.kv.stop - s.kv.start)
        env, tensors = tile_environment(schedule, 1, *lengths, inputs, (s.number, batch))
        found = table_tensors(schedule, env, tensors)
        count, listed = found[TILE_COUNT][:1], found[TILE_LIST][:1]
        missing = q_tiles - count.shape[2]
        counts.append(torch.nn.functional.pad(count, (0, 0, 0, missing), value=-1))
        more = (0, kv_tiles - listed.shape[-1], 0, 0, 0, missing)
        lists.append(torch.nn.functional.pad(listed, more, value=-1))
    return {TILE_COUNT: torch.cat(counts), TILE_LIST: torch.cat(lists)}


def blocks_of(schedule: l3.Schedule, call: Call) -> dict[str, torch.Tensor]:
    """The block indices of the whole grid, and what the prelude makes of them; each of shape (block, 1, 1)."""
    sizes = [int(call.value(e, call.env)) for e in schedule.grid]
    axes = torch.meshgrid(*(torch.arange(n) for n in reversed(sizes)), indexing="ij")
    found = {name: axis.reshape(-1, 1, 1) for name, axis in zip(l3.BLOCK_VARIABLES, reversed(axes))}
    return prelude_of(schedule, call, found)


def prelude_of(schedule: l3.Schedule, call: Call, blocks: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    count = blocks[l3.BLOCK_VARIABLES[0]].shape[0]
    env = dict(call.env, **blocks)
    for op in schedule.prelude:
        env[op.name] = call.value(op.expr, env)
    names = {*blocks, *(op.name for op in schedule.prelude)}
    return {n: torch.as_tensor(env[n]).reshape(-1, 1, 1).expand(count, 1, 1) for n in names}


def trace(schedule: l3.Schedule, call: Call, blocks: dict[str, torch.Tensor]) -> tuple[tuple[Worker, ...], tuple]:
    """(workers, steps of each) for blocks that all take the same way; raises Split when they do not."""
    workers, steps = [], []
    for role in schedule.roles:
        for group in range(max(role.groups, 1)):
            env = dict(call.env, **blocks, group=group)
            path = _Path(schedule, call, group, role.rows_per_group)
            path.walk(role.body, path.placed(env) if "q_tile" in env else env)
            ops, at = tuple(s.op for s in path.steps), tuple(s.part for s in path.steps)
            workers.append(Worker(role.name, group, role.warps * 32 // max(role.groups, 1), ops, at))
            steps.append(tuple(path.steps))
    return tuple(workers), tuple(steps)


class _Path:
    """The way of one worker through its role's body."""

    def __init__(self, schedule: l3.Schedule, call: Call, group: int, rows: int):
        self.schedule, self.call, self.part, self.rows = schedule, call, group, rows
        self.elected = group == 0
        self.tma = {c.name for c in schedule.channels if c.kind != "cp_async" and not c.private}
        self.steps: list[Step] = []

    def walk(self, body: tuple, env: dict[str, object]) -> dict[str, object]:
        for op in body:
            if isinstance(op, (Let, RowLet, ColLet)):
                env = self.bind(op, env)
            elif isinstance(op, l3.If):
                if self.settled(op.condition, env):
                    self.walk(op.body, env)
            elif isinstance(op, l3.For):
                begin, end = self.settled(op.begin, env), self.settled(op.end, env)
                if end - begin > MOST_ITERATIONS:
                    raise ValueError(f"loop `{op.label}` runs {end - begin} times")
                for t in range(begin, end):
                    self.walk(op.body, {**env, op.counter: t})
            elif isinstance(op, l3.ForParts):
                self.walk_parts(op, env)
            elif isinstance(op, l3.Place):
                env = self.placed(env)
            elif not (isinstance(op, (l3.Acquire, l3.Copy, l3.Commit)) and op.channel in self.tma and not self.elected):
                self.steps.append(Step(op, env, self.part))
        return env

    def placed(self, env: dict[str, object]) -> dict[str, object]:
        """`env` with the rows of the query tile that it names."""
        rows = torch.arange(self.rows).view(1, -1, 1)
        return {**env, "q_idx": env["q_tile"] * self.schedule.tile_m + env[l3.GROUP_VARIABLE] * self.rows + rows}

    def walk_parts(self, op: l3.ForParts, env: dict[str, object]) -> None:
        before, count = self.part, parts(self.schedule)
        rows = self.schedule.tile_m // count
        for part in range(count):
            self.part = part
            own = {l3.GROUP_VARIABLE: part}
            if "q_tile" in env:  # not before the first work tile
                own["q_idx"] = env["q_tile"] * self.schedule.tile_m + part * rows + torch.arange(rows).view(1, -1, 1)
            self.walk(op.body, {**env, **own})
        self.part = before

    def bind(self, op, env: dict[str, object]) -> dict[str, object]:
        value = self.call.value(op.expr, env)
        if op.name in PLACE:  # with one head or one batch entry a number that all blocks share
            value = torch.as_tensor(value).reshape(-1, 1, 1).expand(env["block_x"].shape[0], 1, 1)
        env = {**env, op.name: value}
        if op.name == "kv_tile":
            columns = torch.arange(self.schedule.tile_n).view(1, 1, -1)
            first = env["kv_tile"] * self.schedule.tile_n
            env |= {"kv_idx": first + columns, COLUMN_FIRST: first, COLUMN_STEP: columns}
        return env

    def settled(self, expr: Expr, env: dict[str, object]) -> int:
        """The value of `expr`, which must be the same for all blocks."""
        value = self.call.value(expr, env).reshape(-1)
        if value.numel() > 1 and bool((value != value[0]).any()):
            raise Split(value.long())
        return int(value[0])
