"""Mistakes of meaning: the code, the words, the place and the way out of each, pinned."""

import re
from pathlib import Path

import pytest

import attncc
from attncc.diagnostics import AttnError
from attncc.lower import load
from attncc.syntax.resources import spec_text
from tests.lower.texts import refusal


def test_unknown_name_in_full():
    assert refusal("mask casual") == (
        "error[E101]: unknown name `casual`\n"
        " --> <text>:9:10\n"
        "  |\n"
        "9 |     mask casual\n"
        "  |          ^^^^^^\n"
        "  help: did you mean `causal`?"
    )


@pytest.mark.parametrize(
    "body, code, words",
    [
        # names
        ("mask casual", "E101", ["did you mean `causal`?"]),
        ("mask sliding_windw(4)", "E101", ["unknown function", "did you mean `sliding_window`?"]),
        ("bias tabel[h, 0]", "E101", ["unknown tensor", "did you mean `table`?"]),
        ("mask q > k", "E101", ["unknown name `q`", "it is called `q_idx` here"]),
        ("score score * 2.0", "E101", ["it is called `s` here"]),
        ("mask score > 0.0", "E101", ["declare it with"]),
        ("mask True", "E101", ["it is called `true` here"]),
        ("mask zzz", "E101", ["declare it with `tensor`, `scalar` or `let`"]),
        ("mask s > 0", "E101", ["`s` has no meaning in a mask"]),
        ("bias s", "E101", ["`s` has no meaning in a bias"]),
        ("mask softcap(3.0) > 0", "E101", ["cannot be used in a mask"]),
        ("reduction softmax(sink = table[h, kv_idx])", "E101", ["`kv_idx` cannot be used", "whole row"]),
        ("scale 1.0 / q_idx", "E101", ["`q_idx` cannot be used in a compile-time value"]),
        ("tensor u: f32[q_idx]", "E101", ["shape or range of a tensor"]),
        ("tensor q: f32[1]", "E006", ["argument of every kernel"]),
        ("scalar out: int", "E006", ["argument of every kernel"]),
        ("tensor tile_list: f32[1]", "E006", ["the compiler uses itself", "`my_tile_list`"]),
        ("scalar q_tile: int", "E006", ["the compiler uses itself"]),
        ("scalar t: int", "E006", ["the compiler uses itself"]),
        ("scalar first_0: int", "E006", ["the compiler uses itself"]),
        # types
        ("mask causal + 1", "E102", ["`+` takes numbers, found bool and int"]),
        ("mask causal & causal", "E102", ["write `and` between bools"]),
        ("mask not q_idx", "E102", ["compare it"]),
        ("mask 1.5 // 2.0 == 0", "E102", ["`//` takes ints", "`floor(a / b)`"]),
        ("mask 0 <= q_idx < on", "E102", ["bools can only be compared with bools"]),
        ("bias 1.0 if q_idx else 2.0", "E102", ["the condition must be bool, found int"]),
        ("bias 1.0 if on else causal", "E102", ["both branches must have one type"]),
        ("bias table[h, 1.5]", "E102", ["index 1 of `table` must be an int, found float", "`floor(x)`"]),
        ("mask any(i for i in 0..3)", "E102", ["`any` takes bools"]),
        ("bias sum(kv_idx > i for i in 0..1)", "E102", ["`sum` takes numbers", "`int(condition)`"]),
        ("mask sliding_window(1.5)", "E102", ["`keys` of `sliding_window` must be an int"]),
        ("mask document(doc, n)", "E102", ["must be a tensor, found int"]),
        ("mask document(doc, doc[b, 0])", "E102", ["must be a tensor", "without an index"]),
        ("mask inside_blocks(4, 3)", "E102", ["(a mask) must be a bool"]),
        ("mask q_idx - kv_idx", "E103", ["a mask must be bool, found int"]),
        ("score s > 0", "E104", ["a score must be a number, found bool", "write `mask`"]),
        ("bias causal", "E104", ["a bias must be a number, found bool"]),
        # statements
        ("dim 128", "E106", ["`dim` stands twice", "first one is in line 4"]),
        ("heads q = 8, kv = 8", "E106", ["`heads` stands twice"]),
        ("reduction softmax\nreduction sigmoid", "E106", ["`reduction` stands twice"]),
        ("let n = 1", "E106", ["`n` is declared twice"]),
        ("scalar doc: int", "E106", ["`doc` is declared twice"]),
        # calls
        ("mask sliding_window(1, 2)", "E107", ["takes 1 argument(s), found 2", "`sliding_window(keys: int)`"]),
        ("mask sliding_window", "E107", ["needs a value for `keys`"]),
        ("mask sliding_window(3, keys = 3)", "E107", ["given twice"]),
        ("bias exp(1.0, 2.0)", "E107", ["`exp` takes 1 argument(s), found 2"]),
        ("bias min(1.0)", "E107", ["`min` takes 2 or more"]),
        ("bias sum(1.0)", "E107", ["`sum(x for i in 0..n)`"]),
        ("mask causal(1)", "E107", ["takes 0 argument(s), found 1"]),
        ("mask sliding_window(key = 3)", "E108", ["has no parameter `key`", "did you mean `keys`?"]),
        ("bias exp(x = 1.0)", "E108", ["no keyword"]),
        ("heads q = 1, k = 1", "E106", []),
        ("let a = c\nlet c = a\nmask a == 1", "E109", ["in terms of itself"]),
        # tensors
        ("bias table[h]", "E110", ["has 2 dimension(s), but 1 index(es)", "`table[..., ...]`"]),
        ("bias table", "E110", ["needs an index"]),
        ("bias table[h, 16]", "E110", ["index 1 of `table` is 16; it must be in 0..16"]),
        ("bias table[-1, 0]", "E110", ["do not wrap around"]),
        ("bias n[0]", "E111", ["`n` is int and cannot be indexed"]),
        ("bias n(0)", "E111", ["`n` is int, not a function"]),
        ("bias table(h, 0)", "E111", ["brackets"]),
        ("bias max(i for i in 0..3)", "E111", ["does not take a range"]),
        ("scalar tau: real", "E112", ["unknown type `real`"]),
        # constants
        ("mask any(q_idx == i for i in 0..seq_kv)", "E114", ["must be known at compile time"]),
        ("bias q_idx ** kv_idx", "E114", ["exponent", "pow(x, y)"]),
        ("scale sqrt(1.0 * n) * table[0, 0]", "E101", []),
        ("mask q_idx // 0 == 1", "E115", ["division by zero"]),
        ("mask q_idx % (n - 4) == 1", "E115", ["division by zero"]),
        ("bias 1 / 0.0", "E115", ["division by zero"]),
        ("bias 1.0 if on else 1 / (n - 4)", "E115", []),
        ("mask q_idx << 40 == 1", "E116", ["0..31"]),
        ("mask q_idx == 2147483647 + n", "E116", ["32-bit"]),
        ("mask q_idx == floor(1e300)", "E116", ["32-bit"]),
        ("bias log(-1.0)", "E116", ["not a real number"]),
        ("bias inf - inf", "E116", ["not a real number"]),
        ("mask any(q_idx == i for i in 0..1000)", "E117", ["1000 terms", "256"]),
        (
            "bias sum(sum(sum(sin(i + j * k + 0.1 * q_idx) for i in 0..60) for j in 0..60) for k in 0..60)",
            "E118",
            ["too large"],
        ),
        # the attention
        ("reduction softmax(sink = alibi)", "E205", ["depends on kv_idx"]),
        ("let far = kv_idx * 1.0\nreduction silu(weight_scale = far)", "E205", ["depends on kv_idx"]),
        ("tensor u: f32[int(causal)]", "E206", ["a dimension of `u` depends on `kv_idx`"]),
        ("tensor u: f32[4] in 0.0..alibi", "E206", ["a bound of the range depends on `h`"]),
        ("tensor u: f32[0]", "E206", ["must be at least 1"]),
        ("tensor u: f32[-1 + 1, 2]", "E206", []),
        ("tensor u: f32[1, 1, 1, 1, 1, 1, 1]", "E206", ["limit is 6"]),
        ("tensor u: f33[1]", "E203", ["did you mean `f32`?"]),
        ("tensor u: i32[1] in 5..5", "E206", ["is empty"]),
        ("tensor u: i32[1] in 0.5..2.0", "E102", ["a bound of the range must be an int"]),
        ("tensor u: bool[1] in 0..1", "E206", ["has no range"]),
        ("tensor u: f32[] sorted", "E206", ["no dimension"]),
        ("scale 1e308 * 10.0", "E204", ["finite"]),
        ("reduction sofmax", "E205", ["did you mean `softmax`?"]),
        ("reduction sigmoid(sink = 1.0)", "E108", ["has no option `sink`"]),
        ("reduction softmax(1.0)", "E107", ["given by name"]),
        ("target hoper", "E401", ["did you mean `hopper`?"]),
        ("target hopper(tile = 3)", "E108", ["no option `tile`"]),
        ("target hopper(tile_m = 0)", "E207", ["`tile_m` is 0"]),
        ("target hopper(stages = n * seq_kv)", "E101", []),
        ("sparsity top_k(blocks = 4)", "E230", ["its lowering comes later"]),
        ("sparsity topk", "E208", ["did you mean `top_k`?"]),
        ("sparsity top_k(block = 4)", "E108", ["did you mean `blocks`?"]),
        ("quantize k = fp8_e4m3(per = head), v = int8", "E231", ["its lowering comes later"]),
        ("quantize k = fp7", "E208", ["unknown storage format"]),
        ("quantize w = int8", "E208", ["no operand `w`"]),
    ],
)
def test_refused_bodies(body, code, words):
    message = refusal(body)
    assert f"error[{code}]" in message and "<text>:" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "lines, code, words",
    [
        (["heads q = 8, kv = 3", "dim 64", "dtype bf16"], "E201", ["kv may be 1, 2, 4, 8"]),
        (["heads q = 0, kv = 1", "dim 64", "dtype bf16"], "E201", ["the number of q heads is 0"]),
        (["heads q = 2000, kv = 1", "dim 64", "dtype bf16"], "E201", ["1..1024"]),
        (["heads q = 8", "dim 64", "dtype bf16"], "E107", ["`heads` needs `kv`"]),
        (["heads q = 8, q = 8, kv = 8", "dim 64", "dtype bf16"], "E107", ["twice"]),
        (["heads q = 8.0, kv = 8", "dim 64", "dtype bf16"], "E102", ["must be an int, found float"]),
        (["heads q = 8, kv = 8", "dim 60", "dtype bf16"], "E202", ["multiple of 8", "with zeros to 64"]),
        (["heads q = 8, kv = 8", "dim 264", "dtype bf16"], "E202", ["8..256"]),
        (["heads q = 8, kv = 8", "dim 0", "dtype bf16"], "E202", ["the head dimension is 0"]),
        (["heads q = 8, kv = 8", "dim -8", "dtype bf16"], "E202", ["the head dimension is -8"]),
        (["heads q = 8, kv = 8", "dim qk = 64, v = 4", "dtype bf16"], "E202", ["with zeros to 8"]),
        (["heads q = 8, kv = 8", "dim qk = 64", "dtype bf16"], "E107", ["`dim` needs `v`"]),
        (["heads q = 8, kv = 8", "dim 64", "dtype f32"], "E203", ["bf16 or fp16"]),
        (["dim 64", "dtype bf16"], "E209", ["no `heads`"]),
        (["heads q = 8, kv = 8", "dtype bf16"], "E209", ["no `dim`"]),
        (["heads q = 8, kv = 8", "dim 64"], "E209", ["no `dtype`", "`dtype bf16`"]),
    ],
)
def test_refused_headings(lines, code, words):
    with pytest.raises(AttnError) as caught:
        load("attention x {\n" + "\n".join(lines) + "\nmask causal and group > 0\n}")
    assert len(caught.value.diagnostics) == 1, "one mistake, one message"
    assert f"error[{code}]" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "before, body, code, words",
    [
        ("def f(x: int) -> int = f(x)", "mask f(1) == 2", "E109", ["f -> f", "cannot call themselves"]),
        ("def f(x: int) -> int = g(x)\ndef g(x: int) -> int = f(x)", "mask f(1) == 2", "E109", ["f -> g -> f"]),
        ("def f(x: int) -> int = f(x)", "", "E109", ["recursive"]),
        ("def f(x: int) -> bool = x + 1", "", "E102", ["must give a bool, but it gives int"]),
        ("mask f = q_idx", "", "E103", ["must give a bool"]),
        ("bias f = causal", "", "E104", ["must give a float"]),
        ("def f(x: nt) = x", "mask f(1) == 2", "E112", ["unknown type `nt`", "did you mean `int`?"]),
        ("def f(x: int) -> mask = x", "", "E112", ["cannot be `mask`"]),
        ("def f(x: int, x: int) = x", "", "E106", ["declared twice"]),
        ("def f(x: int) = x\ndef f(x: int) = x", "", "E106", ["defined twice"]),
        ("mask f = doc[b, kv_idx] == 1", "mask f", "E101", ["sees its own parameters only"]),
        ("mask f = n == 1", "mask f", "E101", ["sees its own parameters only"]),
        ("def f(x: int) = s", "", "E101", ["`s` has no meaning"]),
        ("mask f(inner: mask) = inner(1)", "mask f(causal)", "E107", ["asked at two positions"]),
        ("def f(x: int) = 1 // x", "mask f(0) == 1", "E115", ["in `f`, used in line"]),
    ],
)
def test_refused_definitions(before, body, code, words):
    message = refusal(body, before=before)
    assert message.count("error[") == 1 and f"error[{code}]" in message
    for word in words:
        assert word in message


def test_a_mistake_inside_the_prelude_points_at_the_call():
    message = refusal("mask document(flags, doc)")
    assert "|     mask document(flags, doc)" in message and "found in prelude/documents.attn, line" in message


def test_independent_mistakes_come_together_and_in_order():
    message = refusal("mask casual\nbias tabel[0, 0]\nscore s > 1\ntarget hoper\nlet z = q_idx + causal\nmask z > 1")
    assert [c for c in re.findall(r"error\[(E\d+)\]", message)] == ["E101", "E101", "E104", "E401", "E102"]


def test_what_depends_on_a_mistake_is_not_reported_again():
    with pytest.raises(AttnError) as caught:
        load(
            "attention x(n: int = 1 // 0) {\nheads q = n, kv = n\ndim 64\ndtype bf16\nmask q_idx < n and heads_q > group\nbias alibi\n}"
        )
    assert [d.code for d in caught.value.diagnostics] == ["E115"]


@pytest.mark.parametrize(
    "text, options, code, words",
    [
        ("", {}, "E003", ["the spec is empty"]),
        ("nowhere.attn", {}, "E003", ["No such file"]),
        ("a\0b", {}, "E003", ["cannot read"]),
        ("/dev/zero", {}, "E003", ["longer than any text may be"]),
        ("\n", {}, "E007", ["holds no attention"]),
        ("mask m = true\n", {}, "E007", ["holds no attention"]),
        ("attention a { }\nattention c { }", {}, "E007", ["holds 2 attentions: a, c"]),
        ("attention ab { }\nattention c { }", {"attention": "abc"}, "E007", ["did you mean `ab`?"]),
        ("attention a { }\nattention a { }", {"attention": "a"}, "E106", ["stands twice"]),
    ],
)
def test_texts_without_the_attention(text, options, code, words):
    with pytest.raises(AttnError) as caught:
        load(text, **options)
    assert f"error[{code}]" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_files_that_are_not_texts(tmp_path):
    (tmp_path / "bad.attn").write_bytes(b"attention \xff")
    for path, word in (
        (tmp_path / "bad.attn", "not UTF-8: byte 10 is 0xff"),
        (tmp_path, "cannot read"),
        (7, "found int"),
    ):
        with pytest.raises(AttnError, match=word):
            load(path)


@pytest.mark.parametrize(
    "parameters, values, code, words",
    [
        ("n: int = 4", {"m": 1}, "E221", ["has no parameter `m`", "it has n"]),
        ("window: int = 4", {"windw": 1}, "E221", ["did you mean `window`?"]),
        ("n: int", {}, "E222", ["no default"]),
        ("target: int = 4", {}, "E006", ["argument of attncc.compile", "`my_target`"]),
        ("attention: int = 4", {}, "E006", ["argument of attncc.compile"]),
        ("n: int = 4", {"n": 1.5}, "E223", ["is int, found 1.5 (float)"]),
        ("n: int = 4", {"n": True}, "E223", ["found True (bool)"]),
        ("n: int = 4", {"n": "4"}, "E223", ["found '4' (str)"]),
        ("n: int = 4", {"n": 2**40}, "E223", ["32 bits"]),
        ("x: float = 4.0", {"x": "__import__('os')"}, "E223", ["(str)"]),
        ("x: float = 4.0", {"x": float("nan")}, "E223", []),
        ("on: bool = true", {"on": 1}, "E223", ["is bool, found 1 (int)"]),
        ("n: int = 1.5", {}, "E102", ["the default of `n` must be an int"]),
        ("n: tensor = 1", {}, "E112", ["int, float or bool"]),
        ("n: int = 1, n: int = 2", {}, "E106", ["declared twice"]),
        ("n: int = m, m: int = 1", {}, "E101", ["unknown name `m`"]),
        ("n: int = q_idx", {}, "E101", ["the default of a parameter"]),
    ],
)
def test_parameters(parameters, values, code, words):
    message = refusal("", parameters=parameters, **values)
    assert f"error[{code}]" in message
    for word in words:
        assert word in message


def test_every_code_is_documented():
    root = Path(attncc.__file__).parent
    used = {c for p in root.rglob("*.py") for c in re.findall(r'"(E\d{3})"', p.read_text(encoding="utf-8"))}
    listed = set(re.findall(r"^\| (E\d{3}) \|", spec_text("errors.md"), re.MULTILINE))
    assert used - listed == set(), "list them in spec/errors.md"
    assert listed - used == set(), "nothing raises these any more"


@pytest.mark.parametrize(
    "before, body, code",
    [
        (
            "mask d(m: mask) = m(q_idx + 1, kv_idx) or m(q_idx, kv_idx + 1)",
            "mask " + "d(" * 60 + "causal" + ")" * 60,
            "E118",
        ),
        ("", "score s * s\n" * 60, "E118"),
        (
            "",
            "let a0 = kv_idx\n" + "".join(f"let a{i} = a{i - 1} + 1\n" for i in range(1, 400)) + "mask a399 > 1",
            "E118",
        ),
        (
            "def f0(x: int) = x\n" + "".join(f"def f{i}(x: int) = f{i - 1}(x)\n" for i in range(1, 200)),
            "mask f199(1) > 0",
            "E004",
        ),
        (
            "def f0(x: int) = x + x\n" + "".join(f"def f{i}(x: int) = f{i - 1}(f{i - 1}(x))\n" for i in range(1, 40)),
            "mask f39(kv_idx) > 0",
            "E118",
        ),
    ],
)
def test_texts_that_unfold_without_end(before, body, code):
    assert f"error[{code}]" in refusal(body, before=before)
