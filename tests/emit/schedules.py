"""Hand-written L3 schedules, so that emission is tested without the passes."""

from __future__ import annotations

from attncc.ir.attention import Attention
from attncc.ir.expr import TRUE, ZERO, Expr, add, apply, const, floordiv, minimum, mul, sub, var
from attncc.ir.schedule import (
    Acquire,
    Arrive,
    Barrier,
    Buffer,
    Channel,
    Commit,
    Convert,
    Copy,
    Fill,
    For,
    If,
    Mma,
    MmaWait,
    Release,
    Rescale,
    Role,
    Schedule,
    SetRegisters,
    SoftmaxStep,
    Sync,
    Wait,
    StoreWait,
)  # fmt: skip
from attncc.ir.tile import Finalize, Let, Mask, Score, Store, Weights

LOG2_E = 1.4426950408889634
REGISTERS = {1: (240, 56), 2: (240, 24), 3: (160, 32)}

causal = apply("le", var("kv_idx"), add(var("q_idx"), var("off")))
in_range = apply("lt", var("kv_idx"), var("seq_kv"))


def padded(dim: int) -> int:
    return -(-dim // 16) * 16


def hopper_dense(
    dim_qk: int = 128,
    dim_v: int | None = None,
    tile_m: int = 128,
    tile_n: int = 128,
    stages: int = 2,
    groups: int | None = None,
    mask: Expr = TRUE,
    score: Expr | None = None,
    overlap: bool = True,
    pingpong: bool = True,
    dtype: str = "bf16",
    heads: tuple[int, int] = (4, 2),
    kind: str = "softmax",
    multiplier: float | None = None,
    row_lets: tuple = (),
    col_lets: tuple = (),
    sink: Expr | None = None,
    weight_scale: Expr | None = None,
    slack: float = 0.0,
    **attention,
) -> Schedule:
    """The canonical L3 for hopper: one segment without mask and, before it, the peeled first tile (and, for the causal mask, the
    segment of tiles on the diagonal)."""
    dim_v = dim_v or dim_qk
    groups = groups or tile_m // 64
    scale = dim_qk**-0.5 * (LOG2_E if kind == "softmax" else 1.0) if multiplier is None else multiplier
    program = Attention("hand", *heads, dim_qk, dim_v, dtype, score=mul(var("qk", "float"), const(1.0)), mask=mask, **attention)
    body = _Bodies(mask, score, overlap, pingpong and groups > 1, groups, kind, scale, col_lets, slack)
    finalize = Finalize("O", kind, scale, sink, weight_scale)
    buffers = _buffers(padded(dim_qk), padded(dim_v), tile_m, tile_n, stages, dtype)
    tensor_bytes = {b.name: b.rows * b.cols * 2 for b in buffers}
    channels = tuple(
        Channel(n, "tma", n, s, "producer", "consumer", groups, tensor_bytes[n]) for n, s in (("Q", 1), ("K", stages), ("V", stages))
    )
    grow, shrink = REGISTERS[groups]
    counts = _counts(mask, tile_m, tile_n)
    roles = (
        Role("producer", 0, 4, 1, 0, shrink, (SetRegisters(shrink, False), *counts, *body.producer())),
        Role("consumer", 4, 4 * groups, groups, 64, grow, (SetRegisters(grow, True), *body.begin(), *counts, *row_lets, *body.consumer(finalize))),
    )
    q_tile = Let("q_tile", sub(sub(var("q_tiles"), const(1)), var("block_x")) if mask is causal else var("block_x"))
    return Schedule(
        program, "hopper", tile_m, tile_n, 128 * (groups + 1),
        (var("q_tiles"), const(heads[0]), var("batch")), buffers, channels,
        (Barrier("group", 128, groups), Barrier("order", 256, groups)),
        (q_tile, Let("h", var("block_y")), Let("b", var("block_z"))), roles,
    )  # fmt: skip


def _buffers(dqk: int, dv: int, tile_m: int, tile_n: int, stages: int, dtype: str) -> tuple[Buffer, ...]:
    rows = tuple(Buffer(n, "register", 64, 1, "f32") for n in ("row_max", "row_sum", "correction", "LSE"))
    return (
        Buffer("Q", "shared", tile_m, dqk, dtype),
        Buffer("K", "shared", tile_n, dqk, dtype, stages),
        Buffer("V", "shared", tile_n, dv, dtype, stages),
        Buffer("OUT", "shared", tile_m, dv, dtype, alias="Q"),
        Buffer("S", "register", 64, tile_n, "f32"),
        Buffer("P", "register", 64, tile_n, dtype),
        Buffer("O", "register", 64, dv, "f32"),
        *rows,
    )


def _counts(mask: Expr, tile_m: int, tile_n: int) -> tuple[Let, ...]:
    """`total` key tiles, visited from the last to the first; the first `partial` of them are masked."""
    kv_tiles, q_end = var("kv_tiles"), minimum(mul(add(var("q_tile"), const(1)), const(tile_m)), var("seq_q"))
    if mask is TRUE:
        return (Let("total", kv_tiles), Let("partial", minimum(kv_tiles, const(1))))
    end = apply("max", ZERO, minimum(kv_tiles, floordiv(add(add(q_end, var("off")), const(tile_n - 1)), const(tile_n))))
    first = add(mul(var("q_tile"), const(tile_m)), add(var("off"), const(1)))
    full = apply("max", ZERO, minimum(floordiv(first, const(tile_n)), var("total")))
    return (Let("total", end), Let("partial", apply("max", minimum(var("total"), const(1)), sub(var("total"), full))))


class _Bodies:
    """The operations of both roles."""

    def __init__(self, mask, score, overlap, pingpong, groups, kind, scale, col_lets, slack):
        self.slack = slack
        self.col_lets = col_lets
        self.mask = (in_range,) if mask is TRUE else (apply("and", mask, in_range),)
        self.score = () if score is None else (Score("S", score),)
        self.overlap, self.pingpong, self.groups, self.kind, self.scale = overlap, pingpong, groups, kind, scale
        self.qk = Mma("S", "Q", "K", True, False, True)
        self.pv = Mma("O", "P", "V", False, True, True)

    def tile(self, position: Expr) -> Let:
        return Let("kv_tile", sub(sub(var("total"), const(1)), position))

    def producer(self):
        def loads(channel, tensor, position):
            at = sub(sub(var("total"), const(1)), position)
            return (Acquire(channel), Copy(channel, tensor, at), Commit(channel))

        i = var("i")
        first = (*loads("K", "k", ZERO), Acquire("Q"), Copy("Q", "q", var("q_tile")), Commit("Q"))
        later = (*loads("K", "k", i), *loads("V", "v", sub(i, const(1))))
        last = loads("V", "v", sub(var("total"), const(1)))
        loop = For("i", const(1), var("total"), "key tiles", later)
        return (If(apply("gt", var("total"), ZERO), (*first, loop, *last)),)

    def begin(self):
        first_turn = If(apply("eq", var("group"), const(self.groups - 1)), (Arrive("order"),))
        fills = (Fill("O", 0.0), Fill("row_max", float("-inf")), Fill("row_sum", 0.0))
        return (*((first_turn,) if self.pingpong else ()), *fills)

    def weights(self, first: bool, partial: bool):
        mask = tuple(Mask("S", m) for m in self.mask) if partial else ()
        if self.kind == "softmax":
            step = SoftmaxStep("S", "row_max", "row_sum", "correction", self.scale, first, True, self.slack)
        else:
            step = Weights("S", "S", self.kind, self.scale)
        return (*self.col_lets, *self.score, *mask), step

    def rescale(self):
        return (Rescale("O", "correction", self.slack > 0),) if self.kind == "softmax" else ()

    def round(self, partial: bool):
        turn = (Sync("order"),) if self.pingpong else ()
        give = (Arrive("order"),) if self.pingpong else ()
        before, step = self.weights(False, partial)
        if self.overlap:
            return (
                self.tile(var("i")), Wait("K"), *turn, self.qk, Wait("V"), self.pv, *give, MmaWait(1), Release("K"), *before, step,
                MmaWait(0), Release("V"), *self.rescale(), Convert("P", "S"),
            )  # fmt: skip
        return (
            self.tile(var("i")), Wait("V"), *turn, self.pv, MmaWait(0), Release("V"), Wait("K"), self.qk, *give, MmaWait(0),
            Release("K"), *before, step, *self.rescale(), Convert("P", "S"),
        )  # fmt: skip

    def consumer(self, finalize: Finalize):
        before, step = self.weights(True, True)
        peeled = (
            self.tile(ZERO), Wait("Q"), Wait("K"), self.qk, MmaWait(0), Release("K"), *before, step, Convert("P", "S"),
            For("i", const(1), var("partial"), "partial tiles", self.round(True)),
            For("i", var("partial"), var("total"), "full tiles", self.round(False)),
            Wait("V"), self.pv, MmaWait(0), Release("V"),
        )  # fmt: skip
        end = (
            finalize, Sync("group"), Convert("OUT", "O"), Sync("group"), Store("OUT", "o", asynchronous=True), StoreWait(),
            Store("LSE", "lse"),
        )  # fmt: skip
        return (If(apply("gt", var("total"), ZERO), peeled), *end)
