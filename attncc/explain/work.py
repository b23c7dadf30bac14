"""How much an attention does: tiles by class, flops, bytes moved, and the least bytes that any kernel must move."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.formats import bytes_of
from attncc.interp.data import make_inputs
from attncc.interp.tile_classes import EMPTY, FULL, PARTIAL, tile_classes
from attncc.ir import tile as l2
from attncc.ir.attention import Attention
from attncc.ir.expr import Expr, tensors, walk
from attncc.targets import Target

LIMIT_NAMES = {"tensor": "the matrix units", "mufu": "the exponential unit", "dram": "the memory's bandwidth"}


@dataclass(frozen=True)
class Shape:
    """The sizes of a call."""

    batch: int
    seq_q: int
    seq_kv: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """`2x4096x4096`, or `2x4096` for equal lengths. ValueError for anything else."""
        parts = [int(p) for p in text.lower().split("x")]
        if len(parts) not in (2, 3) or any(p < 0 for p in parts) or max(parts) >= 2**31:
            raise ValueError(text)
        return cls(parts[0], parts[1], parts[-1])

    def __str__(self) -> str:
        return f"{self.batch}x{self.seq_q}x{self.seq_kv}"


@dataclass(frozen=True)
class Work:
    """Counts for one call.

    empty, partial, full    key tiles skipped, run with the mask, run without
    kept                    query-key pairs in tiles that are run; `kept_cells` of them are not masked (None when not counted)
    flops                   of both products over the tiles that are run, a multiplication and an addition counted as two
    exponentials            scores that go through the reduction
    moved                   bytes loaded and stored by the main kernel, every visited key tile counted
    least                   bytes of q, k, v, out, lse and the tensors once: no kernel moves less
    """

    empty: int
    partial: int
    full: int
    pairs: int
    flops: int
    exponentials: int
    moved: int
    least: int

    @property
    def tiles(self) -> int:
        return self.empty + self.partial + self.full


def work(program: l2.TileProgram, shape: Shape, inputs: dict | None = None) -> Work:
    """Counts the work of `program` on `shape`; `inputs` are its tensors and scalars (default: generated ones)."""
    a = program.attention
    if inputs is None:
        inputs = example_inputs(a, shape)
    classes = tile_classes(program, shape.batch, shape.seq_q, shape.seq_kv, inputs)
    count = {c: int((classes == c).sum()) for c in (EMPTY, PARTIAL, FULL)}
    visited = count[PARTIAL] + count[FULL]
    cells = visited * program.tile_m * program.tile_n
    size = bytes_of(a.dtype)
    operands = size * shape.batch * (
        shape.seq_q * a.heads_q * (a.dim_qk + a.dim_v) + shape.seq_kv * a.heads_kv * (a.dim_qk + a.dim_v)
    )  # fmt: skip
    lse = 4 * shape.batch * a.heads_q * shape.seq_q
    extra = sum(bytes_of(t.dtype) * inputs[t.name].numel() for t in a.tensors)
    q_side = size * shape.batch * shape.seq_q * a.heads_q * (a.dim_qk + a.dim_v) + lse
    return Work(
        empty=count[EMPTY],
        partial=count[PARTIAL],
        full=count[FULL],
        pairs=cells,
        flops=2 * cells * (a.dim_qk + a.dim_v),
        exponentials=cells * (1 + special_functions(a.score)),
        moved=q_side + visited * program.tile_n * size * (a.dim_qk + a.dim_v) + element_loads(program, count),
        least=operands + lse + extra,
    )


def example_inputs(a: Attention, shape: Shape) -> dict:
    """Generated tensors and scalars for `shape`, without the cost of q, k and v."""
    import dataclasses

    small = dataclasses.replace(a, heads_q=1, heads_kv=1, dim_qk=1, dim_v=1) if not a.tensors and not a.scalars else a
    return make_inputs(small, shape.batch, shape.seq_q, shape.seq_kv)[3]


def special_functions(expr: Expr) -> int:
    """Operations of `expr` that the special-function unit computes once for every score."""
    costly = {"exp", "exp2", "log", "log2", "sqrt", "tanh", "sigmoid", "erf", "sin", "cos", "pow"}
    return sum(1 for n in walk(expr) if n.op in costly and "kv_idx" in _leaves(n))


def _leaves(expr: Expr) -> set[str]:
    return {n.value for n in walk(expr) if n.op == "var"} | (
        {"kv_idx"} if any(n.value == "qk" for n in walk(expr)) else set()
    )


def element_loads(program: l2.TileProgram, count: dict[int, int]) -> int:
    """Bytes of user tensors read for single elements of the score tiles."""
    kinds = {l2.PARTIAL: PARTIAL, l2.FULL: FULL}
    total = 0
    for kind, number in kinds.items():
        body = next((s.body for s in program.segments if s.kind == kind), ())
        names = [t for op in body if isinstance(op, (l2.Score, l2.Mask)) for t in tensors(op.expr)]
        total += (
            count[number]
            * program.tile_m
            * program.tile_n
            * sum(bytes_of(program.attention.tensor(t).dtype) for t in names)
        )
    return total


def limits(done: Work, target: Target) -> dict[str, float]:
    """Seconds that each unit of the target needs for the work, if it did nothing else."""
    r = target.rates
    chip = r.sms * r.clock_ghz * 1e9
    return {
        "tensor": done.flops / (chip * r.tensor_flops * r.tensor_share),
        "mufu": done.exponentials / (chip * r.mufu),
        "dram": done.least / (r.dram_gbps * 1e9),
    }


def share(part: int, whole: int) -> str:
    """`37.5 %`, or a dash when there is nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def scaled(value: float, unit: str) -> str:
    """A number with a decimal prefix: 1.5e9, "B" -> `1.50 GB`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f} {prefix}{unit}"
    return f"{value:.0f} {unit}"
