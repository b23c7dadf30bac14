"""Blocks whose query tile lies past the end of their sequence do nothing, where sequences are packed.

    before  role consumer { wait Q; ...; store O }
    after   role consumer { if q_tile < q_tiles { wait Q; ...; store O } }

The grid has room for the longest sequence. All roles skip together, so nobody waits for anybody. Without this pass such blocks
copy and multiply tiles of which nothing is stored.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import packing
from attncc.ir import schedule as l3


def skip_missing_tiles(schedule: l3.Schedule) -> l3.Schedule:
    """`schedule` with every role's body under a condition, after its registers are set; for packed sequences only."""
    if not schedule.attention.packed:
        return schedule
    return dataclasses.replace(schedule, roles=tuple(_guarded(role) for role in schedule.roles))


def _guarded(role: l3.Role) -> l3.Role:
    count = next((i for i, op in enumerate(role.body) if not isinstance(op, l3.SetRegisters)), len(role.body))
    if role.body[count:] and isinstance(role.body[count], l3.If) and role.body[count].condition is packing.has_tile():
        return role
    body = (*role.body[:count], l3.If(packing.has_tile(), role.body[count:]))
    return dataclasses.replace(role, body=body)
