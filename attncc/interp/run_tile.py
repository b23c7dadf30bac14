"""Runs an L2 tile program on the CPU, tile by tile, as its text says.

All batch entries, heads and several query tiles advance together: a tile-shaped value is a tensor with the axes
(batch, head, query tile, row, column), and step t of a segment handles the t-th key tile of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from attncc.interp.evaluate import UNUSED, evaluate
from attncc.interp.guarded import evaluate_everywhere
from attncc.interp.packed import one_by_one
from attncc.interp.tile_classes import check_visits, table_tensors, tile_environment
from attncc.ir import tile as ir
from attncc.ir.expr import Expr

INFINITY = float("inf")
CELLS_AT_ONCE = 1 << 22
TORCH_TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def run_tile(
    program: ir.TileProgram,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    inputs: dict[str, object] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    round_weights: bool = False,
    check: bool = True,
    strict: bool = False,
    entry: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) of the program: out (batch, seq_q, heads_q, dim_v), lse (batch, heads_q, seq_q), both of `dtype`.

    q, k, v        (batch, seq, heads, dim)
    inputs         the tensor and scalar arguments by name. With those of packed sequences q, k, v and out are (total, heads, dim)
    dtype          in which everything is computed; the numbers of q, k, v are taken as they are
    round_weights  round the weights to the attention's dtype before the second matmul, as the kernels do
    check          raise AssertionError if a key tile is visited twice, a skipped tile holds a kept cell, or a tile of a
                   full segment a masked one
    strict         every tensor index must be in range at every position, masked and padded ones too (after
                   guard_loads)
    entry          (b, n): the batch of one is batch entry b of n
    """
    if program.attention.packed and entry is None:

        def one(q, k, v, inputs, entry):
            return run_tile(program, q, k, v, inputs, dtype=dtype, round_weights=round_weights, check=check, strict=strict, entry=entry)

        return one_by_one(one, q, k, v, inputs or {})
    machine = _Machine.make(program, q, k, v, inputs or {}, dtype, round_weights, strict, entry)
    if check:
        check_visits(program, machine.env, machine.tensors)
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=dtype)
    lse = torch.full((q.shape[0], q.shape[2], q.shape[1]), -INFINITY, dtype=dtype)
    tiles = machine.env["q_tiles"]
    cells = q.shape[0] * q.shape[2] * program.tile_m * program.tile_n
    step = max(1, CELLS_AT_ONCE // max(1, cells))
    for first in range(0, tiles if q.shape[0] else 0, step):
        machine.run(torch.arange(first, min(first + step, tiles)), out, lse)
    return out, lse


@dataclass
class _Machine:
    """One run: the arguments cut into tiles, the variables, and the values of the query tiles at hand."""

    program: ir.TileProgram
    env: dict[str, object]
    tensors: dict[str, torch.Tensor]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dtype: torch.dtype
    round_weights: bool
    strict: bool
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    active: torch.Tensor | None = None
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def make(cls, program, q, k, v, inputs, dtype, round_weights, strict, entry) -> _Machine:
        a = program.attention
        env, tensors = tile_environment(program, q.shape[0], q.shape[1], k.shape[1], inputs, entry)
        if program.table is not None:
            tensors |= table_tensors(program, env, tensors)
        tiles = [_cut(x.to(dtype), size) for x, size in ((q, program.tile_m), (k, program.tile_n), (v, program.tile_n))]
        group = torch.arange(a.heads_q) // a.group
        return cls(
            program, env, tensors, tiles[0], tiles[1][:, group], tiles[2][:, group], dtype, round_weights, strict
        )

    def run(self, q_tile: torch.Tensor, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Computes the query tiles listed in `q_tile`."""
        program = self.program
        rows = torch.arange(program.tile_m)
        self.env["q_tile"] = q_tile.view(1, 1, -1, 1, 1)
        self.env["q_idx"] = self.env["q_tile"] * program.tile_m + rows.view(1, 1, 1, -1, 1)
        for name in ("kv_tile", "kv_idx", ir.COLUMN_FIRST, ir.COLUMN_STEP):
            self.env.pop(name, None)
        self.reset(len(q_tile))
        self.outputs = {"o": out, "lse": lse}
        for op in program.prologue:
            self.step(op)
        for segment in program.segments:
            self.segment(segment)
        for op in program.epilogue:
            self.step(op)

    def reset(self, tiles: int) -> None:
        shape = (self.q.shape[0], self.q.shape[1], tiles, self.program.tile_m)
        self.gap: torch.Tensor | float = 0.0
        self.values = {
            "O": torch.zeros(*shape, self.v.shape[-1], dtype=self.dtype),
            "m": torch.full((*shape, 1), -INFINITY, dtype=self.dtype),
            "l": torch.zeros(*shape, 1, dtype=self.dtype),
        }

    def segment(self, segment: ir.Segment) -> None:
        count = self.value(segment.count)
        outer = dict(self.env)
        for t in range(int(count.max()) if count.numel() else 0):
            self.active = count > t
            self.env["t"] = t
            kv_tile = torch.where(self.active, self.value(segment.tile), 0)
            if bool((kv_tile < 0).any()) or bool((kv_tile >= self.env["kv_tiles"]).any()):
                raise AssertionError(f"a segment visits a key tile out of range: {segment.tile} at t = {t}")
            self.env["kv_tile"] = kv_tile
            first, step = kv_tile * self.program.tile_n, torch.arange(self.program.tile_n).view(1, 1, 1, 1, -1)
            self.env |= {"kv_idx": first + step, ir.COLUMN_FIRST: first, ir.COLUMN_STEP: step}
            for op in segment.body:
                self.step(op)
        self.env = outer

    def value(self, expr: Expr) -> torch.Tensor:
        if self.strict:
            return evaluate_everywhere(expr, self.env, self.tensors, self.dtype)
        return evaluate(expr, self.env, self.tensors, valid=UNUSED, dtype=self.dtype)

    def step(self, op: ir.Op) -> None:
        getattr(self, f"do_{type(op).__name__.lower()}")(op)

    def do_let(self, op) -> None:
        self.env[op.name] = self.value(op.expr)

    do_rowlet = do_collet = do_let

    def do_load(self, op: ir.Load) -> None:
        source = {"q": self.q, "k": self.k, "v": self.v}[op.tensor]
        index = torch.broadcast_tensors(self.value(op.tile), self.env["q_tile"])[0][..., 0, 0].long()
        batch = torch.arange(source.shape[0]).view(-1, 1, 1)
        head = torch.arange(source.shape[1]).view(1, -1, 1)
        self.values[op.dst] = source[batch, head, index]

    def do_matmul(self, op: ir.Matmul) -> None:
        a, b = self.values[op.a], self.values[op.b]
        product = a @ (b.transpose(-1, -2) if op.transposed else b)
        self.values[op.dst] = self.values[op.dst] + product if op.accumulate else product

    def do_score(self, op: ir.Score) -> None:
        old = self.values[op.dst]
        self.env[ir.ELEMENT] = old
        self.values[op.dst] = self.value(op.expr).expand(old.shape)
        del self.env[ir.ELEMENT]

    def do_mask(self, op: ir.Mask) -> None:
        old = self.values[op.dst]
        self.env[ir.ELEMENT] = old
        self.values[op.dst] = torch.where(self.value(op.expr), old, -INFINITY)
        del self.env[ir.ELEMENT]

    def scores(self, name: str) -> torch.Tensor:
        """The scores; query tiles whose segment has ended see -inf, which changes nothing."""
        return torch.where(self.active, self.values[name], -INFINITY)

    def do_softmax(self, op: ir.Softmax) -> None:
        s, old = self.scores(op.scores), self.values["m"]
        new = torch.maximum(old, s.amax(-1, keepdim=True))
        if op.maximum is not None:
            new = torch.where((old == -INFINITY) & (new > -INFINITY), new.clamp(min=op.maximum), old)
        base = torch.where(new == -INFINITY, 0.0, new)
        weights = torch.exp2(op.multiplier * (s - base))
        factor = torch.where(old == new, 1.0, torch.exp2(op.multiplier * (old - base)))
        self.values["l"] = self.values["l"] * factor + weights.sum(-1, keepdim=True)
        self.values[op.accumulator] = self.values[op.accumulator] * factor
        self.values["m"] = new
        self.values[op.weights] = rounded = self.rounded(weights)
        if op.maximum is not None:  # see Finalize.gap
            self.gap = self.gap + (rounded - weights).sum(-1, keepdim=True)

    def do_weights(self, op: ir.Weights) -> None:
        s = self.scores(op.scores)
        kept = s != -INFINITY
        x = op.multiplier * torch.where(kept, s, 0.0)
        self.values[op.weights] = self.rounded(torch.where(kept, WEIGHTS[op.kind](x), 0.0))

    def rounded(self, weights: torch.Tensor) -> torch.Tensor:
        return weights.to(TORCH_TYPES[self.program.attention.dtype]).to(self.dtype) if self.round_weights else weights

    def do_finalize(self, op: ir.Finalize) -> None:
        acc, m, total, gap = self.values[op.accumulator], self.values["m"], self.values["l"], self.gap
        if op.kind != "softmax":
            scale = 1.0 if op.weight_scale is None else self.value(op.weight_scale)
            self.values[op.accumulator] = acc * scale
            self.values[ir.LSE] = torch.full_like(m, -INFINITY)
            return
        base = math.log(2.0) * op.multiplier * m
        if op.shift is not None and bool((total != 0).any()):
            shift = self.value(op.shift).expand(m.shape)
            base, total = base + shift, torch.where(shift == -INFINITY, 0.0, total)
        base = torch.where(total == 0, 0.0, base)
        if op.sink is not None:
            sink = self.value(op.sink).expand(m.shape)
            top = torch.where((total == 0) | (sink > base), sink, base)
            top = torch.where(top == -INFINITY, 0.0, top)
            factor = torch.where(total == 0, 0.0, torch.exp(base - top))
            acc, total, base = acc * factor, total * factor + torch.exp(sink - top), top
            gap = gap * factor
        self.values[op.accumulator] = torch.where(total == 0, 0.0, acc / torch.where(total == 0, 1.0, total + gap))
        self.values[ir.LSE] = torch.where(total == 0, -INFINITY, base + torch.log(total))

    def do_store(self, op: ir.Store) -> None:
        rows = self.env["q_idx"].reshape(-1)
        inside = rows < self.env["seq_q"]
        value = self.values[op.src]
        flat = value.reshape(*value.shape[:2], -1, value.shape[-1])[:, :, inside]
        if op.tensor == "o":
            self.outputs["o"][:, rows[inside]] = flat.transpose(1, 2)
        else:
            self.outputs["lse"][:, :, rows[inside]] = flat[..., 0]


def _cut(x: torch.Tensor, size: int) -> torch.Tensor:
    """(batch, seq, heads, dim) -> (batch, heads, tiles, size, dim), rows past the end zero."""
    x = x.transpose(1, 2)
    tiles = -(-x.shape[2] // size)
    x = torch.nn.functional.pad(x, (0, 0, 0, tiles * size - x.shape[2]))
    return x.reshape(*x.shape[:2], tiles, size, x.shape[-1])


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.erf(x * math.sqrt(0.5)))


WEIGHTS = {
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": _gelu,
    "none": lambda x: x,
}
