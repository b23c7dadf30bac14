"""Work of terms of the distance where threads own whole rows: staged in shared memory near the diagonal, one number for a whole tile far away."""

from __future__ import annotations

import dataclasses

from attncc.ir.algebra import Algebra
from attncc.ir.attention import Attention
from attncc.ir.diagonals import DISTANCE, split_diagonals
from attncc.ir.expr import Expr, const, variables, walk
from attncc.ir.intervals import Intervals
from attncc.ir.key_ranges import program_facts
from attncc.targets.cost import ElementCost, element_cost
from attncc.targets.fit import Tiles

STAGED_ROW_READ = 0.25
"""Instructions of a number of a distance in shared memory, where a thread reads its row's four at once."""
STAGING_INSTRUCTIONS, LEVEL_INSTRUCTIONS = 50.0, 20.0
"""Of a warp and tile: to stage the numbers of a term there, and to find out that a tile needs but one (counted in compiled kernels)."""
STAGED_BYTES = 4.0
FAR = 2**30


def with_shared_distances(attention: Attention, tiles: Tiles, keys: int) -> ElementCost:
    """What score and mask add per element of an unmasked tile, on average over `keys` keys, when terms of the distance are shared."""
    rest, terms = split_diagonals(attention.score, frozenset())
    if not terms:
        return element_cost(attention)
    extra = element_cost(dataclasses.replace(attention, score=rest))
    reach = max(_reach(term, attention, tiles, keys) for term in terms)
    near = min(1.0, (2 * reach + tiles.tile_m + tiles.tile_n) / keys)
    work = near * len(terms) * (STAGED_ROW_READ + STAGING_INSTRUCTIONS / tiles.tile_n)
    level = LEVEL_INSTRUCTIONS / tiles.tile_n if near < 1.0 else 0.0
    read = STAGED_BYTES * near * len(terms)
    return dataclasses.replace(extra, instructions=extra.instructions + work + level, shared_bytes=read, diagonals=len(terms))


def _reach(term: Expr, attention: Attention, tiles: Tiles, most: int) -> int:
    """A distance from which on every load of `term` reads the same number, before and after the diagonal; `most` where there is none."""
    indices = [a for n in walk(term) if n.op == "load" for a in n.args if DISTANCE in variables(a)]
    if not indices:
        return most
    algebra = Algebra(program_facts(attention, tiles.tile_m, tiles.tile_n))
    distance = 1
    while distance < most:
        boxes = ({DISTANCE: (const(distance), const(FAR))}, {DISTANCE: (const(-FAR), const(-distance))})
        if all(_is_level(index, Intervals(algebra, box)) for box in boxes for index in indices):
            return distance
        distance *= 2
    return most


def _is_level(index: Expr, intervals: Intervals) -> bool:
    low, high = intervals.of(index)
    return low is not None and low is high


__all__ = ["with_shared_distances"]
