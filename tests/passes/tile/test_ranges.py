"""Skipping and peeling: the text before and after, the numbers, and the classes of tiles beside those of the dense
mask.
"""

import pytest
import torch

from attncc.interp.data import make_inputs
from attncc.interp.tile_classes import EMPTY, FULL, dense_classes, tile_classes
from attncc.passes.tile.list_tiles import list_tiles, with_table
from attncc.passes.tile.merge_segments import merge_segments
from attncc.passes.tile.peel_masked_tiles import peel_masked_tiles
from attncc.passes.tile.skip_empty_tiles import skip_empty_tiles
from tests.passes.support import after, lines, program, same_numbers

TILES = ((64, 64), (128, 64), (128, 128), (192, 128))
SHAPES = ((257, 257), (129, 300), (300, 129), (1, 257), (64, 1))
BLOCK = "(q_idx - 100) // 16 if q_idx >= 100 else q_idx // 16"
KEY_BLOCK = "(kv_idx - 100) // 16 if kv_idx >= 100 else kv_idx // 16"
EXACT = {
    "dense": "true",
    "nothing": "false",
    "causal, first row first key": "kv_idx <= q_idx",
    "causal, last row last key": "kv_idx <= q_idx + off",
    "strictly after": "kv_idx > q_idx",
    "window": "kv_idx <= q_idx and q_idx - kv_idx < 40",
    "two-sided window": "abs(q_idx - kv_idx) <= 30",
    "outside a window": "not abs(q_idx - kv_idx) <= 30",
    "prefix": "kv_idx <= q_idx or kv_idx < 70",
    "sink and window": "kv_idx <= q_idx and (kv_idx < 4 or kv_idx > q_idx - 50)",
    "global tokens": "q_idx < 5 or kv_idx < 5 or abs(q_idx - kv_idx) <= 30",
    "chunks": "kv_idx // 48 == q_idx // 48 and kv_idx <= q_idx",
    "documents": "kv_idx // 200 == q_idx // 200 and kv_idx <= q_idx",
    "dilated": "(q_idx - kv_idx) % 4 == 0 and q_idx - kv_idx < 150 and kv_idx <= q_idx",
    "by head": "kv_idx <= q_idx if h < 2 else abs(q_idx - kv_idx) < 20",
    "window by head": "q_idx - kv_idx < (30 if h < 2 else 100) and kv_idx <= q_idx",
    "rows of a grid": "abs(min(max(q_idx // 16, 2), 9) - kv_idx // 16) <= 2",
    "blocks of two copies": f"({BLOCK}) == ({KEY_BLOCK}) and (q_idx >= 100) == (kv_idx >= 100)"
    f" or ({BLOCK}) > ({KEY_BLOCK}) and kv_idx >= 100 and q_idx < 100",
    "product": "kv_idx * kv_idx < q_idx * 300",
    "shifted bits": "(kv_idx >> 5) <= (q_idx >> 4)",
}


def test_skipping_a_causal_mask():
    before = program("mask kv_idx <= q_idx")
    skipped = after(skip_empty_tiles, before)
    assert lines(before).splitlines()[2] == "segment kind=partial, count=kv_tiles, tile=t {"
    assert lines(skipped).splitlines()[2:4] == [
        "let name=bound_0, expr=min(kv_tiles, q_tile + 1)",
        "segment kind=partial, count=bound_0, tile=bound_0 - t - 1 {",
    ]
    same_numbers(before, skipped)


def test_peeling_a_causal_mask():
    before = program("mask kv_idx <= q_idx", upto="peel_masked_tiles")
    peeled = after(peel_masked_tiles, before)
    text = lines(peeled).splitlines()
    assert [x for x in text if x.startswith(("let", "segment", "mask dst"))] == [
        "let name=bound_0, expr=min(kv_tiles, q_tile + 1)",
        "let name=bound_1, expr=min(seq_kv // 64, q_tile)",
        "segment kind=partial, count=bound_0 - bound_1, tile=bound_0 - t - 1 {",
        "mask dst=S, expr=kv_idx < seq_kv and kv_idx <= q_idx",
        "segment kind=full, count=bound_1, tile=bound_1 - t - 1 {",
    ]
    same_numbers(before, peeled)


def test_peeling_works_without_skipping():
    naive = program("mask kv_idx <= q_idx and q_idx - kv_idx < 24", tiles=(32, 16))
    same_numbers(naive, after(peel_masked_tiles, naive), after(skip_empty_tiles, naive))


def test_a_window_has_two_partial_ranges_and_merging_makes_one_loop():
    before = program("mask kv_idx <= q_idx and q_idx - kv_idx < 200", tiles=(32, 16), upto="merge_segments")
    merged = after(merge_segments, before)
    assert [s.kind for s in before.segments] == ["partial", "partial", "full"]
    assert [s.kind for s in merged.segments] == ["partial", "full"]
    assert "tile=select(t < bound_7, bound_3, bound_8) - t - 1" in lines(merged)
    same_numbers(before, merged)


def test_a_mask_that_keeps_nothing_leaves_a_segment_without_tiles():
    out = program("mask false", upto="fold_multiplier")
    assert [(s.kind, s.count.value) for s in out.segments] == [("partial", 0)]
    same_numbers(out)


@pytest.mark.parametrize("mask", EXACT.values(), ids=EXACT.keys())
def test_classes_are_those_of_the_dense_mask(mask):
    for tiles in TILES:
        out = program(f"mask {mask}", tiles, upto="fold_multiplier")
        for seq_q, seq_kv in SHAPES:
            mine = tile_classes(out, 1, seq_q, seq_kv)
            assert torch.equal(mine, dense_classes(out.attention, *tiles, 1, seq_q, seq_kv)), (tiles, seq_q, seq_kv)


@pytest.mark.parametrize("mask", EXACT.values(), ids=EXACT.keys())
def test_both_routes_are_sound(mask):
    """The list of tiles, had it been chosen, and the closed form, had it been kept, skip no kept cell and mask every
    masked one.
    """
    tiles = (64, 32)
    naive = program(f"mask {mask}", tiles)
    closed = peel_masked_tiles(skip_empty_tiles(naive))
    listed = with_table(naive)
    for seq_q, seq_kv in SHAPES:
        dense = dense_classes(naive.attention, *tiles, 1, seq_q, seq_kv)
        for out in (closed, listed):
            mine = tile_classes(out, 1, seq_q, seq_kv)
            assert not bool(((mine == EMPTY) & (dense != EMPTY)).any())
            assert not bool(((mine == FULL) & (dense != FULL)).any())


RUN_TIME = {
    "window": ("scalar w: int in 0..seq_kv + 1", "q_idx - kv_idx < w and kv_idx <= q_idx", False),
    "any window": ("scalar w: int", "q_idx - kv_idx < w and kv_idx - q_idx <= w", False),
    "switch": ("scalar on: bool", "kv_idx <= q_idx if on else kv_idx < 9", False),
    "prefix per batch": ("tensor n: i32[batch] in 0..200", "kv_idx < n[b] or kv_idx <= q_idx", False),
    "documents": ("tensor d: i32[batch, 1024] in 0..9 sorted", "d[b, q_idx] == d[b, kv_idx]", True),
    "documents, causal": (
        "tensor d: i32[batch, 1024] in 0..9 sorted",
        "d[b, q_idx] == d[b, kv_idx] and kv_idx <= q_idx",
        True,
    ),
    "row starts": ("tensor back: i32[1024] in 0..90", "kv_idx >= q_idx - back[q_idx // 64] and kv_idx <= q_idx", True),
    "flags": ("tensor f: bool[batch, 1024]", "not f[b, kv_idx] or abs(q_idx - kv_idx) < 20", True),
    "times": ("tensor t: f32[1024] in 0.0..5.0 sorted", "t[kv_idx] <= t[q_idx]", True),
    "gather": (
        "tensor d: i32[batch, 1024] in 0..9 sorted\ntensor begin: i32[9] in 0..100",
        "begin[d[b, q_idx]] <= kv_idx",
        True,
    ),
    "by head": ("tensor d: i32[1024] in 0..9 sorted", "d[q_idx] == d[kv_idx] if h < 2 else kv_idx <= q_idx", True),
}


@pytest.mark.parametrize("declared, mask, listed", RUN_TIME.values(), ids=RUN_TIME.keys())
def test_classes_of_masks_that_depend_on_arguments(declared, mask, listed):
    for tiles in TILES:
        out = program(f"{declared}\nmask {mask}", tiles, upto="fold_multiplier")
        assert (out.table is not None) == listed
        for number, (seq_q, seq_kv) in enumerate(SHAPES):
            inputs = make_inputs(out.attention, 2, seq_q, seq_kv, seed=number)[3]
            mine = tile_classes(out, 2, seq_q, seq_kv, inputs)
            assert torch.equal(mine, dense_classes(out.attention, *tiles, 2, seq_q, seq_kv, inputs)), (
                tiles,
                seq_q,
                seq_kv,
            )


@pytest.mark.parametrize("window", (2**31 - 1, -(2**31), 0, 1, 63))
def test_a_window_of_any_size_does_not_overflow(window):
    mask = "q_idx - kv_idx < w and kv_idx - q_idx <= w"
    for body in (f"scalar w: int\nmask {mask}", f"mask {mask.replace('w', f'({window})')}"):
        if window == -(2**31) and "scalar" not in body:
            continue
        out = program(body, upto="fold_multiplier")
        inputs = {"w": window} if out.attention.scalars else {}
        assert torch.equal(
            tile_classes(out, 1, 300, 200, inputs), dense_classes(out.attention, 64, 64, 1, 300, 200, inputs)
        )


def test_listing_documents():
    before = program("tensor d: i32[batch, seq_q]\ntensor e: i32[batch, seq_kv]\nmask d[b, q_idx] == e[b, kv_idx]")
    listed = after(list_tiles, before)
    assert [x for x in lines(listed).splitlines() if x.startswith(("segment", "tile_summary", "may", "must"))] == [
        "segment kind=partial, count=tile_count[b, 0, q_tile, 0], tile=tile_list[b, 0, q_tile, 0, t] {",
        "segment kind=full, count=tile_count[b, 0, q_tile, 1], tile=tile_list[b, 0, q_tile, 1, t] {",
        "tile_summary name=summary_0, axis=q, expr=d[b, q_idx]",
        "tile_summary name=summary_1, axis=kv, expr=e[b, kv_idx]",
        "may = summary_0_lo <= summary_1_hi and summary_1_lo <= summary_0_hi",
        "must = kv_tile * 64 + 64 <= seq_kv and not (summary_0_lo < summary_1_hi or summary_1_lo < summary_0_hi)",
    ]
    same_numbers(before, listed)


def test_what_nothing_bounds_runs_as_partial_tiles_and_is_told():
    out = program(
        "tensor m: bool[batch, seq_q, seq_kv]\nmask m[b, q_idx, kv_idx] and kv_idx <= q_idx", upto="fold_multiplier"
    )
    assert out.table is None
    assert any("m[b, q_idx, kv_idx]" in r.text for r in out.remarks)
    same_numbers(out)
