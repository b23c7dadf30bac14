"""What is added to a whole row of scores leaves the score: softmax does not see it."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.algebra import linear, to_expr
from attncc.ir.dependence import CONSTANT, HEAD, ROW, dependence
from attncc.ir.expr import Expr, add, apply, const, mul, select, sub, substitute, tensors, var, variables
from attncc.ir.tile import ELEMENT, Finalize, Mask, Score, TileProgram
from attncc.passes.tile.segments import Names

_ZERO = const(0.0)
LARGEST_FLOAT = 3.0e38
"""A reference row's number beyond this (infinite or not a number) is no reference: 0 stands in for it."""


def cancel_row_terms(program: TileProgram) -> TileProgram:
    """score = e + r(q_idx) becomes e + r(first row of the tile); the rest of r enters the log-sum-exp, once a row.

    Before, ALiBi and a forgetting gate, tile_m = 128:
        score expr=qk * 0.125 + slope[h] * to_float(kv_idx - q_idx - off)
        finalize ...
        score expr=qk * 0.125 + (c[b, h, q_idx + off] - c[b, h, kv_idx])
        finalize ...
    After:
        score expr=qk * 0.125 + slope[h] * to_float(kv_idx - q_tile * 128 - off)
        finalize ..., shift=slope[h] * to_float(q_tile * 128 - q_idx)
        score expr=qk * 0.125 + (ref_0 - c[b, h, kv_idx])
        finalize ..., shift=c[b, h, q_idx + off] - c[b, h, q_tile * 128 + off]      (ref_0 = the latter)

    What is left of the bias is the same for all rows of a column: it is computed once for two rows of a thread (Hopper, head dim
    128, 128 x 128 tile, ALiBi: 643 instructions an iteration before, 611 after; 534 with column_steps). With nothing that varies
    along the row beside it, r goes away as a whole.

    Accuracy: scores are rounded in float32 as before, relative to row 0 of the tile instead of their own. The error of an
    exponent grows by at most 2**-24 * max |r(row) - r(row 0)| over the tile, however long the sequence is.

    Softmax only: unnormalised weights do see r. A row of r = -inf keeps no key. A mask that reads scores stops the pass.
    """
    ops = tuple(op for s in program.segments for op in s.body)
    scores = {op.expr for op in ops if isinstance(op, Score)}
    softmax = any(isinstance(op, Finalize) and op.kind == "softmax" for op in program.epilogue)
    reads = any(isinstance(op, Mask) and ELEMENT in variables(op.expr) for op in ops)
    if len(scores) != 1 or not softmax or reads:
        return program
    score = next(iter(scores))
    split = _Split(program, referred="kv_idx" in variables(score))
    rest, shift = split.of(score)
    if shift is None:
        return program
    rest = gathered(rest)
    segments = tuple(
        replace(s, body=tuple(Score(op.dst, rest) if isinstance(op, Score) else op for op in s.body)) for s in program.segments
    )
    epilogue = tuple(replace(op, shift=shift) if isinstance(op, Finalize) else op for op in program.epilogue)
    return split.names.finish(replace(program, segments=segments, epilogue=epilogue))


def gathered(expr: Expr) -> Expr:
    """A sum with what depends on the element first, and then, as one operand, what does not."""
    element: Expr | None = None
    others: Expr | None = None
    for term, sign in _signed(expr, 1):
        if ELEMENT in variables(term) or "q_idx" in variables(term):
            element = _joined(element, term, sign)
        else:
            others = _joined(others, term, sign)
    return element if others is None else others if element is None else add(element, others)


def _joined(total: Expr | None, term: Expr, sign: int) -> Expr:
    if total is None:
        return term if sign > 0 else apply("neg", term)
    return apply("add" if sign > 0 else "sub", total, term)


def _signed(expr: Expr, sign: int) -> list[tuple[Expr, int]]:
    if expr.op == "neg":
        return _signed(expr.args[0], -sign)
    if expr.op in ("add", "sub"):
        return _signed(expr.args[0], sign) + _signed(expr.args[1], sign if expr.op == "add" else -sign)
    return [(expr, sign)]


class _Split:
    """Divides an expression into what stays in the score and what each row gets back; None for nothing."""

    def __init__(self, program: TileProgram, referred: bool):
        self.first = mul(var("q_tile"), program.tile_m)
        self.referred = referred
        self.names = Names(program, "ref")

    def of(self, e: Expr) -> tuple[Expr, Expr | None]:
        kind = dependence(e)
        if kind == ROW or kind in (CONSTANT, HEAD) and not self.referred and e is not _ZERO:
            return self.row(e)
        if "q_idx" not in variables(e):
            return e, None
        if e.op == "to_float":
            return self.of_integers(e)
        if e.op in ("add", "sub"):
            return self.of_sum(e)
        if e.op == "neg":
            rest, row = self.of(e.args[0])
            return apply("neg", rest), None if row is None else apply("neg", row)
        if e.op in ("mul", "div"):
            return self.of_multiple(e)
        return e, None

    def row(self, e: Expr) -> tuple[Expr, Expr]:
        if not self.referred:
            return _ZERO, e
        if e.op == "to_float":
            return self.of_integers(e)
        at_first = substitute(e, {"q_idx": self.first})
        if tensors(e):
            at_first = select(apply("le", apply("abs", at_first), LARGEST_FLOAT), at_first, const(0.0))
        return self.names.of(at_first), sub(e, at_first)

    def of_integers(self, e: Expr) -> tuple[Expr, Expr | None]:
        """to_float of a sum whose terms depend on the row or on the column, none on both."""
        form = linear(e.args[0])
        rows = [(t, k) for t, k in form.terms if "q_idx" in variables(t)]
        if any(dependence(t) != ROW for t, _ in rows):
            return e, None
        own = to_expr(replace(form, terms=tuple(rows), constant=0))
        at_first = substitute(own, {"q_idx": self.first})
        rest = linear(at_first).plus(form).plus(linear(own), -1)
        return apply("to_float", to_expr(rest)), apply("to_float", to_expr(linear(own).plus(linear(at_first), -1)))

    def of_sum(self, e: Expr) -> tuple[Expr, Expr | None]:
        (a, row_a), (b, row_b) = (self.of(x) for x in e.args)
        if row_a is None or row_b is None:
            row = row_a if row_b is None else row_b if e.op == "add" else apply("neg", row_b)
        else:
            row = apply(e.op, row_a, row_b)
        return _sum(e.op, a, b), row

    def of_multiple(self, e: Expr) -> tuple[Expr, Expr | None]:
        """A product with a number that is the same for the whole tile, or a quotient by one."""
        a, b = e.args
        if e.op == "mul" and dependence(b) not in (CONSTANT, HEAD):
            a, b = b, a
        if dependence(b) not in (CONSTANT, HEAD):
            return e, None
        rest, row = self.of(a)
        return (e, None) if row is None else (apply(e.op, rest, b), apply(e.op, row, b))


def _sum(op: str, a: Expr, b: Expr) -> Expr:
    """a + b or a - b without a zero that a whole row left behind."""
    if b is _ZERO:
        return a
    if a is _ZERO:
        return b if op == "add" else apply("neg", b)
    return apply(op, a, b)


__all__ = ["cancel_row_terms", "gathered"]
