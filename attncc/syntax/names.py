"""Which names a text may introduce. A name may end up in generated code and in file names, so it is checked once, here."""

from __future__ import annotations

import keyword

MAX_NAME = 64
INDEX_NAMES = ("b", "h", "hkv", "q_idx", "kv_idx")
SIZE_NAMES = ("seq_q", "seq_kv", "off", "batch")
CONSTANT_NAMES = ("heads_q", "heads_kv", "group", "dim_qk", "dim_v")
SCORE_NAMES = ("s", "qk")
FUNCTION_NAMES = (
    "min", "max", "abs", "exp", "exp2", "log", "log2", "sqrt", "tanh", "sigmoid", "erf", "sin", "cos",
    "floor", "float", "int", "pow", "sum", "any", "all",
)  # fmt: skip
TYPE_NAMES = ("int", "float", "bool", "tensor", "mask", "bias")
RESERVED = frozenset(
    (*INDEX_NAMES, *SIZE_NAMES, *CONSTANT_NAMES, *SCORE_NAMES, *FUNCTION_NAMES, *TYPE_NAMES, "inf", "true", "false")
)
"""Names with a meaning of their own: they cannot be declared again."""


def check_name(name: str) -> tuple[str, str] | None:
    """What is wrong with declaring `name`, and a way out; None when it is fine."""
    if keyword.iskeyword(name):
        return f"`{name}` is a Python keyword and cannot be a name here", f"rename it, for example `{name}_`"
    if name.startswith("__"):
        return f"`{name}` begins with two underscores, which is reserved", "leave the underscores out"
    if name in RESERVED:
        return f"`{name}` has a meaning of its own and cannot be declared", f"rename it, for example `my_{name}`"
    if len(name) > MAX_NAME:
        return f"the name is {len(name)} characters long; the limit is {MAX_NAME}", "choose a shorter name"
    return None
