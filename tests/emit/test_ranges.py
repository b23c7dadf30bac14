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
