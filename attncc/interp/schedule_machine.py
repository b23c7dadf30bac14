"""The barriers, rings and asynchronous operations of a schedule as a state machine, without numbers.

Each warp group of each role is a *thread of control* here (a "worker"). `Machine.step(worker)` makes its next operation
happen, or says that it must wait; anything the hardware would get wrong is a Fault. What completes asynchronously is
judged by what was waited for, not by when it happens to be done: a result is readable after its wait and not before.

Channels of a role that copies for itself ("cp_async") are filled by all its workers together, each its own part; a part is
seen by others once its worker has waited for it and both have then met at the block's barrier.
"""

from __future__ import annotations

from attncc.interp.schedule_state import Fault, Own, Stage, Worker, in_half, ring_name
from attncc.interp.tensor_memory import TensorMemory
from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import buffers_read, buffers_written, operations, parts
from attncc.ir.tile import REGISTER, SHARED, TENSOR, Store


class Machine:
    """All workers of one block, or of both blocks of a pair. `instant` lets copies land when they start; else `land` makes one land."""

    def __init__(self, schedule: l3.Schedule, workers: tuple[Worker, ...], instant: bool = True):
        self.schedule, self.workers, self.instant = schedule, workers, instant
        self.channels = {c.name: c for c in schedule.channels}
        self.channel_of = {c.buffer: c for c in schedule.channels}
        self.buffers = {b.name: b for b in schedule.buffers}
        self.barriers = {b.name: b for b in schedule.barriers}
        self.barriers[l3.BLOCK_BARRIER] = l3.Barrier(l3.BLOCK_BARRIER, schedule.threads)
        self.rings = dict(self._rings())
        self.pair_roles = frozenset(r.name for r in schedule.roles if r.pair)
        self.readers = {name: tuple(w for role in c.consumers for w in self._workers_of(role, *where)) for name, (c, *where) in self.rings.items()}
        self.writers = {name: self._workers_of(c.producer, *where) for name, (c, *where) in self.rings.items()}
        self.due = {name: self._due(c) for name, (c, *_) in self.rings.items()}
        self.own = [Own() for _ in workers]
        self.stages = {name: [Stage() for _ in range(c.stages)] for name, (c, *_) in self.rings.items()}
        self.tensor = TensorMemory(schedule)
        self.rounds: dict[tuple[str, int], tuple[int, int, frozenset[int]]] = {}
        self.flying: tuple[tuple[str, int, int], ...] = ()
        self.is_reused = any(isinstance(op, l3.Place) for role in schedule.roles for op in operations(role.body))

    def _rings(self):
        """(name, (channel, part, block)) of every ring: a private channel has one for each part, called `name.part`; blocks of a pair have
        rings of their own (that of the second called `name@1`), but for the channels of the pair."""
        for c in self.schedule.channels:
            for half in range(self.schedule.cluster):
                at = None if c.pair or self.schedule.cluster == 1 else half
                if half and c.pair:
                    continue
                for part in range(parts(self.schedule)) if c.private else (None,):
                    yield in_half(c.name if part is None else ring_name(c, part), half), (c, part, at)

    def _due(self, channel: l3.Channel) -> tuple[int, int]:
        """(commits that fill a stage, releases that empty it)."""
        fills = self.schedule.cluster if channel.pair and channel.producer not in self.pair_roles else 1
        empties = self.schedule.cluster if channel.pair and channel.consumer not in self.pair_roles else 1
        return fills, empties * channel.arrivals

    def _workers_of(self, role: str, part: int | None, half: int | None = None) -> tuple[int, ...]:
        """The workers of a role that have to do with a ring of `part` (None: of all) in block `half` of a pair (None: in both)."""
        found = tuple(i for i, w in enumerate(self.workers) if w.role == role and half in (None, w.half))
        groups = {self.workers[i].group for i in found}
        return found if part is None or len(groups) == 1 else tuple(i for i in found if self.workers[i].group == part)

    def part(self, i: int) -> int:
        """The part that worker `i`'s next operation works on."""
        worker = self.workers[i]
        return worker.parts[self.own[i].pc] if worker.parts else worker.group

    def ring(self, i: int, name: str) -> str:
        """The ring that channel `name` means in worker `i`'s next operation."""
        channel = self.channels[name]
        own = ring_name(channel, self.part(i)) if channel.private else name
        return own if channel.pair else in_half(own, self.workers[i].half)

    def halves(self, i: int) -> tuple[int, ...]:
        """The blocks whose memory worker `i` works on."""
        worker = self.workers[i]
        return tuple(range(self.schedule.cluster)) if worker.role in self.pair_roles else (worker.half,)

    def clone(self) -> Machine:
        new = Machine.__new__(Machine)
        new.__dict__.update(self.__dict__)
        new.own = [o.clone() for o in self.own]
        new.stages = {c: [s.clone() for s in ring] for c, ring in self.stages.items()}
        new.rounds = dict(self.rounds)
        new.tensor = self.tensor.clone()
        return new

    def key(self) -> tuple:
        """Equal for equal states."""
        own = tuple((o.pc, o.arrived, o.meetings) for o in self.own)
        stages = tuple(s.key() for ring in self.stages.values() for s in ring)
        return own, stages, tuple(sorted(self.rounds.items())), self.flying, self.tensor.key()

    def done(self, i: int) -> bool:
        return self.own[i].pc >= len(self.workers[i].ops)

    def next_op(self, i: int):
        return self.workers[i].ops[self.own[i].pc]

    def is_visible(self, i: int) -> bool:
        """Whether another worker can notice worker `i`'s next operation, or the operation may have to wait.

        Copies of a role for itself meet other workers only at barriers: a use that no barrier orders is a Fault in
        whichever order it happens, so their order need not be tried.
        """
        op = self.next_op(i)
        channel = self.channels.get(getattr(op, "channel", None))
        if channel is not None and channel.kind == "cp_async":
            return isinstance(op, (l3.Acquire, l3.Wait))
        if isinstance(op, l3.Sync) and self.barriers[op.barrier].threads == self.workers[i].threads:
            return False  # a barrier inside one group
        if any(self.tensor.is_shared(name) for name in buffers_written(op)):
            return True
        return isinstance(op, VISIBLE)

    def may_pass(self, i: int) -> bool:
        """Whether worker `i` waits at a barrier where all have arrived by now."""
        arrived = self.own[i].arrived
        return arrived is not None and self.rounds[arrived[0]][0] > arrived[1]

    def step(self, i: int) -> bool:
        """Worker `i` does its next operation; False when it must wait (nothing has changed but an arrival)."""
        op = self.next_op(i)
        handler = HANDLERS.get(type(op))
        if handler is not None and handler(self, i, op) is False:
            return False
        self.touch(i, op)
        self.own[i].pc += 1
        return True

    def fail(self, kind: str, i: int, text: str) -> Fault:
        op = self.next_op(i)
        return Fault(kind, f"{self.workers[i].name} at step {self.own[i].pc} ({describe(op)}): {text}")

    def finish(self) -> None:
        """Raises a Fault when something was left undone after every worker's last operation."""
        for i, (worker, own) in enumerate(zip(self.workers, self.own)):
            if own.storing:
                raise Fault("unfinished", f"{worker.name} ends while {min(own.storing)[0]} is being stored")
            if own.products:
                raise Fault("unfinished", f"{worker.name} ends while a product into {own.products[0][0]} is unfinished")
            self._finish_drained(i)
            for name in own.acquired:
                if not self.rings[name][0].private:  # its buffer may be used to the end
                    raise Fault("protocol", f"{worker.name} ends with a stage of {name} acquired and not committed")
        for name, (channel, *_) in self.rings.items():
            made = max((self.own[i].filled.get(name, 0) for i in self.writers[name]), default=0)
            for i in self.readers[name]:
                seen = self.own[i].used.get(name, 0) + (name in self.own[i].waited)
                if channel.kind != "cp_async" and seen != made:
                    raise Fault("never read", f"{self.workers[i].name} used {seen} of {made} tiles of channel {name}")

    def _finish_drained(self, i: int) -> None:
        """A block of a pair must not end before it has heard of all its partner's releases."""
        for name, (channel, *_) in self.rings.items():
            released = any(self.own[r].used.get(name, 0) for r in self.readers[name])
            if channel.pair and channel.consumer in self.pair_roles and i in self.writers[name] and released:
                if name not in self.own[i].drained and name not in self.own[i].acquired:
                    raise Fault("unfinished", f"{self.workers[i].name} ends while releases of {name} may be under way")

    def blocked(self) -> str:
        """Who waits for what, for a deadlock's message."""
        waiting = [f"{w.name} waits at {describe(self.next_op(i))}" for i, w in enumerate(self.workers) if not self.done(i)]
        return "; ".join(waiting)

    # ---------------------------------------------------------------- copies that land

    def land(self, which: int) -> tuple[str, int]:
        """The copy number `which` of `flying` arrives; gives (channel in the block, position)."""
        name, position, half = self.flying[which]
        self.flying = self.flying[:which] + self.flying[which + 1 :]
        stage = self.stage(name, position)
        stage.landing -= 1
        self._complete(stage, self.due[name][0])
        return in_half(self.rings[name][0].name, half), position

    def stage(self, name: str, position: int) -> Stage:
        ring = self.stages[name]
        return ring[position % len(ring)]

    @staticmethod
    def _complete(stage: Stage, commits: int) -> None:
        if stage.committed == commits and stage.landing == 0:
            stage.committed = 0
            stage.full += 1

    # ---------------------------------------------------------------- registers and products

    def touch(self, i: int, op) -> None:
        """Checks what the operation reads and writes, and remembers it."""
        own = self.own[i]
        product = isinstance(op, l3.Mma)
        for name in buffers_read(op):
            self._read(i, name, product)
        for name in buffers_written(op):
            self._write(i, name, product)
        if product:
            shared = tuple(p for p in (self._ring_position(i, n) for n in (op.a, op.b)) if p is not None)
            registers = tuple(n for n in (op.a, op.b) if self.buffers[n].space == REGISTER)
            if self.buffers[op.dst].space == TENSOR:
                own.reading = own.reading.union(ring for ring, _ in shared)
            elif op.asynchronous:
                own.products = (*own.products, (op.dst, registers, shared))
        own.known = own.known.union(n for n in buffers_written(op) if self.buffers[n].space == REGISTER)

    def is_storing(self, i: int, buffer: str) -> bool:
        """Whether worker `i` has a store under way from a buffer's memory."""
        return any(buffer in (name, self.buffers[name].alias) for name, _ in self.own[i].storing)

    def _ring_position(self, i: int, name: str) -> tuple[str, int] | None:
        channel = self.channel_of.get(name)
        if channel is None or channel.private:
            return None
        ring = self.ring(i, channel.name)
        return ring, self.own[i].used.get(ring, 0)

    def _read(self, i: int, name: str, product: bool) -> None:
        own, buffer = self.own[i], self.buffers[name]
        if self._is_handed_on(name):
            self._hold(i, name, "unfinished")
            for half in self.halves(i):
                self._judge(i, self.tensor.read(name, self.part(i), half))
            return
        if buffer.space == SHARED:
            return self._read_shared(i, name)
        if name not in own.known:
            raise self.fail("uninitialised", i, f"{name} holds nothing yet")
        for dst, _, _ in own.products:
            if dst == name and not (product and name == self.next_op(i).dst):
                raise self.fail("unfinished", i, f"{name} is read while the product into it was not waited for")

    def _write(self, i: int, name: str, product: bool) -> None:
        own = self.own[i]
        if self._is_handed_on(name):
            self._hold(i, name, "overwritten")
            for half in self.halves(i):
                self.tensor.write(name, self.part(i), half)
            return
        if self.buffers[name].space == SHARED:
            return self._write_shared(i, name)
        for dst, registers, _ in own.products:
            if name in registers:
                raise self.fail("overwritten", i, f"{name} is written while an unfinished product reads it")
            if dst == name and not product:
                raise self.fail("unfinished", i, f"{name} is written while the product into it was not waited for")

    def _is_handed_on(self, name: str) -> bool:
        """Whether a buffer goes from role to role part by part."""
        return name in self.channel_of and self.channel_of[name].private

    def _hold(self, i: int, name: str, kind: str) -> None:
        """Worker `i` must own the part of the buffer: acquired and not committed, or waited for and not released."""
        own = self.own[i]
        for ring in self._rings_of(i, name):
            if ring not in own.acquired and ring not in own.waited:
                raise self.fail(kind, i, f"{name} is used without a wait for its channel")

    def _rings_of(self, i: int, name: str) -> tuple[str, ...]:
        """The rings that a buffer goes through in all blocks whose memory worker `i` works on."""
        channel = self.channel_of[name]
        own = ring_name(channel, self.part(i)) if channel.private else channel.name
        return (own,) if channel.pair else tuple(in_half(own, half) for half in self.halves(i))

    def _judge(self, i: int, found: tuple[str, str] | None) -> None:
        if found is not None:
            raise self.fail(found[0], i, found[1])

    def _read_shared(self, i: int, name: str) -> None:
        channel = self.channel_of.get(name)
        if channel is None:
            if name in self.own[i].unseen:
                raise self.fail("unfinished", i, f"{name} is read before a Sync has made it visible")
        elif channel.kind == "cp_async":
            self._read_parts(i, channel)
        else:
            for ring in self._rings_of(i, name):
                if ring not in self.own[i].waited:
                    raise self.fail("unfinished", i, f"{name} is read without a wait for channel {ring}")

    def _read_parts(self, i: int, channel: l3.Channel) -> None:
        own = self.own[i]
        position = own.used.get(channel.name, 0)
        parts = self.stage(channel.name, position).parts
        for w in self.writers[channel.name]:
            at, met = parts.get(w, (-1, None))
            if at != position or met is None:
                raise self.fail("unfinished", i, f"the copy of {channel.name} by {self.workers[w].name} was not waited for")
            if w != i and own.meetings <= met and channel.name not in own.waited:
                raise self.fail("unfinished", i, f"no Sync since {self.workers[w].name} waited for {channel.name}")

    def _write_shared(self, i: int, name: str) -> None:
        own, owner = self.own[i], self.buffers[name].alias
        if (name, self.part(i)) in own.storing:
            raise self.fail("overwritten", i, f"{name} is written while it is being stored")
        if self.is_reused and any(self.rings[ring][0].buffer == owner for other in self.own for ring in other.reading):
            raise self.fail("overwritten", i, f"{name} lies over {owner}, which products may still read")
        if self.is_reused and owner in self.channel_of and self.ring(i, self.channel_of[owner].name) not in own.waited:
            raise self.fail("overwritten", i, f"{name} lies over {owner}, whose next copy may be under way")
        for _, _, shared in own.products:
            if any(self.rings[c][0].buffer == owner for c, _ in shared):
                raise self.fail("overwritten", i, f"{name} lies over {owner}, which an unfinished product reads")
        own.unseen = own.unseen | {name}


# -------------------------------------------------------------------- operations


def _acquire(m: Machine, i: int, op: l3.Acquire):
    own, channel, ring = m.own[i], m.channels[op.channel], m.ring(i, op.channel)
    if ring in own.acquired:
        raise m.fail("protocol", i, "the stage acquired before was not committed")
    position = own.filled.get(ring, 0)
    stage = m.stage(ring, position)
    if channel.kind == "cp_async":
        if any(m.own[r].used.get(ring, 0) <= position - channel.stages for r in m.readers[ring]):
            return False
        for r in m.readers[ring]:
            stage.left[r] = -1
    else:
        uses = position // channel.stages
        if stage.empty < uses:
            return False
        if stage.empty > uses:
            raise m.fail("protocol", i, f"a stage of {ring} was emptied more often than filled")
    own.acquired[ring] = False
    return True


def _copy(m: Machine, i: int, op: l3.Copy):
    own, channel, ring = m.own[i], m.channels[op.channel], m.ring(i, op.channel)
    position = own.filled.get(ring, 0)
    stage = m.stage(ring, position)
    for r in m.readers[ring]:
        if m.own[r].used.get(ring, 0) <= position - channel.stages:
            raise m.fail("overwritten", i, f"tile {position - channel.stages} of {op.channel} is still in use by {m.workers[r].name}")
        if any((ring, position - channel.stages) in shared for _, _, shared in m.own[r].products):
            raise m.fail("overwritten", i, f"an unfinished product of {m.workers[r].name} reads this stage of {op.channel}")
    for r, worker in enumerate(m.workers):
        if worker.half == m.workers[i].half and m.is_storing(r, channel.buffer):
            raise m.fail("overwritten", i, f"{worker.name} is storing from the memory of {channel.buffer}")
    if channel.kind == "cp_async":
        for r in m.readers[ring]:
            if r != i and position >= channel.stages and stage.left.get(r, -1) >= own.meetings:
                raise m.fail("overwritten", i, f"no Sync since {m.workers[r].name} read this stage of {op.channel}")
        stage.parts[i] = (position, None)
        own.open_group = (*own.open_group, (op.channel, position))
        return True
    if ring not in own.acquired:
        raise m.fail("protocol", i, f"a copy into {op.channel} without an acquired stage")
    own.acquired[ring] = True
    stage.landing += 1
    m.flying = (*m.flying, (ring, position, m.workers[i].half))
    if m.instant:
        m.land(len(m.flying) - 1)
    return True


def _commit(m: Machine, i: int, op: l3.Commit):
    own, channel, ring = m.own[i], m.channels[op.channel], m.ring(i, op.channel)
    position = own.filled.get(ring, 0)
    if channel.kind == "cp_async":
        own.groups = (*own.groups, own.open_group)
        own.open_group = ()
        own.acquired.pop(ring, None)
    else:
        if ring not in own.acquired:
            raise m.fail("protocol", i, f"a commit to {ring} without an acquired stage")
        if channel.kind == "tma" and not own.acquired[ring]:
            raise m.fail("protocol", i, f"a commit to {ring} without a copy: its bytes would never arrive")
        del own.acquired[ring]
        stage = m.stage(ring, position)
        stage.committed += 1
        m._complete(stage, m.due[ring][0])
    own.filled[ring] = position + 1
    own.drained = own.drained - {ring}
    return True


def _copy_wait(m: Machine, i: int, op: l3.CopyWait):
    own = m.own[i]
    cut = max(0, len(own.groups) - op.pending)
    for group in own.groups[:cut]:
        for name, position in group:
            m.stage(name, position).parts[i] = (position, own.meetings)
    own.groups = own.groups[cut:]
    return True


def _wait(m: Machine, i: int, op: l3.Wait):
    own, channel, ring = m.own[i], m.channels[op.channel], m.ring(i, op.channel)
    position = own.used.get(ring, 0)
    stage = m.stage(ring, position)
    if channel.kind == "cp_async":
        if any(m.own[w].filled.get(ring, 0) <= position for w in m.writers[ring]):
            return False
        for w in m.writers[ring]:
            stage.parts[w] = (stage.parts.get(w, (position, None))[0], m.own[w].meetings)
    else:
        if ring in own.waited:
            raise m.fail("protocol", i, f"{ring} was waited for and not released")
        uses = position // channel.stages
        if stage.full <= uses:
            return False
        if stage.full > uses + 1:
            raise m.fail("overwritten", i, f"tile {position} of {ring} was overwritten before this worker read it")
    own.waited = own.waited | {ring}
    return True


def _release(m: Machine, i: int, op: l3.Release):
    own, channel, ring = m.own[i], m.channels[op.channel], m.ring(i, op.channel)
    position = own.used.get(ring, 0)
    if any((ring, position) in shared for _, _, shared in own.products):
        raise m.fail("overwritten", i, f"{ring} is released while an unfinished product reads it")
    if m.is_storing(i, channel.buffer):
        raise m.fail("overwritten", i, f"{ring} is released while what lies over it is being stored")
    stage = m.stage(ring, position)
    if channel.kind == "cp_async":
        stage.left[i] = own.meetings
    else:
        if ring not in own.waited:
            raise m.fail("protocol", i, f"{ring} is released without a wait")
        stage.arrivals += 1
        if stage.arrivals == m.due[ring][1]:
            stage.arrivals = 0
            stage.empty += 1
    own.waited, own.reading = own.waited - {ring}, own.reading - {ring}
    own.used[ring] = position + 1
    return True


def _drain(m: Machine, i: int, op: l3.Drain):
    own, channel, ring = m.own[i], m.channels[op.channel], m.ring(i, op.channel)
    filled = own.filled.get(ring, 0)
    for position in range(max(0, filled - channel.stages), filled):
        if m.stage(ring, position).empty <= position // channel.stages:
            return False
    own.drained = own.drained | {ring}
    return True


def _barrier_key(m: Machine, i: int, op, shift: int) -> tuple[str, int]:
    barrier = m.barriers[op.barrier]
    return in_half(op.barrier, m.workers[i].half), (m.workers[i].group + shift) % barrier.copies if barrier.copies > 1 else 0


def _arrive_at(m: Machine, i: int, key: tuple[str, int]) -> int:
    """Worker `i` arrives; gives the round it takes part in."""
    barrier = m.barriers[key[0].split("@")[0]]
    number, threads, who = m.rounds.get(key, (0, 0, frozenset()))
    if i in who:
        raise m.fail("barrier", i, f"it arrives twice in one round of {key[0]}")
    threads += m.workers[i].threads
    if threads > barrier.threads:
        raise m.fail("barrier", i, f"{threads} threads arrive at {key[0]}, which is for {barrier.threads}")
    m.rounds[key] = (number + 1, 0, frozenset()) if threads == barrier.threads else (number, threads, who | {i})
    return number


def _sync(m: Machine, i: int, op: l3.Sync):
    own = m.own[i]
    key = _barrier_key(m, i, op, 0)
    if own.arrived is None:
        own.arrived = (key, _arrive_at(m, i, key))
    if not m.may_pass(i):
        return False
    own.arrived = None
    own.unseen = frozenset()
    own.meetings += op.barrier == l3.BLOCK_BARRIER
    return True


def _arrive(m: Machine, i: int, op: l3.Arrive):
    _arrive_at(m, i, _barrier_key(m, i, op, 1))
    return True


def _mma_wait(m: Machine, i: int, op: l3.MmaWait):
    own = m.own[i]
    own.products = own.products[max(0, len(own.products) - op.pending) :]
    return True


def _store(m: Machine, i: int, op: Store):
    if op.asynchronous:
        m.own[i].storing = m.own[i].storing | {(op.src, m.part(i))}
    return True


def _store_wait(m: Machine, i: int, op: l3.StoreWait):
    m.own[i].storing = frozenset()
    return True


HANDLERS = {
    l3.Acquire: _acquire, l3.Copy: _copy, l3.Commit: _commit, l3.CopyWait: _copy_wait, l3.Wait: _wait,
    l3.Release: _release, l3.Sync: _sync, l3.Arrive: _arrive, l3.MmaWait: _mma_wait, Store: _store,
    l3.StoreWait: _store_wait, l3.Drain: _drain,
}  # fmt: skip
VISIBLE = (l3.Acquire, l3.Copy, l3.Commit, l3.Wait, l3.Release, l3.Drain, l3.Sync, l3.Arrive)
"""Operations that other workers can notice, or that may have to wait."""


def describe(op) -> str:
    """A short name of an operation: `wait K`, `mma S`, `sync turn`."""
    what = next((getattr(op, f) for f in ("channel", "barrier", "dst", "scores", "src", "accumulator") if hasattr(op, f)), "")
    return f"{type(op).__name__.lower()} {what}".strip()
