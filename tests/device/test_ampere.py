"""Shared tiles of the mma.sync family: the swizzle is a permutation, and no access conflicts in a bank."""

from __future__ import annotations

import pytest

from attncc.device import ampere

COLS = (8 * 2, 32, 64, 80, 96, 128, 192, 256)
BANK_BYTES = 128


def tile_of(cols: int, rows: int = 64) -> ampere.Tile:
    return ampere.Tile(0, rows, cols, 2 * rows * cols)


def place(tile: ampere.Tile, row: int, chunk: int) -> int:
    """The byte address of a chunk, by the module's definition."""
    panel, inside = divmod(chunk, tile.width)
    return panel * tile.panel_bytes + row * tile.row_bytes + ((ampere.scramble(row, tile.width) ^ inside) << 4)


def conflict_free(addresses: list[int]) -> bool:
    """Whether eight 16-byte accesses touch each bank once."""
    return len({a % BANK_BYTES // 16 for a in addresses}) == len(addresses) == 8


@pytest.mark.parametrize("cols", COLS)
def test_the_swizzle_is_a_permutation(cols):
    tile = tile_of(cols)
    places = {place(tile, r, c) for r in range(tile.rows) for c in range(cols // 8)}
    assert places == set(range(0, tile.rows * cols * 2, 16))


@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("lanes_of, row_of, side_of", [
    (ampere.rows_of_lanes, lambda i: i % 16, lambda i: i // 16),
    (ampere.columns_of_lanes, lambda i: i % 8 + 8 * (i // 16), lambda i: i // 8 % 2),
])  # fmt: skip
def test_ldmatrix_reads_the_right_chunks_without_conflicts(cols, lanes_of, row_of, side_of):
    tile = tile_of(cols)
    for block in range(tile.rows // 16):
        for pair in range(cols // 16):
            at = [ampere.fragment_address(tile, lanes_of(tile, lane), block, pair, 0) for lane in range(32)]
            assert at == [place(tile, 16 * block + row_of(i), 2 * pair + side_of(i)) for i in range(32)]
            assert all(conflict_free(at[i : i + 8]) for i in range(0, 32, 8))


@pytest.mark.parametrize("cols", [32, 64, 96, 128, 192, 256])
@pytest.mark.parametrize("threads", [128, 256])
def test_neighbouring_threads_write_different_banks(cols, threads):
    tile = tile_of(cols)
    step = threads // tile.width
    for first in range(0, threads, 8):
        group = range(first, first + 8)
        for row in (0, step):
            assert conflict_free([place(tile, row + t // tile.width, t % tile.width) for t in group])


@pytest.mark.parametrize("rows, step", [(32, 16), (32, 32), (16, 32), (16, 64)])
def test_boxes_follow_each_other_at_their_stride(rows, step):
    tile = ampere.Tile(0, rows, 64, 5000)
    for row in range(step):
        for down in range(0, 64, step):
            found = row // rows * tile.stride + row % rows * tile.row_bytes + ampere._shift(tile, down, step)
            box, inside = divmod(row + down, rows)
            assert found == box * tile.stride + inside * tile.row_bytes


def test_a_ring_of_one_stage_has_no_position():
    assert ampere.next_stage(0, 4096, 1) == 0
