"""Divides the computing role where products go to tensor memory: one warp issues them, groups of threads do softmax, a group corrects.

    before  role consumer { wait K; mma S = Q K^T; ...; softmax_step; rescale O; convert P; wait V; mma O += P V; finalize O; store }
    after   role consumer   { wait TS; S := TS; release TS; ...; maximum; FACTOR := correction; weights; TP := S; ...; FACTOR := 1 / l }
            role correction { TO := 0; for each tile { TO := TO * FACTOR }; OUT := TO * FACTOR; store OUT; store_wait }
            role issuer     { wait K; for parts { TS := Q K^T }; for each tile { for parts { TO += TP V; TS := Q K^T } } }
            role producer   as it was

(The division of FlashAttention-4.) Scores TS, weights TP and outputs TO of every part of the query tile lie in tensor memory, TP
over the second half of TS. Each part has rings of its own between the roles, so that the products of one part run under the
softmax of another. The correction multiplies sums only where a row's maximum has moved by more than `SLACK` powers of two;
rows whose maximum moves by less keep it; the last factor, 1 / l or the scale of the weights, makes up for both. Weights without a running
maximum (bounded scores, reductions other than softmax) need no corrections: that role then only begins and ends the sums.

Asks for: tensor_memory, roles, mbarrier. The hardware cannot do without this pass.
"""

from __future__ import annotations

import dataclasses

from attncc.formats import bytes_of
from attncc.ir import schedule as l3
from attncc.ir.expr import ONE, ZERO, apply, var
from attncc.ir.schedule_ops import compute_role, drop_unused_lets, operations, rewrite
from attncc.ir.tile import SHARED, TENSOR, Finalize, Let, Store
from attncc.lower.tile_to_schedule import CORRECTION, TOTAL
from attncc.targets import Target

CORRECTOR, ISSUER = "correction", "issuer"
SCORES, WEIGHTS, SUMS, FACTOR, OUT, ROWS = "TS", "TP", "TO", "FACTOR", "OUT", "rows"
LAST = "last_factor"
"""What the last factor of a row is made in where `CORRECTION` holds what rounding added to its sum (Finalize.gap)."""
SLACK = 0.0
"""Powers of two that a row's weights may exceed 1 by. More saves corrections (FlashAttention-4 takes 8). With the exact maximum the largest
weight of a row is 1 and not rounded; with a lagging one it is rounded to 8 bits like any other, and where one key has most of a row's weight
that is the row's error: 2.5 times that of the eager computation, at most, over 150 draws of 140 queries and 300 keys, more than 2 times
in 3 of them (docs/performance-log.md). Kernels may be off by 2 times."""
GROUP_WARPS = 4
LANES = 32
STEP = "t"


def use_tensor_memory(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with its computing role divided in three; unchanged without tensor memory or a role of its own for the copies."""
    if not target.has("tensor_memory") or len(schedule.roles) < 2:
        return schedule
    role = compute_role(schedule)
    plan = _Plan(schedule, role)
    softmax = dataclasses.replace(role, first_warp=0, body=plan.softmax())
    first = softmax.warps
    corrector = l3.Role(CORRECTOR, first, GROUP_WARPS, 1, 0, None, plan.corrector())
    issuer = l3.Role(ISSUER, first + GROUP_WARPS, 1, 1, 0, None, plan.issuer())
    copier = next(r for r in schedule.roles if r is not role)
    copier = dataclasses.replace(copier, first_warp=first + GROUP_WARPS + 1, warps=GROUP_WARPS - 1)
    return dataclasses.replace(
        schedule,
        threads=(first + 2 * GROUP_WARPS) * LANES,
        buffers=plan.buffers(),
        channels=plan.channels(copier.name),
        barriers=(*schedule.barriers, l3.Barrier(ROWS, GROUP_WARPS * LANES)),
        roles=(softmax, corrector, issuer, copier),
    )


class _Plan:
    """The parts of the role that is divided, and the new bodies."""

    def __init__(self, schedule: l3.Schedule, role: l3.Role):
        self.schedule, self.role = schedule, role
        products = {op.transposed: op for op in operations(role.body) if isinstance(op, l3.Mma)}
        self.first, self.second = products[True], products[False]
        steps = [op for op in operations(role.body) if isinstance(op, l3.SoftmaxStep)]
        self.online = any(op.maximum is None for op in steps)
        self.bounded = bool(steps) and not self.online
        self.last = LAST if self.bounded else CORRECTION
        self.peeled = any(op.first for op in steps) or not self.online
        self.some = next(op for op in role.body if isinstance(op, l3.If))
        counts = role.body[: role.body.index(self.some)]
        self.counts = tuple(op for op in counts if isinstance(op, Let))

    # ------------------------------------------------------------ memory

    def buffers(self) -> tuple[l3.Buffer, ...]:
        s, role = self.schedule, self.role
        rows = role.rows_per_group
        sums = s.buffer(self.second.dst)
        gone = {self.second.dst, self.second.a, CORRECTION}
        kept = tuple(b for b in s.buffers if b.name not in gone)
        packed = s.tile_n * bytes_of(s.attention.dtype) // 4
        return (
            *kept,
            *(l3.Buffer(name, "register", rows, 1, "f32") for name in dict.fromkeys((CORRECTION, self.last))),
            l3.Buffer(FACTOR, SHARED, s.tile_m, 1, "f32"),
            l3.Buffer(OUT, SHARED, s.tile_m, sums.cols, s.attention.dtype, alias=self.first.a),
            l3.Buffer(SCORES, TENSOR, rows, s.tile_n, "f32", column=0, pitch=s.tile_n),
            l3.Buffer(WEIGHTS, TENSOR, rows, s.tile_n, s.attention.dtype, alias=SCORES, column=s.tile_n - packed, pitch=s.tile_n),
            l3.Buffer(SUMS, TENSOR, rows, sums.cols, "f32", column=role.groups * s.tile_n, pitch=sums.cols),
        )

    def channels(self, copier: str) -> tuple[l3.Channel, ...]:
        def private(name: str, producer: str, consumer: str) -> l3.Channel:
            return l3.Channel(name, "mbarrier", name, 1, producer, consumer, 1, 0, private=True)

        loads = tuple(dataclasses.replace(c, producer=copier, consumer=ISSUER, arrivals=1) for c in self.schedule.channels)
        return (
            *loads,
            private(SCORES, ISSUER, self.role.name),
            private(WEIGHTS, self.role.name, ISSUER),
            private(FACTOR, self.role.name, CORRECTOR),
            private(SUMS, CORRECTOR, ISSUER),
        )

    # ------------------------------------------------------------ softmax

    def softmax(self) -> tuple[l3.Op, ...]:
        return drop_unused_lets(rewrite(self.role.body, self.softmax_op))

    def softmax_op(self, op) -> tuple[l3.Op, ...]:
        loads = {c.name for c in self.schedule.channels}
        if isinstance(op, l3.Mma):
            # products run in the order they are issued: with the scores, the product that read the weights before them is done too
            room = () if self.online else (l3.Acquire(WEIGHTS),)
            fetch = (l3.Wait(SCORES), *room, l3.Convert(op.dst, SCORES), l3.Release(SCORES))
            return fetch if op.transposed else ()
        if isinstance(op, (l3.Wait, l3.Release)) and op.channel in loads or isinstance(op, l3.MmaWait):
            return ()
        if isinstance(op, l3.SoftmaxStep) and self.online:
            step = dataclasses.replace(op, slack=SLACK)
            factor = () if op.first else hand_on(FACTOR, CORRECTION)
            maximum, rest = dataclasses.replace(step, half="maximum"), dataclasses.replace(step, half="weights")
            return (maximum, *factor, l3.Acquire(WEIGHTS), rest)
        if isinstance(op, l3.Fill) and op.dst == self.second.dst:
            return (l3.Fill(self.last, 1.0),) if not self.online else ()
        if isinstance(op, l3.Rescale):
            return ()
        if isinstance(op, l3.Convert):
            return l3.Convert(WEIGHTS, op.src), l3.Commit(WEIGHTS)
        if isinstance(op, Finalize):
            ones = (l3.Fill(CORRECTION, 1.0),) if self.online else ()
            return (*ones, dataclasses.replace(op, accumulator=self.last), *hand_on(FACTOR, self.last))
        if isinstance(op, Store) and op.src == self.second.dst:
            return ()
        return (op,)

    # ------------------------------------------------------------ correction

    def corrector(self) -> tuple[l3.Op, ...]:
        take = (l3.Acquire(SUMS), l3.Fill(SUMS, 0.0))
        wait = () if self.peeled else (l3.Wait(FACTOR), l3.Release(FACTOR))
        rescale = (
            l3.Wait(FACTOR), l3.Acquire(SUMS), l3.Rescale(SUMS, FACTOR, seldom=True), l3.Commit(SUMS), l3.Release(FACTOR),
        )  # fmt: skip
        loop = (l3.For(STEP, ONE, var(TOTAL), "corrections", (l3.ForParts(rescale),)),) if self.online else ()
        some = (l3.ForParts((*wait, l3.Commit(SUMS))), *loop)
        # the first part's sums are complete, and leave, while the last products of the second run
        end = (
            self.nonempty((l3.Acquire(SUMS),)),
            l3.Wait(FACTOR), l3.Convert(OUT, SUMS, FACTOR), l3.Release(FACTOR),
            l3.Sync(ROWS), Store(OUT, "o", asynchronous=True),
        )  # fmt: skip
        return (l3.ForParts(take), *self.counts, self.nonempty(some), l3.ForParts(end), l3.StoreWait())

    # ------------------------------------------------------------ products

    def issuer(self) -> tuple[l3.Op, ...]:
        a, b, q = self.first.b, self.second.b, self.first.a
        scores = (l3.Acquire(SCORES), dataclasses.replace(self.first, dst=SCORES), l3.Commit(SCORES))
        product = dataclasses.replace(self.second, dst=SUMS, a=WEIGHTS)
        weights = (l3.Wait(WEIGHTS), product, l3.Release(WEIGHTS))
        if self.online:
            weights = (l3.Wait(WEIGHTS), l3.Wait(SUMS), product, l3.Release(WEIGHTS), l3.Release(SUMS))
        begin = () if self.online else (l3.ForParts((l3.Wait(SUMS),)),)
        end = () if self.online else (l3.ForParts((l3.Release(SUMS),)),)
        tile = (l3.Wait(b), l3.Wait(a), l3.ForParts((*weights, *scores)), l3.Release(b), l3.Release(a))
        some = (
            l3.Wait(q), l3.Wait(a), l3.ForParts(scores), l3.Release(a), *begin,
            l3.For(STEP, ONE, var(TOTAL), "key tiles", tile),
            l3.Wait(b), l3.ForParts(weights), l3.Release(b), *end,
        )  # fmt: skip
        return (*self.counts, self.nonempty(some))

    def nonempty(self, body: tuple) -> l3.If:
        return l3.If(apply("gt", var(TOTAL), ZERO), body)


def hand_on(channel: str, src: str) -> tuple[l3.Op, ...]:
    """`src` goes to the buffer of a channel of the same name."""
    return l3.Acquire(channel), l3.Convert(channel, src), l3.Commit(channel)


__all__ = ["use_tensor_memory"]
