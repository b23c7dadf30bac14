"""Before a block of a pair ends, what its partner still has to tell it arrives.

    before  role producer { ...; acquire V; copy V; commit V }
    after   role producer { ...; acquire V; copy V; commit V; drain K; drain V }

The role that issues a pair's products empties stages in both blocks, when products are done: the last of these arrivals nobody waits for, and
a block that had ended by then would be gone. Each role that fills such a ring now waits for all of them at its end, unless it ends owning
the ring's stage.

Asks for: mma_pairs. Pairs cannot do without this pass; blocks that work alone are left as they are.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import operations


def drain_rings(schedule: l3.Schedule) -> l3.Schedule:
    """`schedule` with drains at the end of roles; unchanged where blocks work alone."""
    pairs = frozenset(r.name for r in schedule.roles if r.pair)
    released = frozenset(
        op.channel for r in schedule.roles if r.pair for op in operations(r.body) if isinstance(op, l3.Release)
    )
    if not pairs:
        return schedule
    roles = []
    for role in schedule.roles:
        owed = tuple(l3.Drain(c.name) for c in schedule.channels if c.producer == role.name and c.name in released and not _keeps(role, c.name))
        roles.append(dataclasses.replace(role, body=(*role.body, *owed)))
    return dataclasses.replace(schedule, roles=tuple(roles))


def _keeps(role: l3.Role, channel: str) -> bool:
    """Whether a role acquires a ring's stage before its first tile, and again behind every commit."""
    ops = [op for op in operations(role.body) if isinstance(op, (l3.Acquire, l3.Commit)) and op.channel == channel]
    return bool(ops) and isinstance(ops[0], l3.Acquire) and isinstance(ops[-1], l3.Acquire)
