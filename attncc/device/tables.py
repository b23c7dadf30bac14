"""What the prologue kernels of a TileTable do: bounds of a number over a tile, and ordered lists of key tiles. Any
target.

One warp makes the bounds of one tile; one warp makes the lists of one row of tiles, 32 key tiles at a time.
"""

from cutlass import Boolean, Float32, Int32, cute

from attncc.device import arith

WARP = 32


def number(value, kind):
    """`value` as it is kept in a summary: a Boolean as 0 or 1."""
    return arith.select(value, 1, Int32(0)) if kind is Boolean else kind(value)


def stored(kind):
    """The type in which a summary of `kind` is kept."""
    return Int32 if kind is Boolean else kind


def smaller(a, b):
    return arith.fmin(a, b) if isinstance(a, Float32) else arith.imin(a, b)


def larger(a, b):
    return arith.fmax(a, b) if isinstance(a, Float32) else arith.imax(a, b)


@cute.jit
def store_bounds(row, values, lane):
    """row[0], row[1] := the least and the greatest of `values` over all lanes of the warp."""
    low, high = values[0], values[0]
    for value in values[1:]:
        low, high = smaller(low, value), larger(high, value)
    for offset in (16, 8, 4, 2, 1):
        low = smaller(low, cute.arch.shuffle_sync_bfly(low, offset=offset))
        high = larger(high, cute.arch.shuffle_sync_bfly(high, offset=offset))
    if lane == 0:
        row[0] = low
        row[1] = high


@cute.jit
def append(items, count, condition, item, lane):
    """Writes the `item` of each lane in which `condition` holds to items[count], items[count + 1], ... in lane
    order; returns the new
    count."""
    holders = Int32(cute.arch.vote_ballot_sync(condition))
    before = holders & ((Int32(1) << lane) - 1)
    if condition:
        items[count + Int32(cute.arch.popc(before))] = item
    return count + Int32(cute.arch.popc(holders))


def steps(size: int) -> int:
    """How many elements of a tile of `size` each lane takes."""
    return -(-size // WARP)


@cute.jit
def store_counts(counts, partial, full, lane):
    if lane == 0:
        counts[0] = partial
        counts[1] = full
