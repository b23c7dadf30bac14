"""Corners of the language where a peer, or an earlier attncc, was wrong without a word: every level agrees with the reference."""

import pytest
import torch

import attncc
from attncc.fuzz.compare import Case, emitted_targets, examine
from attncc.fuzz.shapes import Shape
from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.interp.run_schedule import run_schedule

CORNERS = {
    "floors of negative numbers": "mask (kv_idx - q_idx) // 3 >= -5 and (q_idx - kv_idx) % 7 != 3",
    "a negative divisor": "scalar n: int in -3..-1\n mask (kv_idx - q_idx) // n <= 5 and (q_idx - kv_idx) % n != -1",
    "a divisor that is zero where it is not used": "mask kv_idx == 0 or q_idx // kv_idx < 3",
    "a product that wraps": "mask q_idx * 2000000000 * kv_idx % 5 != 2",
    "a product that wraps before a bound": "mask q_idx * 65536 * 65536 <= kv_idx",
    "a product of constants that wraps": "mask kv_idx * 1073741824 * 2 <= 0",
    "the absolute value of the least int": "mask abs(kv_idx - 2147483647 - 1) < 0 or kv_idx % 3 == 1",
    "a sum that wraps": "mask kv_idx <= q_idx + 2147483647",
    "a hash": "mask ((q_idx * 1103515245 + kv_idx * 12345) ^ (kv_idx << 13)) % 10 < 7",
    "a window of all keys": "scalar n: int in 0..2147483647\n mask kv_idx > q_idx - n",
    "a wrapped number made float": "mask float(kv_idx * 1073741824) < float(q_idx)",
    "no number below": "mask sqrt(float(q_idx - kv_idx)) < 5.0",
    "not above, or no number": "mask not (sqrt(float(q_idx - kv_idx)) >= 5.0)",
    "no number is unequal": "mask sqrt(float(q_idx - kv_idx)) != 2.0",
    "the larger of a number and none": "mask max(sqrt(float(q_idx - kv_idx)), 0.5) < 3.0",
    "the int of no number": "mask int(sqrt(float(q_idx - kv_idx))) >= 0",
    "infinity less infinity": "mask not (exp(float(q_idx) * 10.0) - exp(float(kv_idx) * 10.0) > 0.0)",
    "elements that are no number": "tensor t: f32[seq_kv]\n tensor u: f32[seq_q]\n mask not (sqrt(t[kv_idx]) > u[q_idx])",
    "no number under the mask": "score s + sqrt(float(q_idx - kv_idx))\n mask kv_idx <= q_idx",
    "ints of large numbers": "mask int(float(kv_idx) * 1e30) > 5 or floor(-1e30 * float(kv_idx)) == 0",
    "scores of minus infinity": "score -inf if q_idx % 2 == 0 else s",
    "a logarithm of zero": "bias log(float(kv_idx))",
    "no key and a sink": "tensor z: f32[h]\n mask kv_idx > q_idx + 5\n reduction softmax(sink = z[h])",
    "comparisons of bools": "mask (kv_idx % 2 == 0) == (q_idx % 3 == 0) and (kv_idx <= q_idx) != (q_idx % 5 == 0)",
    "a guard in a guard": "tensor t: i32[seq_kv] in 0..9\n tensor u: f32[8]\n score s + (u[t[kv_idx]] if t[kv_idx] < 8 else 0.5)",
    "ranges without terms": "bias sum(float(i) for i in 3..3)\n mask any(kv_idx == i for i in 5..5) or all(kv_idx == i for i in 5..2)",
    "no dimension and six": "tensor a: f32[]\n tensor e: f16[b, h, seq_q, seq_kv, 1, 2]\n score s * a[] + e[b, h, q_idx, kv_idx, 0, kv_idx % 2]",
    "small ints": "tensor a: i8[seq_kv] in -128..127\n tensor c: u8[seq_kv] in 0..255\n mask a[kv_idx] < 0 or c[kv_idx] * 16777216 < 0",
    "a tensor called as a counter is": "tensor t: f32[seq_kv]\n tensor u: f32[seq_q]\n mask t[kv_idx] < u[q_idx] + 1.0",
    "nothing is kept": "mask false",
    "scores that are one number": "score 1.0",
    "documents without keys": "tensor d: i32[b, seq_kv] in 0..6 sorted\n mask d[b, min(max(q_idx + off, 0), seq_kv - 1)] == d[b, kv_idx]",
}
SHAPES = (Shape(2, 33, 47), Shape(1, 5, 0))


@pytest.mark.parametrize("name", CORNERS)
def test_levels_agree(name):
    text = f"attention corner {{\n heads q = 2, kv = 1\n dim 16\n dtype bf16\n {CORNERS[name]}\n}}\n"
    targets = emitted_targets()
    for number, shape in enumerate(SHAPES):
        turn = (targets[(list(CORNERS).index(name) + number) % len(targets)],)
        report = examine(Case(text, shape, 1), turn, every_pass=False)
        assert report.finding is None, str(report.finding)
        assert not report.refusals


@pytest.mark.parametrize("rest", ["", "reduction sigmoid", "score softcap(20.0)"])
def test_keys_that_the_mask_removes_may_hold_anything(rest):
    """Memory of a cache beyond its length: neither NaN nor infinity in k reaches a row."""
    text = "attention cached {\n heads q = 2, kv = 1\n dim 16\n dtype bf16\n tensor n: i32[b] in 0..seq_kv + 1\n mask kv_idx < n[b]\n "
    kernel = attncc.compile(text + rest + "\n}")
    q, k, v, _ = make_inputs(kernel.attention, 2, 20, 90)
    inputs = {"n": torch.tensor([70, 0], dtype=torch.int32)}
    wanted, _ = reference(kernel.attention, q, k, v, inputs)
    k[0, 70:80], k[0, 80:], k[1] = torch.nan, torch.inf, torch.nan
    torch.testing.assert_close(reference(kernel.attention, q, k, v, inputs)[0], wanted, rtol=0, atol=0)
    for target in emitted_targets():
        out, _ = run_schedule(kernel.stages(target).schedule, q, k, v, inputs)
        torch.testing.assert_close(out, wanted)
