"""What a library with flags would call an attention: causal, a window, a softcap. Decided from L1 by equality, not by name.

Each candidate is written in the language, lowered, and compared with the attention's L1; numbers are taken from its constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from attncc.ir.attention import Attention
from attncc.ir.expr import Expr, walk
from attncc.lower import load


@dataclass(frozen=True)
class Features:
    """`mask` is "full", "causal" (aligned at the last query), "causal_top_left" or "window"; `window` counts the keys of a row,
    itself included. `softcap` is 0.0 for none."""

    mask: str
    window: int
    softcap: float
    scale: float


def features(a: Attention) -> Features | None:
    """The flags that say the same as `a`; None when there are none."""
    if a.tensors or a.scalars or a.reduction.kind != "softmax" or a.reduction.sink is not None:
        return None
    mask = next(((kind, n) for kind, n, text in _masks(a) if _spec(a, text).mask is a.mask), None)
    score = next(((cap, scale) for cap, scale, text in _scores(a) if _spec(a, text).score is a.score), None)
    if mask is None or score is None:
        return None
    return Features(mask[0], mask[1], score[0], score[1])


def _spec(a: Attention, statements: str) -> Attention:
    dim = f"qk = {a.dim_qk}, v = {a.dim_v}" if a.dim_qk != a.dim_v else str(a.dim_qk)
    return load(
        f"attention candidate {{\n heads q = {a.heads_q}, kv = {a.heads_kv}\n dim {dim}\n dtype {a.dtype}\n{statements}\n}}\n"
    )


def _masks(a: Attention) -> Iterator[tuple[str, int, str]]:
    yield "full", 0, ""
    yield "causal", 0, "mask causal"
    yield "causal_top_left", 0, "mask causal_top_left"
    for n in _numbers(a.mask):
        if isinstance(n, int) and n > 0:
            for text in (
                f"mask causal and sliding_window(keys = {n})",
                f"mask causal\nmask sliding_window(keys = {n})",
            ):
                yield "window", n, text


def _scores(a: Attention) -> Iterator[tuple[float, float, str]]:
    usual = 1.0 / math.sqrt(a.dim_qk)
    for scale in (usual, *(n for n in _numbers(a.score) if isinstance(n, float) and n > 0)):
        said = "" if scale == usual else f"scale {scale!r}\n"
        yield 0.0, scale, said
        for cap in _numbers(a.score):
            if isinstance(cap, float) and cap > 0:
                yield cap, scale, f"{said}score softcap({cap!r})"


def _numbers(expr: Expr) -> list:
    return sorted({n.value for n in walk(expr) if n.op == "const" and not isinstance(n.value, bool)}, key=float)


def describe(f: Features) -> str:
    """`causal, window 1024, softcap 50`."""
    parts = [f.mask if f.mask != "window" else f"causal, window {f.window}"]
    return ", ".join([*parts, *([f"softcap {f.softcap:g}"] if f.softcap else [])])
