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
from attncc.interp.schedule_state import Fault, Worker
from attncc.interp.tile_classes import table_tensors, tile_environment
from attncc.ir import schedule as l3
from attncc.ir.attention import Attention
from attncc.ir.expr import Expr, variables
from attncc.ir.schedule_ops import PLACE, fetched_names, parts
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
class RepairEnd:
    """Where the body of a Repair ends: rows that needed none have what they had before."""


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
    """The block indices of the whole grid, and what the prelude makes of them; each of shape (block, 1, 1). Of pairs the first blocks."""
    sizes = [int(call.value(e, call.env)) for e in schedule.grid]
    z, y, x = (torch.arange(n) for n in reversed(sizes))
    axes = torch.meshgrid(z, y, x[:: schedule.cluster], indexing="ij")
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
    """(workers, steps of each) for blocks that all take the same way; raises Split when they do not. Of pairs both blocks' workers."""
    workers, steps = [], []
    for half in range(schedule.cluster):
        own = blocks if half == 0 else prelude_of(schedule, call, _partners(blocks))
        for role in (r for r in schedule.roles if half == 0 or not r.pair):
            for group in range(max(role.groups, 1)):
                env = {**call.env, **own, l3.GROUP_VARIABLE: group, l3.PAIR_VARIABLE: half}
                path = _Path(schedule, call, role, group)
                path.walk(role.body, path.placed(env) if "q_tile" in env else env)
                ops, at = tuple(s.op for s in path.steps), tuple(s.part for s in path.steps)
                workers.append(Worker(role.name, group, role.warps * 32 // max(role.groups, 1), ops, at, half))
                steps.append(tuple(path.steps))
    return tuple(workers), tuple(steps)


def _partners(blocks: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The indices of the second blocks of pairs."""
    found = {name: blocks[name] for name in l3.BLOCK_VARIABLES}
    return {**found, "block_x": found["block_x"] + 1}


class _Path:
    """The way of one worker through its role's body."""

    def __init__(self, schedule: l3.Schedule, call: Call, role: l3.Role, group: int):
        self.schedule, self.call, self.role, self.part = schedule, call, role, group
        self.rows = role.rows_per_group
        self.elected = group == 0
        self.tma = {c.name for c in schedule.channels if c.kind != "cp_async" and not c.private}
        self.steps: list[Step] = []
        self.fetched: dict[str, tuple[dict[str, object], object]] = {}
        """What was fetched last by each name: the tiles it belongs to, and its numbers."""
        self.fetches = fetched_names(role.body)

    def walk(self, body: tuple, env: dict[str, object]) -> dict[str, object]:
        for op in body:
            if isinstance(op, (Let, RowLet, ColLet)):
                env = self.bind(op, {**env, **self.taken(op, env)})
            elif isinstance(op, l3.ColFetch):
                tile = self.call.value(op.tile, env)
                self.fetched[op.name] = self.owner({**env, "kv_tile": tile}), self.call.value(op.expr, {**env, **self.columns(tile)})
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
            elif isinstance(op, l3.Repair):
                self.steps.append(Step(op, env, self.part))
                self.walk(op.body, env)
                self.steps.append(Step(RepairEnd(), env, self.part))
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
        return {**env, op.name: value, **(self.columns(value) if op.name == "kv_tile" else {})}

    def columns(self, tile) -> dict[str, object]:
        """The variables of the columns of key tile number `tile`."""
        columns = torch.arange(self.schedule.tile_n).view(1, 1, -1)
        first = tile * self.schedule.tile_n
        return {"kv_idx": first + columns, COLUMN_FIRST: first, COLUMN_STEP: columns}

    @staticmethod
    def owner(env: dict[str, object]) -> dict[str, object]:
        """The key tile and the query tile that the numbers of columns belong to."""
        return {name: env[name] for name in ("kv_tile", *sorted(PLACE)) if name in env}

    def taken(self, op, env: dict[str, object]) -> dict[str, object]:
        """What a let reads of what was fetched ahead, which must have been for the tile at hand."""
        found = {}
        for name in sorted(variables(op.expr) & self.fetches):
            if name not in self.fetched:
                raise self.fail("uninitialised", op, f"{name} is read before it is fetched")
            owner, found[name] = self.fetched[name]
            here = self.owner(env)
            if owner.keys() != here.keys() or any(bool((torch.as_tensor(owner[n]) != torch.as_tensor(here[n])).any()) for n in owner):
                raise self.fail("protocol", op, f"{name} was fetched for another tile")
        return found

    def fail(self, kind: str, op, text: str) -> Fault:
        return Fault(kind, f"{self.role.name}[{self.part}] at {type(op).__name__.lower()} {op.name}: {text}")

    def settled(self, expr: Expr, env: dict[str, object]) -> int:
        """The value of `expr`, which must be the same for all blocks."""
        value = self.call.value(expr, env).reshape(-1)
        if value.numel() > 1 and bool((value != value[0]).any()):
            raise Split(value.long())
        return int(value[0])
