"""Targets check themselves, tiles come out of the resource model, refusals name place, reason and way out."""

from dataclasses import replace
from pathlib import Path

import pytest

from attncc.diagnostics import AttnError, render
from attncc.formats import FORMATS, Format
from attncc.lower import load
from attncc.targets import TARGETS, get_target, target_for_arch
from attncc.targets.model import ALONE, APART, OVER_Q, estimate, gains_by_several, overhead, period
from attncc.targets.refuse import refuse
from attncc.targets.report import example, report
from attncc.targets.target import RegisterPlan
from attncc.targets.tiles import candidates, choose_tiles

HOPPER, AMPERE = TARGETS["hopper"], TARGETS["ampere"]
SPEC = Path(__file__).resolve().parents[2] / "spec"


def tiles(target, *dims, **options):
    t = choose_tiles(example(*dims, **options), target)
    return t.tile_m, t.tile_n, t.groups


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "dims, expected",
    [((64, 64), (192, 128, 3)), ((96, 96), (192, 96, 3)), ((128, 128), (192, 80, 3)), ((192, 128), (128, 128, 2)),
     ((256, 256), (128, 80, 2))],
)  # fmt: skip
def test_asynchronous_products_get_the_tiles_of_the_best_known_kernels(dims, expected, causal):
    assert tiles(HOPPER, *dims, causal=causal) == expected


@pytest.mark.parametrize(
    "dims, expected", [((64, 64), (128, 112, 4)), ((128, 128), (128, 64, 4)), ((256, 256), (64, 64, 4))]
)
def test_synchronous_products_get_the_tiles_of_the_best_known_kernels(dims, expected):
    assert tiles(AMPERE, *dims) == expected


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_head_dim_has_a_tile(target):
    for dim_qk in range(8, 257, 8):
        for dim_v in {dim_qk, 8, 64, 128, 256}:
            assert not refuse(example(dim_qk, dim_v), target)


def test_a_score_with_column_values_gets_a_smaller_tile():
    """192 x 128 with three groups leaves no registers for a number of each column."""
    text = "attention a { heads q = 8, kv = 8\n dim 64\n dtype bf16\n tensor u: f32[seq_kv]\n bias u[kv_idx] * 2.0 }"
    t = choose_tiles(load(text), HOPPER)
    assert (t.tile_m, t.tile_n) != (192, 128)


def test_a_measured_shape_gives_way_to_hints_and_to_costly_scores():
    assert tiles(HOPPER, 96, 96, tile_n=128) == (128, 128, 2)
    text = "attention a { heads q = 8, kv = 8\n dim 96\n dtype bf16\n tensor u: f32[seq_kv]\n bias u[kv_idx] * 2.0 }"
    assert choose_tiles(load(text), HOPPER).tile_n <= 128


@pytest.mark.parametrize(
    "line, groups",
    [("mask kv_idx <= q_idx", 4), ("mask kv_idx // 64 == q_idx // 64", 8), ("bias (kv_idx - q_idx) * 0.5", 8), ("reduction relu", 8)],
)
def test_synchronous_products_unroll_simple_scores_over_several_rows_of_matrices(line, groups):
    """Four warps of 32 rows where an element takes next to no registers, else eight of 16; a hint has the last word."""
    text = "attention a { heads q = 8, kv = 8\n dim 128\n dtype bf16\n %s }"
    t = choose_tiles(load(text % line), AMPERE)
    assert (t.tile_m, t.groups) == (128, groups)
    hinted = choose_tiles(load(text % (line + "\n target ampere(tile_n = 32, warp_groups = 4, tile_m = 128)")), AMPERE)
    assert hinted.group_rows == 32


def test_a_score_that_fits_no_tile_gets_the_smallest():
    biases = "\n ".join(f"bias t{i}[q_idx, kv_idx]" for i in range(30))
    tensors = "\n ".join(f"tensor t{i}: f32[seq_q, seq_kv]" for i in range(30))
    a = load(f"attention a {{ heads q = 8, kv = 8\n dim 256\n dtype bf16\n {tensors}\n {biases} }}")
    for target in TARGETS.values():
        assert candidates(a, target) == () and choose_tiles(a, target).tile_n == target.tile_n_step
        assert refuse(a, target) == []


def test_a_long_score_is_unrolled_over_few_keys_by_synchronous_products():
    line = "bias sum(cos((q_idx - kv_idx) * 0.01 * i) for i in 0..32)"
    t = choose_tiles(load(f"attention a {{ heads q = 8, kv = 8\n dim 64\n dtype bf16\n {line} }}"), AMPERE)
    assert t.tile_n <= 32


def test_hints_are_kept_to():
    assert tiles(HOPPER, 128, 128, tile_n=64, tile_m=128) == (128, 64, 2)
    assert tiles(HOPPER, 128, 128, warp_groups=1) == (64, 128, 1)
    assert choose_tiles(example(64, 64, stages=4), HOPPER).stages == 4
    assert tiles(HOPPER, 128, 128, tile_n=176) == (128, 176, 2)


def test_hints_for_another_target_do_not_count():
    assert tiles(AMPERE, 128, 128, name="hopper", tile_m=192) == (128, 64, 4)


TEXT = """attention a {
    heads   q = 8, kv = 8
    dim     %s
    dtype   bf16
    %s
}"""


@pytest.mark.parametrize(
    "dim, target, code, expected",
    [
        ("256", "target hopper(tile_n = 256)", "E403", ["no tile of target hopper fits tile_n = 256", "leave out a hint", ":5:"]),
        ("100", "", "E404", ["multiples of 8 up to 256; dim_qk is 100", "with zeros to 104", ":3:"]),
        ("512", "", "E404", ["dim_qk is 512", ":3:"]),
    ],
)
def test_refusals(dim, target, code, expected):
    try:
        a = load(TEXT % (dim, target))
    except AttnError as error:
        assert dim in ("100", "512"), str(error)  # the language may already refuse it, with the place
        return
    (found,) = refuse(a, HOPPER)
    text = render(found)
    assert found.code == code and all(e in text for e in expected), text


def test_head_dims_and_types_are_refused_with_a_way_out():
    (found,) = refuse(example(100, 100), HOPPER)
    assert found.code == "E404" and "to 104" in found.hint
    (found,) = refuse(example(dtype="f32"), HOPPER)
    assert found.code == "E405" and "dtype bf16" in found.hint
    assert [d.code for d in refuse(example(100, 300), HOPPER)] == ["E404", "E404"]


def test_an_unknown_target_is_named():
    with pytest.raises(AttnError, match="did you mean `hopper`"):
        get_target("hoper")


@pytest.mark.parametrize("arch, name", [("sm_80", "ampere"), ("sm_90", "hopper"), ("sm_86", "ada"), ("sm_120", "ada")])
def test_the_target_of_a_gpu(arch, name):
    assert target_for_arch(arch).name == name


def test_a_gpu_without_target():
    assert target_for_arch("sm_75") is None


@pytest.mark.parametrize(
    "change, text",
    [
        ({"capabilities": HOPPER.capabilities | {"magic"}}, "unknown capabilities"),
        ({"capabilities": HOPPER.capabilities - {"mbarrier"}}, "tma needs mbarrier"),
        ({"capabilities": frozenset()}, "no way to copy"),
        ({"archs": ()}, "no architecture"),
        ({"dim_padding": 24}, "padding 24"),
        ({"splits": ((2, 60),)}, "rows do not fit"),
        ({"shared_limit": 1 << 30}, "more shared memory than there is"),
        ({"register_plans": (RegisterPlan(2, 24, 248),)}, "more than 65536 registers"),
        ({"register_plans": (RegisterPlan(2, 25, 240),)}, "multiples of 8"),
    ],
)
def test_a_target_that_contradicts_itself(change, text):
    with pytest.raises(ValueError, match=text):
        replace(HOPPER, **change)


def test_a_format_that_contradicts_itself():
    with pytest.raises(ValueError, match="kind is 'real'"):
        Format("x", 16, "real", 7, 1.0, "x", "X")
    with pytest.raises(ValueError, match="not a whole number of bytes"):
        Format("x", 12, "int", 0, 1.0, "x", "X")


def test_formats_know_their_precision():
    assert FORMATS["bf16"].epsilon == 2.0**-7 and FORMATS["f16"].largest == 65504.0 and FORMATS["i32"].epsilon == 0.0


def test_the_model_finds_the_known_limits():
    """Head dim 64 is held by issue slots, 128 by the tensor cores, 256 by the copies of its wide keys; two tanh a score by the special function
    unit."""
    limits = {d: period(a, HOPPER, choose_tiles(a, HOPPER)).limit for d in (64, 128, 256) for a in (example(d, d),)}
    assert limits == {64: "issue", 128: "tensor", 256: "fill"}
    a = load(TEXT % ("64", "score softcap(30.0)"))
    assert period(a, HOPPER, choose_tiles(a, HOPPER)).limit in ("special", "issue")


def test_the_model_is_near_what_was_measured():
    """FlashAttention-3 and -4 on an H100, TFLOP/s at 16k tokens: an established schedule should not be far from them."""
    for dim, heads, seq, measured in ((64, 32, 8192, 547), (128, 16, 4096, 652), (128, 16, 16384, 684), (256, 8, 8192, 714)):
        a = replace(example(dim, dim), heads_q=heads, heads_kv=heads)
        e = estimate(a, HOPPER, choose_tiles(a, HOPPER), 16384 // seq, seq, seq)
        assert 0.75 < e.tflops / measured < 1.25, (dim, seq, e.tflops)


def test_an_estimate_counts_bytes_and_flops():
    a = example(128, 128)
    e = estimate(a, HOPPER, choose_tiles(a, HOPPER), 2, 1024, 2048)
    assert e.flops == 4.0 * 2 * 16 * 1024 * 2048 * 128
    assert e.bytes_least == 2 * 16 * (1024 * (256 * 2 + 4) + 2048 * 256 * 2)
    assert e.bytes > e.bytes_least and e.seconds > e.io_bound > 0


def test_several_tiles_of_a_block_hide_part_of_what_each_costs():
    """Only where the target's rates say so; less where the next Q waits for an output in its place."""
    for target in TARGETS.values():
        a = example(128, 128)
        t = choose_tiles(a, target)
        p = period(a, target, t)
        costs = [overhead(target, p, 1, kind) for kind in (APART, OVER_Q, ALONE)]
        knows = target.rates.several_share < 1.0
        assert costs == sorted(costs) and (len(set(costs)) == 3) == knows == gains_by_several(a, target, t)
        times = [estimate(a, target, t, 2, 4096, 4096, tiles_of_block=kind) for kind in (APART, OVER_Q, ALONE)]
        assert (times[0].seconds < times[1].seconds < times[2].seconds) == knows
    assert [e.blocks for e in times] == [TARGETS["ada"].rates.sms] * 2 + [2 * 16 * 4096 // t.tile_m]


def test_candidates_fit():
    for a in (example(128, 128), example(256, 256), example(64, 128)):
        for target in TARGETS.values():
            assert all(t.groups * t.group_rows == t.tile_m for t in candidates(a, target))


def test_the_capability_table_is_up_to_date():
    text = (SPEC / "capabilities.md").read_text(encoding="utf-8")
    assert text == report(), "run `python -m attncc.targets.report > spec/capabilities.md`"


def test_windows_take_shorter_key_tiles_where_that_was_measured():
    masks = {
        "causal": 80, "causal and kv_idx > q_idx + off - 1024": 64, "causal and q_idx // 777 == kv_idx // 777": 64,
        "kv_idx > q_idx - 100": 64, "kv_idx < 1000": 80,
    }  # fmt: skip
    for dim, others in ((128, None), (64, 128)):
        for mask, keys in masks.items():
            a = load(f"attention a {{ heads q = 2, kv = 2\n dim {dim}\n dtype bf16\n mask {mask} }}")
            assert choose_tiles(a, get_target("hopper")).tile_n == (others or keys), mask


def test_numbers_of_keys_beside_numbers_of_distances_take_shorter_key_tiles_where_threads_own_rows():
    """Both are read four at a time from shared memory; with 128 keys a generated spec spilled."""
    found = []
    for column in ("0.0", "ten[kv_idx]"):
        text = f"attention a {{ heads q = 2, kv = 1\n dim 64\n dtype bf16\n tensor t: f32[heads_q, 35]\n tensor ten: f32[seq_kv]\n bias relative_table(t, 17) + {column} }}"
        found.append(choose_tiles(load(text), get_target("blackwell")).tile_n)
    assert found == [128, 96]
