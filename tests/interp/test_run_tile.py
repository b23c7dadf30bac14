"""The tile interpreter: what it computes, and what it refuses to let pass."""

from dataclasses import replace

import pytest
import torch

from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.interp.run_tile import run_tile
from attncc.interp.tile_classes import EMPTY, FULL, PARTIAL, dense_classes, table_tensors, tile_environment
from attncc.ir.expr import ONE, add, apply, const, sub, var
from attncc.ir.expr import load as element
from attncc.ir.tile import FULL as FULL_SEGMENT
from attncc.ir.tile import Mask, Segment, TileSummary, TileTable
from attncc.lower import load
from attncc.lower.attention_to_tile import lower_attention_to_tile


def attention(body: str = "", q: int = 4, kv: int = 2):
    return load(f"attention x {{\nheads q = {q}, kv = {kv}\ndim qk = 8, v = 16\ndtype bf16\n{body}\n}}")


def run(program, seq_q=33, seq_kv=50, **options):
    q, k, v, inputs = make_inputs(program.attention, 2, seq_q, seq_kv)
    return run_tile(program, q.double(), k.double(), v.double(), inputs, **options)


def expected(a, seq_q=33, seq_kv=50):
    q, k, v, inputs = make_inputs(a, 2, seq_q, seq_kv)
    return reference(a, q.double(), k.double(), v.double(), inputs)


@pytest.mark.parametrize("q, kv", [(4, 4), (4, 1), (7, 1), (14, 2)])
@pytest.mark.parametrize("seq_q, seq_kv", [(1, 127), (129, 64), (257, 257), (5, 0), (0, 9)])
def test_the_naive_program_is_the_reference(q, kv, seq_q, seq_kv):
    a = attention("mask causal\nscore softcap(20.0)", q, kv)
    out, lse = run(lower_attention_to_tile(a, 64, 32), seq_q, seq_kv)
    for mine, theirs in zip((out, lse), expected(a, seq_q, seq_kv)):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("sink", ("3.0", "-100.0", "500.0", "-inf"))
def test_sinks_of_any_size(sink):
    a = attention(f"mask kv_idx < q_idx - 5\nreduction softmax(sink = {sink})")
    out, lse = run(lower_attention_to_tile(a, 16, 16))
    for mine, theirs in zip((out, lse), expected(a)):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


def test_a_row_without_keys_is_zero_and_its_lse_minus_infinity():
    out, lse = run(lower_attention_to_tile(attention("mask kv_idx < q_idx - 5"), 16, 16))
    assert bool((out[:, :6] == 0).all()) and bool((lse[:, :, :6] == -torch.inf).all())


def test_precision_of_a_kernel():
    a = attention("mask causal")
    program = lower_attention_to_tile(a, 16, 16)
    exact, _ = run(program)
    out, _ = run(program, dtype=torch.float32, round_weights=True)
    assert out.dtype == torch.float32
    assert 1e-5 < float((out - exact).abs().max()) < 2e-2


def test_a_tile_visited_twice_is_found():
    p = lower_attention_to_tile(attention(), 16, 16)
    with pytest.raises(AssertionError, match="visits a key tile twice"):
        run(replace(p, segments=p.segments * 2))


def test_a_tile_out_of_range_is_found():
    p = lower_attention_to_tile(attention(), 16, 16)
    with pytest.raises(AssertionError, match="out of range"):
        run(replace(p, segments=(replace(p.segments[0], count=add(var("kv_tiles"), ONE)),)))


def test_a_skipped_tile_that_holds_a_kept_cell_is_found():
    p = lower_attention_to_tile(attention("mask causal"), 16, 16)
    with pytest.raises(AssertionError, match=r"skipped tile .* is not skipped"):
        run(replace(p, segments=(replace(p.segments[0], count=sub(var("kv_tiles"), ONE)),)))


def test_a_full_tile_that_holds_a_masked_cell_is_found():
    p = lower_attention_to_tile(attention("mask causal"), 16, 16)
    body = tuple(op for op in p.segments[0].body if not isinstance(op, Mask))
    with pytest.raises(AssertionError, match=r"full tile .* is not full"):
        run(replace(p, segments=(Segment(FULL_SEGMENT, var("kv_tiles"), var("t"), body),)))


def test_a_negative_count_is_found():
    p = lower_attention_to_tile(attention("mask false"), 16, 16)
    with pytest.raises(AssertionError, match="negative count"):
        run(replace(p, segments=(replace(p.segments[0], count=const(-1)),)))


def test_strict_runs_find_unguarded_loads():
    a = attention("tensor t: f32[seq_kv]\nbias t[kv_idx]")
    p = lower_attention_to_tile(a, 16, 16)
    run(p)
    with pytest.raises(AssertionError, match=r"t\[kv_idx\] is read out of range"):
        run(p, strict=True)


def test_classes_of_the_dense_mask():
    a = attention("mask kv_idx <= q_idx and q_idx - kv_idx < 9", 1, 1)
    want = [[PARTIAL, EMPTY, EMPTY], [PARTIAL, PARTIAL, EMPTY], [EMPTY, PARTIAL, PARTIAL]]
    assert dense_classes(a, 8, 8, 1, 20, 20)[0, 0].tolist() == want
    assert dense_classes(attention("", 1, 1), 8, 8, 1, 20, 20)[0, 0].tolist() == [[FULL, FULL, PARTIAL]] * 3


def test_lists_of_tiles():
    a = attention("tensor n: i32[seq_q]\nmask kv_idx < n[q_idx]", 1, 1)
    may = apply("lt", apply("mul", var("kv_tile"), const(8)), var("n_hi"))
    must = apply("le", apply("mul", add(var("kv_tile"), ONE), const(8)), var("n_lo"))
    p = lower_attention_to_tile(a, 4, 8)
    table = TileTable(may, must, False, False, (TileSummary("n", "q", element("n", (var("q_idx"),), "int")),))
    p = replace(p, table=table)
    env, tensors = tile_environment(p, 1, 6, 24, {"n": torch.tensor([9, 20, 17, 16, 0, 0], dtype=torch.int32)})
    lists = table_tensors(p, env, tensors)
    assert lists["tile_count"].tolist() == [[[[2, 1], [0, 0]]]]
    assert lists["tile_list"][0, 0, 0].tolist() == [[1, 2, -1], [0, -1, -1]]
