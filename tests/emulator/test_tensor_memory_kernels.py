"""Generated kernels for tensor memory in the emulator: eight interleavings, ragged lengths, every way to lay out the columns."""

import pytest
import torch

import attncc
from attncc.accuracy import SLACK, distance
from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.interp.run_attention import run_attention
from attncc.runtime.emulated import emulate_calls

SEEDS = 8
CASES = {
    "d64 full": ("dim 64", ""),
    "d128 causal": ("dim 128", "mask kv_idx <= q_idx + off"),
    "d192 and 128": ("dim qk = 192, v = 128", ""),
    "d256, one part": ("dim 256", "mask kv_idx <= q_idx + off"),
    "sigmoid, d96": ("dim 96", "reduction sigmoid"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_right_in_eight_interleavings(case):
    dims, rest = CASES[case]
    text = f"attention case {{ heads q = 1, kv = 1\n {dims}\n dtype bf16\n {rest} }}"
    kernel = attncc.compile(text, target="blackwell")
    results = emulate_calls(kernel, seeds=SEEDS)
    q, k, v, _ = make_inputs(kernel.attention, 1, 140, 300, 0, "cpu")
    out = torch.full((*q.shape[:3], v.shape[-1]), torch.nan, dtype=q.dtype)
    kernel(q, k, v, out=out)
    assert results[-1].ok, str(results[-1])
    wanted, _ = reference(kernel.attention, q, k, v, {})
    eager, _ = run_attention(kernel.attention, q, k, v, {})
    assert distance(out, wanted) <= 2 * distance(eager, wanted) + SLACK
