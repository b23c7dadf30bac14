"""Random well-typed expressions over the indices, for properties of analyses and passes."""

from __future__ import annotations

from hypothesis import strategies as st

from attncc.ir.expr import FALSE, TRUE, Expr, apply, as_float, const, select, var

NUMBERS = (0, 1, 2, 3, 5, 7, 8, 16, 20, 33, 64, -1, -4, -17)
POSITIVE = (1, 2, 3, 4, 7, 16, 32, 50)


def atoms() -> st.SearchStrategy[Expr]:
    names = ("q_idx", "kv_idx", "q_idx", "kv_idx", "off", "seq_kv", "h", "b")
    return st.one_of(st.sampled_from(names).map(var), st.sampled_from(NUMBERS).map(const))


def integers(depth: int = 3) -> st.SearchStrategy[Expr]:
    """Int expressions; divisors are positive constants, so that every value exists."""
    if depth == 0:
        return atoms()
    below = integers(depth - 1)
    two = st.tuples(st.sampled_from(("add", "sub", "add", "sub", "min", "max")), below, below)
    scaled = st.tuples(st.sampled_from(("mul", "floordiv", "mod")), below, st.sampled_from(POSITIVE))
    chosen = st.tuples(comparisons(depth - 1), below, below)
    return st.one_of(
        atoms(),
        two.map(lambda x: apply(*x)),
        scaled.map(lambda x: apply(*x)),
        below.map(lambda x: apply("abs", x)),
        below.map(lambda x: apply("neg", x)),
        chosen.map(lambda x: select(*x)),
        st.tuples(below, st.sampled_from((0, 1, 3))).map(lambda x: apply("shr", *x)),
        st.tuples(below, st.sampled_from((1, 7, 12))).map(lambda x: apply("bitand", *x)),
    )


def comparisons(depth: int = 2) -> st.SearchStrategy[Expr]:
    operators = st.sampled_from(("lt", "le", "gt", "ge", "eq", "ne"))
    return st.tuples(operators, integers(depth), integers(depth)).map(lambda x: apply(*x))


def conditions(depth: int = 2) -> st.SearchStrategy[Expr]:
    """Masks: comparisons joined by and, or, not and conditionals."""
    if depth == 0:
        return st.one_of(comparisons(1), comparisons(2), st.sampled_from((TRUE, FALSE)))
    below = conditions(depth - 1)
    return st.one_of(
        comparisons(2),
        st.tuples(st.sampled_from(("and", "or", "and")), below, below).map(lambda x: apply(*x)),
        below.map(lambda x: apply("not", x)),
        st.tuples(comparisons(1), below, below).map(lambda x: select(*x)),
        st.tuples(below, below).map(lambda x: apply("eq", *x)),
    )


def reals(depth: int = 2) -> st.SearchStrategy[Expr]:
    """Float expressions of the score and the indices."""
    leaf = st.one_of(
        st.just(var("qk", "float")),
        st.sampled_from((0.0, 1.0, -2.5, 0.125, 3.0)).map(const),
        integers(1).map(as_float),
    )
    if depth == 0:
        return leaf
    below = reals(depth - 1)
    two = st.tuples(st.sampled_from(("add", "sub", "mul", "min", "max")), below, below)
    return st.one_of(
        leaf,
        two.map(lambda x: apply(*x)),
        st.tuples(below, st.sampled_from((2.0, 3.0, -0.5))).map(lambda x: apply("div", *x)),
        below.map(lambda x: apply("tanh", x)),
        st.tuples(comparisons(1), below, below).map(lambda x: select(*x)),
    )
