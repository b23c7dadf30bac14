"""Capped scores on the target with tensor memory, in the emulator: warps in and out of the polynomial's range, rows with few keys (in turns, by the day)."""

import pytest
import torch

import attncc
from attncc.accuracy import LSE_ALLOWED, SLACK, distance, lse_distance
from attncc.interp.reference import reference
from attncc.interp.run_attention import run_attention
from attncc.runtime.emulated import emulate_calls
from tests.rotation import turn

ROWS, KEYS, CAP = 130, 300, 5.0


def run(body: str, scale: torch.Tensor, keys: int = KEYS):
    """One call beside the reference, with the rows of q scaled."""
    kernel = attncc.compile(f"attention capped {{ heads q = 1, kv = 1\n dim 32\n dtype bf16\n {body} }}", target="blackwell")
    q, k, v = (torch.randn(1, n, 1, 32, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (ROWS, keys, keys + 1))
    q, v = (q * scale.view(1, -1, 1, 1)).bfloat16(), v[:, :keys]
    results = emulate_calls(kernel)
    out, lse = kernel(q, k, v, return_lse=True)
    assert all(r.ok for r in results), "\n".join(map(str, results))
    wanted, wanted_lse = reference(kernel.attention, q, k, v, {})
    eager, _ = run_attention(kernel.attention, q, k, v, {})
    assert distance(out, wanted) <= 2 * distance(eager, wanted) + SLACK
    error, bad = lse_distance(lse, wanted_lse)
    assert bad is None and error < LSE_ALLOWED
    return kernel, torch.einsum("bqhd,bkhd->bqk", q.float(), k.float()) / 32**0.5


def in_and_out_of_range():
    """The first warp's scores are small, the second's far beyond the cap, of the third one row is."""
    scale = torch.ones(ROWS)
    scale[32:64], scale[70] = 40.0, 40.0
    kernel, scores = run(f"score softcap({CAP})", scale)
    assert "softmax.step_capped" in kernel.source
    largest = scores[0, :, : KEYS // 128 * 128].abs().amax(1)
    assert largest[:32].max() < CAP < largest[32:64].min() and largest[70] > CAP


def few_keys():
    """In the first rows all keys lie in tiles with a mask, where sums are of rounded weights; one row in ten has large scores."""
    scale = torch.ones(ROWS)
    scale[::10] = 100.0
    kernel, _ = run("score softcap(30.0)\n mask kv_idx <= q_idx", scale, keys=ROWS)
    assert "softmax.step_bounded" in kernel.source


@pytest.mark.slow
@pytest.mark.parametrize("case", turn([in_and_out_of_range, few_keys], 2))
def test_the_error_is_that_of_the_eager_computation(case):
    case()
