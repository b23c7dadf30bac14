"""How far a result is from the reference, and how far it may be.

An element of the output may be off by twice the largest error of the eager computation in the same type, plus 1e-5. That error is one number
for a tensor, and a small tensor may have drawn a lucky one: of 150 draws of 140 queries and 300 keys a computation as good as the eager one, with
the same median error, was beyond in 2 (docs/performance-log.md, errors of kept maxima). So an element of a softmax beyond it is judged by itself:
it is right within what rounding every weight once and the result once to that type can make,

    max |weight' / weight - 1| * sum p |v|  +  half a unit in the last place of the result,

a bound that the eager computation has too (Higham, Accuracy and Stability of Numerical Algorithms, section 2.2 and 3.1).
"""

from __future__ import annotations

from functools import cached_property

import torch

from attncc.interp.inputs import TORCH_TYPES
from attncc.interp.reference import reference
from attncc.interp.run_attention import run_attention
from attncc.ir.attention import Attention

SLACK = 1e-5
"""An error of twice the eager computation's, plus this, is allowed."""

LSE_ALLOWED = 2.0**-9
"""Of 1 + |lse|. An error d_j of the scores moves the log-sum-exp by sum p_j d_j, with p_j the weights. The least exact function of a
kernel is the hardware's tanh, relative error 2**-11 (device/arith.py), so |d_j| <= 2**-11 |s_j| for a score cap * tanh(s / cap). As the
entropy of the weights is lse - sum p_j s_j, between 0 and log n, sum p_j |s_j| is |lse| + log n at most where scores are of one sign:
2**-11 (|lse| + log n), which for the n <= 257 keys of `attncc verify` is below 6 * 2**-11 (1 + |lse|). 4 * 2**-11 is asked. Without a
tanh the error is that of a float32 sum of dim_qk products, dim_qk * 2**-24 * scale * |q| |k|, below 2**-11 too."""


class Yardstick:
    """What the reference says of one call, and what a result may differ from it by.

    out     (batch, seq_q, heads_q, dim_v) or, packed, (total_q, heads_q, dim_v); float64
    lse     as the reference has it
    eager   twice the largest error of the eager computation, plus SLACK
    """

    def __init__(self, attention: Attention, q, k, v, inputs: dict | None = None):
        self._call = attention, q, k, v, inputs
        self.out, self.lse = reference(attention, q, k, v, inputs)
        self.eager = 2 * distance(run_attention(attention, q, k, v, inputs)[0], self.out) + SLACK

    @cached_property
    def allowed(self) -> torch.Tensor:
        """What each element may be off by; the shape of `out`."""
        attention, q, k, v, inputs = self._call
        least = torch.full_like(self.out, self.eager)
        if attention.reduction.kind != "softmax":
            return least
        unit = torch.finfo(TORCH_TYPES[attention.dtype]).eps / 2
        weights = unit * reference(attention, q, k, v.abs(), inputs)[0]
        exponent = torch.frexp(self.out.abs() + weights).exponent - 1
        return torch.maximum(least, weights + torch.ldexp(torch.full_like(self.out, unit), exponent) + SLACK)

    def worst(self, got: torch.Tensor, rows: torch.Tensor | None = None) -> tuple[float, float]:
        """(error, allowed) of the element of `got` that is wrong or nearest to it, an error of NaN where `got` has one. `rows` (bool, `out` without
        its last dimension): the rows that `got`, which is of the whole shape, is looked at in."""
        chosen = slice(None) if rows is None else rows
        error = (got.double() - self.out)[chosen].abs()
        largest = float(error.max()) if error.numel() else 0.0
        if not largest > self.eager:
            return largest, self.eager
        allowed = self.allowed[chosen]
        place = (error - allowed).argmax()
        return float(error.flatten()[place]), float(allowed.flatten()[place])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest absolute difference; 0 for empty tensors."""
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def lse_distance(lse: torch.Tensor, wanted: torch.Tensor) -> tuple[float, str | None]:
    """The largest difference d where both are finite, as d / (1 + |lse|), and what is wrong when the infinities are not in the same places."""
    empty = torch.isneginf(wanted)
    if not torch.equal(torch.isneginf(lse), empty) or bool(torch.isnan(lse).any()):
        return 0.0, "the log-sum-exp is not -inf exactly for the rows without a key"
    off = (lse.double() - wanted.double())[~empty].abs() / (1.0 + wanted[~empty].abs())
    return (float(off.max()) if off.numel() else 0.0), None
