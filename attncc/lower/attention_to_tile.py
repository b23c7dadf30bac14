"""L1 -> L2: the naive tile program. Every key tile is loaded, scored and masked; passes make it good."""

from __future__ import annotations

import math

from attncc.ir.attention import Attention
from attncc.ir.expr import TRUE, apply, var
from attncc.ir.tile import (
    GLOBAL, LSE, PARTIAL, Finalize, Load, Mask, Matmul, Op, Score, Segment, Softmax, Store, TileProgram, Value, Weights,
)  # fmt: skip

LOG2_E = 1.0 / math.log(2.0)


def lower_attention_to_tile(attention: Attention, tile_m: int, tile_n: int) -> TileProgram:
    """One partial segment over all key tiles.

    The mask is the attention's, and `kv_idx < seq_kv` because the last tile may reach past the end. The score stands
    as one expression of the raw dot product.
    """
    segment = Segment(PARTIAL, var("kv_tiles"), var("t"), _body(attention))
    return TileProgram(
        attention=attention,
        tile_m=tile_m,
        tile_n=tile_n,
        values=_values(attention, tile_m, tile_n),
        prologue=(Load("Q", "q", var("q_tile")),),
        segments=(segment,),
        epilogue=_epilogue(attention),
    )


def _values(a: Attention, tile_m: int, tile_n: int) -> tuple[Value, ...]:
    shapes = (
        ("Q", tile_m, a.dim_qk, a.dtype),
        ("K", tile_n, a.dim_qk, a.dtype),
        ("V", tile_n, a.dim_v, a.dtype),
        ("S", tile_m, tile_n, "f32"),
        ("P", tile_m, tile_n, a.dtype),
        ("O", tile_m, a.dim_v, "f32"),
        (LSE, tile_m, 1, "f32"),
    )
    return tuple(Value(*shape, GLOBAL) for shape in shapes)


def _body(a: Attention) -> tuple[Op, ...]:
    inside = apply("lt", var("kv_idx"), var("seq_kv"))
    keep = inside if a.mask is TRUE else apply("and", inside, a.mask)
    softmax = a.reduction.kind == "softmax"
    weigh = Softmax("S", "P", "O", LOG2_E) if softmax else Weights("S", "P", a.reduction.kind, 1.0)
    return (
        Load("K", "k", var("kv_tile")),
        Matmul("S", "Q", "K", transposed=True, accumulate=False),
        Score("S", a.score),
        Mask("S", keep),
        weigh,
        Load("V", "v", var("kv_tile")),
        Matmul("O", "P", "V", transposed=False, accumulate=True),
    )


def _epilogue(a: Attention) -> tuple[Op, ...]:
    r = a.reduction
    multiplier = LOG2_E if r.kind == "softmax" else 1.0
    return (Finalize("O", r.kind, multiplier, r.sink, r.weight_scale), Store("O", "o"), Store(LSE, "lse"))
