"""How the definitions of `spec/prelude/` are called in generated specs. A test asserts that none is left out."""

from __future__ import annotations

from attncc.fuzz.builder import Builder


def mask_call(b: Builder, plain: bool = False) -> str:
    """A call of one of the prelude's masks, with arguments that make sense. `plain`: one that has a value at any position."""
    return MASKS[b.one(*(n for n in MASKS if not plain or n in PLAIN))](b)


def score_call(b: Builder) -> str:
    return SCORES[b.one(*SCORES)](b)


def bias_call(b: Builder) -> str:
    return BIASES[b.one(*BIASES)](b)


def _document(b: Builder, documents: str = "5") -> str:
    in_order = b.one(True, True, False)
    ids = (b.fresh("int", ("batch", axis), documents, in_order) for axis in ("seq_q", "seq_kv"))
    return ", ".join(ids)


def _document_of(b: Builder) -> str:
    ids = _document(b)
    starts = (b.fresh("int", ("batch", "5"), high) for high in ("40", "64"))
    return f"document_of({mask_call(b, plain=True)}, {ids}, {', '.join(starts)})"


def _length(b: Builder) -> str:
    """A number of keys: a constant, or one for each batch entry."""
    lengths = b.one(False, True) and b.fresh("int", ("batch",), b.one("seq_kv + 1", "seq_kv", "100"))
    return f"{lengths}[b]" if lengths else str(b.number(0, 140))


def _neighborhood_1d(b: Builder) -> str:
    length = b.one("", f", length = {b.number(1, 130)}")
    return f"neighborhood_1d({_axis(b)}, is_causal = {_flag(b)}{length})"


def _axis(b: Builder, suffix: str = "", longest: int = 40) -> str:
    kernel = b.number(1, longest)
    text = f"kernel{suffix} = {kernel}"
    text += b.one("", f", stride{suffix} = {b.number(1, kernel)}")
    return text + b.one("", f", dilation{suffix} = {b.number(1, 4)}")


def _flag(b: Builder) -> str:
    return b.one("true", "false")


def _neighborhood_2d(b: Builder) -> str:
    axes = ", ".join(_axis(b, s, 7) for s in ("_h", "_w"))
    causal = b.one("", f", causal_h = {_flag(b)}, causal_w = {_flag(b)}")
    return f"neighborhood_2d({b.number(1, 12)}, {b.number(1, 16)}, {axes}{causal})"


def _neighborhood_3d(b: Builder) -> str:
    axes = ", ".join(_axis(b, s, 4) for s in ("_d", "_h", "_w"))
    causal = b.one("", f", causal_d = {_flag(b)}", f", causal_w = {_flag(b)}")
    return f"neighborhood_3d({b.number(1, 4)}, {b.number(1, 6)}, {b.number(1, 8)}, {axes}{causal})"


def _sliding_tile(b: Builder) -> str:
    tiles = ", ".join(str(b.number(1, 4)) for _ in range(3))
    windows = ", ".join(str(b.one(1, 3, 5)) for _ in range(3))
    return f"sliding_tile({tiles}, {b.one(8, 16, 4, 64)}, {windows})"


MASKS = {
    "causal": lambda b: "causal",
    "causal_bottom_right": lambda b: "causal_bottom_right",
    "causal_top_left": lambda b: "causal_top_left",
    "sliding_window": lambda b: f"causal and sliding_window(keys = {b.number(1, 150)})",
    "two_sided_window": lambda b: f"two_sided_window(left = {b.number(0, 90)}, right = {b.number(0, 90)})",
    "dilated_window": lambda b: f"dilated_window({b.number(1, 40)}, dilation = {b.number(1, 5)})",
    "prefix_lm": lambda b: f"prefix_lm({_length(b)})",
    "document": lambda b: f"document({_document(b)})",
    "document_of": _document_of,
    "shared_prefix": lambda b: f"shared_prefix({_length(b)}, {mask_call(b)})",
    "key_padding": lambda b: f"key_padding({_length(b)})",
    "global_tokens": lambda b: f"global_tokens({b.number(0, 40)}) or sliding_window({b.number(1, 90)})",
    "sink_tokens": lambda b: f"causal and (sliding_window({b.number(1, 90)}) or sink_tokens({b.number(1, 40)}))",
    "inside_blocks": lambda b: f"inside_blocks({b.one(4, 16, 24, 64)}, {mask_call(b, plain=True)})",
    "block_causal": lambda b: f"block_causal({b.one(16, 7, 32, 64)})",
    "block_diffusion": lambda b: f"block_diffusion(block = {b.one(4, 16, 10)}{b.one('', ', length = 48')})",
    "tree_verification": lambda b: f"tree_verification({b.fresh('bool', ('batch', 'seq_q', 'seq_q'))})",
    "neighborhood_1d": _neighborhood_1d,
    "neighborhood_2d": _neighborhood_2d,
    "neighborhood_3d": _neighborhood_3d,
    "sliding_tile": _sliding_tile,
}

PLAIN = (
    "causal", "causal_top_left", "sliding_window", "two_sided_window", "dilated_window", "global_tokens", "block_causal",
    "sink_tokens", "neighborhood_1d",
)  # fmt: skip
"""Masks that read no tensor, so that they have a value at any position, negative ones included."""


def _relative_table(b: Builder) -> str:
    reach = b.number(1, 40)
    return f"relative_table({b.fresh('float', ('heads_q', str(2 * reach + 1)))}, {reach})"


def _relative_table_2d(b: Builder) -> str:
    height, width = b.number(1, 12), b.number(1, 12)
    table = b.fresh("float", (str((2 * height - 1) * (2 * width - 1)), "heads_q"))
    b.require(f"q_idx < {height * width} and kv_idx < {height * width}")
    return f"relative_table_2d({table}, height = {height}, width = {width})"


def _t5_bias(b: Builder) -> str:
    buckets = b.one(8, 4, 32)
    table = b.fresh("float", (str(buckets), "heads_q"))
    return f"t5_bias({table}, buckets = {buckets}, max_distance = {b.one(128, 20)}, bidirectional = {_flag(b)})"


def _forgetting_gate(b: Builder) -> str:
    b.require("causal")
    return f"forgetting_gate({b.fresh('float', ('batch', 'heads_q', 'seq_kv'))})"


SCORES = {"softcap": lambda b: f"softcap({b.number(8, 400) / 8})"}

BIASES = {
    "alibi": lambda b: "alibi",
    "alibi_symmetric": lambda b: "alibi_symmetric",
    "relative_table": _relative_table,
    "relative_table_2d": _relative_table_2d,
    "t5_bias": _t5_bias,
    "sandwich": lambda b: f"sandwich(width = {b.one(8, 2, 6)})",
    "forgetting_gate": _forgetting_gate,
}

HELPERS = ("alibi_slope", "t5_bucket", "neighbors", "near_tiles")
"""Functions of numbers that the definitions above use."""
