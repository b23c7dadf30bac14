"""Lets warps whose rows keep their maximum skip the rescaling of O in loops of partial tiles.

    before  for t ... "partial tiles" { ... rescale dst=O, factor=correction ... }
    after   for t ... "partial tiles" { ... rescale dst=O, factor=correction, seldom=true ... }

The branch ends the stretch in which O, S and the mask's numbers are alive together: with synchronous products, whose
registers are all of one thread, it keeps the long accumulators of partial tiles from spilling. Loops of full tiles stay
straight. Without this pass every tile multiplies O by factors that are mostly 1.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import compute_role, operations, replace_role, rewrite
from attncc.ir.tile import Mask
from attncc.targets import Target


def skip_rescaling(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with `seldom` rescaling in the loops that mask; unchanged for asynchronous products."""
    if target.has("async_mma"):
        return schedule
    role = compute_role(schedule)

    def loop(op):
        if isinstance(op, l3.For) and any(isinstance(o, Mask) for o in operations(op.body)):
            return (dataclasses.replace(op, body=rewrite(op.body, _seldom)),)
        return (op,)

    return replace_role(schedule, role, body=rewrite(role.body, loop))


def _seldom(op) -> tuple:
    return (dataclasses.replace(op, seldom=True),) if isinstance(op, l3.Rescale) else (op,)
