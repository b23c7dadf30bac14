"""Biases that have a number for every pair go through shared memory, in copies of their own.

    before  score dst=S, expr=qk * 0.125 + pair[h, row_0, kv_idx]
    after   buffer name=block_0, space=shared, rows=tile_m, cols=tile_n, dtype=bf16;  channel name=block_0, kind=tma
            acquire block_0; copy channel=block_0, tensor=pair, tile=kv_tile, at=[h]; commit block_0; wait block_0
            score dst=S, expr=qk * 0.125 + block_0
            release block_0

A number is meant whose last two indices are the query and the key themselves, whose others are the same for the whole tile. The
producer copies the block of a tile along with its keys; a thread then reads its part as it owns the scores, eight numbers an
instruction, instead of computing 64 addresses and loading one number from each. (Hopper, head dim 128, bf16: 954 instructions an
iteration of 128 x 112 before, DENSE of 128 x 128 after; no load from global memory is left in the loop.) What a block has past the
tensor's end is zero: those keys are masked, those rows not stored.

Asks for: score_blocks. The tensor must then be contiguous along keys with other strides of whole 16 bytes; for a call whose
tensor is not, the kernel is made for the target without that capability. Without this pass numbers are loaded one by one.
"""

from __future__ import annotations

import dataclasses

from attncc.formats import bytes_of
from attncc.ir import schedule as l3
from attncc.ir.expr import Expr, substitute, transform, var
from attncc.ir.schedule_ops import compute_role, operations, remark, replace_role, rewrite, shared_bytes
from attncc.ir.tile import BLOCK, SHARED, ColLet, Let, RowLet, Score
from attncc.targets import Target
from attncc.targets.cost import is_block
from attncc.targets.fit import shared_memory


def copy_biases(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with a channel for each tensor that scores read pair by pair; unchanged where shared memory has no room."""
    role = compute_role(schedule)
    if not target.has("score_blocks"):
        return schedule
    blocks = _Blocks(schedule, role)
    body = rewrite(role.body, blocks.rewrite)
    if not blocks.names:
        return schedule
    buffers, channels = blocks.declared()
    out = dataclasses.replace(schedule, buffers=(*schedule.buffers, *buffers), channels=(*schedule.channels, *channels))
    a = schedule.attention
    least = shared_memory(target, a.dim_qk, a.dim_v, a.dtype, schedule.tile_m, schedule.tile_n, 1) + sum(c.bytes for c in channels)
    if max(shared_bytes(out, bytes_of), least) > target.shared_limit:
        return remark(schedule, "copy_biases", "no room in shared memory: numbers of the bias are loaded one by one")
    return replace_role(out, role, body=body)


class _Blocks:
    """The blocks found so far: (tensor, indices before the last two) -> name."""

    def __init__(self, schedule: l3.Schedule, role: l3.Role):
        self.schedule, self.role = schedule, role
        lets = (op for op in operations(role.body) if isinstance(op, (Let, RowLet, ColLet)))
        self.lets = {op.name: op.expr for op in lets}
        self.names: dict[tuple[str, tuple[Expr, ...]], str] = {}

    def rewrite(self, op) -> tuple:
        if not isinstance(op, Score):
            return (op,)
        read: dict[str, l3.Copy] = {}
        expr = transform(op.expr, lambda node: self.block(node, read))
        copies = tuple(o for c in read.values() for o in (l3.Acquire(c.channel), c, l3.Commit(c.channel), l3.Wait(c.channel)))
        return (*copies, dataclasses.replace(op, expr=expr), *(l3.Release(name) for name in read))

    def block(self, node: Expr, read: dict[str, l3.Copy]) -> Expr:
        """The element of a block in place of a load, which `read` then copies."""
        if node.op != "load" or not is_block(self.whole(node), self.schedule.attention):
            return node
        key = node.value, tuple(self.whole(a) for a in node.args[:-2])
        name = self.names.setdefault(key, f"{BLOCK}{len(self.names)}")
        read[name] = l3.Copy(name, node.value, var("kv_tile"), node.args[:-2])
        return var(name, node.type)

    def whole(self, expr: Expr) -> Expr:
        """`expr` without the names of lets."""
        while True:
            bare = substitute(expr, self.lets)
            if bare is expr:
                return expr
            expr = bare

    def declared(self) -> tuple[tuple[l3.Buffer, ...], tuple[l3.Channel, ...]]:
        s, role = self.schedule, self.role
        buffers = tuple(
            l3.Buffer(name, SHARED, s.tile_m, s.tile_n, s.attention.tensor(tensor).dtype) for (tensor, _), name in self.names.items()
        )
        channels = tuple(
            l3.Channel(b.name, "tma", b.name, 1, role.name, role.name, role.groups, b.rows * b.cols * bytes_of(b.dtype))
            for b in buffers
        )
        return buffers, channels
