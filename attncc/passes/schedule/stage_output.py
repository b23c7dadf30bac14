"""Sends the output tile through shared memory, in the place of Q, so that it leaves in whole rows.

    before  finalize O; store src=O, tensor=o
    after   buffer name=OUT, space=shared, alias=Q;  barrier name=rows, copies=groups
            finalize O; convert dst=OUT, src=O; sync barrier=rows; store src=OUT, tensor=o, asynchronous=true; store_wait

A group writes only the rows of Q that it alone reads, so groups need not wait for each other; its last product is done by
then. Where the target has no tma_store the threads store the rows themselves, and there is nothing to wait for. Without this pass each thread writes its pieces of the rows from registers to global memory.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import compute_role, operations, replace_role, rewrite
from attncc.ir.tile import SHARED, Store
from attncc.targets import Target

OUT, ROWS, OUTPUT = "OUT", "rows", "o"


def stage_output(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with the output tile staged over Q's memory."""
    if not target.has("named_barriers"):
        return schedule
    role = compute_role(schedule)
    q = next(op.a for op in _products(role.body) if op.transposed)
    source = next(op.src for op in role.body if isinstance(op, Store) and op.tensor == OUTPUT)
    out = l3.Buffer(OUT, SHARED, schedule.tile_m, schedule.buffer(source).cols, schedule.attention.dtype, alias=q)
    alone = target.has("tma_store")
    barrier = l3.Barrier(ROWS, role.warps * 32 // role.groups, role.groups)

    def through(op):
        if isinstance(op, Store) and op.tensor == OUTPUT:
            wait = (l3.StoreWait(),) if alone else ()
            return l3.Convert(OUT, op.src), l3.Sync(ROWS), Store(OUT, OUTPUT, asynchronous=alone), *wait
        return (op,)

    schedule = replace_role(schedule, role, body=rewrite(role.body, through))
    return dataclasses.replace(
        schedule, buffers=(*schedule.buffers, out), barriers=(*schedule.barriers, barrier)
    )


def _products(body: tuple):
    return (op for op in operations(body) if isinstance(op, l3.Mma))
