"""Moves registers from the role that copies to the roles that compute.

    before  role name=producer, registers=None { ... }     role name=consumer, registers=None { ... }
    after   role name=producer, registers=24 { set_registers count=24, grow=false ... }
            role name=consumer, registers=240 { set_registers count=240, grow=true ... }

Where sums are never corrected, a role that would correct them needs few registers, and the computing ones get them.
Asks for: set_registers. Without this pass every thread has the launch's share, and long score tiles spill.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import compute_role, operations
from attncc.targets import Target


def budget_registers(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with a register budget for each role, by the target's plan for this number of computing groups."""
    compute = compute_role(schedule)
    corrects = any(isinstance(op, l3.Rescale) for role in schedule.roles for op in operations(role.body))
    plan = target.plan(compute.groups, corrects)
    if not target.has("set_registers") or plan is None or len(schedule.roles) < 2:
        return schedule

    def budget(role: l3.Role) -> l3.Role:
        corrects = any(isinstance(op, l3.Convert) for op in operations(role.body))
        count = plan.compute if role is compute else plan.correct if corrects else plan.copy
        body = (l3.SetRegisters(count, grow=role is compute), *role.body)
        return dataclasses.replace(role, registers=count, body=body)

    return dataclasses.replace(schedule, roles=tuple(budget(r) for r in schedule.roles))
