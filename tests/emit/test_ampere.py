"""mma.sync schedules written by hand: cross-compiled (tensor instructions, no spills, budgets) and run on the PTX
emulator."""

from __future__ import annotations

import pytest
import torch

from attncc.emit import emit
from attncc.runtime import load
from attncc.runtime.build import compile_module, options
from tests.emit.ampere_schedules import CAUSAL, ampere_dense, padded
from tests.emit.compiling import compile_schedule
from tests.emit.test_hopper import FEATURES

SIZES = {
    "d64": {"dim_qk": 64, "tile_n": 112},
    "d96": {"dim_qk": 96},
    "d128": {},
    "d128_causal": {"mask": CAUSAL},
    "d192_128": {"dim_qk": 192, "dim_v": 128},
    "d256": {"dim_qk": 256, "warps": 8},
    "d72_f16": {"dim_qk": 72, "dtype": "f16"},
    "d80_40": {"dim_qk": 80, "dim_v": 40, "tile_m": 64},
    "d8": {"dim_qk": 8, "tile_n": 48},
    "two_stages": {"stages": 2},
}


def products(case: dict) -> int:
    """mma.sync of one warp for one key tile: 16 x 8 x 16 products of both matrix products."""
    dim_qk, tile_n = case.get("dim_qk", 128), case.get("tile_n", 64)
    dim_v = case.get("dim_v", dim_qk)
    blocks = case.get("tile_m", 128) // case.get("warps", 4) // 16
    return blocks * (padded(dim_qk) // 16 * tile_n // 8 + tile_n // 16 * padded(dim_v) // 8)


@pytest.mark.parametrize("name", SIZES)
def test_every_head_dim_compiles_without_spills(name):
    outcome = compile_schedule(ampere_dense(**SIZES[name]), "sm_80", "HMMA")
    assert outcome.resources.frame == 0
    assert [loop["HMMA"] for loop in outcome.loops] == [products(SIZES[name])] * len(outcome.loops) != []
    assert not {"STL", "LDL"} & set().union(*outcome.loops)


@pytest.mark.parametrize("chip", ["sm_86", "sm_89", "sm_90", "sm_120"])
def test_every_chip_of_the_family(chip):
    outcome = compile_schedule(ampere_dense(mask=CAUSAL, seldom=True), chip, "HMMA")
    assert outcome.resources.frame == 0
    assert {loop["HMMA"] for loop in outcome.loops} == {256}


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_compiles_without_spills(name):
    outcome = compile_schedule(ampere_dense(dim_qk=64, warps=8, **_own(FEATURES[name])), "sm_80", "HMMA")
    assert outcome.resources.frame == 0
    assert outcome.loops and all(loop["HMMA"] == 64 for loop in outcome.loops)


def _own(feature: dict) -> dict:
    return {key: value for key, value in feature.items() if key != "tile_n"}


def test_the_loop_over_full_tiles_stays_within_its_budget():
    outcome = compile_schedule(ampere_dense(mask=CAUSAL), "sm_80", "HMMA")
    full = outcome.loops[0]
    assert full.total() <= 960
    assert full["LDSM"] == 80, "each fragment is loaded once: 16 of Q, 32 of K, 32 of V"
    assert full["MUFU"] <= 68 and full["F2FP"] == 32 and full["LDGSTS"] == 16
    assert full["FSEL"] <= 8, "no mask code on full tiles"


def test_the_schedule_decides_order_and_stages():
    one, two = emit(ampere_dense()), emit(ampere_dense(stages=2))
    assert "next_stage(K_fill, 16384, 1)" in one and "next_stage(K_fill, 16384, 2)" in two
    assert one.count("sync_threads()") == 2 * two.count("sync_threads()")
    assert one.count("rescale_where_needed") == 1 and emit(ampere_dense(seldom=True)).count("rescale_where_needed") == 2
    assert "store_registers" in emit(ampere_dense(staged=False)) and "stage_rows" in one


# ---------------------------------------------------------------------------- numbers, on the emulator

NUMBERS = {
    "d64": ({"dim_qk": 64}, (1, 70, 130)),
    "d64_causal_two_stages": ({"dim_qk": 64, "stages": 2, "mask": CAUSAL}, (1, 130, 70)),
    "d72_f16_causal": ({"dim_qk": 72, "dtype": "f16", "mask": CAUSAL}, (1, 33, 65)),
    "d40_24_registers": ({"dim_qk": 40, "dim_v": 24, "tile_m": 64, "staged": False}, (2, 65, 127)),
    "d8_peeled": ({"dim_qk": 8, "tile_n": 48, "peel": True, "mask": CAUSAL}, (1, 1, 129)),
    "d256_8_warps": ({"dim_qk": 256, "warps": 8, "tile_n": 32}, (1, 17, 50)),
    "lazy": ({"dim_qk": 32, "slack": 8.0, "tile_n": 16}, (1, 40, 100)),
    "n80_8_warps": ({"dim_qk": 32, "tile_n": 80, "warps": 8, "mask": CAUSAL}, (1, 129, 129)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_and_races_on_the_emulator(name):
    from attncc.emulator import emulate, keep_ptx

    case, (batch, seq_q, seq_kv) = NUMBERS[name]
    schedule = ampere_dense(**{"heads": (2, 1), **case})
    module = load.module(load.store(emit(schedule), "test"))
    with keep_ptx():
        compiled = compile_module(module, schedule.attention, options("sm_80"))
    a = schedule.attention
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[a.dtype]
    generator = torch.Generator().manual_seed(0)

    def make(seq, heads, dim):
        return torch.randn(batch, seq, heads, dim, generator=generator).to(dtype)

    q, k, v = make(seq_q, a.heads_q, a.dim_qk), make(seq_kv, a.heads_kv, a.dim_qk), make(seq_kv, a.heads_kv, a.dim_v)
    o = torch.full((batch, seq_q, a.heads_q, a.dim_v), float("nan"), dtype=dtype)
    lse = torch.full((batch, a.heads_q, seq_q), float("nan"))
    emulate(compiled, q, k, v, o, lse, seeds=2).check()
    causal = case.get("mask") is CAUSAL
    exact, exact_lse = attend(q, k, v, causal, torch.float64)
    eager, _ = attend(q, k, v, causal, dtype)
    assert (o.double() - exact).abs().max() <= 2 * (eager.double() - exact).abs().max() + 1e-5
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


def attend(q, k, v, causal: bool, dtype):
    """Dense attention in `dtype` on (batch, seq, heads, dim): O and LSE."""
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        keep = torch.ones(s.shape[-2:], dtype=torch.bool).tril(s.shape[-1] - s.shape[-2])
        s = s.masked_fill(~keep, -torch.inf)
    return (torch.softmax(s, -1).nan_to_num(0.0) @ v).transpose(1, 2), torch.logsumexp(s.double(), -1)
