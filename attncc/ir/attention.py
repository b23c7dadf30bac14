"""L1: what is computed. Heads, the score and mask expressions, the reduction; no tiles, no target.

For every batch entry b, query head h and query position q_idx, with `hkv = h // (heads_q // heads_kv)` and
`off = seq_kv - seq_q`:

    qk   = <q[b, q_idx, h, :], k[b, kv_idx, hkv, :]>
    s    = score(qk, b, h, q_idx, kv_idx)                       (the scale is part of `score`)
    w    = reduction of s over the kv_idx that `mask` keeps      (a score of -inf is masked too)
    out  = sum_kv w * v[b, kv_idx, hkv, :]
    lse  = log sum_kv exp(s)                                     (softmax only; natural logarithm, sink included)

A row that keeps no key gives out = 0 and lse = -inf.

A `packed` attention takes sequences of different lengths one after another; see attncc.ir.packing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from attncc.diagnostics import Span
from attncc.ir.expr import BOOL, FLOAT, INT, TRUE, Expr

INDEX_VARIABLES = ("b", "h", "hkv", "q_idx", "kv_idx")
SIZE_VARIABLES = ("batch", "seq_q", "seq_kv", "off")
RAW_SCORE = "qk"
REDUCTIONS = ("softmax", "sigmoid", "relu", "silu", "gelu", "none")

STORAGE_TYPES: dict[str, str] = {
    "f32": FLOAT, "f16": FLOAT, "bf16": FLOAT, "f64": FLOAT,
    "i8": INT, "u8": INT, "i16": INT, "i32": INT, "i64": INT, "bool": BOOL,
}  # fmt: skip
"""Element formats a tensor argument may have, and the expression type its elements read as."""


@dataclass(frozen=True)
class TensorDecl:
    """A tensor argument. A dimension is an int expression over batch, seq_q, seq_kv (heads are constants) or None, any size.

    `low` and `high` bound every element, low <= x < high, as expressions of constants and sizes; `is_sorted` says that
    elements do not decrease along the last dimension. Both are promises of the caller: the CPU checks them, passes may
    rely on them.
    """

    name: str
    dtype: str
    shape: tuple[Expr | None, ...]
    low: Expr | None = None
    high: Expr | None = None
    is_sorted: bool = False
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class ScalarDecl:
    """A run-time scalar argument; `type` is int, float or bool. A new value never recompiles.

    `low` and `high` bound it as those of a tensor do.
    """

    name: str
    type: str
    low: Expr | None = None
    high: Expr | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Reduction:
    """How scores become weights.

    softmax     w = exp(s) / (sum exp(s) + exp(sink))
    sigmoid, relu, silu, gelu, none     w = f(s), not normalised; a masked key has weight 0
    `sink` is a float expression of b, h, q_idx (softmax only); `weight_scale` a float expression of sizes, scalars, b, h
    and q_idx that multiplies the output row (unnormalised kinds only), for example 1 / seq_kv.
    """

    kind: str = "softmax"
    sink: Expr | None = None
    weight_scale: Expr | None = None


@dataclass(frozen=True)
class TargetHint:
    """`target` statement: a target name or None, and hints that override what the passes would choose."""

    name: str | None = None
    tile_m: int | None = None
    tile_n: int | None = None
    stages: int | None = None
    warp_groups: int | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Attention:
    """One attention variant with its compile-time parameters filled in."""

    name: str
    heads_q: int
    heads_kv: int
    dim_qk: int
    dim_v: int
    dtype: str
    score: Expr
    mask: Expr = TRUE
    reduction: Reduction = Reduction()
    tensors: tuple[TensorDecl, ...] = ()
    scalars: tuple[ScalarDecl, ...] = ()
    target: TargetHint = TargetHint()
    spans: tuple[tuple[str, Span], ...] = field(default=(), compare=False, repr=False)
    packed: bool = False

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads_q // self.heads_kv

    def tensor(self, name: str) -> TensorDecl:
        return next(t for t in self.tensors if t.name == name)

    def span(self, what: str) -> Span | None:
        """Where `what` ("dim", "mask", "score", ...) was written, for diagnostics; None when unknown."""
        return dict(self.spans).get(what)
