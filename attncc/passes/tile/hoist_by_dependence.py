"""Each part of the score and the mask is computed as often as it changes."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.dependence import COLUMN, CONSTANT, HEAD, ROW, dependence
from attncc.ir.expr import Expr, rebuild, var
from attncc.ir.instructions import CHEAP_COLUMN, cost
from attncc.ir.tile import ColLet, Let, Mask, Matmul, Op, RowLet, Score, Segment, TileProgram


def hoist_by_dependence(program: TileProgram) -> TileProgram:
    """Largest sub-expressions without the element become Let (one a tile), RowLet (one a row) or ColLet (one a column).

    Before, ALiBi under a causal mask:
        segment ... {
          score dst=S, expr=qk * 0.125 + slope[h] * to_float(kv_idx - q_idx)
          mask dst=S, expr=kv_idx <= min(q_idx + off, seq_kv - 1)
        }
    After:
        prologue {
          let name=tile_0, expr=slope[h]
          row_let name=row_0, expr=min(q_idx + off, seq_kv - 1)
        }
        segment ... {
          score dst=S, expr=qk * 0.125 + tile_0 * to_float(kv_idx - q_idx)
          mask dst=S, expr=kv_idx <= row_0
        }

    A column value costs a register for each column of the tile, so cheap arithmetic on kv_idx stays where it is.
    """
    hoist = _Hoist(program)
    segments = tuple(hoist.segment(s) for s in program.segments)
    lets = [op for op in hoist.prologue if isinstance(op, Let)]
    rows = [op for op in hoist.prologue if isinstance(op, RowLet)]
    return replace(program, prologue=program.prologue + (*lets, *rows), segments=segments)


class _Hoist:
    """Names given so far; an expression gets one name for the whole program, a column value one for each segment."""

    def __init__(self, program: TileProgram):
        declared = (*program.attention.tensors, *program.attention.scalars, *program.values)
        self.taken = {x.name for x in (*declared, *(op for op in program.prologue if hasattr(op, "name")))}
        self.bound = {op.name: dependence(op.expr) for op in program.prologue if isinstance(op, (Let, RowLet))}
        self.names: dict[Expr, Expr] = {}
        self.prologue: list[Op] = []
        self.columns: list[ColLet] = []

    def segment(self, segment: Segment) -> Segment:
        self.columns = []
        body = [self.op(op) for op in segment.body]
        columns = self.columns
        # after the product that makes the scores, so that it overlaps with the computation of the column values
        at = next((i + 1 for i, op in enumerate(body) if isinstance(op, Matmul) and op.transposed), 0)
        return replace(segment, body=(*body[:at], *columns, *body[at:]))

    def op(self, op: Op) -> Op:
        return replace(op, expr=self.rewrite(op.expr)) if isinstance(op, (Score, Mask)) else op

    def rewrite(self, expr: Expr) -> Expr:
        kind = dependence(expr, self.bound)
        if kind in (CONSTANT, HEAD, ROW, COLUMN):
            inner = self.inside(expr) if kind == COLUMN else expr
            return self.name(inner, kind) if self.worth(inner, kind) else inner
        return rebuild(expr, tuple(self.rewrite(a) for a in expr.args)) if expr.args else expr

    def worth(self, expr: Expr, kind: str) -> bool:
        if kind == COLUMN:
            return cost(expr) > CHEAP_COLUMN
        if kind == ROW and expr.op in ("add", "sub"):
            # the row number plus a literal is a literal away from the row number
            return not (expr.args[0].op == "var" and expr.args[1].op == "const")
        return bool(expr.args) or expr.op == "load"

    def name(self, expr: Expr, kind: str) -> Expr:
        if kind == COLUMN:
            known = next((c for c in self.columns if c.expr is expr), None)
            if known is None:
                known = ColLet(self.fresh("col"), expr)
                self.columns.append(known)
            return var(known.name, expr.type)
        if expr not in self.names:
            make, prefix = (RowLet, "row") if kind == ROW else (Let, "tile")
            inner = self.inside(expr) if kind == ROW else expr
            op = make(self.fresh(prefix), inner)
            self.prologue.append(op)
            self.names[expr] = var(op.name, expr.type)
            self.bound[op.name] = kind
        return self.names[expr]

    def inside(self, expr: Expr) -> Expr:
        """A row or column value with its own tile constants taken out."""
        if not expr.args:
            return expr
        parts = []
        for a in expr.args:
            kind = dependence(a, self.bound)
            out = kind in (CONSTANT, HEAD) and self.worth(a, kind)
            parts.append(self.name(a, kind) if out else self.inside(a) if kind in (ROW, COLUMN) else a)
        return rebuild(expr, tuple(parts))

    def fresh(self, prefix: str) -> str:
        number = next(i for i in range(len(self.taken) + 1) if f"{prefix}_{i}" not in self.taken)
        self.taken.add(f"{prefix}_{number}")
        return f"{prefix}_{number}"
