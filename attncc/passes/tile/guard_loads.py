"""Every tensor index is brought into range, unless it is known to be."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attncc.ir.algebra import Algebra, Facts
from attncc.ir.expr import ONE, ZERO, Expr, add, apply, const, load, sub, transform, var
from attncc.ir.key_ranges import program_facts
from attncc.ir.packing import fixed_extents
from attncc.ir.tile import (
    FULL,
    TILE_COUNT,
    TILE_LIST,
    ColLet,
    Finalize,
    Let,
    Mask,
    Op,
    RowLet,
    Score,
    TileProgram,
    extent_name,
)  # fmt: skip


def guard_loads(program: TileProgram) -> TileProgram:
    """An index becomes min(max(index, 0), extent - 1), without what is known not to be needed.

    Before:   mask expr=doc[b, q_idx] == doc[b, kv_idx]
    After:    mask expr=doc[b, min(q_idx, seq_q - 1)] == doc[b, min(kv_idx, seq_kv - 1)]

    Rows past seq_q and keys past seq_kv exist in a tile, and a masked position may have any index
    (`table[kv_idx - q_idx]` under a causal mask). Kernels evaluate all operands of `and`, `or` and conditionals, so no
    condition protects a load. At a position that counts an index out of range is the caller's error; the interpreter
    of L1 reports it.
    """
    anywhere = _Guard(program, _facts(program))
    inside = _Guard(program, _facts(program, equal={"seq_kv": _past("kv_idx")}))
    rows = _Guard(program, _facts(program, equal={"seq_q": _past("q_idx"), "seq_kv": _past("kv_idx")}))
    table = program.table
    if table is not None:
        tiles = _Guard(program, _facts(program, equal={}))
        summaries = tuple(replace(s, expr=rows(s.expr)) for s in table.summaries)
        table = replace(table, may=tiles(table.may), must=tiles(table.must), summaries=summaries)
    return replace(
        program,
        prologue=tuple(_guarded(op, anywhere) for op in program.prologue),
        segments=tuple(
            replace(
                s,
                count=anywhere(s.count),
                tile=anywhere(s.tile),
                body=tuple(_guarded(op, inside if s.kind == FULL else anywhere) for op in s.body),
            )
            for s in program.segments
        ),
        epilogue=tuple(_guarded(op, anywhere) for op in program.epilogue),
        table=table,
    )


def _past(index: str) -> Expr:
    """A length of which `index` is a position."""
    return add(add(var(index), ONE), var(f"__after_{index}"))


def _facts(program: TileProgram, equal: dict[str, Expr] | None = None) -> Facts:
    """In a tile a query row may lie past seq_q, so what is known of seq_q is that it is at least 1."""
    base = program_facts(program.attention, program.tile_m, program.tile_n)
    more = {f"__after_{name}": (0, None) for name in ("b", "q_idx", "kv_idx")}
    known = {"batch": _past("b"), **(equal or {})}
    return Facts({**base.ranges, **more}, base.tensors, known)


@dataclass
class _Guard:
    """Rewrites the loads of an expression under one set of facts."""

    program: TileProgram
    facts: Facts

    def __post_init__(self):
        self.algebra = Algebra(self.facts)

    def __call__(self, expr: Expr) -> Expr:
        return transform(expr, self.load)

    def load(self, node: Expr) -> Expr:
        if node.op != "load" or node.value in (TILE_COUNT, TILE_LIST):
            return node
        shape = fixed_extents(self.program.attention, node.value)
        indices = tuple(self.index(node.value, axis, i, shape[axis]) for axis, i in enumerate(node.args))
        return load(node.value, indices, node.type)

    def index(self, tensor: str, axis: int, index: Expr, extent: Expr | None) -> Expr:
        extent = var(extent_name(tensor, axis)) if extent is None else extent
        last = const(extent.value - 1) if extent.op == "const" else sub(extent, ONE)
        low, high = self.promised(index)
        if not self.algebra.proves_le(ZERO, low):
            index = apply("max", index, ZERO)
        if not self.algebra.proves_le(high, last):
            index = apply("min", index, last)
        return index

    def promised(self, index: Expr) -> tuple[Expr, Expr]:
        """Bounds of an index; an element of a tensor has those of its declaration."""
        if index.op != "load":
            return index, index
        declared = self.program.attention.tensor(index.value)
        high = None if declared.high is None else self.algebra.shift(declared.high, -1)
        return (index if declared.low is None else declared.low), (index if high is None else high)


def _guarded(op: Op, guard: _Guard) -> Op:
    if isinstance(op, (Let, RowLet, ColLet, Score, Mask)):
        return replace(op, expr=guard(op.expr))
    if isinstance(op, Finalize):
        parts = {name: getattr(op, name) for name in ("sink", "weight_scale", "shift")}
        return replace(op, **{name: guard(expr) for name, expr in parts.items() if expr is not None})
    return op
