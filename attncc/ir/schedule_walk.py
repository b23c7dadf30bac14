"""Walks through the control flow of a schedule's roles on sample lengths, for the checker.

A walk settles loops and conditions with concrete numbers (tensor elements are drawn by a hash, so that lists of tiles get
counts of their own) and looks at each role alone: what is bound, and in which order channels are used.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator

from attncc.ir import schedule as l3
from attncc.ir.expr import BOOL, FLOAT, variables
from attncc.ir.schedule_ops import PLACE, buffers_read, buffers_written, fetched_names, number, parts
from attncc.ir.tile import REGISTER, TENSOR, ColLet, Let, RowLet

SAMPLES = ((1, 1), (70, 300), (300, 70), (257, 257), (513, 1000), (40, 0))
"""(seq_q, seq_kv) of the walks."""
MOST_COUNT = 3
"""Elements of tensors are drawn from 0 to this."""
MOST_STEPS = 256
"""Longer loops are cut there: no count that is right on the samples is larger, whatever the tile sizes."""


def walk_problems(schedule: l3.Schedule, samples: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """What the walks found, one sentence each."""
    fetches = {role.name: fetched_names(role.body) for role in schedule.roles}
    for seq_q, seq_kv in samples:
        for q_tile in {0, (seq_q - 1) // schedule.tile_m}:
            walks = {role.name: _Walk(schedule, role, fetches[role.name], seq_q, seq_kv, q_tile) for role in schedule.roles}
            for walk in walks.values():
                yield from walk.problems
            yield from _balance(schedule, walks)


def _balance(schedule: l3.Schedule, walks: dict[str, _Walk]) -> Iterator[str]:
    """Tiles put into each channel, beside those taken out."""
    for c, consumer in [(channel, name) for channel in schedule.channels for name in channel.consumers]:
        made = walks[c.producer].count["commit", c.name]
        walk = walks[consumer]
        seen = walk.count["release", c.name] + walk.waiting[c.name]
        spare = made - seen
        if c.kind != "cp_async" and spare:
            yield f"channel {c.name}: {c.producer} fills {made} tiles where {consumer} uses {seen}"
        elif c.kind == "cp_async" and not 0 <= spare <= c.stages:
            yield f"channel {c.name}: {made} groups are closed and {seen} tiles used"


class _Names(dict):
    def __missing__(self, name: str) -> int:
        return 64


def _element(tensor: str, index: tuple) -> int:
    return zlib.crc32(repr((tensor, index)).encode()) % (MOST_COUNT + 1)


class _Walk:
    """One role's way on one sample."""

    def __init__(self, schedule: l3.Schedule, role: l3.Role, fetches: frozenset[str], seq_q: int, seq_kv: int, q_tile: int):
        self.schedule, self.role, self.fetches = schedule, role, fetches
        self.channels = {c.name: c for c in schedule.channels}
        self.buffers = {b.name: b for b in schedule.buffers}
        self.part = 0
        self.count: Counter = Counter()
        self.waiting: Counter = Counter()
        self.open: dict[str, bool] = {}
        self.products: list[l3.Mma] = []
        self.known: set[str] = set()
        self.fetched: dict[str, tuple] = {}
        self.problems: list[str] = []
        env = {"batch": 1, "seq_q": seq_q, "seq_kv": seq_kv, "off": seq_kv - seq_q, "b": 0, "h": 0, "q_tile": q_tile, "group": 0}
        env |= dict.fromkeys((*l3.BLOCK_VARIABLES, l3.PAIR_VARIABLE), 0)
        env |= {s.name: {BOOL: False, FLOAT: 1.0}.get(s.type, 1) for s in schedule.attention.scalars}
        for op in schedule.prelude:
            if op.name not in env:
                env[op.name] = self.value(op.expr, env)
        self.body(role.body, env)
        if self.products:
            self.report(f"it ends with an unfinished product into {self.products[0].dst}")

    def report(self, text: str) -> None:
        self.problems.append(f"role {self.role.name}: {text}")

    def value(self, e, env):
        """`e` on the sample; extents of tensors and other names that the sample lacks count as 64."""
        try:
            return number(e, _Names(env), _element)
        except (ArithmeticError, ValueError):
            return 1  # a value that such lengths do not have; no loop depends on it

    def body(self, body: tuple, env: dict) -> None:
        env = dict(env)
        for op in body:
            if isinstance(op, Let):
                env[op.name] = self.value(op.expr, env)
            elif isinstance(op, l3.ColFetch):
                self.fetched[op.name] = self.owner(self.value(op.tile, env), env)
            elif isinstance(op, ColLet):
                self.take(op, env)
            elif isinstance(op, RowLet):
                continue
            elif isinstance(op, l3.If):
                if self.value(op.condition, env):
                    self.body(op.body, env)
            elif isinstance(op, l3.Repair):
                self.step(op)
                self.body(op.body, env)
            elif isinstance(op, l3.For):
                begin, end = self.value(op.begin, env), self.value(op.end, env)
                for t in range(begin, min(end, begin + MOST_STEPS)):
                    self.body(op.body, {**env, op.counter: t})
            elif isinstance(op, l3.ForParts):
                for part in range(parts(self.schedule)):
                    self.part = part
                    self.body(op.body, {**env, l3.GROUP_VARIABLE: part})
                self.part = 0
            else:
                self.step(op)

    @staticmethod
    def owner(tile: int, env: dict) -> tuple:
        """What the numbers of columns belong to: a key tile of a query tile."""
        return tile, *(env.get(name) for name in sorted(PLACE))

    def take(self, op: ColLet, env: dict) -> None:
        for name in sorted(variables(op.expr) & self.fetches):
            if name not in self.fetched:
                self.report(f"ColLet {op.name} reads {name} before it is fetched")
            elif self.fetched[name] != self.owner(env.get("kv_tile"), env):
                self.report(f"ColLet {op.name} reads {name}, which was fetched for another key tile")

    def step(self, op) -> None:
        rule = getattr(self, f"do_{type(op).__name__.lower()}", None)
        if rule is not None:
            rule(op)
        for name in buffers_read(op):
            self.read(op, name)
        for name in buffers_written(op):
            self.write(op, name)
        if isinstance(op, l3.Mma) and op.asynchronous and self.buffers[op.dst].space != TENSOR:
            self.products.append(op)

    def read(self, op, name: str) -> None:
        if self.buffers[name].space == REGISTER and name not in self.known:
            self.report(f"{type(op).__name__} reads {name}, which holds nothing yet")
        own = isinstance(op, l3.Mma) and name == op.dst
        if not own and any(p.dst == name for p in self.products):
            self.report(f"{type(op).__name__} reads {name} while the product into it is unfinished")

    def write(self, op, name: str) -> None:
        self.known.add(name)
        if any(name in (p.a, p.b) for p in self.products):
            self.report(f"{type(op).__name__} writes {name} while an unfinished product reads it")
        if not isinstance(op, l3.Mma) and any(p.dst == name for p in self.products):
            self.report(f"{type(op).__name__} writes {name} while the product into it is unfinished")

    def do_mmawait(self, op: l3.MmaWait) -> None:
        self.products = self.products[max(0, len(self.products) - op.pending) :]

    def key(self, channel: str) -> str:
        """The ring that a channel means where the walk stands: the first part's goes by the channel's name."""
        return f"{channel}.{self.part}" if self.channels[channel].private and self.part else channel

    def do_acquire(self, op: l3.Acquire) -> None:
        key = self.key(op.channel)
        if key in self.open:
            self.report(f"{op.channel} is acquired twice without a commit")
        self.open[key] = False

    def do_copy(self, op: l3.Copy) -> None:
        key = self.key(op.channel)
        if key not in self.open and self.channels[op.channel].kind != "cp_async":
            self.report(f"a copy into {op.channel} before a stage is acquired")
        self.open[key] = True

    def do_commit(self, op: l3.Commit) -> None:
        key = self.key(op.channel)
        self.count["commit", key] += 1
        if not self.open.pop(key, False) and self.channels[op.channel].kind == "tma":
            self.report(f"a commit to {op.channel} without a copy into an acquired stage")

    def do_wait(self, op: l3.Wait) -> None:
        key = self.key(op.channel)
        if self.waiting[key] and self.channels[op.channel].kind != "cp_async":
            self.report(f"{op.channel} is waited for twice without a release")
        self.waiting[key] = 1

    def do_release(self, op: l3.Release) -> None:
        key = self.key(op.channel)
        self.count["release", key] += 1
        if not self.waiting[key] and self.channels[op.channel].kind != "cp_async":
            self.report(f"{op.channel} is released without a wait")
        self.waiting[key] = 0
        buffer = self.channels[op.channel].buffer
        if any(buffer in (p.a, p.b) for p in self.products):
            self.report(f"{op.channel} is released while an unfinished product reads it")
