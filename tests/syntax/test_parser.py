"""The parser: trees, places, layout, and what it says about texts it cannot read."""

import pickle

import pytest

from attncc.diagnostics import AttnError
from attncc.syntax import parse, tree

FRAME = "attention a {{\n    heads q = 8, kv = 2\n    {}\n}}\n"


def expression(text: str) -> tree.Expression:
    """The tree of an expression, read as a mask."""
    return parse(FRAME.format(f"mask {text}")).attentions[0].statements[-1].value


def shape(node) -> object:
    """An expression as nested tuples."""
    match node:
        case tree.Literal():
            return node.value
        case tree.Name():
            return node.name
        case tree.Unary():
            return (node.operator, shape(node.operand))
        case tree.Binary():
            return (shape(node.left), node.operator, shape(node.right))
        case tree.Compare():
            return (*map(shape, node.operands), *node.operators)
        case tree.Conditional():
            return ("if", shape(node.condition), shape(node.then), shape(node.otherwise))
        case tree.Call():
            return (node.function, *map(shape, node.arguments), *((k.name, shape(k.value)) for k in node.keywords))
        case tree.Index():
            return (node.tensor, "[]", *map(shape, node.indices))
    return node


def refusal(text: str) -> str:
    with pytest.raises(AttnError) as caught:
        parse(text, "x.attn")
    return str(caught.value)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1 + 2 * 3 - 4", ((1, "+", (2, "*", 3)), "-", 4)),
        ("a // 2 % 3", (("a", "//", 2), "%", 3)),
        ("-a ** -b", ("-", ("a", "**", ("-", "b")))),
        ("2 ** 3 ** 2", (2, "**", (3, "**", 2))),
        ("not a and b or c", ((("not", "a"), "and", "b"), "or", "c")),
        ("not a == b", ("not", ("a", "b", "=="))),
        ("a | b ^ c & d << 1 + 2", ("a", "|", ("b", "^", ("c", "&", ("d", "<<", (1, "+", 2)))))),
        ("a & 3 == 1", (("a", "&", 3), 1, "==")),
        ("0 <= a < 5", (0, "a", 5, "<=", "<")),
        ("~-+a", ("~", ("-", ("+", "a")))),
        ("a if b else c if d else e", ("if", "b", "a", ("if", "d", "c", "e"))),
        ("f(1, x = 2)", ("f", 1, ("x", 2))),
        ("t[i, j + 1]", ("t", "[]", "i", ("j", "+", 1))),
        ("t[]", ("t", "[]")),
        ("0x1F + 1e3 + 1.5e-2 + 7", (((31, "+", 1000.0), "+", 0.015), "+", 7)),
        ("true and false", (True, "and", False)),
        ("truex and iff", ("truex", "and", "iff")),
    ],
)
def test_expressions_group_as_in_python(text, expected):
    assert shape(expression(text)) == expected


def test_every_statement():
    file = parse("""
def f(x: int, y: float = 1.0) -> float = x * y
mask m(inner: mask) = { let a = 1; let c = 2
    inner(a, c) }
attention every(n: int, on: bool = true) {
    heads q = 8, kv = 2; dim qk = 64, v = 32
    dtype bf16
    scale 0.5
    tensor t: f32[h, ?, 2 * n] in -1.0..1.0 sorted
    tensor u: f32[]
    scalar tau: float in 0.0..1.0
    let e = 1
    score s
    bias 1.0
    mask m(causal)
    reduction softmax(sink = 1.0)
    sparsity top_k(16, block_kv = 64)
    quantize k = int8, v = fp8_e4m3(per = head)
    target somewhere(tile_m = 128)
}""")
    kinds = [type(s).__name__ for s in file.attentions[0].statements]
    assert kinds == [
        "Heads", "Dim", "Dtype", "Scale", "Tensor", "Tensor", "Scalar", "Let", "Score", "Bias", "Mask", "Reduction", "Sparsity",
        "Quantize", "Target",
    ]  # fmt: skip
    assert [d.kind for d in file.definitions] == ["def", "mask"] and len(file.definitions[1].lets) == 2
    tensor = file.attentions[0].statements[4]
    assert isinstance(tensor.shape[1], tree.AnySize) and tensor.is_sorted and tensor.range is not None


def test_statement_words_are_names_elsewhere():
    file = parse(FRAME.format("mask heads + dim * scale == target(dtype = let) + sorted"))
    assert isinstance(file.attentions[0].statements[1], tree.Mask)


def test_spans_and_equality():
    node = expression("(a + foo(1))")
    assert (node.span.line, node.span.column, node.span.end_column) == (3, 10, 22)
    right = node.right.span
    assert (right.column, right.end_column) == (15, 21)
    assert expression("a + 1") == expression("a  +   1") and hash(node) == hash(expression("(a + foo(1))"))
    assert pickle.loads(pickle.dumps(node)) == node


@pytest.mark.parametrize(
    "text",
    [
        FRAME.format("dim 64").replace("\n", "\r\n"),
        FRAME.format("\tdim\t64\t# tab"),
        "\ufeff" + FRAME.format("dim 64"),
        FRAME.format("dim (\n  64  # inside\n\n)"),
        FRAME.format("dim 64").replace("\n", ";\n# line\n;;\n"),
        "attention a { heads q = 8, kv = 2; dim 64 }",
        "\n\n# nothing\n" + FRAME.format("dim 64 # \u2028 é \x0b") + "# end",
    ],
    ids=["crlf", "tabs", "bom", "parentheses", "semicolons", "one line", "comments"],
)
def test_layout(text):
    statements = parse(text).attentions[0].statements
    assert [type(s).__name__ for s in statements] == ["Heads", "Dim"]


def test_empty_texts_have_no_attention():
    for text in ("", "\n", "# only a comment", " \t\r\n"):
        assert parse(text).attentions == ()


def test_places_count_lines_as_editors_do():
    text = refusal("# \u2028 \x0b \x0c \x85\nattention a {\n    dim !\n}")
    assert "x.attn:3:9" in text and "3 |     dim !" in text


@pytest.mark.parametrize(
    "text, code, words",
    [
        ("attention a {\n dim 8\n", "E002", ["a `{` before it has no `}`"]),
        ("attention a {\n mask (1 +\n", "E002", ["a `(` before it has no `)`"]),
        ("attention a {\n dim 8\nmask m = true\nmask n(x: int) = true\n", "E001", ["has no `}`"]),
        ("attention a { mask x = 1 }", "E001", ["write `==` to compare"]),
        ("attention a { mask x && y }", "E001", ["`and`"]),
        ("attention a { mask x ? 1 : 2 }", "E001", ["`a if condition else b`"]),
        ("attention a { mask 'x' }", "E001", ["no strings"]),
        ("attention a { scale .5 }", "E001", ["both sides of the point"]),
        ("attention a { mask x.y }", "E001", ["no attributes"]),
        ("attention a { heads 16 }", "E001", ["it is written like `heads q = 8, kv = 8`"]),
        ("attention a { dim = 64 }", "E001", ["it is written like `dim 128`"]),
        ("attention a { tensor t f32[1] }", "E001", ["it is written like `tensor name: f32["]),
        ("attention a { mask x! }", "E001", ["`!`"]),
        ("attention a { dim\n}", "E001", ["the line ends too early; expected an expression"]),
        ("attention a\0 { }", "E001", ["U+0000"]),
        ("attention é { }", "E001", ["U+00E9", "ASCII"]),
        ("attention a { let 𝛼 = 1 }", "E001", ["U+1D6FC"]),
        ("attention a { mask \ud800 }", "E001", ["U+D800"]),
        ("attention a { haeds q = 1, kv = 1 }", "E105", ["unknown statement `haeds`", "did you mean `heads`?"]),
        ("function f(x) { }", "E105", ["does not begin a definition"]),
        ("attention lambda { }", "E006", ["Python keyword"]),
        ("attention a { let __import__ = 1 }", "E006", ["two underscores"]),
        ("attention a { tensor q_idx: f32[1] }", "E006", ["meaning of its own"]),
        ("mask m(s: int) = true", "E006", ["`s` has a meaning"]),
        (f"attention {'a' * 65} {{ }}", "E006", ["65 characters"]),
        ("attention a { dim 99999999999999999999999 }", "E005", ["does not fit in 32 bits"]),
        (f"attention a {{ dim {'9' * 10000} }}", "E005", ["does not fit in 32 bits"]),
        ("attention a { dim 2147483648 }", "E005", ["does not fit in 32 bits"]),
        ("attention a { scale 1e999 }", "E005", ["too large for a float"]),
        (f"attention a {{ mask {'(' * 3000}1{')' * 3000} }}", "E004", ["nests more than 100 levels"]),
        (f"attention a {{ mask {'-' * 3000}1 }}", "E004", ["nests more than 100 levels"]),
        (f"attention a {{ mask {'not ' * 3000}x }}", "E004", ["nests more than 100 levels"]),
        (f"attention a {{ mask {'x + ' * 3000}x }}", "E004", ["nests more than 100 levels"]),
        (f"attention a {{ mask {'x if y else ' * 3000}x }}", "E004", ["nests more than 100 levels"]),
        (f"attention a {{ mask {'t[' * 3000}x{']' * 3000} }}", "E004", ["nests more than 100 levels"]),
        (f"attention a {{ mask {'f(x = ' * 3000}x{')' * 3000} }}", "E004", ["nests more than 100 levels"]),
        (f"attention a {{ mask {'(' * 100000} }}", "E001", ["expected an expression"]),
    ],
    ids=range(37),
)
def test_unreadable_texts(text, code, words):
    message = refusal(text)
    assert f"error[{code}]" in message and "x.attn:" in message
    for word in words:
        assert word in message


def test_large_texts_are_refused():
    assert "error[E003]" in refusal("#" * 1_000_001)


def test_several_mistakes_in_one_run():
    message = refusal("attention a {\n haeds 1\n dim 8 8\n dtype bf16\n mask a = 1\n let class = 1\n}")
    assert [message.count(c) for c in ("E105", "E001", "E006")] == [1, 2, 1]
    assert (
        message.index("x.attn:2:2")
        < message.index("x.attn:3:8")
        < message.index("x.attn:5:9")
        < message.index("x.attn:6:6")
    )


def test_control_characters_stay_out_of_the_terminal():
    message = refusal("attention a { \x1b[31m \0 }")
    assert "\x1b" not in message and "\0" not in message


def test_long_lines_are_cut_around_the_caret():
    message = refusal("attention a { mask " + "x + " * 20 + " ! " + " + x" * 2000 + "}")
    line, caret = message.splitlines()[-2:] if "help" not in message.splitlines()[-1] else message.splitlines()[-3:-1]
    assert len(line) < 200 and line[caret.index("^")] == "!"
