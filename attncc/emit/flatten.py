"""From L3 to a View: every operation becomes a Step of flat values.

An operation's own fields keep their names. Then

- an expression becomes its source text, and `lines` holds the statements that come before it;
- a nested body becomes a tuple of Steps;
- the name of a channel, barrier or buffer becomes its view (`ChannelView`, `BarrierView`, `SharedTile`).

An operation with more than one kind of lowering is given a macro for each kind, chosen here by what L3 says about its operands
(`convert_register` and `convert_shared`, for example), so that templates need no conditions. No text of Python code is laid out here
but expressions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from attncc.emit.columns import fetch_column, fetched, steps_of
from attncc.emit.expressions import Names, literal, local_name, names_of, tensor_name, to_statements
from attncc.emit.masks import view_mask
from attncc.emit.own_rows import score_by_distance, score_by_rows
from attncc.emit.pairs import QK, split_scaled
from attncc.emit.tables import tables_of
from attncc.emit.tensor_memory import copy_steps, issues_products, link_view, owned_cells, phases_of, role_macro, tensor_view
from attncc.emit.view import (
    BYTES,
    DSL_TYPES,
    BarrierView,
    ChannelView,
    MmaView,
    RoleView,
    SharedTile,
    Step,
    View,
    arguments_of,
    digest_of,
    printable,
)
from attncc.ir import packing
from attncc.ir import schedule as l3
from attncc.ir.diagonals import DISTANCE, split_diagonals
from attncc.ir.expr import BOOL, INT, Expr, const, floordiv, var
from attncc.ir.schedule import Buffer, Channel, Role, Schedule
from attncc.ir.schedule_ops import STATISTICS, blocks_read, least_maximum, operations, parts
from attncc.ir.tile import LSE, ColLet, Let, RowLet, Store

WARP = 32
HEADS = {"q": "h", "o": "h", "k": "hkv", "v": "hkv"}
"""The head that a tensor is indexed by."""
STAGING_THREADS = 128
"""Threads of a group that stages the terms of the distance in shared memory."""
FIRST_BARRIER = 1
"""Named barrier 0 is the whole block's."""


def view_of(schedule: Schedule) -> View:
    """The flat view of a legal schedule; deterministic."""
    attention = schedule.attention
    builder = Flattener(schedule)
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
        stored=builder.stored(),
        channels=tuple(c for c in builder.channels.values() if c.tensor),
        barriers=tuple(builder.barriers.values()),
        prelude=builder.prelude(),
        passed=builder.passed(),
        sizes=Step(f"sizes_{builder.layout}", {}),
        lengths=builder.lengths(),
        output=builder.place_of("o")["seen"],
        roles=roles,
        staged=builder.staged,
        staged_columns=builder.staged_columns,
        tables=tables_of(schedule, builder.base),
        **tensor_view(schedule, builder.channels),
    )


def macro_name(cls: type) -> str:
    """`SoftmaxStep` -> "softmax_step"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class Flattener:
    """Holds the views that operations refer to, and numbers the temporaries."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.layout = "packed" if schedule.attention.packed else "padded"
        names = names_of(schedule.attention)
        self.base = dataclasses.replace(names, variables={**names.variables, l3.GROUP_VARIABLE: "group"})
        self.private = private_buffers(schedule)
        self.tiles = {b.name: self.tile(b) for b in schedule.buffers if b.space == "shared" and b.cols > 1}
        self.channels = {c.name: self.channel(c) for c in schedule.channels}
        self.barriers = dict(self.number_barriers())
        self.buffers = {b.name: b for b in schedule.buffers}
        self.product_of = {
            op.dst: f"{op.dst}_{op.a}_{op.b}" for op in all_operations(schedule) if isinstance(op, l3.Mma)
        }
        self.products: dict[str, MmaView] = {}
        self.issues = self.in_parts = self.repairs = False
        self.owns_rows = any(b.space == "tensor" for b in schedule.buffers)
        self.element_lets: dict[str, str] = {}
        self.words: dict[str, str] = {}
        self.group_threads = 0
        self.staged = self.staged_columns = 0
        self.staging_barrier = FIRST_BARRIER + sum(b.copies for b in schedule.barriers)
        self.slots = 1 + max((op.slot or 0 for op in all_operations(schedule) if isinstance(op, ColLet)), default=0)
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

    def stored(self) -> tuple[SharedTile, ...]:
        """The shared tiles that are stored to `o`."""
        sources = {op.src for op in all_operations(self.schedule) if isinstance(op, Store) and op.tensor == "o"}
        return tuple(t for t in self.tiles.values() if t.name in sources)

    def channel(self, channel: Channel) -> ChannelView:
        if channel.private:
            return link_view(self.schedule, channel)
        copy = next(op for op in all_operations(self.schedule) if isinstance(op, l3.Copy) and op.channel == channel.name)
        is_block = copy.at is not None
        return ChannelView(
            name=channel.name,
            kind=channel.kind,
            buffer=self.tiles[channel.buffer],
            stages=channel.stages,
            arrivals=channel.arrivals,
            bytes=channel.bytes,
            tensor=copy.tensor,
            head="" if is_block else HEADS[copy.tensor],
            argument=tensor_name(copy.tensor) if is_block else copy.tensor,
            is_block=is_block,
            **(self.block_of(copy.tensor) if is_block else self.place_of(copy.tensor)),
            boxes=self.private.get(channel.buffer, 1),
            producer=channel.producer,
            consumer=channel.consumer,
            **copy_steps(channel, copy, self.base),
        )

    def place_of(self, tensor: str) -> dict[str, Step]:
        """Where a tensor's rows of the block's sequence are, and the whole tensor, as the target sees them."""
        side = "q" if tensor in ("q", "o") else "kv"
        fields = {"tensor": tensor, "head": HEADS[tensor], "first": f"first_{side}", "length": f"seq_{side}"}
        return {"rows": Step(f"rows_{self.layout}", fields), "seen": Step(f"tensor_{self.layout}", fields)}

    def block_of(self, tensor: str) -> dict[str, Step]:
        """A declared tensor, as the target sees it when blocks of it are copied."""
        return {"seen": Step("tensor_block", {"tensor": tensor_name(tensor)})}

    def lengths(self) -> tuple[Step, ...]:
        """What the prelude makes of a sequence's lengths, for kernels that have none."""
        if not self.schedule.attention.packed:
            return ()
        found = packing.lengths(self.schedule.tile_m, self.schedule.tile_n)
        return tuple(self.step(Let(name, value)) for name, value in found)

    def number_barriers(self):
        number = FIRST_BARRIER
        for b in self.schedule.barriers:
            yield b.name, BarrierView(b.name, number, b.copies, b.threads)
            number += b.copies
        yield "block", BarrierView("block", 0, 1, self.schedule.threads)

    def is_passed(self, op: Let) -> bool:
        """Whether the host makes a let of the prelude: where roles share few registers with what they keep from tile to tile, and none is the
        block's own. It knows the numbers of tiles."""
        dealt = any(isinstance(o, l3.Place) for o in all_operations(self.schedule))
        return self.owns_rows and dealt and op.name not in ("q_tiles", "kv_tiles")

    def passed(self) -> tuple[Step, ...]:
        return tuple(self.step(op) for op in self.schedule.prelude if self.is_passed(op))

    def prelude(self) -> tuple[Step, ...]:
        """The schedule's prelude, and `hkv` when neither it nor a role binds it."""
        ops = tuple(op for op in self.schedule.prelude if not self.is_passed(op))
        if "hkv" not in {op.name for op in all_operations(self.schedule) if isinstance(op, l3.Let)}:
            ops = (*ops, Let("hkv", floordiv(var("h"), const(self.schedule.attention.group))))
        return tuple(self.step(op) for op in ops)

    def role(self, role: Role) -> RoleView:
        self.element_lets, self.words = {}, {}
        groups = max(role.groups, 1)
        self.group_threads = group_threads = role.warps * WARP // groups
        body = list(role.body)
        head = [body.pop(0)] if body and isinstance(body[0], l3.SetRegisters) else []
        mmas = self.mmas(role)
        self.products = {m.name: m for m in mmas}
        self.issues = issues_products(self.schedule, role)
        self.current = role
        stands = not any(isinstance(op, l3.Place) for op in operations(role.body))
        place = (self.step(l3.Place()),) if stands else ()
        scores = [m.cols for m in mmas if m.transposed]
        used = channels_of(role)
        self.phases = phases_of(self.schedule, role, used)
        return RoleView(
            name=role.name,
            macro=role_macro(self.schedule, role) + "_of_pair" * role.pair,
            first_warp=role.first_warp,
            last_warp=role.first_warp + role.warps - 1,
            groups=groups,
            group_threads=group_threads,
            group_rows=role.rows_per_group,
            **owned_cells(self.schedule, role, scores),
            head=tuple(self.step(op) for op in head),
            place=place,
            steps=self.steps(tuple(body)),
            products=tuple(Step(f"product_{m.a_space}{'_pair' if role.pair else ''}", dataclasses.asdict(m)) for m in mmas),
            registers=self.registers(role, mmas) + fetched(self, role),
            channels=tuple(c for c in self.channels.values() if c.name in used and c.tensor),
            phases=self.phases,
        )

    def mmas(self, role: Role) -> tuple[MmaView, ...]:
        found: dict[str, MmaView] = {}
        for op in operations(role.body):
            if isinstance(op, l3.Mma):
                dst, a = self.buffers[op.dst], self.buffers[op.a]
                view = MmaView(
                    f"{op.dst}_{op.a}_{op.b}", op.dst, op.a, op.b, op.transposed, a.space, dst.rows, dst.cols, a.cols,
                    dst.column, dst.pitch, a.column, a.pitch,
                )  # fmt: skip
                found[view.name] = view
        return tuple(found.values())

    def registers(self, role: Role, mmas: tuple[MmaView, ...]) -> tuple[Step, ...]:
        """A declaration for each register buffer the role names: accumulators and operands of products, numbers of rows."""
        accumulators = {m.dst: m for m in reversed(mmas)}
        operands = {m.a: m for m in mmas if m.a_space == "register"}
        used = [b for b in self.schedule.buffers if b.space == "register" and b.name in buffers_of(role.body)]
        steps = []
        for b in used:
            name = "lse_rows" if b.name == LSE else b.name
            fields = {"name": name, "rows": b.rows, "cols": b.cols, "dtype": DSL_TYPES[b.dtype]}
            if b.name in accumulators:
                steps.append(Step("declare_accumulator", {**fields, "mma": accumulators[b.name]}))
            elif b.cols > 1 and not mmas:
                steps.append(Step("declare_scores", fields))
            elif b.name in operands:
                steps.append(Step("declare_operand", {**fields, "mma": operands[b.name]}))
            else:
                steps.append(Step("declare_rows", fields))
        return tuple(steps)

    def steps(self, body: tuple) -> tuple[Step, ...]:
        return steps_of(self, body)

    def step(self, op) -> Step:
        """One operation: its fields, flattened."""
        handler = getattr(self, f"view_{macro_name(type(op))}", None)
        return self.step_of(op, *(handler(op) if handler else (macro_name(type(op)), {})))

    def step_of(self, op, macro: str, extra: dict) -> Step:
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
            elif f.name == "body" and "body" not in extra:
                fields[f.name] = self.steps(value)
            else:
                fields[f.name] = value
        return Step(macro, {**fields, **extra})

    def variables(self, op) -> Mapping[str, str]:
        """How lets of rows and columns read where `op` stands, as element r or c of their list, and the numbers of blocks."""
        return {**self.element_lets, **{name: f"{self.block_name(name)}_cells[r, c]" for name in blocks_read(op)}}

    def block_name(self, name: str) -> str:
        """What a block's numbers are called; where a branch loads them again, by another name."""
        return f"again_{name}" if self.repairs else name

    def view_let(self, op):
        return "let", {"target": self.base.variable(op.name, op.expr.type)}

    def view_row_let(self, op: RowLet):
        return "row_let", self.element_let(op, f"rows_{local_name(op.name)}", "r")

    def view_col_fetch(self, op):
        return fetch_column(self, op)

    def view_col_let(self, op: ColLet):
        fields = {**self.element_let(op, f"cols_{local_name(op.name)}", "c"), "slots": self.slots}
        if op.slot is None or op.expr.type != BOOL:
            return ("col_let" if op.slot is None else "col_let_shared"), fields
        self.element_lets[op.name], self.words[op.name] = f"softmax.is_set({fields['target']}, c)", fields["target"]
        return "col_let_bits", fields

    def element_let(self, op, target: str, index: str) -> dict:
        """A list in registers; Booleans as 0 or 1, because predicate registers are few."""
        boolean = op.expr.type == BOOL
        self.element_lets[op.name] = f"({target}[{index}] != 0)" if boolean else f"{target}[{index}]"
        return {"target": target, "stored": "Int32" if boolean else DSL_TYPES[op.expr.type]}

    def view_place(self, op):
        """What a role sets up for a query tile: where the tensors of its channels lie, and its own rows."""
        used = channels_of(self.current)
        channels = tuple(c for c in self.channels.values() if c.name in used and c.tensor and not c.is_block)
        return f"place_{role_macro(self.schedule, self.current)}", {"channels": channels, "first_warp": self.current.first_warp}

    def view_for(self, op):
        return "for_", {"target": self.base.variable(op.counter, INT), "label": printable(op.label)}

    def view_if(self, op):
        return "if_", {}

    def view_repair(self, op):
        self.repairs = True
        body = self.steps(op.body)
        self.repairs = False
        return "repair", {"body": body}

    def on_channel(self, macro: str, op):
        """Private rings and rings that products complete have macros of their own; `bit` is the ring's place in the phases."""
        channel = self.channels[op.channel]
        private = "" if channel.tensor else "_private"
        products = "_products" if self.issues and macro in ("commit", "release") else ""
        across = channel.pair and macro in ("commit", "release") and (private or products)
        return f"{macro}{private}{products}{'_pair' if across else ''}", {"channel": channel, "bit": self.phase_bit(op.channel)}

    def phase_bit(self, channel: str) -> str:
        """Where the role's phase in its ring of a private channel stands, of the part at hand where it works on all."""
        first = next((str(phase.first) for phase in self.phases if phase.name == channel), "")
        return f"{first} + group" if self.in_parts else first

    def view_for_parts(self, op):
        self.in_parts = True
        body = self.steps(op.body)
        self.in_parts = False
        return "for_parts", {"body": body, "parts": parts(self.schedule)}

    def place(self, name: str) -> str:
        """The first column of the part at hand of a tensor buffer."""
        b = self.buffers[name]
        return f"{b.column} + group * {b.pitch}"

    def view_acquire(self, op):
        return self.on_channel("acquire", op)

    def view_copy(self, op):
        channel = self.channels[op.channel]
        if op.at is None:
            return "copy_pair" if channel.pair else "copy", {"channel": channel}
        lines, texts = to_statements(op.at, self.names(f"e{self.count}at"))
        return "copy_block", {"channel": channel, "at_lines": lines, "at": texts}

    def view_commit(self, op):
        return self.on_channel("commit", op)

    def view_wait(self, op):
        return self.on_channel("wait", op)

    def view_release(self, op):
        return self.on_channel("release", op)

    def view_drain(self, op):
        return self.on_channel("drain", op)

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
        """`a_ring` and `ring` are the channels that fill the operands a and b, `a_copy` is which of a shared a's copies the group reads; `pending` < 0
        waits for nothing."""
        fields = {
            "mma": f"{op.dst}_{op.a}_{op.b}",
            "a_ring": self.ring(op.a),
            "a_copy": self.own_copy(op.a),
            "ring": self.ring(op.b),
            "pending": -1 if op.asynchronous else 0,
            "product": self.products[f"{op.dst}_{op.a}_{op.b}"],
        }
        return f"mma_{'by_warp' if self.repairs else self.buffers[op.a].space}", fields

    def own_copy(self, buffer: str) -> str:
        """Which copy of a tile holds the group's own rows: stage by stage, in each group by group."""
        ring = self.ring(buffer)
        return "group" if ring is None or ring.stages == 1 else f"{ring.name}_at.index * {self.private[buffer]} + group"

    def ring(self, buffer: str) -> ChannelView | None:
        return next((c for c in self.channels.values() if c.tensor and c.buffer.name == buffer), None)

    def view_score(self, op):
        """With costly terms of the distance, and threads that can share them: those are computed first, once for each distance."""
        columns = frozenset(self.element_lets) | frozenset(blocks_read(op))
        blocks = tuple(
            Step("load_block", {"name": n, "target": self.block_name(n), "channel": self.channels[n], "product": self.product_of[op.dst]})
            for n in blocks_read(op)
        )
        expr, terms = split_diagonals(op.expr, columns)
        if not terms or self.group_threads != STAGING_THREADS:
            return score_by_rows(self, op) or self.score_in_pairs(op) or ("score", {"blocks": blocks})
        names = self.names(f"e{self.count}d", {DISTANCE: DISTANCE})
        texts = [to_statements((term,), names) for term in terms]
        if self.owns_rows:
            return score_by_distance(self, op, expr, texts)
        staged = [f"diagonals[{i} * WIDTH + stage_at + near]" for i in range(len(terms))]
        inner = self.names(f"e{self.count}s", {**self.variables(op), **{f"diagonal_{i}": s for i, s in enumerate(staged)}})
        lines, (text,) = to_statements((expr,), inner)
        self.staged = max(self.staged, len(terms))
        parts = tuple({"number": i, "lines": found, "text": value} for i, (found, (value,)) in enumerate(texts))
        fields = {"parts": parts, "inner": lines, "text": text, "barrier": self.staging_barrier, "blocks": blocks}
        return ("score_from_staged" if self.repairs else "score_staged"), fields

    def score_in_pairs(self, op):
        """Where a thread owns whole rows: a multiple of the product and a term, two columns at a time, then what is left; None elsewhere."""
        found = split_scaled(op.expr) if self.owns_rows else None
        if found is None:
            return None
        factor, term, left = found
        names = self.names(f"e{self.count}p", self.variables(op))
        lines, (text,) = to_statements((const(0.0) if term is None else term,), names)
        rest = () if left == QK else (self.step(dataclasses.replace(op, expr=left)),)
        fields = {"factor": literal(factor), "lines": lines, "term": text, "rest": rest}
        return "score_pairs", fields

    def view_mask(self, op):
        return view_mask(self, op)

    def view_fill(self, op):
        if self.buffers[op.dst].space == "tensor":
            return "fill_tensor", {"place": self.place(op.dst), "cols": self.buffers[op.dst].cols, "number": literal(op.value)}
        return "fill", {"number": literal(op.value).replace("arith.INF", "Float32.inf")}

    def view_softmax_step(self, op):
        if op.keeps:
            return "softmax_step_trusting", {"least": literal(least_maximum(op.multiplier)) if op.guard else None}
        if op.maximum is not None:
            return ("softmax_step_bounded" if op.cap is None else "softmax_step_capped"), {}
        if op.half != "both":
            return f"softmax_{op.half}", {}
        if op.sums is not None:
            return "softmax_step_apart", {}
        return "softmax_step_first" if op.first else "softmax_step", {}

    def view_rescale(self, op):
        macro = "rescale_where_needed" if op.seldom else "rescale"
        if self.buffers[op.dst].space == "tensor":
            return f"{macro}_tensor", {"place": self.place(op.dst), "cols": self.buffers[op.dst].cols}
        return macro, {}

    def view_weights(self, op):
        return ("weights" if op.weights == op.scores else "weights_convert"), {}

    def view_convert(self, op):
        space, source = self.buffers[op.dst].space, self.buffers[op.src].space
        if "tensor" in (space, source):
            name = op.dst if space == "tensor" else op.src
            fields = {"place": self.place(name), "cols": self.buffers[name].cols, "tile": self.tiles.get(op.dst)}
            return f"convert_{source}_{space}", fields
        if space == "shared" and op.dst not in self.tiles:
            return "convert_rows_shared", {}
        fields = {"tile": self.tiles.get(op.dst), "mma": self.product_of.get(op.src), "barrier": self.staging_barrier}
        return f"convert_{space}", fields

    def view_finalize(self, op):
        if op.kind == "softmax":
            given = {name: getattr(op, name) for name in ("sink", "shift") if getattr(op, name) is not None}
            return "finalize_softmax", {
                "numbers": tuple(self.row_number(name, expr) for name, expr in given.items()),
                "given": "".join(f", {name}={name}" for name in given) + (f", gap={op.gap}" if op.gap else ""),
            }
        return ("finalize_plain" if op.weight_scale is None else "finalize_scaled"), {}

    def row_number(self, name: str, expr: Expr) -> Step:
        """A list in registers of a number of each row."""
        lines, (text,) = to_statements((expr,), self.names(f"e{self.count}{name}"))
        return Step("row_number", {"name": name, "lines": lines, "text": text})

    def view_store(self, op):
        space = self.buffers[op.src].space
        rows = Step(f"lse_rows_{self.layout}", {}) if op.tensor == "lse" else self.place_of(op.tensor)["rows"]
        return f"store_{op.tensor}_{space}", {"tile": self.tiles.get(op.src), "rows": rows}


def channels_of(role: Role) -> frozenset[str]:
    """Names of the channels that a role uses."""
    return frozenset(op.channel for op in operations(role.body) if hasattr(op, "channel"))


def private_buffers(schedule: Schedule) -> dict[str, int]:
    """Shared buffers whose rows belong to one warp group each (first operands of products, what is stored, and aliases) -> the number
    of groups."""
    out: dict[str, int] = {}
    for role in schedule.roles:
        for op in operations(role.body):
            if isinstance(op, (l3.Mma, Store)):
                own = schedule.buffer(op.a if isinstance(op, l3.Mma) else op.src)
                if own.space == "shared" and own.rows == schedule.tile_m:
                    out[own.name] = parts(schedule)
    for b in schedule.buffers:
        if b.alias in out:
            out[b.name] = out[b.alias]
    return out


def all_operations(schedule: Schedule) -> tuple:
    return tuple(op for body in (schedule.prelude, *(r.body for r in schedule.roles)) for op in operations(body))


def buffers_of(body) -> frozenset[str]:
    """Names of the buffers that the operations of `body` read or write (Finalize: the statistics of rows too)."""
    fields = ("dst", "src", "a", "b", "scores", "weights", "row_max", "row_sum", "correction", "factor", "accumulator", "sums")
    ops = tuple(operations(body))
    named = {getattr(op, f) for op in ops for f in fields if isinstance(getattr(op, f, None), str)}
    if any(isinstance(op, l3.Finalize) for op in ops):
        named |= {*STATISTICS, LSE}
    return frozenset(named)
