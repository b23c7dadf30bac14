"""float32's least number added where -inf is meant, as masks of other libraries do: in kernels such a key does not exist, and no row becomes NaN
(one target a day)."""

import pytest
import torch

import attncc
from attncc.accuracy import LSE_ALLOWED, distance, lse_distance
from attncc.interp.reference import reference
from attncc.ir.expr import const, select, var
from attncc.passes.schedule.drop_guards import is_finite
from attncc.runtime.emulated import emulate_calls
from tests.rotation import turn

LEAST = torch.finfo(torch.float32).min
TEXT = """attention padded {
    heads q = 1, kv = 1
    dim 32
    dtype bf16
    tensor m: f32[b, seq_kv]
    bias m[b, kv_idx]
    bias NEVER if kv_idx % 7 == 0 else 0.5
}"""


@pytest.mark.parametrize("target", turn(["ampere", "hopper", "blackwell"], 3))
def test_a_row_of_least_numbers_has_no_key(target):
    kernel = attncc.compile(TEXT.replace("NEVER", "-3.4e38"), target=target)
    q, k, v = (torch.randn(2, n, 1, 32, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (20, 150, 151))
    m = torch.zeros(2, 150)
    m[0], m[1, 75:] = LEAST, LEAST
    results = emulate_calls(kernel)
    out, lse = kernel(q, k, v[:, :150], return_lse=True, m=m)
    assert all(r.ok for r in results), "\n".join(map(str, results))
    meant = attncc.compile(TEXT.replace("NEVER", "-inf")).attention
    wanted, wanted_lse = reference(meant, q, k, v[:, :150], {"m": m.masked_fill(m < 0, -torch.inf)})
    error, bad = lse_distance(lse, wanted_lse)
    assert not out[0].any() and distance(out, wanted) < 2e-2 and bad is None and error < LSE_ALLOWED


@pytest.mark.parametrize("target", turn(["ampere", "hopper", "blackwell"], 3))
@pytest.mark.parametrize("dtype, fill", [("bf16", -1e10), ("f16", -1e9)])
def test_large_numbers_that_stand_for_infinity(target, dtype, fill):
    """Rows whose first tiles hold nothing else, and then a key; a row that holds nothing else at all."""
    head = f"attention padded {{\nheads q = 1, kv = 1\ndim 32\ndtype {dtype}\n"
    kernel = attncc.compile(f"{head}tensor m: f32[seq_q, seq_kv]\nbias m[q_idx, kv_idx]\n}}", target=target)
    q, k, v = (torch.randn(1, n, 1, 32, generator=torch.Generator().manual_seed(n)).to(getattr(torch, {"bf16": "bfloat16", "f16": "float16"}[dtype])) for n in (20, 300, 301))
    m = torch.full((20, 300), fill)
    m[torch.arange(19), 13 * torch.arange(19)] = 0.5
    results = emulate_calls(kernel)
    out, lse = kernel(q, k, v[:, :300], return_lse=True, m=m)
    assert all(r.ok for r in results), "\n".join(map(str, results))
    wanted, wanted_lse = reference(kernel.attention, q, k, v[:, :300], {"m": m.masked_fill(m < 0, -torch.inf)})
    error, bad = lse_distance(lse, wanted_lse)
    assert not out[0, 19].any() and distance(out, wanted) < 1e-5 and bad is None and error < LSE_ALLOWED


def test_guards_stay_where_a_constant_stands_for_infinity():
    for number, finite in ((-1e4, True), (-1e9, False), (-3.4e38, False), (-float("inf"), False)):
        assert is_finite(select(var("on", "bool"), const(0.0), const(number)), {}) is finite
