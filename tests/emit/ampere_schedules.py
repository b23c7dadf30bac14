"""Hand-written L3 schedules for the mma.sync family, so that emission is tested without the passes.

Tiles are visited from the last to the first: first those that are masked (the first of them in code of its own with
`peel`), then the
rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc.ir.attention import Attention
from attncc.ir.expr import TRUE, ZERO, Expr, add, apply, const, floordiv, minimum, mul, sub, var
from attncc.ir.schedule import (
    Barrier, Buffer, Channel, Commit, Convert, Copy, CopyWait, Fill, For, If, Mma, Release, Rescale, Role, Schedule,
    SoftmaxStep, Sync,
)  # fmt: skip
from attncc.ir.tile import ColLet, Finalize, Let, Mask, RowLet, Score, Store, Weights

LOG2_E = 1.4426950408889634
CAUSAL = apply("le", var("kv_idx"), add(var("q_idx"), var("off")))
IN_RANGE = apply("lt", var("kv_idx"), var("seq_kv"))
LAST = sub(var("total"), const(1))


def padded(dim: int) -> int:
    return -(-dim // 32) * 32 if dim > 16 else 16


def ampere_dense(
    dim_qk: int = 128,
    dim_v: int | None = None,
    tile_m: int = 128,
    tile_n: int = 64,
    warps: int = 4,
    stages: int = 1,
    mask: Expr = TRUE,
    score: Expr | None = None,
    dtype: str = "bf16",
    heads: tuple[int, int] = (4, 2),
    kind: str = "softmax",
    staged: bool = True,
    peel: bool = False,
    convert_first: bool = False,
    slack: float = 0.0,
    seldom: bool = False,
    blocks_per_sm: int = 1,
    multiplier: float | None = None,
    row_lets: tuple[RowLet, ...] = (),
    col_lets: tuple[ColLet, ...] = (),
    sink: Expr | None = None,
    weight_scale: Expr | None = None,
    **attention,
) -> Schedule:
    """A dense or causal kernel. `stages` 1: K and V of one stage each, V's copy under the first product, the next
    K's under
    softmax and the second; 2: both are copied a whole tile ahead, one barrier a tile."""
    dim_v = dim_v or dim_qk
    scale = dim_qk**-0.5 * (LOG2_E if kind == "softmax" else 1.0) if multiplier is None else multiplier
    program = Attention(
        "hand", *heads, dim_qk, dim_v, dtype, score=mul(var("qk", "float"), const(1.0)), mask=mask, **attention
    )
    rows = tile_m // warps
    lets = _Lets(row_lets, col_lets, sink, weight_scale)
    body = (_One if stages == 1 else _Two)(mask, score, kind, scale, staged, peel, convert_first, slack, seldom, lets)
    buffers = _buffers(padded(dim_qk), padded(dim_v), tile_m, tile_n, rows, stages, dtype, staged)
    channels = tuple(
        Channel(n, "cp_async", n, s, "compute", "compute", 0, 0) for n, s in (("Q", 1), ("K", stages), ("V", stages))
    )
    role = Role(
        "compute", 0, warps, warps, rows, None, (*body.begin(), *row_lets, *_counts(mask, tile_m, tile_n), *body.main())
    )
    q_tile = var("block_x") if mask is TRUE else sub(sub(var("q_tiles"), const(1)), var("block_x"))
    return Schedule(
        program, "ampere", tile_m, tile_n, 32 * warps, (var("q_tiles"), const(heads[0]), var("batch")), buffers, channels,
        (Barrier("rows", 32, warps),), (Let("q_tile", q_tile), Let("h", var("block_y")), Let("b", var("block_z"))), (role,),
        blocks_per_sm=blocks_per_sm,
    )  # fmt: skip


def _buffers(dqk, dv, tile_m, tile_n, rows, stages, dtype, staged) -> tuple[Buffer, ...]:
    numbers = tuple(Buffer(n, "register", rows, 1, "f32") for n in ("row_max", "row_sum", "correction", "LSE"))
    return (
        Buffer("Q", "shared", tile_m, dqk, dtype),
        Buffer("K", "shared", tile_n, dqk, dtype, stages),
        Buffer("V", "shared", tile_n, dv, dtype, stages),
        *((Buffer("OUT", "shared", tile_m, dv, dtype, alias="Q"),) if staged else ()),
        Buffer("S", "register", rows, tile_n, "f32"),
        Buffer("P", "register", rows, tile_n, dtype),
        Buffer("O", "register", rows, dv, "f32"),
        *numbers,
    )


def _counts(mask: Expr, tile_m: int, tile_n: int) -> tuple[Let, ...]:
    """`total` key tiles, of which the first `partial` visited are masked."""
    kv_tiles = var("kv_tiles")
    if mask is TRUE:
        return (Let("total", kv_tiles), Let("partial", sub(kv_tiles, floordiv(var("seq_kv"), const(tile_n)))))
    q_end = minimum(mul(add(var("q_tile"), const(1)), const(tile_m)), var("seq_q"))
    end = apply("max", ZERO, minimum(kv_tiles, floordiv(add(add(q_end, var("off")), const(tile_n - 1)), const(tile_n))))
    first = add(mul(var("q_tile"), const(tile_m)), add(var("off"), const(1)))
    full = apply("max", ZERO, minimum(floordiv(first, const(tile_n)), var("total")))
    return (Let("total", end), Let("partial", apply("max", minimum(var("total"), const(1)), sub(var("total"), full))))


@dataclass(frozen=True)
class _Lets:
    rows: tuple[RowLet, ...]
    cols: tuple[ColLet, ...]
    sink: Expr | None
    weight_scale: Expr | None


class _Body:
    """What both orders of copies share."""

    def __init__(self, mask, score, kind, scale, staged, peel, convert_first, slack, seldom, lets):
        self.mask = IN_RANGE if mask is TRUE else apply("and", mask, IN_RANGE)
        self.score = () if score is None else (Score("S", score),)
        self.kind, self.scale, self.staged, self.peel = kind, scale, staged, peel
        self.convert_first, self.slack, self.seldom, self.lets = convert_first, slack, seldom, lets
        self.qk = Mma("S", "Q", "K", True, False, False)
        self.pv = Mma("O", "P", "V", False, True, False)

    def begin(self):
        return (Fill("O", 0.0), Fill("row_max", float("-inf")), Fill("row_sum", 0.0))

    def tile(self, position: Expr) -> Let:
        return Let("kv_tile", sub(LAST, position))

    def weights(self, first: bool, partial: bool):
        return (*self.lets.cols, *self.elements(first, partial))

    def elements(self, first: bool, partial: bool):
        mask = (Mask("S", self.mask),) if partial else ()
        if self.kind != "softmax":
            return (*self.score, *mask, Weights("S", "S", self.kind, self.scale), Convert("P", "S"))
        step = SoftmaxStep("S", "row_max", "row_sum", "correction", self.scale, first, True, self.slack)
        rescale, convert = () if first else (Rescale("O", "correction", self.seldom or partial),), (Convert("P", "S"),)
        return (*self.score, *mask, step, *((*convert, *rescale) if self.convert_first else (*rescale, *convert)))

    def main(self):
        first = self.round(ZERO, True, True) if self.peel else ()
        begin = const(1) if self.peel else ZERO
        loops = (
            *self.start(),
            *first,
            For("i", begin, var("partial"), "partial tiles", self.round(var("i"), False, True)),
            For(
                "i", apply("max", begin, var("partial")), var("total"), "full tiles", self.round(var("i"), False, False)
            ),
        )
        end = (Convert("OUT", "O"), Sync("rows"), Store("OUT", "o")) if self.staged else (Store("O", "o"),)
        finalize = Finalize("O", self.kind, self.scale, self.lets.sink, self.lets.weight_scale)
        return (If(apply("gt", var("total"), ZERO), loops), finalize, *end, Store("LSE", "lse"))


class _One(_Body):
    def start(self):
        return (Copy("Q", "q", var("q_tile")), Copy("K", "k", LAST), Commit("K"))

    def round(self, position, first, partial):
        following = sub(var("kv_tile"), const(1))
        return (
            self.tile(position), CopyWait(0), Sync("block"), Copy("V", "v", var("kv_tile")), Commit("V"), self.qk, Release("K"),
            CopyWait(0), Sync("block"), If(apply("ge", following, ZERO), (Copy("K", "k", following),)), Commit("K"),
            *self.weights(first, partial), self.pv, Release("V"),
        )  # fmt: skip


class _Two(_Body):
    def start(self):
        return (Copy("Q", "q", var("q_tile")), Copy("K", "k", LAST), Commit("K"), Copy("V", "v", LAST), Commit("V"))

    def round(self, position, first, partial):
        following = sub(var("kv_tile"), const(1))
        ahead = If(apply("ge", following, ZERO), (Copy("K", "k", following),))
        ahead_v = If(apply("ge", following, ZERO), (Copy("V", "v", following),))
        return (
            self.tile(position), CopyWait(0), Sync("block"), ahead, Commit("K"), self.qk, Release("K"),
            ahead_v, Commit("V"), *self.weights(first, partial), self.pv, Release("V"),
        )  # fmt: skip
