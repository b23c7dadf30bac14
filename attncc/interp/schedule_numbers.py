"""What the operations of a schedule do to numbers: tiles of all blocks at hand, as tensors (block, row, column)."""

from __future__ import annotations

import math

import torch

from attncc.interp.run_tile import WEIGHTS
from attncc.interp.schedule_machine import Machine
from attncc.interp.schedule_state import in_half
from attncc.interp.schedule_trace import Call, RepairEnd, Step
from attncc.ir import schedule as l3
from attncc.ir.diagonals import DISTANCE, distances_of_tile, split_diagonals
from attncc.ir.expr import Expr, sub, substitute, var
from attncc.ir.schedule_ops import blocks_read, compute_role, element_names, least_maximum, operations, parts
from attncc.ir.tile import ELEMENT, LSE, Finalize, Mask, Score, Store, Weights
from attncc.lower.tile_to_schedule import ROW_MAX, ROW_SUM

INFINITY = float("inf")
NAN = float("nan")
WARP = 32
TORCH_TYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


class Numbers:
    """The contents of buffers while a set of blocks runs.

    `operands` holds q, k, v (batch, seq, heads, dim), `outputs` "o" of the same layout and "lse" (batch, heads, seq_q), and
    "stores", how often each row of them was written. Memory that a copy is about to fill holds NaN.
    """

    def __init__(self, machine: Machine, call: Call, operands: dict, outputs: dict, round_weights: bool):
        self.machine, self.call, self.operands, self.outputs = machine, call, operands, outputs
        self.round_weights = round_weights
        self.roles = {r.name: r for r in machine.schedule.roles}
        self.registers: list[dict[str, torch.Tensor]] = [{} for _ in machine.workers]
        self.shared: dict[tuple[str, int], torch.Tensor] = {}
        self.coming: dict[tuple, torch.Tensor] = {}
        self.handed: dict[tuple[str, int], torch.Tensor] = {}
        """By buffer and part: what roles hand on to each other."""
        self.kept: dict[int, tuple[torch.Tensor, dict[str, torch.Tensor]]] = {}
        """By worker that repairs: which rows, and all registers before."""
        self.part = self.half = 0

    def apply(self, i: int, step: Step) -> None:
        """The effect of a step that worker `i` has just made."""
        self.part, self.half = step.part, self.machine.workers[i].half
        rule = RULES.get(type(step.op))
        if rule is not None:
            rule(self, i, step.op, step.env)

    def land(self, name: str, position: int) -> None:
        """A copy of channel `name` (of its block) has arrived whole."""
        channel = self.machine.channels[name.split("@")[0]]
        self.shared[name, position % channel.stages] = self.coming.pop((name, position))

    def value(self, expr, env, **more) -> torch.Tensor:
        return self.call.value(expr, {**env, **more})

    def operand(self, i: int, name: str, own_rows: bool) -> torch.Tensor:
        """An operand of a product: a register tile, or the current stage of a channel (the worker's own rows of it)."""
        channel = self.machine.channel_of.get(name)
        if channel is None or channel.private:
            return self.get(i, name)
        stage = self.machine.own[i].used.get(self.machine.ring(i, channel.name), 0) % channel.stages
        tile = self.shared[in_half(channel.name, self.half), stage]
        return tile[:, self.rows(i)] if own_rows else tile

    def rows(self, i: int) -> slice:
        schedule = self.machine.schedule
        count = schedule.tile_m // parts(schedule)
        return slice(self.part * count, (self.part + 1) * count)

    def get(self, i: int, name: str) -> torch.Tensor:
        """A register buffer of worker `i`, or the part at hand of a buffer that roles hand on."""
        channel = self.machine.channel_of.get(name)
        return self.handed[self.handed_at(name)] if channel is not None and channel.private else self.registers[i][name]

    def handed_at(self, name: str) -> tuple[str, int]:
        return in_half(name, self.half), self.part

    def put(self, i: int, name: str, value: torch.Tensor) -> None:
        """As `get`. What lay in the same columns of tensor memory is NaN from then on."""
        channel = self.machine.channel_of.get(name)
        if channel is None or not channel.private:
            self.registers[i][name] = value
            return
        for other, part in self.machine.tensor.overlaps.get((name, self.part), ()):
            place = in_half(other, self.half), part
            if place in self.handed:
                self.handed[place] = torch.full_like(self.handed[place], NAN)
        self.handed[self.handed_at(name)] = value

    def block(self, op: l3.Copy, env, part: slice) -> torch.Tensor:
        """Rows `part` of the block of a declared tensor that a Copy reads, zero past the tensor's end."""
        source = self.call.tensors[op.tensor].to(self.call.dtype)
        buffer = self.machine.buffers[self.machine.channels[op.channel].buffer]
        rows = env["q_tile"] * buffer.rows + torch.arange(buffer.rows)[part].view(1, -1, 1)
        columns = self.value(op.tile, env).long() * buffer.cols + torch.arange(buffer.cols).view(1, 1, -1)
        at = [self.value(e, env).long().clamp(0, n - 1) for e, n in zip(op.at, source.shape)]
        inside = (rows < source.shape[-2]) & (columns < source.shape[-1])
        found = source[(*at, rows.clamp(0, source.shape[-2] - 1), columns.clamp(0, source.shape[-1] - 1))]
        return torch.where(inside, found, 0.0).expand(env["b"].shape[0], -1, -1)

    def tile(self, op: l3.Copy, env, part: slice) -> torch.Tensor:
        """Rows `part` of the tile that a Copy reads; those past the end zero, as columns past the head dim are."""
        if op.at is not None:
            return self.block(op, env, part)
        source = self.operands[op.tensor]
        index = self.value(op.tile, env).long()
        head = env["h"] if op.tensor == "q" else env["hkv"]
        count = self.machine.buffers[self.machine.channels[op.channel].buffer].rows
        rows = (index * count + torch.arange(count)[part].view(1, -1, 1))[..., 0]
        end = source.shape[1] - 1
        rows = torch.where((rows < 0) | (rows > end), end, rows)
        tile = source[env["b"][..., 0].long(), rows, head[..., 0].long()]
        if op.column is None:
            return tile
        width = self.machine.buffers[self.machine.channels[op.channel].buffer].cols
        first = int(self.value(op.column, env).reshape(-1)[0]) * width
        return tile[..., first : first + width]


def padded(schedule: l3.Schedule, operands: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """q, k and v with columns of zeros up to those of the buffers they are copied to, and a last row of zeros that stands for
    every row out of range."""
    channels, buffers = {c.name: c.buffer for c in schedule.channels}, {b.name: b for b in schedule.buffers}
    copies = [op for role in schedule.roles for op in operations(role.body) if isinstance(op, l3.Copy)]
    pieces = {op.tensor: schedule.cluster if op.column is not None else 1 for op in copies}
    cols = {op.tensor: pieces[op.tensor] * buffers[channels[op.channel]].cols for op in copies}
    return {n: torch.nn.functional.pad(x, (0, cols.get(n, x.shape[-1]) - x.shape[-1], 0, 0, 0, 1)) for n, x in operands.items()}


def _copy(n: Numbers, i: int, op: l3.Copy, env) -> None:
    """The stage holds NaN until the copy lands; in a role that copies for itself each worker copies every W-th row."""
    channel = n.machine.channels[op.channel]
    own = n.machine.own[i]
    position = own.filled.get(n.machine.ring(i, op.channel), 0)
    home = in_half(op.channel, n.half)
    key = (home, position % channel.stages)
    if channel.kind != "cp_async":
        tile = n.tile(op, env, slice(None))
        n.shared[key] = torch.full((), NAN, dtype=tile.dtype).expand(tile.shape)
        n.coming[home, position] = tile
        return
    part = slice(n.machine.workers[i].group, None, len(n.machine.writers[op.channel]))
    tile = n.tile(op, env, part)
    if key not in n.shared:
        shape = (tile.shape[0], n.machine.buffers[channel.buffer].rows, tile.shape[2])
        n.shared[key] = torch.full(shape, NAN, dtype=tile.dtype)
    n.shared[key][:, part] = NAN
    n.coming[op.channel, position, i] = tile


def _copies_arrive(n: Numbers, i: int, op, env) -> None:
    """Copies of worker `i` that are waited for by now are in place."""
    flying = {item for group in n.machine.own[i].groups for item in group} | set(n.machine.own[i].open_group)
    for key in [k for k in n.coming if k[-1] == i and len(k) == 3 and k[:2] not in flying]:
        _arrives(n, key)


def _wait(n: Numbers, i: int, op: l3.Wait, env) -> None:
    for key in [k for k in n.coming if len(k) == 3 and k[0] == op.channel]:
        _arrives(n, key)


def _arrives(n: Numbers, key: tuple[str, int, int]) -> None:
    name, position, worker = key
    step = len(n.machine.writers[name])
    whole = n.shared[name, position % n.machine.channels[name].stages]
    whole[:, n.machine.workers[worker].group :: step] = n.coming.pop(key)


def _fill(n: Numbers, i: int, op: l3.Fill, env) -> None:
    buffer = n.machine.buffers[op.dst]
    shape = (env["b"].shape[0], buffer.rows, buffer.cols)
    n.put(i, op.dst, torch.full(shape, op.value, dtype=n.call.dtype))


def _mma(n: Numbers, i: int, op: l3.Mma, env) -> None:
    """Of a pair both blocks' rows, by what both hold together."""
    halves, held = n.machine.halves(i), []
    for half in halves:
        n.half = half
        held.append(n.operand(i, op.b, own_rows=False))
    b = held[0] if len(held) == 1 else torch.cat(held, dim=-2 if op.transposed else -1)
    for half in halves:
        n.half = half
        product = n.operand(i, op.a, own_rows=True) @ (b.transpose(-1, -2) if op.transposed else b)
        n.put(i, op.dst, n.get(i, op.dst) + product if op.accumulate else product)


def _score(n: Numbers, i: int, op: Score, env) -> None:
    old = n.registers[i][op.dst]
    blocks = {name: n.operand(i, name, own_rows=True) for name in blocks_read(op)}
    expr, terms = (op.expr, {}) if op.same is None else _levelled(n, op, env)
    n.registers[i][op.dst] = n.value(expr, env, **{ELEMENT: old}, **blocks, **terms).expand(old.shape)


def _levelled(n: Numbers, op: Score, env) -> tuple[Expr, dict[str, torch.Tensor]]:
    """The score without its terms of the distance, and those: of the tile's least distance where they are said to be the same."""
    schedule = n.machine.schedule
    role = compute_role(schedule)
    least, _ = distances_of_tile(schedule.tile_m, schedule.tile_n, role.rows_per_group)
    own = {DISTANCE: sub(var("kv_idx"), var("q_idx"))}
    expr, terms = split_diagonals(op.expr, element_names(role.body))
    same = n.value(op.same, env)
    return expr, {
        f"diagonal_{i}": torch.where(same, n.value(substitute(t, {DISTANCE: least}), env), n.value(substitute(t, own), env)) for i, t in enumerate(terms)
    }


def _mask(n: Numbers, i: int, op: Mask, env) -> None:
    old = n.registers[i][op.dst]
    n.registers[i][op.dst] = torch.where(n.value(op.expr, env, **{ELEMENT: old}), old, -INFINITY)


def _softmax_step(n: Numbers, i: int, op: l3.SoftmaxStep, env) -> None:
    """Without the guard a row that has no key yet gives NaN, as on the device."""
    r = n.registers[i]
    if op.cap is not None:
        r[op.scores] = torch.tanh(op.cap * r[op.scores])
    if op.keeps:
        base = r[op.row_max].clamp(min=least_maximum(op.multiplier)) if op.guard else r[op.row_max]
        r[op.scores] = weights = torch.exp2(op.multiplier * (r[op.scores] - base))
        r[op.sums] = weights.sum(-1, keepdim=True)
        return
    if op.maximum is not None:
        largest = r[op.scores].amax(-1, keepdim=True)
        old = torch.full_like(largest, -INFINITY) if op.first else r[op.row_max]
        found = torch.where(largest > -INFINITY, largest.clamp(min=op.maximum), largest)
        r[op.row_max] = torch.where(old == -INFINITY, found, old) if op.first or op.sets else old.clamp(min=op.maximum)
        r[op.scores] = weights = torch.exp2(op.multiplier * (r[op.scores] - r[op.row_max].clamp(min=op.maximum)))
        total = weights.sum(-1, keepdim=True)
        r[op.row_sum] = total if op.first else total + r[op.row_sum]
        if op.first or op.sets:
            _collect_gap(n, r, op)
        return
    if op.half != "weights":
        _softmax_maximum(r, op)
    if op.half != "maximum":
        _softmax_weights(r, op)


def _base(r: dict, op: l3.SoftmaxStep) -> torch.Tensor:
    return torch.where(r[op.row_max] == -INFINITY, 0.0, r[op.row_max]) if op.guard else r[op.row_max]


def _collect_gap(n: Numbers, r: dict, op: l3.SoftmaxStep) -> None:
    """What rounding the weights to the operands' type adds to their sum."""
    weights = r[op.scores]
    if n.round_weights:
        r[op.scores] = weights.to(TORCH_TYPES[n.machine.schedule.attention.dtype]).to(n.call.dtype)
    more = (r[op.scores] - weights).sum(-1, keepdim=True)
    r[op.correction] = more if op.first else r[op.correction] + more


def _softmax_maximum(r: dict, op: l3.SoftmaxStep) -> None:
    new = r[op.scores].amax(-1, keepdim=True)
    if op.first:
        r[op.row_max] = new
        return
    old = r[op.row_max]
    new = torch.maximum(new, old)
    r[op.row_max] = torch.where(op.multiplier * (new - old) <= op.slack, old, new) if op.slack else new
    r[op.correction] = torch.exp2(op.multiplier * (old - _base(r, op)))


def _softmax_weights(r: dict, op: l3.SoftmaxStep) -> None:
    r[op.scores] = weights = torch.exp2(op.multiplier * (r[op.scores] - _base(r, op)))
    total = weights.sum(-1, keepdim=True)
    if op.sums is not None:
        r[op.sums], r[op.row_sum] = total, r[op.row_sum] * r[op.correction]
    else:
        r[op.row_sum] = total if op.first else total + r[op.row_sum] * r[op.correction]


def _weights(n: Numbers, i: int, op: Weights, env) -> None:
    s = n.registers[i][op.scores]
    kept = s != -INFINITY
    x = op.multiplier * torch.where(kept, s, 0.0)
    n.registers[i][op.weights] = torch.where(kept, WEIGHTS[op.kind](x), 0.0)


def _rescale(n: Numbers, i: int, op: l3.Rescale, env) -> None:
    n.put(i, op.dst, n.get(i, op.dst) * n.get(i, op.factor))


def _repair(n: Numbers, i: int, op: l3.Repair, env) -> None:
    """Rows of a warp are repaired together."""
    found = n.registers[i][op.sums]
    wrong = ~(found <= op.limit)
    rows = wrong.shape[1] // (n.machine.workers[i].threads // WARP)
    warps = wrong.reshape(wrong.shape[0], -1, rows).any(-1, keepdim=True)
    n.kept[i] = warps.expand(-1, -1, rows).reshape(wrong.shape), dict(n.registers[i])


def _repair_end(n: Numbers, i: int, op: RepairEnd, env) -> None:
    rows, before = n.kept.pop(i)
    n.registers[i].update({name: torch.where(rows, n.registers[i][name], old) for name, old in before.items()})


def _add(n: Numbers, i: int, op: l3.Add, env) -> None:
    n.put(i, op.dst, n.get(i, op.dst) + n.get(i, op.src))


def _convert(n: Numbers, i: int, op: l3.Convert, env) -> None:
    value = n.get(i, op.src)
    if op.factor is not None:
        value = value * n.get(i, op.factor)
    buffer = n.machine.buffers[op.dst]
    if n.round_weights and buffer.dtype in TORCH_TYPES:
        value = value.to(TORCH_TYPES[buffer.dtype]).to(n.call.dtype)
    n.put(i, op.dst, value)
    for (name, stage), tile in n.shared.items():
        channel = n.machine.channels[name.split("@")[0]]
        if buffer.alias is not None and channel.buffer == buffer.alias and name == in_half(channel.name, n.half):
            n.shared[name, stage] = tile.clone()
            n.shared[name, stage][:, n.rows(i)] = NAN


def _finalize(n: Numbers, i: int, op: Finalize, env) -> None:
    r = n.registers[i]
    if op.kind != "softmax":
        scale = 1.0 if op.weight_scale is None else n.value(op.weight_scale, env)
        r[op.accumulator] = r[op.accumulator] * scale
        r[LSE] = torch.full_like(r[op.accumulator][..., :1], -INFINITY)
        return
    total, accumulator = r[ROW_SUM], r[op.accumulator]
    base = math.log(2.0) * op.multiplier * r[ROW_MAX]
    if op.shift is not None and bool((total != 0).any()):
        shift = n.value(op.shift, env).expand(base.shape)
        base, total = base + shift, torch.where(shift == -INFINITY, 0.0, total)
    base = torch.where(total == 0, 0.0, base)
    gap = r[op.gap] if op.gap else 0.0
    if op.sink is not None:
        sink = n.value(op.sink, env).expand(base.shape)
        top = torch.where((total == 0) | (sink > base), sink, base)
        top = torch.where(top == -INFINITY, 0.0, top)
        factor = torch.where(total == 0, 0.0, torch.exp(base - top))
        accumulator, total, base = accumulator * factor, total * factor + torch.exp(sink - top), top
        gap = gap * factor
    r[op.accumulator] = torch.where(total == 0, 0.0, accumulator / torch.where(total == 0, 1.0, total + gap))
    r[LSE] = torch.where(total == 0, -INFINITY, base + torch.log(total))


def _store(n: Numbers, i: int, op: Store, env) -> None:
    """Rows below seq_q, columns below the head dim."""
    value = n.registers[i][op.src]
    rows = env["q_idx"].expand(value.shape[0], value.shape[1], 1)[..., 0].long()
    length = env["seq_q"]
    inside = rows < (length[..., 0] if isinstance(length, torch.Tensor) else length)
    b = env["b"][..., 0].long().expand(rows.shape)[inside]
    h = env["h"][..., 0].long().expand(rows.shape)[inside]
    if op.tensor == "lse":
        n.outputs["lse"][b, h, rows[inside]] = value[..., 0][inside]
        return
    n.outputs["o"][b, rows[inside], h] = value[inside][:, : n.outputs["o"].shape[-1]]
    n.outputs["stores"].index_put_((b, rows[inside], h), torch.ones((), dtype=torch.int64), accumulate=True)


RULES = {
    l3.Copy: _copy, l3.CopyWait: _copies_arrive, l3.Wait: _wait, l3.Fill: _fill, l3.Mma: _mma, Score: _score, Mask: _mask,
    l3.SoftmaxStep: _softmax_step, Weights: _weights, l3.Rescale: _rescale, l3.Convert: _convert, Finalize: _finalize,
    Store: _store, l3.Repair: _repair, RepairEnd: _repair_end, l3.Add: _add,
}  # fmt: skip
