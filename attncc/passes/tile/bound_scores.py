"""Scores that cannot grow need no running maximum."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.algebra import Algebra
from attncc.ir.expr import Expr
from attncc.ir.intervals import UNKNOWN, Intervals
from attncc.ir.key_ranges import program_facts
from attncc.ir.simplify import simplify
from attncc.ir.tile import COLUMN_FIRST, COLUMN_STEP, ELEMENT, Remark, Score, Softmax, TileProgram

VARYING = (ELEMENT, "q_idx", "kv_idx", COLUMN_FIRST, COLUMN_STEP, "b", "h", "hkv")
LEAST_EXPONENT = {"bf16": -94.0, "f16": -14.0}
"""A row's largest weight may be two to this. bf16 weights have float32's range: the row's sum, and its products with values down to
2**-32, stay normal float32 numbers. Below 2**-14 an fp16 weight would lose bits."""
LARGEST_EXPONENT = {"bf16": 67.0, "f16": 15.0}
"""The largest weight may be two to this: with 2**20 keys, sums of weights times values up to 2**40 stay finite in float32."""


def bound_scores(program: TileProgram) -> TileProgram:
    """Where the score lies between constants, the maximum of the first tile with a key of the row takes the place of the running one.

    Before, softcap(30) after fold_multiplier:
        score dst=S, expr=tanh(qk * 0.0029)
        softmax ..., multiplier=43.3
    After:
        score dst=S, expr=tanh(qk * 0.0029)
        softmax ..., multiplier=43.3, maximum=-0.55

    In tiles without a mask no maximum over the row, no exchange between threads, no correction of the sums, no guard against rows without a
    key (Hopper, head dim 128, softcap: 561 instructions an iteration before, 421 after).

    Safety: m is the maximum of one tile, at least `maximum` = high - LARGEST_EXPONENT / multiplier. So no weight exceeds
    2**LARGEST_EXPONENT, and a row's largest is not below 2**(multiplier * (low - maximum)), which must reach LEAST_EXPONENT; else
    the program stays as it is: a cap above 55 in bf16, above 10 in fp16. Each weight keeps the relative precision of its type,
    sums are float32, values of V up to 2**40 cannot overflow. Where a row's largest weight is not 1 it is rounded, as a running
    maximum would not let it be (error over eager in 300 draws of 140 queries and 300 keys, in bf16: 1.94 at most with a constant for all rows,
    1.00 with the running maximum). Rows with few keys have them in tiles with a mask; there sums are of rounded weights, and the output of a
    row with one key is its value. With a role of its own for corrections that role then has nothing to do for a key tile.
    """
    scores = {op.expr for s in program.segments for op in s.body if isinstance(op, Score)}
    steps = {(op.multiplier, op.maximum) for s in program.segments for op in s.body if isinstance(op, Softmax)}
    if len(scores) != 1 or len(steps) != 1:
        return program
    ((multiplier, _),) = steps
    maximum = _maximum(next(iter(scores)), multiplier, program)
    if maximum is None:
        return program
    segments = tuple(
        replace(s, body=tuple(replace(op, maximum=maximum) if isinstance(op, Softmax) else op for op in s.body))
        for s in program.segments
    )
    text = "scores are bounded: the maximum of a row's first tile stands for all; |v| may reach 2**40"
    return replace(program, segments=segments, remarks=(*program.remarks, Remark("bound_scores", text)))


def _maximum(score: Expr, multiplier: float, program: TileProgram) -> float | None:
    """The least maximum to subtract, or None."""
    a = program.attention
    numbers = {ELEMENT, *(d.name for d in (*a.tensors, *a.scalars))}  # a score that is NaN has no result to keep
    facts = replace(program_facts(a, program.tile_m, program.tile_n), finite=frozenset(numbers))
    box = Intervals(Algebra(facts), dict.fromkeys(VARYING, UNKNOWN))
    low, high = (None if e is None else simplify(e) for e in box.of(score))
    if low is None or high is None or low.op != "const" or high.op != "const":
        return None
    spread = multiplier * (high.value - low.value)
    dtype = program.attention.dtype
    largest = LARGEST_EXPONENT[dtype]
    return high.value - largest / multiplier if spread - largest <= -LEAST_EXPONENT[dtype] else None
