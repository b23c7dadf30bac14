"""Simplification: what it makes of an expression, and that values stay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncc.interp.evaluate import evaluate
from attncc.ir.expr import BOOL, FLOAT, INT
from attncc.ir.simplify import simplify
from attncc.ir.text import parse_expr
from attncc.passes.attention import simplify as attention_pass
from tests.passes.strategies import conditions, integers, reals
from tests.passes.support import attention

PURE = {
    "q_idx + 0": "q_idx",
    "q_idx + 3 - 1": "q_idx + 2",
    "q_idx + -2": "q_idx - 2",
    "q_idx * 1 // 1": "q_idx",
    "q_idx // 4 // 8": "q_idx // 32",
    "q_idx % 1": "0",
    "min(min(q_idx, 9), 4)": "min(q_idx, 4)",
    "- -q_idx": "q_idx",
    "2 + 3 * 4": "14",
    "2147483647 + 1": "2147483647 + 1",
    "1 // 0": "1 // 0",
    "qk * 0.125 / 30.0": "qk * 0.004166666666666667",
    "qk / 8.0": "qk * 0.125",
    "qk / 3.0": "qk / 3.0",
    "qk * 0.0": "qk * 0.0",
    "not q_idx < kv_idx": "q_idx >= kv_idx",
    "not qk < 1.0": "not qk < 1.0",
    "q_idx < kv_idx and not q_idx < kv_idx": "false",
    "q_idx < kv_idx or true": "true",
    "select(q_idx < 3, true, false)": "q_idx < 3",
    "select(not q_idx < 3, 1, 2)": "select(q_idx >= 3, 1, 2)",
    "(q_idx < 3) == true": "q_idx < 3",
    "select(true, qk, 1.0)": "qk",
}


@pytest.mark.parametrize("before, after", PURE.items())
def test_rules(before, after):
    assert repr(simplify(parse_expr(before))) == after


def test_ranges_of_heads_decide():
    a = attention("mask (kv_idx <= q_idx or h >= 4) and max(b, 0) // 1 >= 0 and min(h, 7) < 4")
    assert repr(attention_pass.simplify(a).mask) == "kv_idx <= q_idx"


def test_declared_ranges_decide():
    a = attention("scalar w: int in 1..9\ntensor d: i32[seq_kv] in 0..4\nmask w > 0 and d[kv_idx] < 4 and kv_idx < w")
    assert repr(attention_pass.simplify(a).mask) == "kv_idx < w"


GRID = {
    "b": torch.tensor([0, 3]).view(-1, 1, 1), "q_idx": torch.arange(-5, 9).view(1, -1, 1),
    "kv_idx": torch.arange(-4, 11).view(1, 1, -1),
    "qk": torch.linspace(-3.0, 3.0, 15, dtype=torch.float64).view(1, 1, -1),
    "seq_kv": 11, "seq_q": 9, "off": 2, "h": 2, "hkv": 1, "batch": 4,
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.one_of(integers(), conditions(), reals()))
def test_values_stay(expr):
    unused = torch.tensor(False)
    before, after = (evaluate(e, GRID, {}, valid=unused) for e in (expr, simplify(expr)))
    before, after = torch.broadcast_tensors(before, after)
    if expr.type == FLOAT:
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9, equal_nan=True)
    else:
        assert expr.type in (INT, BOOL) and torch.equal(before, after)
