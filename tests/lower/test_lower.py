"""What texts mean at L1: operators as in Python, constants at compile time, definitions inlined, masks asked elsewhere."""

import math
import random

import pytest

from attncc.ir.attention import Reduction
from attncc.ir.expr import FALSE, FLOAT, INT, TRUE, apply, const, var, walk
from attncc.ir.expr import load as element
from attncc.lower import load, lower
from attncc.syntax import parse
from tests.lower.texts import attention, bias, mask

Q, K, OFF = var("q_idx"), var("kv_idx"), var("off")


def test_a_whole_attention():
    a = load("""
attention gemma(window: int = 4096, cap: float = 50.0) {
    heads q = 16, kv = 8
    dim qk = 192, v = 128
    dtype fp16
    scale 0.5
    tensor sinks: bf16[h]
    tensor doc: i32[b, seq_kv] in 0..8 sorted
    tensor any_size: u8[?, hkv + 1]
    scalar tau: float in 0.5..2.0
    score s * tau
    bias sinks[0]
    mask kv_idx < window
    mask doc[b, kv_idx] == 1
    reduction softmax(sink = sinks[h])
    target hopper(tile_m = 128, stages = 2)
}""", window=64)  # fmt: skip
    assert (a.name, a.heads_q, a.heads_kv, a.group, a.dim_qk, a.dim_v, a.dtype) == ("gemma", 16, 8, 2, 192, 128, "f16")
    scaled = apply("mul", apply("mul", var("qk", FLOAT), 0.5), var("tau", FLOAT))
    assert a.score is apply("add", scaled, element("sinks", (const(0),), FLOAT))
    doc = apply("eq", element("doc", (var("b"), K), INT), 1)
    assert a.mask is apply("and", apply("lt", K, 64), doc)
    assert a.reduction == Reduction("softmax", element("sinks", (var("h"),), FLOAT))
    assert a.tensor("doc").shape == (var("batch"), var("seq_kv")) and a.tensor("doc").is_sorted
    assert (a.tensor("doc").low, a.tensor("doc").high) == (const(0), const(8))
    assert a.tensor("any_size").shape == (None, const(9)) and a.tensor("sinks").shape == (const(16),)
    assert [(s.name, s.type, s.low.value, s.high.value) for s in a.scalars] == [("tau", "float", 0.5, 2.0)]
    assert (a.target.name, a.target.tile_m, a.target.tile_n, a.target.stages) == ("hopper", 128, None, 2)
    assert a.span("dim").line == 4 and a.span("sinks").line == 7 and a.span("window") is None


def test_defaults():
    a = load("attention x {\nheads q = 1, kv = 1\ndim 64\ndtype bf16\n}")
    assert a.score is apply("mul", var("qk", FLOAT), 0.125) and a.mask is TRUE and a.reduction == Reduction()


def test_scores_and_biases_apply_in_textual_order():
    first = attention("bias 1.0\nscore softcap(2.0)").score
    second = attention("score softcap(2.0)\nbias 1.0").score
    assert first.op == "mul" and second.op == "add" and first is not second
    assert attention("bias 1").score is attention("bias 1.0").score is attention("score s + 1").score


@pytest.mark.parametrize("text", [
    "7 // -2", "-7 // 2", "-7 % 3", "7 % -3", "2 ** 10", "-2 ** 2", "(-2) ** 3", "7 & 3 | 8 ^ 5", "~6 >> 1", "1 << 4 + 1", "min(3, 1, 2)", "max(3, 1 + 4)",
    "abs(-3)", "5 if 3 < 4 else 6", "int(2.9)", "int(-2.9)", "floor(-2.1)", "int(3 > 2)", "sum(i * i for i in 0..5)", "sum(i for i in 3..3)", "0x10",
    "- - 3", "+3", "6 - 2 - 1", "2 * 3 % 4 // 1", "3 if false else 4 if true else 5",
])  # fmt: skip
def test_constant_ints_are_pythons(text):
    python = (
        text.replace("true", "True")
        .replace("false", "False")
        .replace("floor(", "math.floor(")
        .replace("..5", "")
        .replace("..3", "")
    )
    expected = {"sum(i * i for i in 0..5)": 30, "sum(i for i in 3..3)": 0}.get(text)
    expected = eval(python, {"math": math}) if expected is None else expected
    found = mask(f"q_idx == ({text})").args[1]
    assert (found.value, found.type) == (expected, INT)


@pytest.mark.parametrize("text", [
    "1 / 4", "2.0 ** -3", "2 ** 0.5", "2 ** -1", "exp(1.0)", "exp2(0.5)", "log(2)", "log2(8)", "sqrt(2)", "tanh(0.3)", "erf(0.3)", "sin(1)", "cos(1)", "pow(2.0, 0.5)",
    "min(1, 0.5)", "1 + 0.5", "float(3)", "3 if true else 1.5", "-0.5", "1e-3",
])  # fmt: skip
def test_constant_floats_are_pythons(text):
    names = {n: getattr(math, n) for n in ("exp", "log", "log2", "sqrt", "tanh", "erf", "sin", "cos", "pow")}
    names |= {"exp2": lambda x: 2.0**x}
    expected = float(eval(text.replace("true", "True"), names))
    found = bias(text)
    assert (found.value, found.type) == (expected, FLOAT)


@pytest.mark.parametrize(
    "text, value", [("exp(1000.0)", math.inf), ("log(0.0)", -math.inf), ("-inf", -math.inf), ("sigmoid(-1000.0)", 0.0)]
)
def test_constants_at_the_edge(text, value):
    assert bias(text).value == value


@pytest.mark.parametrize(
    "text, expected",
    [
        ("true and kv_idx < 3", "kv_idx < 3"),
        ("kv_idx < 3 or false", "kv_idx < 3"),
        ("kv_idx < 3 and false", "false"),
        ("n > 0 or kv_idx // (n - 4) == 1", "true"),
        ("kv_idx // n == 1 if n > 0 else kv_idx // 0 == 1", "kv_idx // n == 1"),
        ("n < 0 and table[h, n + 100] > 0", "false"),
        ("any(kv_idx == i for i in 2..4)", "kv_idx == 2 or kv_idx == 3"),
        ("all(kv_idx != i for i in 2..2)", "true"),
        ("any(kv_idx == i for i in 5..2)", "false"),
        ("0 <= kv_idx < n", "0 <= kv_idx and kv_idx < 4"),
        ("(kv_idx ** 2) == kv_idx * kv_idx", "kv_idx * kv_idx == kv_idx * kv_idx"),
        ("kv_idx + 0.5 > 1", "float(kv_idx) + 0.5 > 1.0"),
        ("group == 4 and heads_q == 8 and heads_kv == 2 and dim_qk == dim_v", "true"),
    ],
)
def test_constants_settle_what_they_can(text, expected):
    assert mask(text) is mask(expected)


def test_random_expressions_agree_with_python():
    rng = random.Random(5)

    def make(depth: int) -> str:
        if depth == 0:
            return str(rng.randrange(0, 9))
        a, b = make(depth - 1), make(depth - 1)
        return rng.choice([f"({a} + {b})", f"{a} - {b}", f"{a} * {b}", f"({a}) // 7", f"({a}) % 5", f"-{a}", f"{a} & {b}", f"({a} | {b})",
                           f"{a} ^ {b}", f"({a} if {b} > 3 else {b})", f"min({a}, {b})", f"~{a}", f"(({a}) >> 1)"])  # fmt: skip

    for _ in range(300):
        text = make(rng.randrange(1, 5))
        expected = eval(text)
        if abs(expected) < 2**31:
            assert mask(f"q_idx == ({text})").args[1].value == expected, text


def test_definitions_are_inlined_with_defaults_keywords_and_lets():
    before = """
def line(x: int, a: float = 2.0, c: float = a * 2.0) -> float = { let y = x * a; y + c }
mask shifted(by: int, inner: mask) = inner(q_idx + by, kv_idx) and inner
bias twice(inner: bias) = inner(kv_idx, q_idx) + inner
"""
    assert bias("line(q_idx)", before=before) is bias("q_idx * 2.0 + 4.0")
    assert bias("line(c = 1.0, x = 3)", before=before).value == 7.0
    assert mask("shifted(2, causal)", before=before) is mask("kv_idx <= q_idx + 2 + 0 and kv_idx <= q_idx + off")
    assert mask("shifted(by = 1, inner = flags[hkv] or kv_idx == 3)", before=before) is mask(
        "(flags[hkv] or kv_idx == 3) and (flags[hkv] or kv_idx == 3)"
    )
    assert bias("twice(1.0 * q_idx)", before=before) is bias("1.0 * kv_idx + 1.0 * q_idx")


def test_masks_without_parameters_can_be_asked_elsewhere():
    assert mask("causal(q_idx // 2, kv_idx // 2)") is mask("kv_idx // 2 <= q_idx // 2 + 0")
    nested = mask("inside_blocks(64, inside_blocks(8, causal))")
    q, k = "(q_idx % 64)", "(kv_idx % 64)"
    assert nested is mask(f"q_idx // 64 == kv_idx // 64 and ({q} // 8 == {k} // 8 and {k} % 8 <= {q} % 8 + 0)")
    assert mask("document_of(document(doc, doc), doc, doc, doc, doc)").type == "bool"


def test_own_definitions_take_precedence_but_not_inside_the_prelude():
    a = attention("mask causal and prefix_lm(3)", before="mask causal = true")
    assert a.mask is mask("kv_idx <= q_idx + off or kv_idx < 3")


def test_shared_parts_stay_shared():
    """Twenty nested doublings make forty nodes, not a million."""
    before = "def d0(x: float) = x + x\n" + "".join(
        f"def d{i}(x: float) = d{i - 1}(d{i - 1}(x))\n" for i in range(1, 6)
    )
    assert sum(1 for _ in walk(bias("d4(1.0 * q_idx)", before=before))) < 40


def test_lets_are_free_in_order():
    assert attention("mask a\nlet a = c and kv_idx < n\nlet c = kv_idx > 1").mask is mask("kv_idx > 1 and kv_idx < n")
    a = attention("let m = 2 * n\ntensor u: f32[m]\nbias u[0]")
    assert a.tensor("u").shape == (const(8),)


def test_parameters_replace_defaults():
    assert mask("kv_idx < n", n=7) is mask("kv_idx < 7")
    assert mask("on", on=True) is TRUE and mask("on") is FALSE
    a = attention("bias x", parameters="x: float = 1.0, y: float = x / 2.0", x=3)
    assert a.score.args[1].value == 3.0


def test_one_of_several_attentions():
    text = "attention a {\nheads q=1,kv=1\ndim 8\ndtype bf16\n}\nattention c {\nheads q=2,kv=1\ndim 8\ndtype bf16\n}"
    assert load(text, attention="c").heads_q == 2 and lower(parse(text), {}, "a").heads_q == 1


def test_names_that_would_be_trouble_elsewhere_stay_names():
    """A name is only ever a name: nothing of the text reaches a place where it could be code."""
    a = attention("tensor os: f32[1]\ntensor print: f32[1]\nlet self = os[0]\nbias self + print[0]")
    assert [t.name for t in a.tensors][-2:] == ["os", "print"]
