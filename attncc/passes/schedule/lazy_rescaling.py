"""Lets rows keep an old maximum that is nearly right, so that the output is seldom rescaled.

    before  softmax_step ... slack=0.0    rescale dst=O, factor=correction
    after   softmax_step ... slack=8.0    rescale dst=O, factor=correction, seldom=true

(FlashAttention-4's lazy rescaling.) Weights may reach 2**slack, which float32 sums and 16-bit weights hold without loss, and a
warp whose rows all kept their maximum skips the multiplication of O. The test costs a vote and a branch in each tile. Whether it pays
is measured for each shape of the loop (`Target.manners`): it gains 7 to 10 % at head dim 256, where O is 128 registers of a thread, and 4 to 7 %
at 128 with three groups, and loses 4 to 6 % at 192 and 128. Elsewhere long output rows are lazy. Asks for: async_mma.
Without this pass every tile multiplies O by factors that are mostly 1.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import compute_role, replace_role, rewrite
from attncc.targets import Target

SLACK = 8.0
SHORTEST_DIM = 192
"""Where nothing was measured: up to this output head dim the multiplication is cheaper than the test whether it is needed."""


def lazy_rescaling(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with slack in its running maxima; unchanged for short output rows and for synchronous products."""
    role = compute_role(schedule)
    known = target.manner(schedule.attention.dim_qk, schedule.attention.dim_v, role.groups)
    if not target.has("async_mma") or not (known.lazy if known else schedule.attention.dim_v > SHORTEST_DIM):
        return schedule

    def lazy(op) -> tuple:
        if isinstance(op, l3.SoftmaxStep) and not op.first:
            return (dataclasses.replace(op, slack=SLACK),)
        return (dataclasses.replace(op, seldom=True),) if isinstance(op, l3.Rescale) else (op,)

    return replace_role(schedule, role, body=rewrite(role.body, lazy))
