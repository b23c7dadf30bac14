"""L2: how it is tiled. Tile shapes, the loop over key tiles, the memory space of each value; no warps, no barriers.

A program computes one tile of `tile_m` query rows of one (b, h). `q_tile` numbers the query tiles, `kv_tile` the key
tiles. Key tiles are visited segment by segment; a segment is "full" (no cell of its tiles is masked, so its body has no
mask operation) or "partial". Element (i, j) of a score tile has

    q_idx = q_tile * tile_m + i        kv_idx = kv_tile * tile_n + j

Rows past seq_q and columns past seq_kv exist in a tile: loads fill them with zeros, the mask removes such keys, stores
leave such rows out.

Scores live in the base-2 domain from `Softmax.multiplier` on: the weight of a score x is 2**(multiplier * x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from attncc.ir.attention import Attention
from attncc.ir.expr import Expr

GLOBAL, SHARED, REGISTER, TENSOR = "global", "shared", "register", "tensor"
SPACES = (GLOBAL, SHARED, REGISTER, TENSOR)
FULL, PARTIAL = "full", "partial"

COLUMN_FIRST, COLUMN_STEP = "kv_first", "kv_step"
"""kv_idx = kv_first + kv_step in a Score or ColLet: a column of the tile that all columns of a thread share, and the distance
from it, which is known when the kernel is compiled. (Interpreters, which know no threads, take the tile's first column.)"""
BLOCK = "block_"
"""How buffers begin that hold a number for every score of a tile; in a Score of L3 such a name is the number beside the element."""
TILE_VARIABLES = ("q_tile", "kv_tile", "t", "q_tiles", "kv_tiles", COLUMN_FIRST, COLUMN_STEP)
"""Tile indices, the position `t` in the current segment, the tile counts ceil(seq / tile), and the two parts of kv_idx."""
LSE = "LSE"
"""The value that holds the log-sum-exp of each row; Finalize sets it."""
ELEMENT = "qk"
"""In a Score or Mask expression: the element as it stands (before the first Score: the raw dot product)."""


def extent_name(tensor: str, axis: int) -> str:
    """The variable that holds the extent of a tensor's dimension, where the declaration leaves it open."""
    return f"__extent_{axis}_{tensor}"


@dataclass(frozen=True)
class Value:
    """A tile-shaped value: `rows` x `cols` of `dtype` (cols 1 for one number a row), in one memory space."""

    name: str
    rows: int
    cols: int
    dtype: str
    space: str


@dataclass(frozen=True)
class Let:
    """A number that is the same for the whole tile (evaluated where it stands: a body may see `kv_tile`, a prologue not)."""

    name: str
    expr: Expr


@dataclass(frozen=True)
class RowLet:
    """One number for each row of the tile; `expr` depends on q_idx but not on kv_idx."""

    name: str
    expr: Expr


@dataclass(frozen=True)
class ColLet:
    """One number for each column of the current key tile; `expr` depends on kv_idx but not on q_idx.

    In space "register" a thread computes the numbers of its own columns; in space "shared" the threads that work on the same rows
    compute each number once and read what they need.

    With `slot` (L3) the threads of a group compute it once for all, a column each, and read it from that slot of buffer KEY_NUMBERS,
    between a Sync before which others were read there and one that shows the new ones.
    """

    name: str
    expr: Expr
    slot: int | None = None
    space: str = REGISTER


@dataclass(frozen=True)
class Load:
    """dst := tile number `tile` of the q, k or v argument (rows past the end are zero)."""

    dst: str
    tensor: str
    tile: Expr


@dataclass(frozen=True)
class Matmul:
    """dst := a . b^T ("S = Q K^T", `transposed`) or dst (+)= a . b ("O += P V")."""

    dst: str
    a: str
    b: str
    transposed: bool
    accumulate: bool


@dataclass(frozen=True)
class Score:
    """Every element of `dst` := expr, where `qk` is the element itself and lets may be used.

    `same` (L3): a condition of the tile; where it holds, the terms of the distance (ir.diagonals) are those of the tile's least distance.
    """

    dst: str
    expr: Expr
    same: Expr | None = None


@dataclass(frozen=True)
class Mask:
    """Every element of `dst` for which `expr` is false := -inf.

    `rolled` (L3, where a thread owns whole rows): what is left of `expr` beside bounds of a row is worked out in a loop over the columns, a
    bit for each.
    """

    dst: str
    expr: Expr
    rolled: bool = False


@dataclass(frozen=True)
class Softmax:
    """One step of the online softmax (Milakov & Gimelshein 2018; FlashAttention-2 algorithm 1).

        m' = max(m, rowmax(scores));  weights = 2**(multiplier * (scores - m'));  c = 2**(multiplier * (m - m'))
        l = l * c + rowsum(weights);  accumulator = accumulator * c;  m = m'
    A row whose maximum is still -inf has weights 0 and c = 1.

    With `maximum` the first key tile with a key for a row sets its m, to the maximum there or to that number if it is larger, and m stays as
    it is (c = 1): for scores of which it is known that no weight then gets too large, and not all of a row's too small.
    """

    scores: str
    weights: str
    accumulator: str
    multiplier: float
    maximum: float | None = None


@dataclass(frozen=True)
class Weights:
    """weights = kind(multiplier * scores) for the unnormalised reductions; 0 where the score is -inf."""

    scores: str
    weights: str
    kind: str
    multiplier: float


@dataclass(frozen=True)
class Finalize:
    """accumulator := accumulator / l (softmax, after adding the sink's term to l), or * weight_scale.

    Rows with l = 0 become 0. The value LSE := ln(2) * multiplier * m + ln(l), the logarithm of the sum with the sink's term in
    it; -inf where that sum is 0 and for the unnormalised kinds.

    `shift` (softmax) is a number of each row that was left out of its scores: it enters LSE and the sink's term as if it had been
    added to every score; a row whose shift is -inf has no weights (l = 0).

    `gap` (L3) names a buffer: what rounding the weights added to l. The accumulator is divided by l + gap, LSE is that of l.
    """

    accumulator: str
    kind: str
    multiplier: float
    sink: Expr | None = None
    weight_scale: Expr | None = None
    shift: Expr | None = None
    gap: str | None = None


@dataclass(frozen=True)
class Store:
    """Rows below seq_q of `src` go to the argument `tensor` ("o" or "lse").

    `asynchronous` (L3, from shared memory): it goes on by itself, and `src` may not be written before a StoreWait.
    """

    src: str
    tensor: str
    asynchronous: bool = False


Op = Union[Let, RowLet, ColLet, Load, Matmul, Score, Mask, Softmax, Weights, Finalize, Store]


@dataclass(frozen=True)
class Segment:
    """`count` key tiles in the order t = 0, 1, ...; position t is key tile number `tile`, an expression over t."""

    kind: str
    count: Expr
    tile: Expr
    body: tuple[Op, ...]


@dataclass(frozen=True)
class TileSummary:
    """Least and greatest value of `expr` over each tile of one axis ("q" or "kv"), O(S) work before the main kernel.

    `expr` depends on q_idx alone or on kv_idx alone (and b, h). In TileTable expressions its bounds over the tile at hand
    are the variables `<name>_lo` and `<name>_hi`.
    """

    name: str
    axis: str
    expr: Expr


@dataclass(frozen=True)
class TileTable:
    """Lists of key tiles made by a prologue kernel, for masks whose extent depends on tensors.

    For each (b, h, q_tile) the key tiles with `may and not must` are listed as partial, those with `must` as full. `may` and
    `must` are boolean expressions over b, h, q_tile, kv_tile, sizes, run-time scalars and summary bounds: false `may` proves that
    the tile keeps no cell, true `must` that it keeps every cell. Main-kernel expressions read the lists as the tensors
        tile_count[b', h', q_tile, kind]  and  tile_list[b', h', q_tile, kind, t]     (kind 0 partial, 1 full)
    where b' is b, or 0 when `by_batch` is false; h' likewise.
    """

    may: Expr
    must: Expr
    by_batch: bool
    by_head: bool
    summaries: tuple[TileSummary, ...] = ()


TILE_COUNT, TILE_LIST = "tile_count", "tile_list"


@dataclass(frozen=True)
class Remark:
    """What a pass did or could not do, for `explain`."""

    by: str
    text: str


@dataclass(frozen=True)
class TileProgram:
    """One query tile's program, from top to bottom: prologue, the segments in order, epilogue."""

    attention: Attention
    tile_m: int
    tile_n: int
    values: tuple[Value, ...]
    prologue: tuple[Op, ...]
    segments: tuple[Segment, ...]
    epilogue: tuple[Op, ...]
    table: TileTable | None = None
    remarks: tuple[Remark, ...] = ()

    def value(self, name: str) -> Value:
        return next(v for v in self.values if v.name == name)
