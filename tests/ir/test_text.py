"""The text form of every level parses back to an equal value."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncc.diagnostics import AttnError
from attncc.ir.attention import Attention, Reduction, ScalarDecl, TargetHint, TensorDecl
from attncc.ir.expr import BOOL, FLOAT, INT, OPS, apply, const, load, mul, result_type, var
from attncc.ir.schedule import Buffer, Channel, For, If, Mma, Role, Schedule, Wait
from attncc.ir.text import format_expr, format_program, parse_expr, parse_program
from attncc.ir.tile import Let, Mask, Segment, Softmax, TileProgram, TileSummary, TileTable, Value

NAMES = {"tau": FLOAT, "on": BOOL, "doc": INT, "w": FLOAT}
LEAVES = {
    INT: st.one_of(st.integers(-9, 2**31 - 1).map(const), st.sampled_from(["q_idx", "kv_idx", "h"]).map(var)),
    FLOAT: st.one_of(
        st.floats(allow_nan=False, width=32).map(const),
        st.sampled_from([var("qk", FLOAT), var("tau", FLOAT), load("w", (var("h"),), FLOAT)]),
    ),
    BOOL: st.sampled_from([const(True), const(False), var("on", BOOL)]),
}


def _operators(kind):
    choices = []
    for op in OPS.values():
        for types in {(INT,) * 3, (FLOAT,) * 3, (BOOL,) * 3, (BOOL, INT, INT), (BOOL, FLOAT, FLOAT)}:
            try:
                if result_type(op.name, types[: op.arity]) == kind:
                    choices.append((op.name, types[: op.arity]))
            except TypeError:
                continue
    return choices


def expressions(kind, depth=4):
    if depth == 0:
        return LEAVES[kind]
    grown = st.sampled_from(_operators(kind)).flatmap(
        lambda c: st.tuples(*(expressions(t, depth - 1) for t in c[1])).map(lambda a: apply(c[0], *a))
    )
    return st.one_of(LEAVES[kind], grown)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([INT, FLOAT, BOOL]).flatmap(expressions))
def test_expressions_parse_back_to_the_same_node(node):
    assert parse_expr(format_expr(node), NAMES) is node


@pytest.mark.parametrize(
    "text",
    ["-3", "-(3)", "a - (b - c)", "a - b - c", "not a < b", "(a < b) == (b < c)", "-(a + b) * c", "a // (b % c)", "~a & b | c"],
)
def test_expression_spelling_is_stable(text):
    names = {n: INT for n in "abc"}
    assert format_expr(parse_expr(text, names)) == text


def test_special_floats():
    assert parse_expr(format_expr(const(-math.inf))) is const(-math.inf)
    assert math.isnan(parse_expr(format_expr(const(math.nan))).value)


def example_attention():
    doc = load("doc", (var("b"), var("kv_idx")), INT)
    return Attention(
        name="x", heads_q=4, heads_kv=2, dim_qk=64, dim_v=32, dtype="bf16",
        score=mul(var("qk", FLOAT), var("tau", FLOAT)),
        mask=apply("le", doc, var("q_idx")),
        reduction=Reduction("softmax", sink=load("w", (var("h"),), FLOAT)),
        tensors=(TensorDecl("doc", "i32", (var("batch"), None)), TensorDecl("w", "f32", (const(4),))),
        scalars=(ScalarDecl("tau", FLOAT),),
        target=TargetHint("hopper", tile_m=128),
    )  # fmt: skip


def example_program():
    body = (Let("base", mul(var("kv_tile"), 64)), Mask("S", apply("lt", var("kv_idx"), var("base"))), Softmax("S", "P", "O", 1.5))
    segment = Segment("partial", apply("max", var("kv_tiles"), 0), var("t"), body)
    table = TileTable(const(True), apply("lt", var("d_lo"), var("d_hi")), True, False, (TileSummary("d", "kv", var("kv_idx")),))
    return TileProgram(example_attention(), 64, 64, (Value("S", 64, 64, "f32", "register"),), (), (segment, segment), (), table)


def test_programs_parse_back():
    loop = For("i", const(0), var("kv_tiles"), "full tiles", (Wait("K"), Mma("S", "Q", "K", True, False, True)))
    role = Role("consumer", 4, 8, 2, 64, 240, (If(apply("gt", var("kv_tiles"), 0), (loop,)),))
    schedule = Schedule(
        example_attention(), "hopper", 128, 64, 384, (var("q_tiles"), const(4), var("batch")),
        (Buffer("Q", "shared", 128, 64, "bf16"),), (Channel("K", "tma", "K", 2, "producer", "consumer", 2, 8192),), (), (), (role,),
    )  # fmt: skip
    for program in (example_attention(), example_program(), schedule):
        text = format_program(program)
        assert parse_program(text) == program
        assert format_program(parse_program(text)) == text


@pytest.mark.parametrize(
    "text, message",
    [
        ("wiat channel=K", "unknown operation `wiat`"),
        ("wait chanel=K", "has no field `chanel`"),
        ("wait", "needs `channel`"),
        ("let name=x, expr=a + 1", "unknown name `a`"),
        ("let name=x, expr=1 + 2.0", "mixes int and float"),
        ("wait channel=K $", "unexpected character"),
    ],
)
def test_bad_text_is_refused_with_a_place(text, message):
    with pytest.raises(AttnError) as caught:
        parse_program(text)
    assert message in str(caught.value) and "-->" in str(caught.value)
