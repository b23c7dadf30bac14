"""Starts the next tile's S = Q K^T before the present tile's O += P V, so that softmax runs under a matrix product.

    before  S0; softmax0; P0; PV0;  for each tile i { S_i; wait 0; softmax_i; rescale; P_i; PV_i; wait 0 }
    after   S0; softmax0; P0;       for each tile i { S_i; PV_{i-1}; wait 1; softmax_i; wait 0; rescale; P_i }   PV_last; wait 0

Numbers of columns that are staged in shared memory are computed while the products run. (FlashAttention-3, section 3.2.) `wait 1` is done when S_i is, while P V may still run. K is released after `wait 1`, V after
`wait 0`. Asks for: async_mma, and the first tile peeled. Without this pass each product is waited for before the next step.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import compute_role, operations, replace_role
from attncc.ir.tile import SHARED, ColLet
from attncc.targets import Target


def overlap_softmax_with_mma(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with the loops of the computing role rotated by half a tile.

    Unchanged when the first tile is in a loop, or when the role waits for copies that it starts itself.
    """
    role = compute_role(schedule)
    index = next(i for i, op in enumerate(role.body) if isinstance(op, l3.If))
    outer = role.body[index]
    copies = any(isinstance(op, l3.Copy) for op in operations(outer.body))
    if copies or not target.has("async_mma") or not any(isinstance(op, l3.Mma) for op in outer.body):
        return schedule
    first, product = split_tile(tuple(op for op in outer.body if not isinstance(op, l3.For)))
    loops = tuple(rotate(op) for op in outer.body if isinstance(op, l3.For))
    body = dataclasses.replace(outer, body=first + loops + product)
    return replace_role(schedule, role, body=role.body[:index] + (body,) + role.body[index + 1 :])


def split_tile(body: tuple) -> tuple[tuple, tuple]:
    """A tile's operations up to the rounding of its weights, and those of its second product."""
    cut = max(i for i, op in enumerate(body) if isinstance(op, l3.Convert)) + 1
    return body[:cut], body[cut:]


def rotate(loop: l3.For) -> l3.For:
    """The loop whose tile i also does the second product of tile i - 1."""
    tile, product = split_tile(loop.body)
    start = next(i for i, op in enumerate(tile) if isinstance(op, l3.Mma))
    scores = start + 1 + next(i for i, op in enumerate(tile[start + 1 :]) if isinstance(op, l3.MmaWait))
    wait_v = tuple(op for op in product if isinstance(op, l3.Wait))
    mma = tuple(op for op in product if isinstance(op, l3.Mma))
    done = tuple(op for op in product if isinstance(op, (l3.MmaWait, l3.Release)))
    late = tuple(op for op in tile if isinstance(op, (l3.Rescale, l3.Convert)))
    early = tuple(op for op in tile[scores + 1 :] if isinstance(op, ColLet) and op.space == SHARED)
    middle = tuple(op for op in tile[scores + 1 :] if op not in late and op not in early)
    body = (*tile[: start + 1], *wait_v, *mma, *early, l3.MmaWait(1), *middle, *done, *late)
    return dataclasses.replace(loop, body=body)


def is_overlapped(schedule: l3.Schedule) -> bool:
    """Whether some loop of the computing role has two products in flight."""
    return any(isinstance(op, l3.MmaWait) and op.pending > 0 for op in operations(compute_role(schedule).body))
