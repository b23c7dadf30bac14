"""Finds out when a term of the distance is the same for all of a tile: far from the diagonal, where clipped distances and buckets have ended.

    before  score dst=S, expr=qk * 0.125 + table[h, max(-128, min(128, kv_idx - q_idx)) + 128]
    after   score dst=S, expr=..., same=max(-128, min(128, 128 * kv_tile - ...)) == max(-128, min(128, 128 * kv_tile - ...))

A kernel whose threads own whole rows stages such terms in shared memory and reads one number for each element, which takes as much of the shared
memory's time as half of the products. Of a table of 257 distances, all but three of a row's tiles need a single number. The condition is
that the index of every load lies between equal bounds, for the distances of the rows of a group and the keys of the tile. Asks for: tensor_memory.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.algebra import Algebra, conjoin
from attncc.ir.diagonals import DISTANCE, distances_of_tile, split_diagonals
from attncc.ir.expr import FALSE, Expr, apply, variables, walk
from attncc.ir.intervals import Intervals
from attncc.ir.key_ranges import program_facts
from attncc.ir.schedule_ops import compute_role, element_names, operations, replace_role, rewrite
from attncc.ir.tile import Score
from attncc.targets import Target

LONGEST = 120
"""Operators, names and numbers of a condition that is worth asking in every tile."""


def level_distances(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with such conditions in its scores; unchanged without tensor memory, or where no term ever is the same."""
    role = compute_role(schedule)
    if not target.has("tensor_memory"):
        return schedule
    names = element_names(role.body)
    box = dict.fromkeys((DISTANCE,), distances_of_tile(schedule.tile_m, schedule.tile_n, role.rows_per_group))
    facts = program_facts(schedule.attention, schedule.tile_m, schedule.tile_n)

    def rule(op):
        if not isinstance(op, Score):
            return (op,)
        _, terms = split_diagonals(op.expr, names)
        found = [_same(term, Intervals(Algebra(facts), box)) for term in terms]
        if not found or None in found:
            return (op,)
        same = conjoin(*found)
        return (op,) if same is FALSE or sum(1 for _ in walk(same)) > LONGEST else (dataclasses.replace(op, same=same),)

    if not any(isinstance(op, Score) for op in operations(role.body)):
        return schedule
    return replace_role(schedule, role, body=rewrite(role.body, rule))


def _same(term: Expr, intervals: Intervals) -> Expr | None:
    """When `term` is the same for all distances of the box; None when it depends on them other than by the indices of its loads."""
    conditions: list[Expr] = []

    def visit(node: Expr) -> bool:
        if DISTANCE not in variables(node):
            return True
        if node.op != "load":
            return bool(node.args) and all(visit(a) for a in node.args)
        for low, high in (intervals.of(a) for a in node.args if DISTANCE in variables(a)):
            if low is None or high is None:
                return False
            conditions.append(apply("eq", low, high))
        return True

    return conjoin(*conditions) if visit(term) else None


__all__ = ["level_distances"]
