"""Lets rows keep an old maximum that is nearly right, so that the output is seldom rescaled.

    before  softmax_step ... slack=0.0    rescale dst=O, factor=correction
    after   softmax_step ... slack=8.0    rescale dst=O, factor=correction, seldom=true

(FlashAttention-4's lazy rescaling.) Weights may reach 2**slack, which float32 sums and 16-bit weights hold without loss, and a
warp whose rows all kept their maximum skips the multiplication of O. The test costs a vote and a branch in each tile: on an
H200 it gains 5 % at head dim 256, where O is 128 registers of a thread, and loses 2 to 5 % at 192 and below. Asks for: async_mma.
Without this pass every tile multiplies O by factors that are mostly 1.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import compute_role, replace_role, rewrite
from attncc.targets import Target

SLACK = 8.0
SHORTEST_DIM = 192
"""Up to this output head dim the multiplication is cheaper than the test whether it is needed."""


def lazy_rescaling(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with slack in its running maxima; unchanged for short output rows and for synchronous products."""
    if not target.has("async_mma") or schedule.attention.dim_v <= SHORTEST_DIM:
        return schedule

    def lazy(op) -> tuple:
        if isinstance(op, l3.SoftmaxStep) and not op.first:
            return (dataclasses.replace(op, slack=SLACK),)
        return (dataclasses.replace(op, seldom=True),) if isinstance(op, l3.Rescale) else (op,)

    role = compute_role(schedule)
    return replace_role(schedule, role, body=rewrite(role.body, lazy))
