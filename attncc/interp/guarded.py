"""Evaluation as a kernel does it: everywhere, with no position excused from reading in range."""

from __future__ import annotations

import torch

from attncc.interp.evaluate import evaluate
from attncc.ir.expr import Expr, walk

UNUSED = torch.tensor(False)
"""For `evaluate(valid=)`: no value is used, so nothing is reported."""


def evaluate_everywhere(
    expr: Expr, env: dict[str, object], tensors: dict[str, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """The value of `expr`; AssertionError when a tensor is read out of range at any position, masked and padded ones
    included.

    Divisions by zero and wide shifts have some value on a GPU and are let pass. A tensor without elements is not
    looked at: kernels evaluate nothing of a segment when there is no key tile.
    """
    for node in walk(expr):
        if node.op == "load" and tensors[node.value].numel():
            for axis, (index, extent) in enumerate(zip(node.args, tensors[node.value].shape)):
                at = evaluate(index, env, tensors, valid=UNUSED, dtype=dtype)
                if bool(((at < 0) | (at >= extent)).any()):
                    raise AssertionError(
                        f"{node!r} is read out of range in dimension {axis}, which has extent {extent}"
                    )
    return evaluate(expr, env, tensors, valid=UNUSED, dtype=dtype)
