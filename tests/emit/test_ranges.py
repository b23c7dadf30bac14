"""Masks split into one range of keys for each row and a rest."""

from attncc.emit.ranges import key_range
from attncc.ir.expr import TRUE, add, all_of, any_of, apply, sub, var

Q, K, OFF, W = var("q_idx"), var("kv_idx"), var("off"), var("window")
CAUSAL = apply("le", K, add(Q, OFF))
DOCUMENT = apply("eq", var("q_document"), var("kv_document"))


def split(*conjuncts, varying=frozenset({"kv_document"})):
    found = key_range(all_of(*conjuncts), varying)
    return repr(found.low), repr(found.high), found.rest


def test_comparisons_with_a_key_become_bounds():
    assert split(CAUSAL) == ("None", "q_idx + off + 1", TRUE)
    assert split(apply("gt", K, sub(Q, W))) == ("q_idx - window + 1", "None", TRUE)
    assert split(apply("lt", sub(Q, K), W)) == ("q_idx - window + 1", "None", TRUE)
    assert split(apply("ge", add(Q, OFF), K)) == ("None", "q_idx + off + 1", TRUE)
    assert split(apply("eq", K, Q)) == ("q_idx", "q_idx + 1", TRUE)


def test_bounds_of_several_conjuncts_are_joined_and_the_rest_is_kept():
    low, high, rest = split(CAUSAL, apply("lt", K, var("seq_kv")), DOCUMENT, apply("gt", K, sub(Q, W)))
    assert (low, high) == ("q_idx - window + 1", "min(q_idx + off + 1, seq_kv)")
    assert rest is DOCUMENT


def test_what_is_no_bound_of_a_row_stays_a_condition():
    for condition in (
        any_of(CAUSAL, apply("lt", K, var("prefix"))),
        apply("le", apply("mul", K, 2), Q),
        apply("le", K, var("kv_document")),
        apply("eq", apply("mod", K, 2), apply("mod", Q, 2)),
    ):
        assert split(condition) == ("None", "None", condition)


def test_remainders_that_do_not_change_from_tile_to_tile_are_phases():
    column = apply("mod", K, 64)
    left, right = apply("le", sub(Q, 6), column), apply("lt", column, add(Q, 7))
    found = key_range(all_of(CAUSAL, left, right), frozenset(), 128)
    assert (repr(found.high), found.rest) == ("q_idx + off + 1", TRUE)
    assert [(p, repr(low), repr(high)) for p, low, high in found.phases] == [(64, "q_idx - 6", "q_idx + 7")]
    for tile_n, period in ((96, 64), (128, 48), (128, 4), (0, 64)):
        other = apply("le", Q, apply("mod", K, period))
        assert key_range(other, frozenset(), tile_n).rest is other and not key_range(other, frozenset(), tile_n).phases
