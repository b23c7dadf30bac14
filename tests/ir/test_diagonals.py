"""Costly terms of the distance kv_idx - q_idx are found and expressed over it."""

from attncc.ir.diagonals import split_diagonals
from attncc.ir.expr import add, apply, as_float, const, load, mul, sub, var

Q, K, H, QK = var("q_idx"), var("kv_idx"), var("h"), var("qk", "float")


def split(expr, varying=frozenset()):
    out, terms = split_diagonals(expr, varying)
    return repr(out), tuple(map(repr, terms))


def table(index):
    return load("rel", (H, index), "float")


def test_a_table_indexed_by_the_distance_is_a_term():
    bucket = apply("min", apply("max", add(sub(K, Q), 64), 0), 128)
    out, terms = split(add(mul(QK, 0.5), table(bucket)))
    assert out == "qk * 0.5 + diagonal_0"
    assert terms == ("rel[h, min(max(distance - 0 + 64, 0), 128)]",)


def test_terms_that_are_cheap_stay_where_they_are():
    slope = mul(load("slopes", (H,), "float"), as_float(sub(K, Q)))
    assert split(add(QK, slope)) == (repr(add(QK, slope)), ())


def test_terms_of_rows_and_columns_apart_are_no_terms_of_the_distance():
    for index in (add(K, Q), sub(K, mul(Q, const(2))), sub(apply("min", K, const(9)), Q), sub(K, var("row"))):
        assert split(add(QK, table(index)), frozenset({"row"}))[1] == ()


def test_the_same_term_is_shared():
    term = table(sub(Q, K))
    assert split(add(mul(QK, term), term)) == ("qk * diagonal_0 + diagonal_0", ("rel[h, 0 - distance]",))
