"""The legality checks of L1 and L2 name each broken rule."""

from dataclasses import replace

import pytest

from attncc.ir.attention import Reduction
from attncc.ir.check_attention import check_attention
from attncc.ir.check_expr import IllegalProgram
from attncc.ir.check_tile import check_tile
from attncc.ir.dependence import dependence
from attncc.ir.expr import ONE, TRUE, Expr, const, load, var
from attncc.ir.text import parse_expr
from attncc.ir.tile import ColLet, Let, Mask, RowLet, Score, Segment, Softmax, Store, Value
from tests.passes.support import attention, program

A = attention("tensor t: i32[seq_kv]")
P = program("tensor t: i32[seq_kv]\nmask causal")

BROKEN_ATTENTIONS = {
    "score is int, expected float": {"score": ONE},
    "mask is float, expected bool": {"mask": const(1.0)},
    "`qk` is not bound here": {"mask": parse_expr("qk < 1.0")},
    "`q_tile` is not bound here": {"mask": parse_expr("q_tile < 1")},
    "`kv_idx` is not bound here": {"reduction": Reduction("softmax", sink=parse_expr("to_float(kv_idx)"))},
    "has no sink": {"reduction": Reduction("relu", sink=const(1.0))},
    "unknown reduction": {"reduction": Reduction("hardmax")},
    "no multiple": {"heads_kv": 3},
    "dtype f32": {"dtype": "f32"},
    "`u` is not a tensor": {"mask": load("u", (ONE,), "bool")},
    "has 1 dimension(s), is indexed with 2": {"mask": parse_expr("t[1, 2] < 3", {"t": "int"})},
    "the node says float": {"score": load("t", (ONE,), "float")},
    "declared twice": {"tensors": A.tensors * 2},
    "`add` gives int": {"score": Expr("add", (ONE, ONE), None, "float")},
}


@pytest.mark.parametrize("message, change", BROKEN_ATTENTIONS.items())
def test_broken_attentions(message, change):
    check_attention(A)
    with pytest.raises(IllegalProgram) as error:
        check_attention(replace(A, **change))
    assert message in str(error.value)


def with_prologue(*ops):
    return {"prologue": P.prologue + ops}


def with_body(*ops, kind="partial"):
    return {"segments": (Segment(kind, ONE, var("t"), ops),)}


BROKEN_PROGRAMS = {
    "`kv_tile` is not bound here": with_prologue(Let("x", var("kv_tile"))),
    "`q_idx` is not bound here": with_prologue(Let("x", var("q_idx"))),
    "RowLet x: `kv_idx` is not bound": with_prologue(RowLet("x", var("kv_idx"))),
    "column values belong to the body": with_prologue(ColLet("x", var("kv_idx"))),
    "ColLet x: `q_idx` is not bound": with_body(ColLet("x", var("q_idx"))),
    "the name is taken": with_prologue(Let("x", ONE), Let("x", ONE)),
    "`y` is not bound here": with_body(Score("S", var("y", "float"))),
    "is full and has a mask": with_body(Mask("S", TRUE), kind="full"),
    "no value Z": with_body(Mask("Z", TRUE)),
    "unknown kind": with_body(kind="odd"),
    "multiplier is positive": with_body(Softmax("S", "P", "O", 0.0)),
    "unknown argument": {"epilogue": (Store("O", "x"),)},
    "there is no table": {"segments": (Segment("partial", load("tile_count", (ONE,), "int"), var("t"), ()),)},
    "unknown space": {"values": (replace(P.values[0], space="attic"), *P.values[1:])},
    "does not fit": {"values": (*P.values[:3], Value("S", 64, 8, "f32", "register"), *P.values[4:])},
    "too small for a tile of q": {"values": (replace(P.values[0], rows=8), *P.values[1:])},
}


@pytest.mark.parametrize("message, change", BROKEN_PROGRAMS.items())
def test_broken_programs(message, change):
    check_tile(P)
    with pytest.raises(IllegalProgram) as error:
        check_tile(replace(P, **change))
    assert message in str(error.value)


CLASSES = {
    "seq_kv + 3": "constant", "h * 2 + q_tile": "head", "q_idx + off": "row", "kv_idx % 7 + h": "column",
    "(q_idx - kv_idx) * h": "diagonal", "abs(kv_idx - q_idx + 1)": "diagonal", "q_idx + kv_idx": "element",
    "to_int(qk)": "element", "2 * q_idx - 2 * kv_idx": "diagonal",
}  # fmt: skip


@pytest.mark.parametrize("text, kind", CLASSES.items())
def test_dependence_classes(text, kind):
    assert dependence(parse_expr(text)) == kind
