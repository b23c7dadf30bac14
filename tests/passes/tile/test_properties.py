"""Random masks and scores: analyses are sound, and every pass keeps the numbers."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncc import pipeline
from attncc.interp.data import make_inputs
from attncc.interp.evaluate import evaluate
from attncc.interp.reference import reference
from attncc.interp.run_tile import run_tile
from attncc.interp.tile_classes import EMPTY, FULL, dense_classes, tile_classes
from attncc.ir.algebra import Algebra, Facts
from attncc.ir.check_tile import check_tile
from attncc.ir.expr import const
from attncc.ir.intervals import Intervals
from attncc.ir.text import format_program, parse_expr, parse_program
from attncc.lower.attention_to_tile import lower_attention_to_tile
from attncc.passes.attention.simplify import simplify
from attncc.passes.tile.list_tiles import with_table
from attncc.passes.tile.peel_masked_tiles import peel_masked_tiles
from attncc.passes.tile.skip_empty_tiles import skip_empty_tiles
from tests.passes.strategies import comparisons, conditions, integers, reals
from tests.passes.support import attention

PLAIN = attention(q=2, kv=1, dim="8")
FREE = Facts({}, {}, {})


def grid(rows, keys):
    return {
        "q_idx": torch.arange(rows[0], rows[1] + 1).view(-1, 1),
        "kv_idx": torch.arange(keys[0], keys[1] + 1).view(1, -1),
        "off": 3, "seq_kv": 40, "h": 1, "b": 2, "seq_q": 37, "hkv": 0, "batch": 3,
    }  # fmt: skip


def box(rows, keys) -> Intervals:
    return Intervals(Algebra(FREE), {"q_idx": tuple(map(const, rows)), "kv_idx": tuple(map(const, keys))})


spans = st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda x: (x[0], x[0] + x[1]))


@settings(max_examples=200, deadline=None)
@given(integers(), spans, spans)
def test_intervals_hold_every_value(expr, rows, keys):
    env = grid(rows, keys)
    values = evaluate(expr, env, {})
    low, high = box(rows, keys).of(expr)
    assert low is None or int(evaluate(low, env, {})) <= int(values.min())
    assert high is None or int(evaluate(high, env, {})) >= int(values.max())


@settings(max_examples=200, deadline=None)
@given(conditions(), spans, spans)
def test_may_and_must_are_sound(mask, rows, keys):
    env = grid(rows, keys)
    values = evaluate(mask, env, {})
    where = box(rows, keys)
    assert bool(evaluate(where.may(mask), env, {})) or not bool(values.any())
    assert not bool(evaluate(where.must(mask), env, {})) or bool(values.all())


@settings(max_examples=200, deadline=None)
@given(integers(2), integers(2))
def test_what_is_proved_holds(a, b):
    facts = Facts({"q_idx": (0, None), "kv_idx": (0, 20), "h": (0, 3), "b": (0, None), "seq_kv": (1, None)}, {}, {})
    if Algebra(facts).proves_le(a, b):
        env = grid((0, 25), (0, 20))
        assert bool((evaluate(a, env, {}) <= evaluate(b, env, {})).all())


SIZES = ((33, 70), (70, 33), (1, 40), (40, 40), (35, 0))


@settings(max_examples=120, deadline=None)
@given(st.one_of(comparisons(2), conditions()), st.sampled_from(((32, 16), (16, 32))))
def test_closed_forms_and_lists_are_sound(mask, tiles):
    naive = lower_attention_to_tile(simplify(replace(PLAIN, mask=mask)), *tiles)
    programs = (peel_masked_tiles(skip_empty_tiles(naive)), with_table(naive))
    for seq_q, seq_kv in SIZES:
        dense = dense_classes(replace(PLAIN, mask=mask), *tiles, 2, seq_q, seq_kv)
        for p in programs:
            mine = tile_classes(p, 2, seq_q, seq_kv)
            assert not bool(((mine == EMPTY) & (dense != EMPTY)).any()), (seq_q, seq_kv)
            assert not bool(((mine == FULL) & (dense != FULL)).any()), (seq_q, seq_kv)


@settings(max_examples=60, deadline=None)
@given(conditions(), reals(), st.sampled_from(SIZES))
def test_every_pass_keeps_the_numbers(mask, score, size):
    a = replace(PLAIN, mask=mask, score=score)
    q, k, v, _ = make_inputs(a, 1, *size)
    q, k, v = q.double(), k.double(), v.double()
    out, lse = reference(a, q, k, v)
    p = lower_attention_to_tile(simplify(a), 32, 16)
    for one in pipeline.TILE_PASSES:
        p = one(p)
        check_tile(p)
        mine, mine_lse = run_tile(p, q, k, v)
        torch.testing.assert_close(mine, out, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(mine_lse, lse, atol=1e-9, rtol=1e-9)
    assert parse_program(format_program(p)) == p


def test_a_multiple_of_a_quotient_needs_a_whole_step():
    """777 * (x // 777) - 777 * (y // 777) >= 650 does not follow from x >= y: it takes another 777."""
    algebra = Algebra(Facts({"q_idx": (0, None)}, {}, {}))
    below = parse_expr("(q_idx // 777 * 777 + 9) // 128 + 6")
    for shift, holds in ((127, False), (776, False), (777, True)):
        above = parse_expr(f"((q_idx + {shift}) // 777 * 777 + 127) // 128")
        assert algebra.proves_le(below, above) == holds
