"""Ten thousand damaged and random texts: each compiles or is refused with a diagnostic, never anything else."""

import random
import re

import pytest

from attncc.diagnostics import AttnError
from attncc.lower import lower
from attncc.syntax import parse

SEEDS = (
    """def f(x: int, y: float = 2.0) -> float = x * y
mask near(n: int, inner: mask) = { let d = q_idx - kv_idx; abs(d) < n and inner(q_idx // 2, kv_idx) }
attention a(n: int = 4, on: bool = true) {
    heads q = 8, kv = 2
    dim qk = 64, v = 32
    dtype bf16
    scale 1.0 / sqrt(64)
    tensor t: f32[h, 2 * n - 1] in -1.0..1.0
    tensor doc: i32[b, seq_kv] in 0..8 sorted
    scalar tau: float
    let e = doc[b, kv_idx] if on else 0
    bias t[h, e % n] * tau + f(1, y = 3.0)
    score softcap(cap = 30.0)
    mask causal and near(n, sliding_window(4)) or not (0 <= kv_idx < n)
    mask any(kv_idx == i * 3 for i in 0..n)
    reduction softmax(sink = t[h, 0])
    target hopper(tile_m = 128, stages = 2)
}
""",
    """attention g { heads q = 1, kv = 1; dim 8; dtype fp16
    bias alibi   # comment
    mask inside_blocks(n = 16, inner = causal) and kv_idx & 3 != 1 << 1
    reduction silu(weight_scale = 1 / seq_kv) }""",
)
PIECES = (
    *"(){}[],;:=+-*/%<>&|^~?.#\n\t\r\0\"'\\@!$`0179", "//", "**", "<<", ">>", "==", "!=", "..", "->", "0x", "1e9", "1e999", "0.0",
    "99999999999999999999", "2147483647", "inf", "true", "false", "and", "or", "not", "if", "else", "for", "in", "sorted", "attention",
    "def", "mask", "score", "bias", "heads", "dim", "dtype", "tensor", "scalar", "let", "reduction", "target", "sparsity top_k(blocks = 4)",
    "quantize k = int8", "q", "kv", "q_idx", "kv_idx", "off", "seq_q", "s", "b", "h", "hkv", "n", "t", "doc", "e", "f", "near", "causal",
    "softcap", "alibi", "sum", "any(x for x in 0..9)", "min", "exp", "log", "floor", "int", "float", "bool", "f32", "i32", "__class__", "lambda",
    "import", "é", "\u2028", "\ud800", "𝛼", "\ufeff", "\x0b", "\x1b[2J", "(" * 150, "-" * 150, "not " * 120, "a" * 300, " " * 9, "\r\n",
)  # fmt: skip
TOKEN = re.compile(r"\w+|[^\w\s]")


def damaged(rng: random.Random) -> str:
    text = rng.choice(SEEDS)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at, kind = rng.randrange(len(text) + 1), rng.randrange(9)
        end = min(len(text), at + rng.choice((1, 2, 5, 20, 80)))
        if kind == 0:
            text = text[:at] + text[end:]
        elif kind == 1:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif kind == 2:
            text = text[:at] + rng.choice(PIECES) + text[end:]
        elif kind == 3:
            text = text[:end] + text[at:]
        elif kind == 4:
            text = text[:at]
        elif kind == 5:
            lines = text.split("\n")
            rng.shuffle(lines)
            text = "\n".join(lines)
        else:
            token = rng.choice(list(TOKEN.finditer(text)) or [None])
            if token:
                text = text[: token.start()] + rng.choice(TOKEN.findall(rng.choice(SEEDS))) + text[token.end() :]
    return text


def words(rng: random.Random) -> str:
    return " ".join(rng.choice(PIECES) for _ in range(rng.randrange(25)))


def statement(rng: random.Random) -> str:
    """A valid frame around a random line, so that the lowering sees it too."""
    line = " ".join(rng.choice(PIECES[60:]) for _ in range(rng.randrange(1, 8)))
    return f"attention x(n: int = 3) {{\nheads q = 2, kv = 1\ndim 8\ndtype bf16\n{rng.choice(('mask', 'bias', 'score', 'let z ='))} {line}\n}}"


@pytest.mark.parametrize(
    "make, count", [(damaged, 4000), (words, 3000), (statement, 3000)], ids=lambda x: getattr(x, "__name__", "")
)
def test_texts_never_crash(make, count):
    rng = random.Random(20261123)
    refused = 0
    for i in range(count):
        text = make(rng)
        try:
            lower(parse(text), {})
        except AttnError as error:
            assert error.diagnostics and all(d.code.startswith("E") and d.message for d in error.diagnostics)
            refused += 1
        except BaseException as error:
            raise AssertionError(f"text {i} raised {type(error).__name__}: {text!r}") from error
    assert refused > count // 3
