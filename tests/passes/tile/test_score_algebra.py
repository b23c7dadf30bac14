"""Passes that use what softmax does not see: text before and after, numbers of both, and accuracy in float32."""

import pytest
import torch

from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.interp.run_tile import run_tile
from attncc.ir.expr import variables
from attncc.ir.tile import ColLet, Score, Softmax
from attncc.passes.tile.bound_scores import bound_scores
from attncc.passes.tile.cancel_row_terms import cancel_row_terms
from attncc.passes.tile.column_steps import column_steps
from attncc.passes.tile.hoist_by_dependence import hoist_by_dependence
from attncc.passes.tile.place_values import place_values
from tests.passes.support import after, program, same_numbers

TILES = (32, 16)
LOG2_E = 1.4426950408889634
GATES = "tensor c: f32[batch, heads_q, seq_kv]\nbias forgetting_gate(c)\nmask causal"
SCALE = "qk * 0.35355339059327373"


def score(p) -> str:
    found = {repr(op.expr) for s in p.segments for op in s.body if isinstance(op, Score)}
    assert len(found) <= 1
    return found.pop() if found else ""


def steps(p) -> list[Softmax]:
    return [op for s in p.segments for op in s.body if isinstance(op, Softmax)]


CANCELLED = {
    "bias 0.5 * float(kv_idx - q_idx - off)": (
        f"{SCALE} + to_float(kv_idx - q_tile * 32 - off) * 0.5",
        "to_float(q_tile * 32 - q_idx) * 0.5",
    ),
    "tensor r: f32[seq_q]\nbias r[q_idx] - 2.0": (SCALE, "r[q_idx] - 2.0"),
    "tensor r: f32[seq_q]\ntensor c: f32[seq_kv]\nbias r[q_idx] + c[kv_idx]": (
        f"{SCALE} + (ref_0 + c[kv_idx])",
        "r[q_idx] - select(abs(r[q_tile * 32]) <= 3e+38, r[q_tile * 32], 0.0)",
    ),
    "score 2.0 * (s - float(q_idx) / 4.0)": (None, "-(to_float(q_idx) / 4.0) * 2.0"),
    "bias float(q_idx) - abs(q_idx - kv_idx)": (
        f"{SCALE} - to_float(abs(q_idx - kv_idx)) + to_float(q_tile * 32)",
        "to_float(q_idx - q_tile * 32)",
    ),
}


@pytest.mark.parametrize("body, expected", CANCELLED.items())
def test_row_terms_leave_the_score(body, expected):
    before = program(body, TILES, upto="cancel_row_terms")
    out = after(cancel_row_terms, before)
    assert expected[0] is None or score(out) == expected[0]
    assert repr(out.epilogue[0].shift) == expected[1]
    same_numbers(before, out)


@pytest.mark.parametrize(
    "body",
    [
        "bias -0.5 * abs(q_idx - kv_idx)",
        "score softcap(30.0)\nbias 0.0",
        "reduction sigmoid\nbias 0.5 * float(q_idx)",
        "score tanh(s + q_idx)",
        "score s * (q_idx + 1)",
    ],
)
def test_what_does_not_cancel_stays(body):
    before = program(body, TILES, upto="cancel_row_terms")
    assert after(cancel_row_terms, before) == before


REST = (
    "bias alibi\nmask causal\nreduction softmax(sink = 0.5 * h)",
    "bias alibi\nmask kv_idx < q_idx - 3\nreduction softmax(sink = 0.25 * q_idx)",
    GATES,
    "tensor r: f32[seq_q]\nbias (-inf if q_idx % 3 == 0 else r[q_idx]) + 0.125 * kv_idx\nreduction softmax(sink = 1.0)",
    "bias -inf if q_idx < 5 else 0.0\nmask causal",
    "scalar tau: float\nbias tau * (kv_idx - 3 * q_idx) / 7.0 - kv_idx",
)


@pytest.mark.parametrize("body", REST)
def test_sinks_empty_rows_and_infinities_come_out_the_same(body):
    before = program(body, TILES, upto="cancel_row_terms")
    cancelled = after(cancel_row_terms, before)
    assert cancelled.epilogue[0].shift is not None
    same_numbers(before, cancelled, after(column_steps, cancelled))


def test_even_growth_is_stepped():
    body = "tensor slope: f32[heads_q]\nbias slope[h] * (kv_idx - q_idx - off)\nmask causal"
    out = after(column_steps, program(body, TILES, upto="column_steps"))
    slope = "slope[h]"
    assert score(out) == (
        f"{SCALE} + (to_float(kv_first - (q_tile * 32 + off)) * {slope} + {slope} * to_float(kv_step))"
    )


@pytest.mark.parametrize("bias", ("abs(kv_idx - 3)", "float(kv_idx // 2)", "exp(-0.1 * kv_idx)", "cos(0.1 * (kv_idx - q_idx))"))
def test_uneven_growth_is_not(bias):
    before = program(f"bias {bias}", TILES, upto="column_steps")
    assert after(column_steps, before) == before


def test_numbers_of_columns_are_shared():
    before = program(GATES, TILES, upto="hoist_by_dependence")
    out = after(place_values, after(hoist_by_dependence, before))
    lets = [op for s in out.segments for op in s.body if isinstance(op, ColLet)]
    assert {op.space for op in lets} == {"shared"}
    assert all(variables(op.expr) & {"kv_idx"} and "q_idx" not in variables(op.expr) for op in lets)
    same_numbers(out, strict=True)


@pytest.mark.parametrize("keys", (64, 20000))
def test_far_positions_cost_no_accuracy(keys):
    """float32: beside the score as it was written, an error of the slope times a tile's rows and columns, and no more far from key 0."""
    before = program("bias 0.7 * float(kv_idx - q_idx - off)\nmask causal", TILES, upto="cancel_row_terms", q=1, kv=1)
    q, k, v, inputs = make_inputs(before.attention, 1, 64, keys)
    wanted, lse = reference(before.attention, q, k, v, inputs)
    errors = []
    for p in (before, column_steps(cancel_row_terms(before))):
        out, own = run_tile(p, q, k, v, inputs, dtype=torch.float32)
        errors.append(max(float((out - wanted).abs().max()), float((own - lse).abs().max())))
    assert errors[1] <= errors[0] + 4 * 2.0**-24 * 0.7 * sum(TILES), errors


BOUNDED = {
    "score softcap(30.0)": 1.0 - 67.0 / (30.0 * LOG2_E),
    "score 50.0 * tanh(s / 50.0)": 1.0 - 67.0 / (50.0 * LOG2_E),
    "score min(max(s, -4.0), 6.0)": 6.0 - 67.0 / LOG2_E,
    "score 20.0 * sigmoid(s) - 5.0": 15.0 - 67.0 / LOG2_E,
}


@pytest.mark.parametrize("body, maximum", BOUNDED.items())
def test_bounded_scores_need_no_maximum(body, maximum):
    before = program(f"{body}\nmask causal\nreduction softmax(sink = 0.5)", TILES, upto="bound_scores")
    out = after(bound_scores, before)
    assert [op.maximum for op in steps(out)] == [pytest.approx(maximum)] * len(steps(out))
    same_numbers(before, out)


@pytest.mark.parametrize("body", ("score softcap(60.0)", "score s", "score softcap(30.0) + 0.1 * kv_idx", "score max(s, 0.0)"))
def test_wide_and_open_scores_keep_it(body):
    before = program(body, TILES, upto="bound_scores")
    assert after(bound_scores, before) == before


@pytest.mark.parametrize("cap, bounded", ((5.0, True), (30.0, False)))
def test_fp16_weights_must_not_lose_bits(cap, bounded):
    before = program(f"score softcap({cap})", TILES, upto="bound_scores", dtype="f16")
    assert all((op.maximum is not None) == bounded for op in steps(bound_scores(before)))


@pytest.mark.parametrize("cap", (30.0, 50.0))
def test_rows_at_the_bounds_are_exact_in_float32(cap):
    """Rows whose scores all lie at the lower bound, at the upper one, and at both."""
    before = program(f"score softcap({cap})", TILES, upto="bound_scores")
    q, k, v, inputs = make_inputs(before.attention, 1, 96, 96)
    q[:, :32], q[:, 32:64] = -300.0, 300.0
    k = k.abs() + 0.5
    k[:, ::2, :, :4] *= -1
    wanted, lse = reference(before.attention, q, k, v, inputs)
    out, own = run_tile(bound_scores(before), q, k, v, inputs, dtype=torch.float32)
    torch.testing.assert_close(out, wanted.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own, lse.float(), rtol=1e-5, atol=1e-5)


def test_one_key_has_the_weight_one():
    """Rounded weights and their unrounded sum: the value of the only key comes out as it is."""
    before = program("score softcap(30.0)\nmask causal_top_left", TILES, upto="bound_scores")
    q, k, v, inputs = make_inputs(before.attention, 1, 40, 40)
    out, _ = run_tile(bound_scores(before), q, k, v, inputs, dtype=torch.float32, round_weights=True)
    assert torch.equal(out[:, 0], v[:, 0].repeat_interleave(2, 1).float())
