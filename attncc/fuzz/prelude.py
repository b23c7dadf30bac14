"""How the definitions of `spec/prelude/` are called in generated specs. A test asserts that none is left out."""

from __future__ import annotations

from attncc.fuzz.conditions import Maker
from attncc.fuzz.terms import Tensor


def mask_call(maker: Maker) -> str:
    """A call of one of the prelude's masks, with arguments that make sense."""
    return _draw(maker, MASKS)


def score_call(maker: Maker) -> str:
    return _draw(maker, SCORES)


def bias_call(maker: Maker) -> str:
    return _draw(maker, BIASES)


def _draw(maker: Maker, calls: dict) -> str:
    """One of the calls that can be written over the maker's scope; those that need a tensor it lacks give None."""
    name = maker.pick(calls)
    return calls[name](maker) or next(iter(calls.values()))(maker)


def _n(maker: Maker, low: int, high: int) -> str:
    """A positive count: a literal, or a compile-time parameter."""
    return str(maker.number(low, high))


def _shaped(maker: Maker, kind: str, *extents: str) -> Tensor | None:
    """A tensor of the scope with exactly those extents."""
    able = [t for t in maker.scope.tensors if t.kind == kind and t.extents == extents]
    return maker.pick(able) if able else None


MASKS = {
    "causal": lambda m: "causal",
    "causal_bottom_right": lambda m: "causal_bottom_right",
    "causal_top_left": lambda m: "causal_top_left",
    "sliding_window": lambda m: f"causal and sliding_window(keys = {_n(m, 1, 150)})",
    "two_sided_window": lambda m: f"two_sided_window(left = {_n(m, 0, 90)}, right = {_n(m, 0, 90)})",
    "dilated_window": lambda m: f"dilated_window({_n(m, 1, 40)}, dilation = {_n(m, 1, 5)})",
}

SCORES = {"softcap": lambda m: f"softcap({m.number(8, 400) / 8})"}
BIASES = {"": lambda m: m.real(2).text}
