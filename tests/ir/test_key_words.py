"""Conditions on the key as words of bits, and the text printed for them."""

import pytest
import torch

from attncc.emit.masks import _numbers, _text
from attncc.interp.evaluate import evaluate
from attncc.ir.expr import BOOL, all_of, any_of, apply, const, mul, select, var
from attncc.ir.key_words import Column, Range, Row, in_words
from tests.emit.test_ranges import CAUSAL, K, Q

VARYING, CONDITIONS = frozenset({"kv_document", "is_global"}), frozenset({"is_global"})
GLOBAL, SPECIAL = var("is_global", BOOL), apply("lt", Q, 2)
TILE_N, KV_FIRST = 128, 256
MASKS = {
    "sink or window": all_of(CAUSAL, any_of(apply("ge", K, apply("sub", Q, 20)), apply("lt", K, 260))),
    "one of two": apply("eq", GLOBAL, apply("ge", K, Q)),
    "not one key": apply("not", apply("eq", K, Q)),
    "by row": select(SPECIAL, apply("gt", K, Q), any_of(GLOBAL, apply("eq", K, Q))),
    "row of an image": any_of(apply("le", apply("mod", K, 32), 5), apply("not", SPECIAL)),
    "all": const(True),
}


class Bits:
    """What the device's functions give, for a tile from `KV_FIRST` on."""

    def bits_from(self, low, word):
        return sum(1 << i for i in range(32) if 32 * word + i >= low)

    def bits_below(self, high, word):
        return sum(1 << i for i in range(32) if 32 * word + i < high)

    def bits_of_period(self, low, high, period, thread, word):
        return sum(1 << i for i in range(32) if low <= (32 * word + i) % period < high)

    def all_bits(self, kept):
        return -1 if kept else 0


@pytest.mark.parametrize("name", MASKS)
def test_words_hold_the_bits_of_the_condition(name):
    keys = torch.arange(KV_FIRST, KV_FIRST + TILE_N, dtype=torch.int32)
    is_global = keys % 3 == 1
    columns = [sum(int(is_global[32 * word + i]) << i for i in range(32)) for word in range(TILE_N // 32)]
    words = in_words(MASKS[name], VARYING, CONDITIONS, TILE_N)
    for q in (1, 250, 300, 383, 500):
        env = {"q_idx": q, "off": 3, "kv_idx": keys, "is_global": is_global}
        wanted = torch.as_tensor(evaluate(MASKS[name], env, {})).expand(TILE_N)
        numbers = iter([repr(torch.as_tensor(evaluate(n, env, {})).item()) for n in _numbers(words)])
        text = _text(words, numbers, {"is_global": "columns"})
        for word in range(TILE_N // 32):
            bits = eval(text, {"softmax": Bits(), "columns": columns, "kv_first": KV_FIRST, "thread": 0, "word": word})
            assert [bool(bits >> i & 1) for i in range(32)] == wanted[32 * word : 32 * word + 32].tolist(), text


def test_what_reads_a_number_of_the_key_is_no_word():
    document = apply("eq", var("document"), var("kv_document"))
    for mask in (document, any_of(document, CAUSAL), apply("lt", mul(K, 2), Q), apply("le", apply("mod", K, 7), 5)):
        assert in_words(mask, VARYING, CONDITIONS, TILE_N) is None
    assert in_words(GLOBAL, VARYING, frozenset(), TILE_N) is None
    assert in_words(GLOBAL, VARYING, CONDITIONS, TILE_N) == Column("is_global")
    assert in_words(SPECIAL, VARYING, CONDITIONS, TILE_N) == Row(SPECIAL)
    assert isinstance(in_words(CAUSAL, VARYING, CONDITIONS, TILE_N), Range)
