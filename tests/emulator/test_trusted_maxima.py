"""Rows whose maximum goes out of date, in the emulator: products of single warps, scores that read what the group has staged (in turns, by the day)."""

import pytest
import torch

import attncc
from attncc.interp.data import make_inputs
from attncc.measure import compare
from attncc.runtime.emulated import emulate_calls
from tests.rotation import turn

CASES = {
    "plain": ("dim 64\ndtype bf16", ""),
    "fp16": ("dim 96\ndtype f16", ""),
    "uneven": ("dim qk = 72, v = 40\ndtype bf16", "score s * 0.7 + 0.01 * float(kv_idx - q_idx)"),
    "wider values": ("dim qk = 40, v = 72\ndtype bf16", ""),
    "gates": ("dim 64\ndtype bf16", "tensor gates: f32[batch, heads_q, seq_kv] in -16.0..0.0\nbias forgetting_gate(gates)"),
    "distances": ("dim 64\ndtype bf16", "tensor table: f32[heads_q, 17]\nbias relative_table(table, 8)"),
    "pairs": ("dim 64\ndtype bf16", "tensor pair: f16[heads_q, seq_q, seq_kv]\nbias pair[h, q_idx, kv_idx]"),
}


def kernel_of(name: str):
    dims, body = CASES[name]
    return attncc.compile(f"attention steep {{\nheads q = 1, kv = 1\n{dims}\n{body}\nmask kv_idx <= q_idx + off\n}}", target="hopper")


@pytest.mark.slow
@pytest.mark.parametrize("name", turn(list(CASES), 2))
def test_steep_scores(name):
    kernel = kernel_of(name)
    assert "softmax.step_trusting" in kernel.source and "hopper.multiply_by_warp" in kernel.source
    q, k, v, inputs = make_inputs(kernel.attention, 1, 70, 460, 1, steep=True)
    if name == "pairs":  # rows that have no key in the tiles that are visited first
        inputs["pair"][..., 20:40, 90:] = -float("inf")
    results = emulate_calls(kernel)
    found = compare(kernel, q, k, v, inputs)
    assert all(r.ok for r in results), "\n".join(map(str, results))
    assert found.ok, found


def test_the_keys_of_a_steep_row_differ_by_more_than_weights_can():
    kernel = kernel_of("plain")
    q, k, _, _ = make_inputs(kernel.attention, 1, 70, 460, 1, steep=True)
    scores = torch.einsum("bqhd,bkhd->bqk", q.float(), k.float()) / 8
    assert (scores[..., :330].amax(-1) - scores[..., 330:].amax(-1)).amax() > 100
