"""Turns the channels of a role that copies for itself into waits for groups of copies and barriers of the block.

    before  acquire V; copy V; commit V; mma S = Q K^T; release K; wait V; acquire K; copy K; commit K
    after              copy V; commit V; mma S = Q K^T; release K; copy_wait 0; sync block; copy K; commit K

A Wait becomes a CopyWait that leaves the later groups in flight (counted on every path that leads here; the least count is
right for all), and a Sync that shows every warp the copies of the others. An Acquire becomes a Sync only where some path
brings none between the stage's last reader and this copy. A schedule with "cp_async" channels is not finished without it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import compute_role, replace_role
from attncc.targets import Target

HISTORY = 16
Site = tuple


@dataclass(frozen=True)
class _State:
    """What is known at one point on one path.

    `groups`: channels of the last closed groups, oldest first; `unfinished`: how many of them may be in flight;
    `held`: by channel, stages filled or being read; `free`: by channel, for each empty stage, whether a barrier came since it
    was read.
    """

    groups: tuple[str, ...]
    unfinished: int
    held: tuple[tuple[str, int], ...]
    free: tuple[tuple[str, tuple[bool, ...]], ...]


@dataclass
class _Facts:
    """What the walk found out: by wait site the groups that may stay in flight (None: nothing to wait for), and the acquire
    sites that need a barrier."""

    pending: dict[Site, int | None]
    barriers: set[Site]


def place_copy_waits(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with waits and barriers in place of Acquire and Wait on "cp_async" channels."""
    role = compute_role(schedule)
    rings = {c.name: c.stages for c in schedule.channels if c.kind == "cp_async" and c.consumer == role.name}
    if not rings:
        return schedule
    facts = _Facts({}, set())
    while True:
        before = set(facts.barriers)
        facts.pending.clear()
        start = _State((), 0, tuple((c, 0) for c in rings), tuple((c, (True,) * n) for c, n in rings.items()))
        _walk(role.body, (), frozenset({start}), facts)
        if facts.barriers == before:
            break
    return replace_role(schedule, role, body=_replace(role.body, (), facts))


def _walk(body: tuple, path: Site, states: frozenset[_State], facts: _Facts) -> frozenset[_State]:
    for i, op in enumerate(body):
        site = (*path, i)
        if isinstance(op, l3.If):
            states |= _walk(op.body, site, states, facts)
        elif isinstance(op, l3.For):
            states = _fixpoint(op, site, states, facts)
        elif isinstance(op, l3.Wait) and _waits_more(body, i):
            continue
        elif isinstance(op, l3.Wait):
            states = _wait(_waits_until(body, i), site, states, facts)
        elif isinstance(op, l3.Acquire):
            states = _acquire(op.channel, site, states, facts)
        elif isinstance(op, l3.Commit):
            states = frozenset(_commit(s, op.channel) for s in states)
        elif isinstance(op, l3.Release):
            states = frozenset(_release(s, op.channel) for s in states)
    return states


def _waits_more(body: tuple, i: int) -> bool:
    """Whether another Wait follows directly; the last of a row of waits stands for all."""
    return i + 1 < len(body) and isinstance(body[i + 1], l3.Wait)


def _waits_until(body: tuple, i: int) -> tuple[str, ...]:
    """The channels of the row of waits that ends at `i`."""
    start = i
    while start > 0 and isinstance(body[start - 1], l3.Wait):
        start -= 1
    return tuple(op.channel for op in body[start : i + 1])


def _fixpoint(loop: l3.For, site: Site, states: frozenset[_State], facts: _Facts) -> frozenset[_State]:
    while True:
        after = states | _walk(loop.body, site, states, facts)
        if after == states:
            return states
        states = after


def _later_groups(s: _State, channel: str) -> int:
    """Groups closed after the one that holds the tile which `channel`'s reader comes to next."""
    behind = dict(s.held)[channel]
    places = [i for i, name in enumerate(s.groups) if name == channel]
    if behind < 1 or len(places) < behind:
        raise ValueError(f"a wait for channel {channel} comes where nothing was copied")
    return len(s.groups) - 1 - places[-behind]


def _wait(channels: tuple[str, ...], site: Site, states: frozenset[_State], facts: _Facts) -> frozenset[_State]:
    out = set()
    for s in states:
        pending = min(_later_groups(s, channel) for channel in channels)
        known = facts.pending.get(site, pending)
        if pending < s.unfinished:
            facts.pending[site] = pending if known is None else min(pending, known)
            s = _synced(dataclasses.replace(s, unfinished=pending))
        else:
            facts.pending.setdefault(site, None)
        out.add(s)
    return frozenset(out)


def _acquire(channel: str, site: Site, states: frozenset[_State], facts: _Facts) -> frozenset[_State]:
    for s in states:
        free = dict(s.free)[channel]
        if not free:
            raise ValueError(f"channel {channel} has no stage left where the next copy starts")
        if not free[0]:
            facts.barriers.add(site)
    return frozenset(_synced(s) for s in states) if site in facts.barriers else states


def _commit(s: _State, channel: str) -> _State:
    held = tuple((c, n + (c == channel)) for c, n in s.held)
    free = tuple((c, f[1:] if c == channel else f) for c, f in s.free)
    groups = (*s.groups, channel)[-HISTORY:]
    return _State(groups, min(s.unfinished + 1, HISTORY), held, free)


def _release(s: _State, channel: str) -> _State:
    held = tuple((c, n - (c == channel)) for c, n in s.held)
    free = tuple((c, (*f, False) if c == channel else f) for c, f in s.free)
    return dataclasses.replace(s, held=held, free=free)


def _synced(s: _State) -> _State:
    return dataclasses.replace(s, free=tuple((c, (True,) * len(f)) for c, f in s.free))


def _replace(body: tuple, path: Site, facts: _Facts) -> tuple:
    out: list[l3.Op] = []
    for i, op in enumerate(body):
        site = (*path, i)
        if isinstance(op, (l3.If, l3.For)):
            out.append(dataclasses.replace(op, body=_replace(op.body, site, facts)))
        elif isinstance(op, l3.Wait):
            pending = facts.pending.get(site)
            out += () if pending is None else (l3.CopyWait(pending), l3.Sync(l3.BLOCK_BARRIER))
        elif isinstance(op, l3.Acquire):
            out += (l3.Sync(l3.BLOCK_BARRIER),) if site in facts.barriers else ()
        else:
            out.append(op)
    return tuple(out)
