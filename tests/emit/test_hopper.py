"""Hopper schedules written by hand, emitted and cross-compiled: the tensor instructions meant, no spills, instruction budgets."""

import dataclasses

import pytest

from attncc.emit import emit
from attncc.emit.flatten import view_of
from attncc.ir.attention import ScalarDecl, TensorDecl
from attncc.ir.expr import add, apply, as_float, const, load, mul, select, sub, var
from attncc.ir.tile import ColLet, RowLet
from tests.emit.compiling import compile_schedule
from tests.emit.schedules import LOG2_E, causal, hopper_dense

QK, H, B = var("qk", "float"), var("h"), var("b")
Q, K = var("q_idx"), var("kv_idx")
LAST_Q, LAST_K = sub(var("seq_q"), 1), sub(var("seq_kv"), 1)
SCALED = mul(QK, 0.125)


def minimum(*args):
    return apply("min", *args)


DOCUMENT = apply("eq", var("q_document"), var("kv_document"))
FEATURES = {
    "alibi": {
        "mask": causal,
        "score": add(SCALED, mul(load("slopes", (H,), "float"), as_float(sub(K, Q)))),
        "tensors": (TensorDecl("slopes", "f32", (const(4),)),),
    },
    "softcap": {"mask": causal, "score": mul(apply("tanh", mul(QK, 0.004)), 30.0)},
    "documents": {
        "mask": apply("and", causal, DOCUMENT),
        "row_lets": (RowLet("q_document", load("document", (B, minimum(Q, LAST_Q)), "int")),),
        "col_lets": (ColLet("kv_document", load("document", (B, minimum(K, LAST_K)), "int")),),
        "tensors": (TensorDecl("document", "i64", (var("batch"), None)),),
    },
    "padding": {
        "tile_n": 96,
        "mask": var("kept", "bool"),
        "col_lets": (ColLet("kept", load("keep", (B, minimum(K, LAST_K)), "bool")),),
        "tensors": (TensorDecl("keep", "bool", (var("batch"), None)),),
    },
    "sink": {"sink": load("sinks", (H,), "float"), "tensors": (TensorDecl("sinks", "bf16", (const(4),)),)},
    "scalars": {
        "mask": apply("and", causal, apply("gt", add(K, var("window")), add(Q, var("off")))),
        "score": select(var("flag", "bool"), mul(QK, var("tau", "float")), QK),
        "scalars": (ScalarDecl("window", "int"), ScalarDecl("tau", "float"), ScalarDecl("flag", "bool")),
    },
    "bias": {
        "tile_n": 96,
        "score": add(SCALED, load("bias", (B, H, minimum(Q, LAST_Q), minimum(K, LAST_K)), "float")),
        "tensors": (TensorDecl("bias", "bf16", (None, None, None, None)),),
    },
    "sigmoid": {"kind": "sigmoid", "multiplier": 1.0, "weight_scale": apply("div", 1.0, as_float(var("seq_kv")))},
    "silu": {"kind": "silu", "multiplier": 1.0, "mask": causal},
}
SIZES = {
    "d64": {"dim_qk": 64, "tile_m": 192},
    "d72": {"dim_qk": 72, "dtype": "f16"},
    "d80_40": {"dim_qk": 80, "dim_v": 40, "tile_m": 64, "tile_n": 64},
    "d96": {"dim_qk": 96},
    "d64_128": {"dim_qk": 64, "dim_v": 128},
    "d192_128": {"dim_qk": 192, "dim_v": 128, "tile_n": 112},
    "d256": {"dim_qk": 256, "tile_n": 80, "mask": causal},
}


def products(case: dict) -> int:
    """WGMMA instructions of one key tile: contracted dimensions in steps of 16."""
    return -(-case["dim_qk"] // 16) + case.get("tile_n", 128) // 16


@pytest.mark.parametrize("name", SIZES)
def test_every_head_dim_compiles_without_spills(name):
    outcome = compile_schedule(hopper_dense(**SIZES[name]), "sm_90a", "GMMA")
    assert outcome.resources.frame == 0
    assert [loop["HGMMA"] for loop in outcome.loops] == [products(SIZES[name])] * len(outcome.loops) != []
    assert not {"STL", "LDL"} & set().union(*outcome.loops)


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_compiles_without_spills(name):
    outcome = compile_schedule(hopper_dense(**{"multiplier": LOG2_E, **FEATURES[name]}), "sm_90a", "GMMA")
    assert outcome.resources.frame == 0
    count = products({"dim_qk": 128, **FEATURES[name]})
    assert [loop["HGMMA"] for loop in outcome.loops] == [count] * len(outcome.loops) != []


def test_the_loop_over_full_tiles_stays_within_its_budget():
    full = compile_schedule(hopper_dense(), "sm_90a", "GMMA")
    assert full.size(0) <= 450
    assert full.loops[0]["MUFU"] == 66 and full.loops[0]["F2FP"] == 32, "one exponential an element, conversions in pairs"
    assert full.loops[0]["WARPGROUP"] == 4, "two starts and two waits: WGMMAs run side by side"
    diagonal = compile_schedule(hopper_dense(mask=causal), "sm_90a", "GMMA")
    assert diagonal.size(0) <= 480 and diagonal.loops[0]["ISETP"] <= 1, "no mask code on full tiles"


def test_a_table_of_distances_is_read_from_shared_memory():
    index = minimum(apply("max", add(sub(K, Q), 64), 0), 128)
    table = load("rel", (H, index), "float")
    declared = (TensorDecl("rel", "f32", (const(4), const(129))),)
    outcome = compile_schedule(hopper_dense(score=add(SCALED, table), tensors=declared), "sm_90a", "GMMA")
    (loop,) = outcome.loops
    assert loop["LDG"] <= 2 and loop["LDS"] >= 34 and outcome.resources.frame == 0
    assert outcome.size(0) <= 600, "64 elements a thread, 34 distances"


def test_emission_is_deterministic_and_names_its_source():
    schedule = hopper_dense(mask=causal)
    text = emit(schedule)
    assert text == emit(hopper_dense(mask=causal))
    assert f"L3 digest {view_of(schedule).digest}" in text and text.startswith('"""hand for hopper')
    compile(text, "generated", "exec")


def test_the_schedule_decides_order_stages_and_registers():
    base = emit(hopper_dense())
    assert "setmaxregister_increase(240)" in base and "K_ring = hopper.make_ring(memory, 2)" in base
    assert "hopper.make_ring(memory, 3)" in emit(hopper_dense(stages=3, tile_n=64))
    plain = emit(hopper_dense(overlap=False, pingpong=False))
    assert "barrier_arrive" not in plain and "wait_group(1)" not in plain and "wait_group(1)" in base


def test_names_of_a_spec_never_become_code():
    hostile = '"""\nimport os #'
    schedule = hopper_dense()
    schedule = dataclasses.replace(schedule, attention=dataclasses.replace(schedule.attention, name=hostile))
    text = emit(schedule)
    compile(text, "generated", "exec")
    assert "\nimport os" not in text
