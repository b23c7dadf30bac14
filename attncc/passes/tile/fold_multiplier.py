"""A constant factor of the score moves into the exponent."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.expr import Expr, var
from attncc.ir.tile import ELEMENT, Finalize, Score, Segment, Softmax, TileProgram, Weights


def fold_multiplier(program: TileProgram) -> TileProgram:
    """score = c * g(qk) with a constant c > 0 becomes g(qk), and the multiplier c times larger: one multiplication
    less.

    Before, `score softcap(50)` with scale 1/16:
        score dst=S, expr=tanh(qk * 0.00125) * 50.0
        softmax ..., multiplier=1.4426950408889634
    After:
        score dst=S, expr=tanh(qk * 0.00125)
        softmax ..., multiplier=72.13475204444818
    A plain scaled score leaves no score operation at all. The exponent's own multiplication is there anyway.
    """
    scores = {op.expr for s in program.segments for op in s.body if isinstance(op, Score)}
    if len(scores) != 1:
        return program
    rest, factor = _split(next(iter(scores)))
    if factor == 1.0 and rest is not _ELEMENT:
        return program
    segments = tuple(replace(s, body=_body(s, rest, factor)) for s in program.segments)
    epilogue = tuple(
        replace(op, multiplier=op.multiplier * factor) if isinstance(op, Finalize) else op for op in program.epilogue
    )
    return replace(program, segments=segments, epilogue=epilogue)


_ELEMENT = var(ELEMENT, "float")


def _split(expr: Expr) -> tuple[Expr, float]:
    """(g, c) with expr = c * g and the largest constant c > 0 that stands outside."""
    factor = 1.0
    while expr.op in ("mul", "div"):
        a, b = expr.args if expr.args[1].op == "const" or expr.op == "div" else expr.args[::-1]
        if b.op != "const" or not 0.0 < b.value < float("inf"):
            break
        factor = factor * b.value if expr.op == "mul" else factor / b.value
        expr = a
    return expr, factor


def _body(segment: Segment, rest: Expr, factor: float) -> tuple:
    out = []
    for op in segment.body:
        if isinstance(op, Score):
            if rest is not _ELEMENT:
                out.append(Score(op.dst, rest))
        elif isinstance(op, (Softmax, Weights)):
            out.append(replace(op, multiplier=op.multiplier * factor))
        else:
            out.append(op)
    return tuple(out)
