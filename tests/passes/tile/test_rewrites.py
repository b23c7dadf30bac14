"""Passes on bodies and prologues: text before and after, and the numbers of both."""

import pytest

from attncc import pipeline
from attncc.ir.tile import ColLet, Let, Mask, RowLet, Score, Softmax
from attncc.lower.attention_to_tile import lower_attention_to_tile
from attncc.passes.attention.simplify import simplify
from attncc.passes.tile.bound_keys import bound_keys
from attncc.passes.tile.fold_multiplier import fold_multiplier
from attncc.passes.tile.guard_loads import guard_loads
from attncc.passes.tile.hoist_by_dependence import hoist_by_dependence
from attncc.passes.tile.place_values import place_values
from tests.passes.support import after, program, same_numbers

TILES = (32, 16)


def ops(p, kind):
    return [op for s in p.segments for op in s.body if isinstance(op, kind)]


def texts(p, kind):
    return [repr(op.expr) for op in ops(p, kind)]


def test_softcap_folds_into_the_exponent():
    before = program("scale 0.0625\nscore softcap(50.0)", TILES, upto="fold_multiplier")
    folded = after(fold_multiplier, before)
    assert texts(before, Score)[0] == "50.0 * tanh(qk * 0.0625 / 50.0)"
    assert set(texts(folded, Score)) == {"tanh(qk * 0.0625 / 50.0)"}
    assert (
        {op.multiplier for op in ops(folded, Softmax)} == {folded.epilogue[0].multiplier} == {50.0 * 1.4426950408889634}
    )
    same_numbers(before, folded)


def test_a_plain_scale_leaves_no_score_operation():
    folded = after(fold_multiplier, program("scale 0.0625", TILES, upto="fold_multiplier"))
    assert not ops(folded, Score)
    same_numbers(folded)


@pytest.mark.parametrize(
    "body", ("scale -0.5", "scale 0.0", "bias -0.1 * abs(q_idx - kv_idx)", "reduction relu", "reduction sigmoid")
)
def test_folding_keeps_the_numbers(body):
    before = program(body, TILES, upto="fold_multiplier")
    same_numbers(before, after(fold_multiplier, before))


@pytest.mark.parametrize(
    "mask, bounded",
    [
        ("kv_idx <= q_idx and q_idx - kv_idx < 128", "kv_idx <= min(seq_kv - 1, q_idx) and kv_idx >= q_idx - 127"),
        ("not kv_idx > q_idx + off", "kv_idx <= min(seq_kv - 1, q_idx + off)"),
        (
            "abs(q_idx - kv_idx) <= 9 or kv_idx % 7 == 0",
            "kv_idx <= seq_kv - 1 and (kv_idx >= q_idx - 9 and kv_idx <= q_idx + 9 or kv_idx % 7 == 0)",
        ),
        (
            "q_idx // 7 == kv_idx // 7",
            "kv_idx <= min(seq_kv - 1, q_idx // 7 * 7 + 6) and kv_idx >= q_idx // 7 * 7",
        ),
        ("kv_idx // 4 <= (q_idx + off) // 4", "kv_idx <= min(seq_kv - 1, (q_idx + off) // 4 * 4 + 3)"),
        ("(kv_idx - 5) // 8 > q_idx // 9", "kv_idx <= seq_kv - 1 and kv_idx >= q_idx // 9 * 8 + 13"),
        ("2 * kv_idx <= q_idx", "kv_idx <= seq_kv - 1 and kv_idx * 2 <= q_idx"),
    ],
)
def test_comparisons_become_bounds_of_the_key(mask, bounded):
    naive = lower_attention_to_tile(simplify(program(f"mask {mask}").attention), *TILES)
    out = after(bound_keys, naive)
    assert texts(out, Mask) == [bounded]
    same_numbers(naive, out)


GUARDED = {
    "table[h, kv_idx - q_idx]": "table[h, min(max(kv_idx - q_idx, 0), 31)]",
    "keys[b, kv_idx]": "keys[b, min(kv_idx, seq_kv - 1)]",
    "rows[q_idx]": "rows[min(q_idx, seq_q - 1)]",
    "table[at[b, q_idx], 5]": "table[at[b, min(q_idx, seq_q - 1)], 5]",
    "table[wild[kv_idx], 5]": "table[min(max(wild[min(kv_idx, seq_kv - 1)], 0), 3), 5]",
    "open[q_idx % 8]": "open[min(q_idx % 8, __extent_0_open - 1)]",
    "table[h, q_idx % 8]": "table[h, q_idx % 8]",
}
DECLARED = """
tensor table: f32[heads_q, 32]
tensor keys: f32[batch, seq_kv]
tensor rows: f32[seq_q]
tensor at: i32[batch, seq_q] in 0..4
tensor wild: i32[seq_kv]
tensor open: f32[?]
"""


@pytest.mark.parametrize("bias, guarded", GUARDED.items())
def test_indices_are_guarded(bias, guarded):
    before = program(
        f"{DECLARED}\nbias {bias}\nmask kv_idx >= q_idx and kv_idx < q_idx + 32", TILES, upto="cancel_row_terms"
    )
    out = after(guard_loads, before)
    assert texts(out, Score)[0] == f"qk * 0.35355339059327373 + {guarded}"
    same_numbers(out, strict=True)


def test_full_tiles_need_no_guard_of_the_key():
    out = program(f"{DECLARED}\nbias keys[b, kv_idx]", TILES, upto="hoist_by_dependence")
    assert [repr(op.expr) for s in out.segments for op in s.body if isinstance(op, Score)] == [
        "qk * 0.35355339059327373 + keys[b, min(kv_idx, seq_kv - 1)]",
        "qk * 0.35355339059327373 + keys[b, kv_idx]",
    ]


def test_values_are_hoisted_to_where_they_change():
    body = """
    tensor slope: f32[heads_q]
    bias slope[h] * exp(kv_idx * -0.01) + sin(q_idx * 0.5)
    mask kv_idx <= q_idx + off
    """
    before = bound_keys(program(body, TILES, upto="cancel_row_terms"))
    out = after(hoist_by_dependence, before)
    lets = {
        op.name: repr(op.expr)
        for op in out.prologue
        if isinstance(op, (Let, RowLet)) and not op.name.startswith("bound")
    }
    assert lets == {
        "tile_0": "slope[h]", "tile_1": "seq_kv - 1",
        "row_0": "sin(to_float(q_idx) * 0.5)", "row_1": "min(tile_1, q_idx + off)",
    }  # fmt: skip
    assert [repr(op.expr) for op in ops(out, ColLet)] == ["tile_0 * exp(to_float(kv_idx) * -0.01)"] * 2
    assert texts(out, Score) == [f"qk * 0.35355339059327373 + (col_{i} + row_0)" for i in (0, 1)]
    assert texts(out, Mask) == ["kv_idx <= row_1"]
    same_numbers(before, out, strict=True)


def test_cheap_column_arithmetic_stays():
    out = program("bias -0.5 * float(kv_idx)", TILES, upto="place_values")
    assert not ops(out, ColLet)


def test_values_get_their_memory():
    out = after(place_values, program("", TILES))
    assert {v.name: v.space for v in out.values} == {
        **dict.fromkeys("QKV", "shared"), **dict.fromkeys(("S", "P", "O", "LSE"), "register"),
    }  # fmt: skip


BODIES = (
    "reduction softmax(sink = 0.5)\nmask kv_idx < q_idx - 3",
    "reduction sigmoid(weight_scale = 1.0 / seq_kv)\nmask causal",
    "tensor extra: f32[heads_q]\nreduction softmax(sink = extra[h])\nmask causal and q_idx - kv_idx < 9",
    "tensor gate: f32[batch, heads_q, seq_kv]\nbias gate[b, h, kv_idx] - 0.5\nmask causal",
    "score s if h < 2 else 0.5 * s\nmask causal",
    "tensor drop: bool[seq_kv]\nbias -inf if drop[kv_idx] else 0.0",
)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("left_out", [None, *(p.__name__ for p in pipeline.TILE_PASSES)])
def test_every_pass_may_be_left_out(body, left_out):
    out = program(body, TILES)
    for one in pipeline.TILE_PASSES:
        if one.__name__ != left_out:
            out = after(one, out)
    same_numbers(out, strict=left_out != "guard_loads")
