"""The rules of L2, checked after every pass on it."""

from __future__ import annotations

from attncc.ir.attention import SIZE_VARIABLES
from attncc.ir.check_expr import IllegalProgram, expression_problems
from attncc.ir.expr import BOOL, FLOAT, INT, Expr, variables, walk
from attncc.ir.tile import (
    COLUMN_FIRST, COLUMN_STEP, ELEMENT, FULL, PARTIAL, REGISTER, SHARED, SPACES, TILE_COUNT, TILE_LIST, ColLet, Finalize, Let, Load, Mask, Matmul, Op, RowLet,
    Score, Softmax,
    Store, TileProgram, TileSummary, Weights, extent_name,
)  # fmt: skip

_COLUMN = {"kv_idx": INT, COLUMN_FIRST: INT, COLUMN_STEP: INT}
_ARGUMENTS = {"q": "dim_qk", "k": "dim_qk", "v": "dim_v"}


def check_tile(program: TileProgram) -> None:
    """Raises IllegalProgram when an L2 program breaks a rule of its level.

    Names are bound before they are used; a RowLet does not depend on kv_idx, a ColLet not on q_idx, a Let on neither; a
    full segment has no mask; shapes of operands fit; every name of a memory space, value or argument exists.
    """
    problems = tuple(_Checker(program).problems())
    if problems:
        raise IllegalProgram(f"L2 {program.attention.name}", *problems)


class _Checker:
    def __init__(self, program: TileProgram):
        self.program, self.attention = program, program.attention
        self.values = {v.name: v for v in program.values}

    def problems(self):
        p = self.program
        if min(p.tile_m, p.tile_n) < 1:
            yield "tile sizes are positive"
        if len(self.values) != len(p.values):
            yield "two values have one name"
        yield from (f"value {v.name} lies in unknown space {v.space}" for v in p.values if v.space not in SPACES)
        names = self.tile_names()
        yield from self.block(p.prologue, names, prologue=True)
        for i, segment in enumerate(p.segments):
            yield from self.segment(f"segment {i}", segment, dict(names))
        yield from self.block(p.epilogue, dict(names), prologue=True)
        yield from self.table()

    def tile_names(self) -> dict[str, str]:
        """Names known to the whole tile; q_idx is a name of row expressions only."""
        known = {n: INT for n in (*SIZE_VARIABLES, "b", "h", "hkv", "q_tile", "q_tiles", "kv_tiles")}
        known |= {s.name: s.type for s in self.attention.scalars}
        return known | {extent_name(t.name, i): INT for t in self.attention.tensors for i in range(len(t.shape))}

    def segment(self, what: str, segment, names: dict[str, str]):
        if segment.kind not in (FULL, PARTIAL):
            yield f"{what} has unknown kind {segment.kind}"
        if segment.kind == FULL and any(isinstance(op, Mask) for op in segment.body):
            yield f"{what} is full and has a mask"
        yield from self.expr(f"{what} count", segment.count, INT, names)
        yield from self.expr(f"{what} tile", segment.tile, INT, {**names, "t": INT})
        yield from self.block(segment.body, {**names, "t": INT, "kv_tile": INT}, prologue=False)

    def block(self, ops: tuple[Op, ...], names: dict[str, str], prologue: bool):
        """Checks operations in order; `names` grows with what they bind."""
        for op in ops:
            what = type(op).__name__
            yield from (f"{what}: no value {v}" for v in _operands(op) if v not in self.values)
            if isinstance(op, (Let, RowLet, ColLet)):
                yield from self.let(op, names, prologue)
                names[op.name] = op.expr.type
            elif isinstance(op, (Score, Mask)):
                known = {**names, **_COLUMN, "q_idx": INT, ELEMENT: FLOAT}
                yield from self.expr(what, op.expr, FLOAT if isinstance(op, Score) else BOOL, known)
            elif isinstance(op, Load):
                yield from self.load(op, names)
            elif isinstance(op, Matmul):
                yield from self.matmul(op)
            elif isinstance(op, (Softmax, Weights)) and not op.multiplier > 0:
                yield f"{what}: the multiplier is positive, found {op.multiplier}"
            elif isinstance(op, Finalize):
                rows = {**names, "q_idx": INT}
                for expr in (op.sink, op.weight_scale, op.shift):
                    if expr is not None:
                        yield from self.expr(what, expr, FLOAT, rows)
            elif isinstance(op, Store) and op.tensor not in ("o", "lse"):
                yield f"Store: unknown argument {op.tensor}"

    def let(self, op, names: dict[str, str], prologue: bool):
        what = f"{type(op).__name__} {op.name}"
        if op.name in names or op.name in self.values or any(t.name == op.name for t in self.attention.tensors):
            yield f"{what}: the name is taken"
        axis = {RowLet: {"q_idx": INT}, ColLet: _COLUMN, Let: {}}[type(op)]
        if isinstance(op, ColLet) and prologue:
            yield f"{what}: column values belong to the body of a segment"
        if isinstance(op, ColLet) and op.space not in (REGISTER, SHARED):
            yield f"{what}: a column's numbers lie in registers or in shared memory, found {op.space}"
        yield from self.expr(what, op.expr, op.expr.type, {**names, **axis})

    def load(self, op: Load, names: dict[str, str]):
        yield from self.expr("Load", op.tile, INT, names)
        if op.tensor not in _ARGUMENTS:
            yield f"Load: unknown argument {op.tensor}"
            return
        value = self.values.get(op.dst)
        rows = self.program.tile_m if op.tensor == "q" else self.program.tile_n
        if value and (value.rows != rows or value.cols < getattr(self.attention, _ARGUMENTS[op.tensor])):
            yield f"Load: {op.dst} is {value.rows} x {value.cols}, too small for a tile of {op.tensor}"

    def matmul(self, op: Matmul):
        if not all(v in self.values for v in (op.dst, op.a, op.b)):
            return
        dst, a, b = (self.values[v] for v in (op.dst, op.a, op.b))
        inner, cols = (b.cols, b.rows) if op.transposed else (b.rows, b.cols)
        if (a.rows, a.cols, cols) != (dst.rows, inner, dst.cols):
            yield f"Matmul: {dst.rows} x {dst.cols} := {a.rows} x {a.cols} . {inner} x {cols} does not fit"

    def table(self):
        table = self.program.table
        reads = any(
            n.op == "load" and n.value in (TILE_COUNT, TILE_LIST) for s in self.program.segments for n in walk(s.count)
        )
        if table is None:
            if reads:
                yield "a segment reads tile lists, but there is no table"
            return
        sizes = self.tile_names()
        for summary in table.summaries:
            yield from self.summary(summary, sizes)
        known = {**sizes, "kv_tile": INT}
        known |= {f"{s.name}_{end}": s.expr.type for s in table.summaries for end in ("lo", "hi")}
        yield from self.expr("table may", table.may, BOOL, known)
        yield from self.expr("table must", table.must, BOOL, known)
        used = variables(table.may) | variables(table.must)
        if "b" in used and not table.by_batch or used & {"h", "hkv"} and not table.by_head:
            yield "the table depends on more than its lists have room for"

    def summary(self, summary: TileSummary, sizes: dict[str, str]):
        axes = {"q": "q_idx", "kv": "kv_idx"}
        if summary.axis not in axes:
            yield f"summary {summary.name} has unknown axis {summary.axis}"
            return
        names = {n: t for n, t in sizes.items() if n != "q_tile"} | {axes[summary.axis]: INT}
        yield from self.expr(f"summary {summary.name}", summary.expr, summary.expr.type, names)

    def expr(self, what: str, expr: Expr, type: str, names: dict[str, str]):
        return expression_problems(what, expr, type, names, self.attention, lists=(TILE_COUNT, TILE_LIST))


def _operands(op: Op) -> tuple[str, ...]:
    fields = ("dst", "a", "b", "scores", "weights", "accumulator", "src")
    return tuple(getattr(op, f) for f in fields if isinstance(getattr(op, f, None), str))
