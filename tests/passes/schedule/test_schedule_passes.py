"""Each L3 pass: the change it makes to the text, that both texts run right, and that optional passes may be left out.

`changes/<target>_<pass>.diff` holds what the pass does to the causal schedule. After a deliberate change of a pass, write them
anew with `python -m tests.passes.schedule.test_schedule_passes` and read the difference.
"""

import dataclasses
import difflib
import itertools
from pathlib import Path

import pytest
import torch

from attncc import pipeline
from attncc.driver import lower
from attncc.interp.data import make_inputs
from attncc.interp.explore_schedule import explore
from attncc.interp.reference import reference
from attncc.interp.run_schedule import run_schedule
from attncc.interp.schedule_trace import blocks_of, call_of
from attncc.ir import schedule as l3
from attncc.ir.expr import TRUE, const
from attncc.ir.packing import pack
from attncc.ir.schedule_ops import compute_role, number, operations
from attncc.ir.text import format_expr, format_program, parse_program
from attncc.ir.tile import ColLet, Let, Mask, Score
from attncc.lower import load
from attncc.passes.schedule.cap_in_softmax import cap_in_softmax
from attncc.passes.schedule.drain_rings import drain_rings
from attncc.passes.schedule.level_distances import level_distances
from attncc.passes.schedule.pair_blocks import pair_blocks
from attncc.passes.schedule.persistent_blocks import SHORT, persistent_blocks
from attncc.passes.schedule.place_copy_waits import place_copy_waits
from attncc.passes.schedule.roll_masks import roll_masks
from attncc.passes.schedule.share_columns import share_columns
from attncc.passes.schedule.share_exponentials import share_exponentials
from attncc.passes.schedule.tile_order import heads_together
from attncc.passes.schedule.use_tensor_memory import use_tensor_memory
from attncc.targets import TARGETS
from attncc.targets.fit import Tiles
from attncc.targets.model import shares
from tests.schedules import attention, change, schedule

CHANGES = Path(__file__).parent / "changes"
PASSES = [(t, p) for t in ("hopper", "ampere") for p in pipeline.SCHEDULE_PASSES[t]]
PASSES += [
    ("blackwell", p)
    for p in (use_tensor_memory, pair_blocks, share_columns, roll_masks, level_distances, cap_in_softmax, share_exponentials, persistent_blocks, drain_rings)
]
NEEDED = {"place_copy_waits", "use_tensor_memory", "drain_rings"}
"""Passes without which a schedule is not finished."""
ELSEWHERE = {"pair_blocks", "fetch_columns"}
"""Passes whose absence is looked at on a subject of their own."""
ONE_PART = {f"blackwell_{name}" for name in ("persistent_blocks", "share_columns", "roll_masks", "level_distances", "cap_in_softmax", "share_exponentials")}
"""Without them a schedule is explored with one part of a query tile: with two it is as the neighbours', at 40 seconds each."""
SUBJECTS = {
    "ping_pong": {"tile_m": 192}, "lazy_rescaling": {"name": "wide"}, "share_columns": {"name": "documents"}, "roll_masks": {"name": "pages"}, "copy_biases": {"name": "pairs"},
    "fetch_columns": {"name": "gates"},
    "persistent_blocks": {"name": "even", "tile_m": 192}, "blackwell_persistent_blocks": {"name": "wide", "small": False},
    "narrow_windows": {"name": "band"}, "skip_missing_tiles": {"name": "packed"}, "cap_in_softmax": {"name": "capped"}, "level_distances": {"name": "distances"},
    "pair_blocks": {"name": "full", "small": False}, "drain_rings": {"name": "full", "small": False},
}  # fmt: skip
"""What a pass works on where it leaves the usual schedule alone: three groups, long output rows, numbers of a key, a bias for every pair, numbers
of columns that are loaded, a shape whose blocks take several tiles (with tensor memory: one whose output lies over Q), a window wider than a
tile, packed sequences, a mask that reads
a tensor for every pair, capped scores, a table of distances, rows so long that two blocks work together."""


pytestmark = pytest.mark.usefixtures("one_thread")


def pass_id(item) -> str:
    return f"{item[0]}_{item[1].__name__}"


def before_and_after(target, one):
    """The causal schedule (or the pass's own subject) before and after a pass."""
    subject = SUBJECTS.get(pass_id((target, one)), SUBJECTS.get(one.__name__, {}))
    before = schedule(**{"name": "causal", "target": target, "until": one.__name__, **subject})
    return before, one(before, TARGETS[target]) if pipeline.takes_target(one) else one(before)


def change_of(target, one) -> str:
    """What a pass does to the text, as a diff with the headings of the operations around."""
    texts = [format_program(s).splitlines() for s in before_and_after(target, one)]
    lines = list(difflib.unified_diff(*texts, "before", "after", lineterm="", n=1))
    return "".join(f"{line}\n" for line in lines if not line.startswith("@@") or line.strip("@ "))


def check_numbers(s, name, seq_q, seq_kv):
    q, k, v, inputs = make_inputs(attention(name), 1, seq_q, seq_kv)
    out, lse = run_schedule(s, q, k, v, inputs, seed=seq_q)
    want, want_lse = reference(attention(name), q, k, v, inputs)
    torch.testing.assert_close(out, want.to(out.dtype), rtol=1e-9, atol=1e-9)
    if want_lse is not None:
        torch.testing.assert_close(lse, want_lse.to(lse.dtype), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("item", PASSES, ids=pass_id)
def test_the_change_is_the_documented_one(item):
    expected = (CHANGES / f"{pass_id(item)}.diff").read_text(encoding="utf-8")
    assert change_of(*item) == expected, "run `python -m tests.passes.schedule.test_schedule_passes` and read the difference"


@pytest.mark.parametrize("item", PASSES, ids=pass_id)
def test_before_and_after_run_alike(item):
    for s in before_and_after(*item):
        assert parse_program(format_program(s)) == s
        name = "packed" if s.attention.packed else s.attention.name
        s = drain_rings(s) if s.cluster > 1 and not any(r.body[-1] == l3.Drain("V") for r in s.roles) else s  # it comes after all others
        check_numbers(s, name, 130, 200)
        check_numbers(s, name, 200, 70)


@pytest.mark.parametrize("item", [i for i in PASSES if i[1].__name__ not in NEEDED | ELSEWHERE], ids=pass_id)
def test_the_kernel_is_right_without_the_pass(item):
    target, one = item
    for name in ("window", "documents", "sigmoid"):
        s = schedule(name, target, without=(one.__name__,))
        check_numbers(s, name, 130, 200)
        if pass_id(item) in ONE_PART:
            s = schedule(name, target, without=(one.__name__,), tile_m=128)
        explore(s, 1, 130, 130, make_inputs(attention(name), 1, 130, 130)[3])


def ops(s, *kinds):
    return [op for op in operations(compute_role(s).body) if isinstance(op, kinds)]


def test_overlap_puts_two_products_in_flight():
    with_pass, without = schedule("causal", "hopper"), schedule("causal", "hopper", without=("overlap_softmax_with_mma",))
    assert l3.MmaWait(1) in ops(with_pass, l3.MmaWait) and l3.MmaWait(1) not in ops(without, l3.MmaWait)
    turns = [schedule("causal", "hopper", tile_m=192, without=w) for w in ((), ("overlap_softmax_with_mma",))]
    assert [any(b.name == "turn" for b in s.barriers) for s in turns] == [True, False], "turns only make sense with overlap"
    assert not any(b.name == "turn" for b in with_pass.barriers), "two groups find their rhythm by themselves"


def test_peeling_makes_one_step_the_first():
    with_pass = schedule("causal", "hopper", without=("trust_maxima",))
    without = schedule("causal", "hopper", without=("peel_first_tile", "trust_maxima"))
    assert [s.first for s in ops(with_pass, l3.SoftmaxStep)] == [True, False, False]
    assert [s.first for s in ops(without, l3.SoftmaxStep)] == [False, False]
    assert l3.MmaWait(1) not in ops(without, l3.MmaWait), "without a first tile there is nothing to overlap with"


def test_a_segment_of_at_most_one_tile_keeps_no_loop():
    loops = [op.label for op in ops(schedule("dense", "hopper"), l3.For)]
    assert loops == ["tiles above", "full tiles", "tiles below"]


def test_stages_fill_shared_memory_up_to_the_wish():
    deep = schedule("causal", "hopper")
    assert deep.channel("K").stages == TARGETS["hopper"].stages == 2
    assert schedule("causal", "hopper", without=("pipeline_stages",)).channel("K").stages == 1


def test_prefetching_moves_copies_before_their_waits():
    def first_copy_and_wait(s):
        body = next(op for op in compute_role(s).body if isinstance(op, l3.If)).body
        loop = next(op for op in body if isinstance(op, l3.For)).body
        kinds = [type(op) for op in loop]
        return kinds.index(l3.CopyWait), kinds.index(l3.Mma), [o.channel for o in operations(loop) if isinstance(o, l3.Copy)]

    wait, product, order = first_copy_and_wait(schedule("causal", "ampere"))
    assert wait < product and order == ["V", "K"]
    assert first_copy_and_wait(schedule("causal", "ampere", without=("prefetch_copies",)))[2] == ["K", "V"]


def test_long_tiles_start_first_only_where_work_grows():
    lets = {op.name: op.expr for op in schedule("causal", "hopper").prelude}
    assert format_expr(lets["q_tile"]) == "select((batch - 1 - block_z) % 2 == 0, q_tiles - 1 - block_y, block_y)"
    lets = {op.name: op.expr for op in schedule("dense", "hopper").prelude}
    assert format_expr(lets["q_tile"]) == "block_x"


def test_sections_of_windows_hold_what_a_window_reads():
    """Sixteen heads whatever the length where a tile sees 1024 keys; with keys as long as the sample the length of the call decides."""
    text = "attention a {{ heads q = 16, kv = 16\n dim 128\n dtype bf16\n mask causal and sliding_window(keys = {}) }}"
    near, far = (lower(load(text.format(n)), TARGETS["hopper"]).schedule for n in (1024, 4000))
    assert near.grid[0] == const(16) and number(far.grid[0], {"seq_kv": 1024}) == 16 and number(far.grid[0], {"seq_kv": 16384}) == 2


def test_sections_hold_the_keys_that_fit_the_cache():
    a = dataclasses.replace(attention("causal"), heads_q=32, heads_kv=16, dim_qk=128, dim_v=128)
    size = heads_together(dataclasses.replace(schedule("causal", "hopper"), attention=a), TARGETS["hopper"])
    found = [number(size, {"seq_kv": n}) for n in (100, 1024, 4096, 8192, 16384, 65536)]
    assert found == [32, 32, 16, 8, 4, 2]


def test_every_block_of_a_section_order_is_another_tile():
    a = attention("causal")
    call = call_of(schedule("causal", "hopper"), 3, 300, 300, {}, torch.float64)
    blocks = blocks_of(schedule("causal", "hopper"), call)
    places = {tuple(int(blocks[n][i]) for n in ("b", "h", "q_tile")) for i in range(blocks["b"].shape[0])}
    assert places == {(b, h, t) for b in range(3) for h in range(a.heads_q) for t in range(3)}


def test_guards_stay_where_a_row_may_have_no_key():
    dense, window = (schedule(name, "hopper", without=("trust_maxima",)) for name in ("dense", "window"))
    assert [s.guard for s in ops(dense, l3.SoftmaxStep)] == [False, False]
    assert [s.guard for s in ops(window, l3.SoftmaxStep)] == [True, True, False, True]


def test_numbers_of_a_key_are_made_before_the_scores_are_waited_for():
    s = schedule("documents", "blackwell")
    lets = ops(s, ColLet)
    assert lets and all(op.slot is not None for op in lets)
    for body in (op.body for op in operations(compute_role(s).body) if isinstance(op, (l3.If, l3.For))):
        kinds = [(type(op), getattr(op, "channel", getattr(op, "barrier", ""))) for op in body]
        if (ColLet, "") in kinds:
            at = kinds.index((ColLet, ""))
            assert kinds[at - 1] == (l3.Sync, "columns") and kinds.index((l3.Wait, "TS")) > at
    assert not any(op.slot is not None for op in ops(schedule("documents", "hopper"), ColLet))


def test_conditions_on_the_key_alone_are_shared_where_they_take_some_work():
    def keys(mask):
        text = f"attention a {{ heads q = 1, kv = 1\n dim qk = 64, v = 64\n dtype bf16\n mask {mask} }}"
        s = lower(load(text), TARGETS["blackwell"]).schedule
        return {repr(op.expr) for op in ops(s, ColLet)}, {op.rolled for op in ops(s, Mask)}

    assert keys("(16 | kv_idx) < 40 and (kv_idx ^ q_idx) > 8 and kv_idx * 20 > (kv_idx & 8)")[0] == {"16 | kv_idx < 40 and kv_idx * 20 > kv_idx & 8"}
    assert not keys("causal and kv_idx * 20 > 8")[0], "as long as reading it"
    ranges = " or ".join(f"{100 * i} <= kv_idx - q_idx < {100 * i + 20}" for i in range(6))
    assert keys(f"kv_idx < 7 or {ranges}") == (set(), {False}), "words of bits anyway"


def test_polynomials_stay_away_from_masks_and_other_types():
    steps = [op for op in ops(schedule("causal", "blackwell"), l3.SoftmaxStep) if op.half == "weights"]
    target, tiles = TARGETS["blackwell"], Tiles(256, 64, 2, 128, 3)
    count = shares(attention("causal"), target, tiles).polynomial
    assert 0 < count < 8 and [op.polynomial for op in steps] == [0, 0, count], "first, partial and full tiles"
    assert not shares(dataclasses.replace(attention("causal"), dtype="f16"), target, tiles).any
    assert not shares(attention("causal"), TARGETS["hopper"], tiles).any


def test_a_cap_joins_softmax_where_nothing_comes_between():
    """Not in tiles that mask or set the maximum, not for fp16, not under another term; a sum inside the cap stays a score of its own."""
    s = schedule("capped", "blackwell")
    assert [(op.cap is not None, op.odd) for op in ops(s, l3.SoftmaxStep)] == [(False, 0), (False, 0), (True, 16)], "first, partial and full tiles"
    assert [format_expr(op.expr)[:5] for op in ops(s, Score)] == ["tanh("] * 2

    def steps(body: str, dtype: str = "bf16"):
        text = f"attention one {{ heads q = 1, kv = 1\n dim 64\n dtype {dtype}\n {body} }}"
        s = lower(load(text), TARGETS["blackwell"]).schedule
        return [op.cap for op in ops(s, l3.SoftmaxStep) if op.half != "maximum"][-1], [format_expr(op.expr) for op in ops(s, Score)][-1:]

    assert steps("score softcap(5.0)", "f16")[0] is None
    assert steps("score softcap(5.0)\n bias min(max(0.1 * float(kv_idx - q_idx), -1.0), 0.0)")[0] is None
    cap, scores = steps("score s + 0.1 * float(kv_idx)\n score softcap(5.0)")
    assert cap == 1.0 and "tanh" not in scores[0] and "qk" in scores[0]


def test_tiles_far_from_the_diagonal_need_one_number_of_a_table():
    """The condition holds just where no distance of the tile is inside the clipped range; buckets have one too, sums of cosines none."""
    same = ops(schedule("distances", "blackwell"), Score)[-1].same
    for q_tile, kv_tile, group in itertools.product(range(3), range(9), range(2)):
        least = 64 * kv_tile - 256 * q_tile - 128 * group - 127
        env = {"q_tile": q_tile, "kv_tile": kv_tile, "group": group, "off": 0, "seq_q": 700, "seq_kv": 700}
        assert number(same, env) == (least >= 8 or least + 127 + 63 <= -8), (q_tile, kv_tile, group)

    def condition(body: str):
        text = f"attention one {{ heads q = 1, kv = 1\n dim 64\n dtype bf16\n {body} }}"
        return ops(lower(load(text), TARGETS["blackwell"]).schedule, Score)[-1].same

    assert condition("tensor t: f32[16, heads_q]\n bias t5_bias(t, 16, 20)") is not None
    assert condition("bias sandwich(16)") is None
    assert condition("tensor t: f32[heads_q, 17]\n bias 0.1 * float(kv_idx - q_idx) * relative_table(t, 8)") is None


def test_a_condition_that_holds_too_often_gives_wrong_numbers():
    s = change(schedule("distances", "blackwell"), "consumer", lambda op: (dataclasses.replace(op, same=TRUE) if isinstance(op, Score) else op,))
    check_numbers(schedule("distances", "blackwell"), "distances", 130, 200)
    with pytest.raises(AssertionError):
        check_numbers(s, "distances", 130, 200)


def test_long_masks_are_rolled_and_short_ones_written_out():
    """A tensor of the mask's own for every pair, or many numbers of a key; not bounds on the key, or one comparison beside them."""

    def rolled(name):
        return {op.rolled for op in ops(schedule(name, "blackwell"), Mask)}

    assert (rolled("pages"), rolled("causal"), rolled("window"), rolled("documents")) == ({True}, {False}, {False}, {False})
    assert not any(op.rolled for op in ops(schedule("pages", "hopper"), Mask)), "a thread owns parts of rows there"


def test_more_stages_change_the_waits_of_a_role_that_copies_for_itself():
    """With two stages a K is still in flight behind the one that is waited for."""
    replace = dataclasses.replace
    base = schedule("causal", "ampere", until="place_copy_waits")
    deep = replace(
        base,
        channels=tuple(replace(c, stages=2) if c.name in "KV" else c for c in base.channels),
        buffers=tuple(replace(b, stages=2) if b.name in "KV" else b for b in base.buffers),
    )
    shallow, deeper = (place_copy_waits(s, TARGETS["ampere"]) for s in (base, deep))
    check_numbers(deeper, "causal", 130, 200)
    explore(deeper, 1, 130, 200)
    assert len(ops(deeper, l3.Sync)) <= len(ops(shallow, l3.Sync))


def test_numbers_of_columns_take_the_room_of_a_stage():
    """Of K and V only: the rings that hand on one tile keep their one stage."""
    text = """attention filled { heads q = 1, kv = 1\n dim qk = 160, v = 96\n dtype bf16\n tensor t: f32[batch, 8]\n tensor at: i32[batch, seq_kv] in 0..8
        tensor n: i32[batch, seq_q] in 0..seq_kv\n bias -t[b, at[b, kv_idx]]\n mask kv_idx > n[b, q_idx] and at[b, kv_idx] == n[b, q_idx]
        target blackwell(tile_m = 256, tile_n = 96) }"""
    s = lower(load(text), TARGETS["blackwell"]).schedule
    assert [s.channel(n).stages for n in ("K", "V", "TS", "TP")] == [2, 2, 1, 1]
    assert any(r.by == "share_columns" and "not 3" in r.text for r in s.remarks)


@pytest.mark.parametrize(("name", "several"), (("dense", True), ("causal", True), ("window", True), ("documents", False), ("packed", False)))
def test_tiles_are_dealt_beforehand_only_where_costs_are_steady(name, several):
    """By the resource model, where nothing was measured for the shape: for the target whose rates say what a tile costs its block."""
    s = schedule(name, "blackwell")
    assert any(isinstance(op, l3.Place) for role in s.roles for op in operations(role.body)) == several
    assert not any(isinstance(op, l3.Place) for role in schedule(name, "hopper").roles for op in operations(role.body))


def test_blocks_that_end_hand_on_unless_a_call_is_plain():
    """On Hopper blocks work on several tiles where that was measured to gain and cannot go wrong: no mask, plain scores, short rows."""
    text = "attention a {{ heads q = 2, kv = 2\n dtype bf16\n dim {} }}"
    cases = {
        "64": True, "96": True, "128": True, "128\n scale 0.5": True, "256": False, "qk = 192, v = 128": False, "64\n mask causal": False,
        "128\n mask sliding_window(keys = 100000)": False, "128\n score softcap(30.0)": False, "64\n scalar n: float\n bias -n": False,
    }  # fmt: skip
    for body, several in cases.items():
        s = lower(load(text.format(body)), TARGETS["hopper"]).schedule
        assert any(isinstance(op, l3.Place) for role in s.roles for op in operations(role.body)) == several, body
    grid = lower(load(text.format("128")), TARGETS["hopper"]).schedule.grid[0]
    tiles = {seq_kv: number(grid, {"q_tiles": 100, "batch": 3, "seq_kv": seq_kv}) for seq_kv in (1, SHORT, SHORT + 1)}
    assert tiles == {1: 132, SHORT: 132, SHORT + 1: 600}


def test_short_tiles_do_not_come_to_the_same_blocks():
    """Of 16 x 16 sequences of six tiles each block has as many last tiles as any other, up to one."""
    s = schedule("even", "hopper", sms=132, tile_m=192)
    loop = next(op for op in operations(s.roles[0].body) if isinstance(op, l3.For) and op.label == "work tiles")
    work = next(op.expr for op in loop.body if isinstance(op, Let) and op.name == "work")
    env = {"blocks": 132, "seq_kv": 1024}
    dealt = [[number(work, {**env, "block_x": x, "round": r}) for r in range(12)] for x in range(132)]
    assert sorted(w for row in dealt for w in row) == list(range(12 * 132))
    last = [sum(w < 6 * 256 and w % 6 == 5 for w in row) for row in dealt]
    assert max(last) - min(last) <= 1


@pytest.mark.parametrize(("name", "more"), (("narrow", {"tile_m": 192}), ("even", {"tile_m": 192}), ("wide", {"small": False})), ids=str)
def test_several_tiles_of_a_block_run_right(name, more):
    """On two multiprocessors, so that short calls have several: the output apart, two copies of Q, and over Q, tiles without keys among them."""
    s = schedule(name, "hopper", sms=2, **more)
    assert (s.channel("Q").stages, s.buffer("OUT").alias) == ((1, "Q") if name == "wide" else (2, None))
    check_numbers(s, name, 700, 257)
    check_numbers(s, name, 500, 130)


@pytest.mark.parametrize("sizes", ((700, 700), (257, 900), (900, 257), (500, 1), (1, 700)), ids=str)
def test_groups_visit_their_own_part_of_a_window(sizes):
    """Rows without a full tile, without any, beyond the last query; most tiles of the block are full for some group only."""
    s = schedule("band", "hopper")
    assert [op.label for op in ops(s, l3.For)] == ["tiles above", "partial tiles", "full tiles", "partial tiles", "tiles below"]
    check_numbers(s, "band", *sizes)


def test_groups_give_up_turns_only_for_narrow_windows():
    """Head dim 64 with three groups: turns unless a group's own part of a window is a twelfth less work."""
    text = "attention a {{ heads q = 2, kv = 1\n dim {}\n dtype bf16\n mask causal and sliding_window(keys = {}) }}"
    found = {}
    for dim, keys in (("64", 128), ("64", 512), ("64", 4096), ("96", 1024), ("qk = 192, v = 128", 512)):
        s = lower(load(text.format(dim, keys)), TARGETS["hopper"]).schedule
        found[dim, keys] = any(b.name == "turn" for b in s.barriers), ops(s, l3.For)[0].label == "tiles above"
    narrow, turns = (False, True), (True, False)
    assert found == {("64", 128): narrow, ("64", 512): narrow, ("64", 4096): turns, ("96", 1024): narrow, ("qk = 192, v = 128", 512): turns}


def test_the_output_takes_the_room_of_a_third_stage_unless_a_hint_asked_for_it():
    text = "attention a {{ heads q = 2, kv = 1\n dim {}\n dtype bf16\n {} }}"
    found = []
    for dim, hint in ((64, ""), (96, ""), (96, "target blackwell(stages = 3)"), (128, "mask kv_idx <= q_idx + off")):
        s = lower(load(text.format(dim, hint)), TARGETS["blackwell"]).schedule
        found.append((s.channel("K").stages, s.buffer("OUT").alias, s.channel("Q").consumers))
    apart, over = (None, ("issuer",)), ("Q", ("issuer", "correction"))
    assert found == [(3, *apart), (2, *apart), (3, *over), (2, *over)]


def test_blocks_work_in_pairs_only_where_that_gains():
    """Long rows whose keys are all kept: not with a mask, not where issue slots or the special function unit are the limit, not packed."""
    cases = {
        "dim 128": True, "dim 256": True, "dim qk = 192, v = 128": True, "dim 128\n reduction sigmoid": True,
        "dim 128\n tensor table: f32[heads_q, 129]\n bias relative_table(table, 64)": True,
        "dim 64": False, "dim 96": False, "dim 128\n mask kv_idx <= q_idx + off": False, "dim 128\n score softcap(30.0)": False,
    }  # fmt: skip
    for text, gains in cases.items():
        s = lower(load(f"attention a {{ heads q = 2, kv = 1\n dtype bf16\n {text} }}"), TARGETS["blackwell"]).schedule
        assert (s.cluster == 2) == gains, text
    a = load("attention a { heads q = 2, kv = 1\n dtype bf16\n dim 128 }")
    assert lower(pack(a), TARGETS["blackwell"]).schedule.cluster == 1
    assert lower(a, TARGETS["blackwell"].without("mma_pairs")).schedule.cluster == 1
    assert lower(a, TARGETS["hopper"]).schedule.cluster == 1


def test_pairs_hold_more_stages_and_longer_key_tiles():
    """d128: the output has memory of its own, and blocks work on several tiles. 192/128 and 256: key tiles of 128 fit."""
    found = []
    for dims in ("128", "qk = 192, v = 128", "256"):
        s = lower(load(f"attention a {{ heads q = 2, kv = 1\n dtype bf16\n dim {dims} }}"), TARGETS["blackwell"]).schedule
        several = any(isinstance(op, l3.Place) for role in s.roles for op in operations(role.body))
        found.append((s.tile_m, s.tile_n, s.channel("K").stages, several))
    assert found == [(256, 128, 3, True), (256, 128, 3, False), (128, 128, 2, False)]


if __name__ == "__main__":
    CHANGES.mkdir(exist_ok=True)
    for old in CHANGES.glob("*.diff"):
        old.unlink()
    for item in PASSES:
        (CHANGES / f"{pass_id(item)}.diff").write_text(change_of(*item), encoding="utf-8")
