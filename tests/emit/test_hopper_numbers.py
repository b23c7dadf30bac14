"""Hand-written Hopper schedules, emitted, compiled and run by the PTX emulator against dense attention in float64."""

import pytest
import torch

from attncc.emit import emit
from attncc.emulator import emulate, keep_ptx
from attncc.runtime import load
from attncc.runtime.build import compile_module, options
from tests.emit.schedules import causal, hopper_dense

ONE = {"heads": (1, 1)}
CASES = {
    "d128_causal": ({"dim_qk": 128, "mask": causal, "heads": (2, 1)}, (1, 130, 257)),
    "d128_plain_order": ({"dim_qk": 128, "overlap": False, "pingpong": False, "mask": causal, **ONE}, (1, 200, 129)),
    "d64_three_groups": ({"dim_qk": 64, "tile_m": 192, **ONE}, (1, 193, 300)),
    "d72_padded": ({"dim_qk": 72, "tile_n": 64, **ONE}, (2, 70, 150)),
    "d80_40": ({"dim_qk": 80, "dim_v": 40, "tile_m": 64, "tile_n": 64, **ONE}, (1, 65, 65)),
    "d192_128": ({"dim_qk": 192, "dim_v": 128, "tile_n": 112, **ONE}, (1, 1, 256)),
    "d256_f16_slack": ({"dim_qk": 256, "tile_n": 80, "mask": causal, "dtype": "f16", "slack": 8.0, **ONE}, (1, 128, 200)),
    "no_keys": ({"dim_qk": 64, "mask": causal, **ONE}, (1, 200, 64)),
}


def attend(q, k, v, is_causal: bool, dtype):
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    keep = torch.ones(s.shape[-2:], dtype=torch.bool)
    s = s.masked_fill(~(keep.tril(s.shape[-1] - s.shape[-2]) if is_causal else keep), -torch.inf)
    return (torch.softmax(s, -1).nan_to_num(0.0) @ v).transpose(1, 2), torch.logsumexp(s.double(), -1)


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_right_in_every_interleaving_tried(name):
    options_, (batch, seq_q, seq_kv) = CASES[name]
    schedule = hopper_dense(**options_)
    a, dtype = schedule.attention, torch.float16 if options_.get("dtype") == "f16" else torch.bfloat16
    module = load.module(load.store(emit(schedule), name))
    with keep_ptx():
        compiled = compile_module(module, a, options("sm_90a"))
    generator = torch.Generator().manual_seed(7)

    def make(seq, heads, dim):
        return torch.randn(batch, seq, heads, dim, generator=generator).to(dtype)

    q, k, v = make(seq_q, a.heads_q, a.dim_qk), make(seq_kv, a.heads_kv, a.dim_qk), make(seq_kv, a.heads_kv, a.dim_v)
    o = torch.full((batch, seq_q, a.heads_q, a.dim_v), torch.nan, dtype=dtype)
    lse = torch.full((batch, a.heads_q, seq_q), torch.nan)
    emulate(compiled, q, k, v, o, lse, seeds=2).check()
    exact, exact_lse = attend(q, k, v, "mask" in options_, torch.float64)
    eager, _ = attend(q, k, v, "mask" in options_, dtype)
    bound = 2 * (eager.double() - exact).abs().max() + 1e-5
    assert (o.double() - exact).abs().max() <= bound
    finite = exact_lse.isfinite()
    assert (lse.isneginf() == ~finite).all() and torch.allclose(lse.double()[finite], exact_lse[finite], atol=1e-4)
