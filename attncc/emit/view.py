"""From L3 to flat values: what the templates of a target print. No text of Python code is laid out here but expressions.

`view_of(schedule)` gives a `View`; its operations are `Step`s: the name of a template macro and the fields that the macro reads.
An operation's own fields keep their names. Then

- an expression becomes its source text, and `lines` holds the statements that come before it;
- a nested body becomes a tuple of Steps;
- the name of a channel, barrier or buffer becomes its view (`ChannelView`, `BarrierView`, Buffer).

An operation with more than one kind of lowering is given a macro for each kind, chosen here by what L3 says about its operands
(`convert_register` and `convert_shared`, for example), so that templates need no conditions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from attncc.emit.expressions import Names, literal, local_name, names_of, scalar_name, tensor_name, to_statements
from attncc.ir import schedule as l3
from attncc.ir.attention import Attention
from attncc.ir.expr import BOOL, FLOAT, INT, Expr, const, floordiv, var
from attncc.ir.schedule import Buffer, Channel, Role, Schedule
from attncc.ir.text import format_program
from attncc.ir.tile import TILE_COUNT, TILE_LIST, ColLet, RowLet, Store

DSL_TYPES = {
    INT: "Int32", FLOAT: "Float32", BOOL: "Boolean",
    "bf16": "BFloat16", "f16": "Float16", "f32": "Float32",
}  # fmt: skip
BYTES = {"bf16": 2, "f16": 2, "f32": 4}
BYTES_OF_OPERAND = 2
WARP = 32
FIRST_BARRIER = 1
"""Named barrier 0 is the whole block's."""


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
    steps: tuple[Step, ...]
    products: tuple[Step, ...]
    registers: tuple[Step, ...]
    channels: tuple[ChannelView, ...]

    @property
    def frame(self) -> Step:
        """The role's set-up and steps, for the macro of its kind."""
        return Step(self.macro, {f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


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
    channels: tuple[ChannelView, ...]
    barriers: tuple[BarrierView, ...]
    prelude: tuple[Step, ...]
    roles: tuple[RoleView, ...]
    tables: tuple[object, ...]
    """The schedule's TileTable, when it has one."""

    @property
    def owners(self) -> tuple[SharedTile, ...]:
        """The shared tiles that have memory of their own."""
        return tuple(t for t in self.tiles if t.owner == t.name)

    @property
    def stored(self) -> tuple[SharedTile, ...]:
        """The shared tiles that are stored to `o` by TMA."""
        sources = {op.src for op in operations(self.schedule) if isinstance(op, Store) and op.tensor == "o"}
        return tuple(t for t in self.tiles if t.name in sources)

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


def view_of(schedule: Schedule) -> View:
    """The flat view of a legal schedule; deterministic."""
    attention = schedule.attention
    builder = _Builder(schedule)
    grid_lines, grid = to_statements(schedule.grid, builder.names("g"))
    roles = tuple(builder.role(role) for role in schedule.roles)
    return View(
        attention=attention,
        schedule=schedule,
        names=builder.base,
        title=printable(attention.name),
        digest=digest_of(schedule),
        dtype=DSL_TYPES[attention.dtype],
        arguments=arguments_of(schedule),
        grid=grid,
        grid_lines=grid_lines,
        tiles=tuple(builder.tiles.values()),
        channels=tuple(builder.channels.values()),
        barriers=tuple(builder.barriers.values()),
        prelude=builder.prelude(),
        roles=roles,
        tables=() if schedule.table is None else (schedule.table,),
    )


def digest_of(schedule: Schedule) -> str:
    """The first 16 hex digits of the SHA-256 of the schedule's L3 text."""
    import hashlib

    return hashlib.sha256(format_program(schedule).encode()).hexdigest()[:16]


def printable(text: str) -> str:
    """`text` fit for a comment or docstring: one line of plain characters."""
    return re.sub(r"[^A-Za-z0-9 _.,:=+-]", "?", text)[:80]


def arguments_of(schedule: Schedule) -> tuple[Argument, ...]:
    """The arguments of `launch`, in order, without the stream."""
    a = schedule.attention
    operands = [Argument(n, "operand", a.dtype, 4, n) for n in ("q", "k", "v", "o")]
    tensors = [Argument(tensor_name(t.name), "tensor", t.dtype, len(t.shape), t.name) for t in a.tensors]
    scalars = [Argument(scalar_name(s.name), "scalar", s.type, 0, s.name) for s in a.scalars]
    tables = []
    if schedule.table is not None:
        tables = [
            Argument(tensor_name(TILE_COUNT), "table", "i32", 4, TILE_COUNT),
            Argument(tensor_name(TILE_LIST), "table", "i32", 5, TILE_LIST),
        ]
        for s in schedule.table.summaries:
            tables.append(Argument(f"summary_{local_name(s.name)}", "summary", DSL_TYPES[s.expr.type], 4, s.name))
    return (*operands, Argument("lse", "lse", "f32", 3, "lse"), *tensors, *scalars, *tables)


def macro_name(cls: type) -> str:
    """`SoftmaxStep` -> "softmax_step"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class _Builder:
    """Holds the views that operations refer to, and numbers the temporaries."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.base = dataclasses.replace(names_of(schedule.attention), variables={l3.GROUP_VARIABLE: "group"})
        self.private = private_buffers(schedule)
        self.tiles = {b.name: self.tile(b) for b in schedule.buffers if b.space == "shared"}
        self.channels = {c.name: self.channel(c) for c in schedule.channels}
        self.barriers = dict(self.number_barriers())
        self.buffers = {b.name: b for b in schedule.buffers}
        self.product_of = {
            op.dst: f"{op.dst}_{op.a}_{op.b}" for op in operations(schedule) if isinstance(op, l3.Mma)
        }
        self.element_lets: dict[str, str] = {}
        self.count = 0

    def names(self, temporary: str, variables: Mapping[str, str] = {}) -> Names:
        return dataclasses.replace(
            self.base, temporary=f"{temporary}_", variables={**self.base.variables, **variables}
        )

    def tile(self, buffer: Buffer) -> SharedTile:
        """A buffer of private rows is laid out group by group, at one stride for all that share its memory."""
        owner = buffer.alias or buffer.name
        family = [b for b in self.schedule.buffers if owner in (b.name, b.alias)]
        groups = self.private.get(owner, 1)
        stride = max(b.rows // groups * b.cols for b in family)
        size = stride * groups * buffer.stages * BYTES[buffer.dtype]
        return SharedTile(
            buffer.name, buffer.rows // groups, buffer.cols, DSL_TYPES[buffer.dtype], groups * buffer.stages, stride, owner, size
        )

    def channel(self, channel: Channel) -> ChannelView:
        tensor = next(op.tensor for op in operations(self.schedule) if isinstance(op, l3.Copy) and op.channel == channel.name)
        return ChannelView(
            name=channel.name,
            kind=channel.kind,
            buffer=self.tiles[channel.buffer],
            stages=channel.stages,
            arrivals=channel.arrivals,
            bytes=channel.bytes,
            tensor=tensor,
            head={"q": "h", "k": "hkv", "v": "hkv"}[tensor],
            boxes=self.private.get(channel.buffer, 1),
            producer=channel.producer,
            consumer=channel.consumer,
        )

    def number_barriers(self):
        number = FIRST_BARRIER
        for b in self.schedule.barriers:
            yield b.name, BarrierView(b.name, number, b.copies, b.threads)
            number += b.copies
        yield "block", BarrierView("block", 0, 1, self.schedule.threads)

    def prelude(self) -> tuple[Step, ...]:
        """The schedule's prelude, and `hkv` when it does not bind it."""
        bound = {op.name for op in self.schedule.prelude if isinstance(op, l3.Let)}
        ops = self.schedule.prelude
        if "hkv" not in bound:
            ops = (*ops, l3.Let("hkv", floordiv(var("h"), const(self.schedule.attention.group))))
        return tuple(self.step(op) for op in ops)

    def role(self, role: Role) -> RoleView:
        self.element_lets = {}
        groups = max(role.groups, 1)
        group_threads = role.warps * WARP // groups
        body = list(role.body)
        head = [body.pop(0)] if body and isinstance(body[0], l3.SetRegisters) else []
        mmas = self.mmas(role)
        scores = [m.cols for m in mmas if m.transposed]
        used = {c for op in operations_of(role.body) for c in (getattr(op, "channel", None),) if c}
        return RoleView(
            name=role.name,
            macro="consumer" if role.rows_per_group else "producer",
            first_warp=role.first_warp,
            last_warp=role.first_warp + role.warps - 1,
            groups=groups,
            group_threads=group_threads,
            group_rows=role.rows_per_group,
            rows=role.rows_per_group // 8 // (group_threads // WARP),
            columns=scores[0] // 4 if scores else 0,
            head=tuple(self.step(op) for op in head),
            steps=tuple(self.step(op) for op in body),
            products=tuple(Step(f"product_{m.a_space}", dataclasses.asdict(m)) for m in mmas),
            registers=self.registers(role, mmas),
            channels=tuple(c for c in self.channels.values() if c.name in used),
        )

    def mmas(self, role: Role) -> tuple[MmaView, ...]:
        found: dict[str, MmaView] = {}
        for op in operations_of(role.body):
            if isinstance(op, l3.Mma):
                dst, a = self.buffers[op.dst], self.buffers[op.a]
                view = MmaView(
                    f"{op.dst}_{op.a}_{op.b}", op.dst, op.a, op.b, op.transposed, a.space, dst.rows, dst.cols, a.cols
                )
                found[view.name] = view
        return tuple(found.values())

    def registers(self, role: Role, mmas: tuple[MmaView, ...]) -> tuple[Step, ...]:
        """A declaration for each register buffer the role names: accumulators and operands of products, numbers of rows."""
        accumulators = {m.dst: m for m in reversed(mmas)}
        operands = {m.a: m for m in mmas if m.a_space == "register"}
        used = [b for b in self.schedule.buffers if b.space == "register" and b.name in buffers_of(role.body)]
        steps = []
        for b in used:
            name = "lse_rows" if b.name == "lse" else b.name
            fields = {"name": name, "rows": b.rows, "cols": b.cols, "dtype": DSL_TYPES[b.dtype]}
            if b.name in accumulators:
                steps.append(Step("declare_accumulator", {**fields, "mma": accumulators[b.name]}))
            elif b.name in operands:
                steps.append(Step("declare_operand", {**fields, "mma": operands[b.name]}))
            else:
                steps.append(Step("declare_rows", fields))
        return tuple(steps)

    def step(self, op) -> Step:
        """One operation: its fields, flattened."""
        handler = getattr(self, f"view_{macro_name(type(op))}", None)
        macro, extra = handler(op) if handler else (macro_name(type(op)), {})
        self.count += 1
        names = self.names(f"e{self.count}", self.variables(op))
        fields: dict[str, object] = {"lines": ()}
        for f in dataclasses.fields(op):
            value = getattr(op, f.name)
            if isinstance(value, Expr):
                lines, (text,) = to_statements((value,), names)
                fields["lines"] = (*fields["lines"], *lines)
                fields[f.name], fields[f"{f.name}_type"] = text, DSL_TYPES[value.type]
                names = dataclasses.replace(names, temporary=f"e{self.count}{f.name}_")
            elif f.name == "body":
                fields[f.name] = tuple(self.step(child) for child in value)
            else:
                fields[f.name] = value
        return Step(macro, {**fields, **extra})

    def variables(self, op) -> Mapping[str, str]:
        """How lets of rows and columns read where `op` stands: as element r or c of their list."""
        return dict(self.element_lets)

    def view_let(self, op):
        return "let", {"target": self.base.variable(op.name, op.expr.type)}

    def view_row_let(self, op: RowLet):
        return "row_let", self.element_let(op, f"rows_{local_name(op.name)}", "r")

    def view_col_let(self, op: ColLet):
        return "col_let", self.element_let(op, f"cols_{local_name(op.name)}", "c")

    def element_let(self, op, target: str, index: str) -> dict:
        """A list in registers; Booleans as 0 or 1, because predicate registers are few."""
        boolean = op.expr.type == BOOL
        self.element_lets[op.name] = f"({target}[{index}] != 0)" if boolean else f"{target}[{index}]"
        return {"target": target, "stored": "Int32" if boolean else DSL_TYPES[op.expr.type]}

    def view_for(self, op):
        return "for_", {"target": self.base.variable(op.counter, INT), "label": printable(op.label)}

    def view_if(self, op):
        return "if_", {}

    def view_acquire(self, op):
        return "acquire", {"channel": self.channels[op.channel]}

    def view_copy(self, op):
        return "copy", {"channel": self.channels[op.channel]}

    def view_commit(self, op):
        return "commit", {"channel": self.channels[op.channel]}

    def view_wait(self, op):
        return "wait", {"channel": self.channels[op.channel]}

    def view_release(self, op):
        return "release", {"channel": self.channels[op.channel]}

    def view_sync(self, op):
        barrier = self.barriers[op.barrier]
        kind = "block" if barrier.first == 0 else "group" if barrier.copies > 1 else "all"
        return f"sync_{kind}", {"barrier": barrier}

    def view_arrive(self, op):
        barrier = self.barriers[op.barrier]
        return "arrive_group" if barrier.copies > 1 else "arrive_all", {"barrier": barrier}

    def view_set_registers(self, op):
        return "grow_registers" if op.grow else "shrink_registers", {}

    def view_mma(self, op):
        """`a_ring` and `ring` are the channels that fill the operands a and b; `pending` < 0 waits for nothing."""
        fields = {
            "mma": f"{op.dst}_{op.a}_{op.b}",
            "a_ring": self.ring(op.a),
            "ring": self.ring(op.b),
            "pending": -1 if op.asynchronous else 0,
        }
        return f"mma_{self.buffers[op.a].space}", fields

    def ring(self, buffer: str) -> ChannelView | None:
        return next((c for c in self.channels.values() if c.buffer.name == buffer), None)

    def view_fill(self, op):
        return "fill", {"number": literal(op.value).replace("arith.INF", "Float32.inf")}

    def view_softmax_step(self, op):
        return "softmax_step_first" if op.first else "softmax_step", {}

    def view_weights(self, op):
        return ("weights" if op.weights == op.scores else "weights_convert"), {}

    def view_convert(self, op):
        space = self.buffers[op.dst].space
        return f"convert_{space}", {"tile": self.tiles.get(op.dst), "mma": self.product_of.get(op.src)}

    def view_finalize(self, op):
        if op.kind == "softmax":
            return ("finalize_softmax" if op.sink is None else "finalize_softmax_sink"), {}
        return ("finalize_plain" if op.weight_scale is None else "finalize_scaled"), {}

    def view_store(self, op):
        space = self.buffers[op.src].space
        return f"store_{op.tensor}_{space}", {"tile": self.tiles.get(op.src)}


def private_buffers(schedule: Schedule) -> dict[str, int]:
    """Shared buffers whose rows belong to one warp group each (first operands of products, and their aliases) -> the number of groups."""
    out: dict[str, int] = {}
    for role in schedule.roles:
        for op in operations_of(role.body):
            if isinstance(op, l3.Mma) and role.groups > 0:
                a = schedule.buffer(op.a)
                if a.space == "shared" and a.rows == role.groups * role.rows_per_group:
                    out[a.name] = role.groups
    for b in schedule.buffers:
        if b.alias in out:
            out[b.name] = out[b.alias]
    return out


def operations_of(body) -> tuple:
    """Every operation of `body`, nested ones included, in reading order."""
    out = []
    for op in body:
        out.append(op)
        out.extend(operations_of(getattr(op, "body", ())))
    return tuple(out)


def operations(schedule: Schedule) -> tuple:
    return operations_of(schedule.prelude) + tuple(op for r in schedule.roles for op in operations_of(r.body))


def buffers_of(body) -> frozenset[str]:
    """Names of the buffers that the operations of `body` read or write (Finalize: the statistics of rows too)."""
    fields = ("dst", "src", "a", "b", "scores", "weights", "row_max", "row_sum", "correction", "factor", "accumulator")
    ops = operations_of(body)
    named = {getattr(op, f) for op in ops for f in fields if isinstance(getattr(op, f, None), str)}
    if any(isinstance(op, l3.Finalize) for op in ops):
        named |= {"row_max", "row_sum", "lse"}
    return frozenset(named)
