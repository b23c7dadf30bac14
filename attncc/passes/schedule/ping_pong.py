"""Lets the computing groups take turns at the tensor cores: one multiplies while the others do softmax.

    before  for each tile { wait K; mma S; wait V; mma O; mma_wait 1; ... }
    after   barrier name=turn, copies=groups, threads=two groups
            if group == groups - 1 { arrive turn }
            for each tile { wait K; sync turn; mma S; wait V; mma O; arrive turn; mma_wait 1; ... }

(FlashAttention-3, section 3.1.) A group waits for its own turn and gives the turn to the next; the last group gives the
first one. Whether it pays is measured for each shape of the loop (`Target.manners`): it gains 24 % at head dims 192 and 128, 5 % at 64,
and costs 1 to 2 % at 128. Elsewhere three groups take turns and two are left alone.
Asks for: named_barriers, overlapped loops, and groups that all have as many tiles. Without this pass the groups drift and their products may collide.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.expr import apply, const, var, variables
from attncc.ir.schedule_ops import compute_role, replace_role
from attncc.ir.tile import Let
from attncc.passes.schedule.overlap_softmax_with_mma import is_overlapped
from attncc.targets import Target

TURN = "turn"
LEAST_GROUPS = 3
"""Where nothing was measured: two groups mostly alternate by themselves, one waits for its product while the other has the issue slots."""


def ping_pong(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with a turn barrier for each group; unchanged where turns do not pay and for loops that do not overlap."""
    role = compute_role(schedule)
    if not takes_turns(schedule, target) or not is_overlapped(schedule) or _differ(role):
        return schedule
    threads = 2 * role.warps * 32 // role.groups
    barrier = l3.Barrier(TURN, threads, role.groups)
    give_first = l3.If(apply("eq", var(l3.GROUP_VARIABLE), const(role.groups - 1)), (l3.Arrive(TURN),))
    body = tuple(_in_turns(op) if isinstance(op, l3.If) else op for op in role.body)
    schedule = replace_role(schedule, role, body=(give_first, *body))
    return dataclasses.replace(schedule, barriers=(*schedule.barriers, barrier))


def takes_turns(schedule: l3.Schedule, target: Target) -> bool:
    """Whether turns pay for this number of groups and these head dims, once loops overlap."""
    groups = compute_role(schedule).groups
    if not target.has("named_barriers") or groups < 2:
        return False
    known = target.manner(schedule.attention.dim_qk, schedule.attention.dim_v, groups)
    return known.turns if known else groups >= LEAST_GROUPS


def _differ(role: l3.Role) -> bool:
    """Whether groups have numbers of tiles of their own: one that is done would not give its turn on."""
    return any(isinstance(op, Let) and l3.GROUP_VARIABLE in variables(op.expr) for op in role.body)


def _in_turns(outer: l3.If) -> l3.If:
    return dataclasses.replace(outer, body=tuple(_loop(op) if isinstance(op, l3.For) else op for op in outer.body))


def _loop(loop: l3.For) -> l3.For:
    """The turn is taken before the first product of the body and given on after the last."""
    products = [i for i, op in enumerate(loop.body) if isinstance(op, l3.Mma)]
    first, last = products[0], products[-1]
    body = (*loop.body[:first], l3.Sync(TURN), *loop.body[first : last + 1], l3.Arrive(TURN), *loop.body[last + 1 :])
    return dataclasses.replace(loop, body=body)
