"""What a tile takes of a target: registers of a thread, shared memory, warp groups."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.formats import bytes_of
from attncc.targets.target import WARP_THREADS, Target


@dataclass(frozen=True)
class Tiles:
    """The shape of a kernel: tile sizes, computing groups and the rows of each, copies of K and V."""

    tile_m: int
    tile_n: int
    groups: int
    group_rows: int
    stages: int


def fragments(target: Target, tile_n: int, dim_v: int, group_rows: int, live_values: int = 0) -> int:
    """Registers of a thread for S and O (float32), P (16 bit) and `live_values` more of S's size while scores are computed.

    P and the further values are not alive at the same time: the larger counts.
    """
    threads = target.group_warps * WARP_THREADS
    scores = group_rows * tile_n // threads
    output = group_rows * target.pad(dim_v) // threads
    return scores + output + max(scores // 2, live_values * scores)


def shared_memory(target: Target, dim_qk: int, dim_v: int, dtype: str, tiles: Tiles) -> int:
    """Bytes of shared memory: Q (or the output tile in its place) and the stages of K and V."""
    size = bytes_of(dtype)
    qk, v = target.pad(dim_qk), target.pad(dim_v)
    return size * (tiles.tile_m * max(qk, v) + tiles.stages * tiles.tile_n * (qk + v))


def computing_groups(target: Target, tile_m: int, tile_n: int, dim_v: int, live_values: int = 0) -> tuple[int, int] | None:
    """(groups, rows of each) that compute a tile of `tile_m` rows; None when no split fits the registers."""
    for rows in target.group_rows:
        groups = tile_m // rows
        if tile_m % rows or groups not in target.groups:
            continue
        limit = target.fragments(groups * target.group_warps)
        if fragments(target, tile_n, dim_v, rows, live_values) <= limit:
            return groups, rows
    return None
