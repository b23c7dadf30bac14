"""Splits the plain role into a producer that copies and consumers that compute.

    before                                    after
    role compute {                            role producer {            role consumer {
      acquire K; copy K; commit K; wait K       acquire K; copy K;         wait K; mma S = Q K^T; ...
      mma S = Q K^T; ...; release K             commit K; ...              release K
    }                                         }                          }

Each part keeps the control flow around its own operations, and the lets that it reads. Asks for: roles, mbarrier. Without
this pass the kernel is right, but no copy runs ahead of its use.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import compute_role, drop_unused_lets, rewrite
from attncc.ir.tile import Let
from attncc.targets import Target

PRODUCER, CONSUMER = "producer", "consumer"
COPYING = (l3.Acquire, l3.Copy, l3.Commit)
PRODUCER_WARPS = 4
"""A whole warp group, since registers are handed over by warp groups; one of its threads starts the copies."""


def assign_roles(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with its one role split in two, the producer's warps first."""
    if not (target.has("roles") and target.has("mbarrier")) or len(schedule.roles) > 1:
        return schedule
    role = compute_role(schedule)
    control = (Let, l3.If, l3.For)
    copies = drop_unused_lets(rewrite(role.body, lambda op: (op,) if isinstance(op, COPYING + control) else ()))
    compute = drop_unused_lets(rewrite(role.body, lambda op: () if isinstance(op, COPYING) else (op,)))
    producer = l3.Role(PRODUCER, 0, PRODUCER_WARPS, 1, 0, None, copies)
    consumer = dataclasses.replace(role, name=CONSUMER, first_warp=PRODUCER_WARPS, body=compute)
    return dataclasses.replace(
        schedule,
        threads=(producer.warps + consumer.warps) * 32,
        roles=(producer, consumer),
        channels=tuple(dataclasses.replace(c, producer=PRODUCER, consumer=CONSUMER) for c in schedule.channels),
    )
