"""The flat values that the templates of a target print.

A `View` is what a kernel template prints; `emit.flatten` makes it. Its operations are `Step`s: the name of a template macro and
the fields that the macro reads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from attncc.emit.expressions import Names, local_name, scalar_name, tensor_name
from attncc.ir.attention import Attention
from attncc.ir.expr import BOOL, FLOAT, INT
from attncc.ir.schedule import Copy, Schedule
from attncc.ir.schedule_ops import operations
from attncc.ir.text import format_program
from attncc.ir.tile import TILE_COUNT, TILE_LIST

DSL_TYPES = {
    INT: "Int32", FLOAT: "Float32", BOOL: "Boolean",
    "bf16": "BFloat16", "f16": "Float16", "f32": "Float32",
}  # fmt: skip
BYTES = {"bf16": 2, "f16": 2, "f32": 4}
BYTES_OF_OPERAND = 2


@dataclass(frozen=True)
class Step:
    """One operation: the macro that prints it, and what the macro reads (as attributes)."""

    macro: str
    fields: Mapping[str, object]

    def __getattr__(self, name):
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class SharedTile:
    """`copies` tiles of rows x cols in shared memory, one every `stride` elements. `owner` has the memory (itself or its alias)."""

    name: str
    rows: int
    cols: int
    dtype: str
    copies: int
    stride: int
    owner: str
    bytes: int


@dataclass(frozen=True)
class BarrierView:
    """Named barriers number `first`, `first` + 1, ... , one for each of `copies` groups."""

    name: str
    first: int
    copies: int
    threads: int


@dataclass(frozen=True)
class ChannelView:
    """A ring as the templates see it. `boxes` copies make one tile (a tile of private rows is copied group by group); `head` names
    the head that the tensor is indexed by."""

    name: str
    kind: str
    buffer: SharedTile
    stages: int
    arrivals: int
    bytes: int
    tensor: str
    head: str
    boxes: int
    producer: str
    consumer: str
    argument: str = ""
    """The argument of `launch` that is copied."""
    is_block: bool = False
    """Whether a declared tensor's block for a tile of scores is copied, at indices of its own."""
    rows: Step | None = None
    """The rows of the block's sequence in the tensor, as the target sees them."""
    seen: Step | None = None
    """The whole tensor, as the target sees it."""
    parts: int = 1
    """Rings of a private channel, one for each part of the query tile: `parts` full barriers, then as many empty ones."""
    full_arrivals: int = 1
    empty_arrivals: int = 1
    """Of a private channel: warps that arrive to mark a stage full or empty (1 where products do), of both blocks where it is a pair's."""
    pair: bool = False
    """Whether it connects both blocks of a pair to a role that works for both."""
    atom: Step | None = None
    """The descriptor for its copies."""
    sides: Step | None = None
    """Both sides of its copies: whole rows, or a piece of each."""

    @property
    def prefix(self) -> str:
        """What the names of the channel's descriptor and coordinates begin with."""
        return self.name if self.is_block else self.tensor

    @property
    def limit(self) -> str:
        """The name of the number of rows that exist."""
        return "seq_q" if self.tensor == "q" else "seq_kv"

    @property
    def stage_bytes(self) -> int:
        """Bytes from one stage to the next."""
        return self.boxes * self.buffer.stride * BYTES_OF_OPERAND


@dataclass(frozen=True)
class MmaView:
    """The operands of one matrix product, set up once in a role: accumulator `dst` (rows x cols), operands `a` and `b`.

    `name` is unique in the kernel; `a_space` is "shared" or "register"; `depth` is the length of the contracted dimension.
    """

    name: str
    dst: str
    a: str
    b: str
    transposed: bool
    a_space: str
    rows: int
    cols: int
    depth: int
    column: int = 0
    pitch: int = 0
    """Place of `dst` in tensor memory."""
    a_column: int = 0
    a_pitch: int = 0
    """Place of `a` there."""


@dataclass(frozen=True)
class PhaseView:
    """A role's place in the private rings of a channel: bits from `first` on of its phases, one for each of `count` rings, `start` at first."""

    name: str
    first: int
    count: int
    start: int

    @property
    def bits(self) -> str:
        """For a comment: ` 3` or `s 2 and 3`."""
        numbers = range(self.first, self.first + self.count)
        return f" {self.first}" if self.count == 1 else f"s {' and '.join(map(str, numbers))}"


@dataclass(frozen=True)
class RoleView:
    """One role: its steps, and what it must set up first. `macro` is "producer" or "consumer" (of several groups)."""

    name: str
    macro: str
    first_warp: int
    last_warp: int
    groups: int
    group_threads: int
    group_rows: int
    rows: int
    """Score rows that one thread owns a part of."""
    columns: int
    """Columns of a score tile that one thread owns."""
    head: tuple[Step, ...]
    """What every warp of the role does first, before `frame`."""
    place: tuple[Step, ...]
    """What it sets up for the one query tile it works on; () where `steps` set up several."""
    steps: tuple[Step, ...]
    products: tuple[Step, ...]
    registers: tuple[Step, ...]
    channels: tuple[ChannelView, ...]
    phases: tuple[PhaseView, ...] = ()

    @property
    def first_phases(self) -> int:
        """The role's phases in all its private rings at first, as bits of a number."""
        return sum(phase.start << bit for phase in self.phases for bit in range(phase.first, phase.first + phase.count))

    @property
    def frame(self) -> Step:
        """The role's set-up and steps, for the macro of its kind."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Step(self.macro, {**fields, "first_phases": self.first_phases})


@dataclass(frozen=True)
class Argument:
    """An argument of `launch`: its name in the file, kind, element type, rank, and the name the user gave it."""

    name: str
    kind: str
    dtype: str
    rank: int
    given: str

    @property
    def annotation(self) -> str:
        """Its type in the generated file."""
        scalars = {INT: "Int32", FLOAT: "Float32", BOOL: "Int32"}
        return scalars[self.dtype] if self.kind == "scalar" else "cute.Tensor"


@dataclass(frozen=True)
class View:
    """All that a target's kernel template prints."""

    attention: Attention
    schedule: Schedule
    names: Names
    title: str
    digest: str
    dtype: str
    arguments: tuple[Argument, ...]
    grid: tuple[str, str, str]
    grid_lines: tuple[str, ...]
    tiles: tuple[SharedTile, ...]
    stored: tuple[SharedTile, ...]
    """The shared tiles that are stored to `o` by TMA."""
    channels: tuple[ChannelView, ...]
    barriers: tuple[BarrierView, ...]
    prelude: tuple[Step, ...]
    sizes: Step
    """Batch and lengths of a call."""
    lengths: tuple[Step, ...]
    """What a sequence's own lengths bind, where sequences are packed."""
    output: Step
    """The output tensor, as the target sees it."""
    roles: tuple[RoleView, ...]
    staged: int
    """The most terms of the distance that a score stages in shared memory at once."""
    staged_columns: int
    """The most numbers of a column that are staged in shared memory at once."""
    tables: tuple[object, ...]
    """The schedule's TileTable, when it has one."""
    links: tuple[ChannelView, ...] = ()
    """Private channels, between roles that compute."""
    vectors: tuple[SharedTile, ...] = ()
    """Shared buffers of one number a row."""
    tensor_columns: int = 0
    """Columns of tensor memory to allocate: a power of two."""
    issuer: int = 0
    """The warp that issues products into tensor memory."""
    clusters: tuple[int, ...] = ()
    """() or (blocks of a cluster,)."""
    begin: Step | None = None
    end: Step | None = None
    """What all roles do together first and last: tensor memory comes and goes, and barriers are known to all."""
    passed: tuple[Step, ...] = ()
    """Lets of the prelude that the host makes and passes, so that they take no registers: where blocks work on several query tiles."""

    @property
    def owners(self) -> tuple[SharedTile, ...]:
        """The shared tiles that have memory of their own."""
        return tuple(t for t in self.tiles if t.owner == t.name)

    @property
    def staging(self) -> tuple[int, ...]:
        """() or (numbers in shared memory that all groups stage at once,), each term for 64 rows and tile_n columns in whole warps."""
        rows = max(role.group_rows for role in self.roles)
        width = -(-(rows - 1 + self.schedule.tile_n) // 128) * 128
        return (self.staged * width * max(role.groups for role in self.roles),) if self.staged else ()

    @property
    def parts(self) -> int:
        """Parts of the query tile."""
        return max(role.groups for role in self.roles)

    @property
    def column_staging(self) -> tuple[int, ...]:
        """() or (numbers of a key tile's columns that all groups stage at once,), a key tile filled up to whole groups of threads."""
        groups, threads = max((role.groups, role.group_threads) for role in self.roles)
        width = -(-self.schedule.tile_n // threads) * threads
        return (groups * self.staged_columns * width,) if self.staged_columns else ()

    @property
    def rows(self) -> int:
        return max(role.rows for role in self.roles)

    @property
    def columns(self) -> int:
        return max(role.columns for role in self.roles)

    @property
    def extra(self) -> tuple[Argument, ...]:
        """The arguments after q, k, v, o and lse."""
        return self.arguments[5:]


def digest_of(schedule: Schedule) -> str:
    """The first 16 hex digits of the SHA-256 of the schedule's L3 text."""
    return hashlib.sha256(format_program(schedule).encode()).hexdigest()[:16]


def printable(text: str) -> str:
    """`text` fit for a comment or docstring: one line of plain characters."""
    return re.sub(r"[^A-Za-z0-9 _.,:=+-]", "?", text)[:80]


def arguments_of(schedule: Schedule) -> tuple[Argument, ...]:
    """The arguments of `launch`, in order, without the stream."""
    a = schedule.attention
    rank = 3 if a.packed else 4
    operands = [Argument(n, "operand", a.dtype, rank, n) for n in ("q", "k", "v", "o")]
    copies = [op for role in schedule.roles for op in operations(role.body) if isinstance(op, Copy) and op.at is not None]
    blocks = {op.tensor for op in copies}
    kinds = {t.name: "block" if t.name in blocks else "tensor" for t in a.tensors}
    tensors = [Argument(tensor_name(t.name), kinds[t.name], t.dtype, len(t.shape), t.name) for t in a.tensors]
    scalars = [Argument(scalar_name(s.name), "scalar", s.type, 0, s.name) for s in a.scalars]
    tables = []
    if schedule.table is not None:
        tables = [
            Argument(tensor_name(TILE_COUNT), "table", "i32", 4, TILE_COUNT),
            Argument(tensor_name(TILE_LIST), "table", "i32", 5, TILE_LIST),
        ]
        for s in schedule.table.summaries:
            tables.append(Argument(f"summary_{local_name(s.name)}", "summary", DSL_TYPES[s.expr.type], 4, s.name))
    return (*operands, Argument("lse", "lse", "f32", rank - 1, "lse"), *tensors, *scalars, *tables)
