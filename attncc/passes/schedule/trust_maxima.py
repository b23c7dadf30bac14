"""Lets rows keep their maximum without looking whether it still is one, and repairs the few tiles where that went wrong.

    before  for t ... "full tiles" { ...; mma_wait 1; release K; score S; softmax_step S; mma_wait 0; release V; rescale O; convert P }
    after   for t ... "full tiles" { ...; mma_wait 1; score S; softmax_step S, sums=tile_sum, keeps; mma_wait 0; release V; convert P
                                     repair sums=tile_sum, limit=2**30 { mma S; score S; softmax_step S, sums=tile_sum; rescale O; convert P }
                                     add row_sum, tile_sum; release K }

Softmax does not need the maximum of a row, only a number near it: weights 2**(x - m) have the relative precision of their type for any m, as
long as they, their sum and their products with values stay finite. The first tile with a key gives such a number. So a loop of full
tiles takes no maximum, exchanges nothing between threads, and multiplies neither sums nor O: at head dim 128, tiles of 192 x 80, 223 instructions
an iteration in place of 357. What has to be looked for is a later score so far above m that its weight is too large. The sum of a
thread's weights in the tile tells: it is at most `limit`, or it is infinite or NaN, or the row is to get a new m in any case. Then the warp
computes the tile again, by products of its own from the copies of Q and K, which are kept that long, and does what every tile did
before: maximum, correction, O and the sum multiplied; its new sums go where the old ones were. Rows of scores that grow by dozens from tile to tile take longer. Rows without any key so
far are among those that are computed again.

`limit`: of bf16 weights, which have float32's range, 2**30: with 2**20 keys and values up to 2**70 sums stay finite (bound_scores counts alike). An
fp16 weight must stay below 2**15. A weight below m never was a weight that mattered: m is the score of a key of the row.
The row's largest weight is no longer 1 but rounded to the operands' type, while the sum is of weights before that, as with lazy rescaling:
where one key has nearly all of the weight the output may be a unit in the last place of bf16 beside its value. In all, rows are as exact as the
eager computation's, while with a maximum for every tile they are more exact (docs/performance-log.md).

Asks for: warp_products, a loop without masks, plain softmax. Without this pass every tile takes maxima.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import compute_role, operations, remark, replace_role, rewrite
from attncc.ir.tile import REGISTER, Mask, Score
from attncc.targets import Target

SUMS = "tile_sum"
LIMIT = {"bf16": 2.0**30, "f16": 2.0**15}
"""The largest sum of a thread's weights in a tile that is let pass."""


def trust_maxima(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with loops of full tiles that keep the maxima they find; unchanged for weights that are not softmax's or are bounded."""
    role = compute_role(schedule)
    if not target.has("warp_products"):
        return schedule
    limit = LIMIT[schedule.attention.dtype]
    body = rewrite(role.body, lambda op: (_trusting(op, limit),) if isinstance(op, l3.For) else (op,))
    if body == role.body:
        return schedule
    sums = l3.Buffer(SUMS, REGISTER, role.rows_per_group, 1, "f32")
    schedule = replace_role(dataclasses.replace(schedule, buffers=(*schedule.buffers, sums)), role, body=body)
    return remark(schedule, "trust_maxima", "full tiles keep their rows' maxima, and compute again what goes out of range; |v| may reach 2**70")


def _trusting(loop: l3.For, limit: float) -> l3.For:
    """The loop with a step that keeps its maxima; the loop as it is where it masks or where its step is another."""
    steps = [i for i, op in enumerate(loop.body) if isinstance(op, l3.SoftmaxStep)]
    if len(steps) != 1 or any(isinstance(op, Mask) for op in operations(loop.body)) or not _is_plain(loop.body[steps[0]]):
        return loop
    step = loop.body[steps[0]]
    start, product = next((i, op) for i, op in enumerate(loop.body) if isinstance(op, l3.Mma) and op.dst == step.scores)
    done = next(i for i, op in enumerate(loop.body) if i > start and isinstance(op, l3.MmaWait))
    between = loop.body[done + 1 : steps[0]]
    held = tuple(op for op in between if isinstance(op, l3.Release))
    again = (
        dataclasses.replace(product, asynchronous=False),
        *(op for op in between if isinstance(op, Score)),
        dataclasses.replace(step, slack=0.0, sums=SUMS),
        *(dataclasses.replace(op, seldom=False) for op in loop.body if isinstance(op, l3.Rescale)),
        *(op for op in loop.body if isinstance(op, l3.Convert)),
    )
    body: list = []
    for op in loop.body:
        if op in held or isinstance(op, l3.Rescale):
            continue
        body.append(dataclasses.replace(op, slack=0.0, sums=SUMS, keeps=True) if op is step else op)
        if isinstance(op, l3.Convert):
            body += [l3.Repair(SUMS, limit, again), l3.Add(step.row_sum, SUMS), *held]
    return dataclasses.replace(loop, body=tuple(body))


def _is_plain(step: l3.SoftmaxStep) -> bool:
    return step.maximum is None and step.half == "both" and not step.first
