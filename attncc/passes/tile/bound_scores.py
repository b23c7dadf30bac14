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
"""The least weight may be two to this. bf16 weights have float32's range: a row's sum, and its products with values down to 2**-32,
stay normal float32 numbers. Below 2**-14 an fp16 weight would lose bits."""
LARGEST_EXPONENT = {"bf16": 67.0, "f16": 15.0}
"""The largest weight may be two to this: with 2**20 keys, sums of weights times values up to 2**40 stay finite in float32."""


def bound_scores(program: TileProgram) -> TileProgram:
    """Where the score lies between constants, a constant takes the place of the running maximum.

    Before, softcap(30) after fold_multiplier:
        score dst=S, expr=tanh(qk * 0.0029)
        softmax ..., multiplier=43.3
    After:
        score dst=S, expr=tanh(qk * 0.0029)
        softmax ..., multiplier=43.3, maximum=1.0

    No maximum over the row, no exchange between threads, no correction of the sums, no guard against rows without a key
    (Hopper, head dim 128, softcap: 561 instructions an iteration before, 416 after).

    Safety: weights are 2**e with e from multiplier * (low - maximum) to multiplier * (high - maximum). The maximum is chosen so
    that the least is not below LEAST_EXPONENT, as near to `high` as that allows; if then the largest is above LARGEST_EXPONENT, the
    program stays as it is: a cap above 55 in bf16, above 10 in fp16. Each weight keeps the relative precision of its type,
    sums are float32; values of V beyond 2**(107 - largest exponent) overflow, which 2**40 never does. A target whose
    outputs lie in tensor memory, where another role corrects them, keeps its running maximum.
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
    text = f"scores are bounded: {maximum:g} stands for the running maximum; |v| may reach 2**40"
    return replace(program, segments=segments, remarks=(*program.remarks, Remark("bound_scores", text)))


def _maximum(score: Expr, multiplier: float, program: TileProgram) -> float | None:
    """The constant to subtract, or None."""
    facts = program_facts(program.attention, program.tile_m, program.tile_n)
    box = Intervals(Algebra(facts), dict.fromkeys(VARYING, UNKNOWN))
    low, high = (None if e is None else simplify(e) for e in box.of(score))
    if low is None or high is None or low.op != "const" or high.op != "const":
        return None
    spread = multiplier * (high.value - low.value)
    dtype = program.attention.dtype
    largest = max(0.0, spread + LEAST_EXPONENT[dtype])
    if not largest <= LARGEST_EXPONENT[dtype]:
        return None
    return high.value - largest / multiplier
