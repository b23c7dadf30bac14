"""Generated arguments: deterministic, different per batch entry, inside what is declared and inside what they index."""

import torch

from attncc.interp.data import make_inputs
from attncc.interp.inputs import check_inputs
from attncc.interp.reference import reference
from attncc.lower import load

TEXT = """attention x(n: int = 6) {
heads q = 4, kv = 2
dim qk = 16, v = 8
dtype fp16
tensor doc: i32[b, seq_kv] in 0..n sorted
tensor pages: i64[b, seq_q]
tensor names: u8[b, seq_kv]
tensor table: f32[h, n]
tensor gates: bf16[b, seq_kv] in -2.0..-1.0
tensor kept: bool[b, seq_kv]
tensor free: f32[?]
tensor big: f64[b, n + seq_q]
scalar tau: float in 2.0..3.0
scalar limit: int in 3..5
scalar j: int
scalar on: bool
bias table[h, names[b, kv_idx]] + gates[b, pages[b, q_idx]] * tau + free[0] + big[b, q_idx]
mask kept[b, kv_idx] or doc[b, kv_idx] < limit or on
}"""


def test_arguments_fit_their_declarations():
    a = load(TEXT)
    for seed in range(5):
        q, k, v, inputs = make_inputs(a, 3, 33, 50, seed)
        assert q.shape == (3, 33, 4, 16) and v.shape == (3, 50, 2, 8) and q.dtype == torch.float16
        check_inputs(a, q, k, v, inputs)
        assert inputs["names"].max() < 6 and inputs["pages"].max() < 50 and inputs["free"].shape == (64,)
        assert 2.0 <= inputs["tau"] < 3.0 and inputs["limit"] in (3, 4) and isinstance(inputs["on"], bool)
        assert torch.isfinite(reference(a, q, k, v, inputs)[0]).all()


def test_batch_entries_differ_and_seeds_repeat():
    a = load(TEXT)
    one, two, other = (make_inputs(a, 2, 20, 30, s)[3] for s in (1, 1, 2))
    for name in ("doc", "pages", "names", "gates", "kept", "big"):
        assert not torch.equal(one[name][0], one[name][1]), name
        assert torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name])


def test_lengths_of_one():
    a = load(TEXT)
    q, k, v, inputs = make_inputs(a, 1, 1, 1)
    check_inputs(a, q, k, v, inputs)
    reference(a, q, k, v, inputs)
