"""Scores that are -inf under a condition: what becomes mask, and that results stay, on every level."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncc.driver import lower
from attncc.interp.data import make_inputs
from attncc.interp.run_attention import run_attention
from attncc.interp.run_schedule import run_schedule
from attncc.interp.run_tile import run_tile
from attncc.lower import load
from attncc.passes.attention.mask_infinite_scores import mask_infinite_scores
from attncc.passes.attention.simplify import simplify
from attncc.targets import get_target

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = "attention a {{\n heads q = 2, kv = 1\n dim 64\n dtype bf16\n{}\n}}"
SPECS = {
    "score s if q_idx >= kv_idx else -inf": ("qk * S", "q_idx >= kv_idx"),
    "score -inf if q_idx < kv_idx else s": ("qk * S", "q_idx >= kv_idx"),
    "bias 0.0 if kv_idx <= q_idx else -inf": ("qk * S", "kv_idx <= q_idx"),
    "score (s if h < 1 else 2.0 * s) if kv_idx <= q_idx else -inf\n mask kv_idx > 3": (
        "select(h < 1, qk * S, qk * 0.25)", "kv_idx > 3 and kv_idx <= q_idx"
    ),
    "score (s if kv_idx < 9 else -inf) if h < 1 else s": ("qk * S", "h >= 1 or kv_idx < 9"),
    "score s if s > 0.0 else -inf": None,
    "score s if kv_idx <= q_idx else -1e9": None,
    "score s": None,
}  # fmt: skip


def attention(body: str):
    return load(HEAD.format(body))


@pytest.mark.parametrize("body", SPECS)
def test_what_becomes_mask(body):
    before = attention(body)
    after = mask_infinite_scores(before)
    if SPECS[body] is None:
        assert after is before
        return
    after = simplify(after)
    score, mask = SPECS[body]
    assert repr(after.score).replace(repr(0.125), "S") == score
    assert repr(after.mask) == mask


CONDITIONS = ["kv_idx <= q_idx", "h < 1", "kv_idx % 3 == 0", "s > 0.0", "seen[kv_idx]"]
SCORES = st.recursive(
    st.sampled_from(["s", "-inf", "0.5 * s", "table[kv_idx - q_idx]"]),
    lambda inner: st.one_of(
        st.builds("({} if {} else {})".format, inner, st.sampled_from([*CONDITIONS, "kv_idx >= q_idx"]), inner),
        st.builds("({} + {})".format, inner, inner),
        st.builds("({} * 0.5)".format, inner),
        st.builds("({} - 1.5)".format, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_results_stay(score):
    score = score.replace("table[kv_idx - q_idx]", "table[max(0, kv_idx - q_idx)]")
    before = attention(f"tensor table: f32[seq_kv + seq_q]\n tensor seen: bool[seq_kv]\n score {score}")
    after = simplify(mask_infinite_scores(before))
    q, k, v, inputs = make_inputs(before, 1, 9, 12)
    for a, b in zip(run_attention(before, q, k, v, inputs, torch.float64), run_attention(after, q, k, v, inputs, torch.float64)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_tiles_without_a_key_are_passed_over_as_with_a_mask():
    body = "score s if kv_idx <= q_idx else -inf"
    for target in ("hopper", "ampere", "blackwell"):
        found, masked = (lower(attention(text), get_target(target)).tile for text in (body, "mask kv_idx <= q_idx"))
        assert found.segments == masked.segments


def test_an_index_that_only_the_condition_keeps_in_range():
    """What is read where the score is not -inf; elsewhere the index is past both ends of the tensor."""
    a = attention("tensor table: f32[seq_q]\n score s + table[q_idx - kv_idx] if kv_idx <= q_idx else -inf")
    q, k, v, inputs = make_inputs(a, 1, 70, 200)
    want, _ = run_attention(a, q, k, v, inputs, torch.float64)
    stages = lower(a, get_target("hopper"))
    found, _ = run_tile(stages.tile, q, k, v, inputs)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
    found, _ = run_schedule(stages.schedule, q, k, v, inputs, strict=True)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
