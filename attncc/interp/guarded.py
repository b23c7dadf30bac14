"""Evaluation as a kernel does it: everywhere, with no position excused from reading in range."""

from __future__ import annotations

import torch

from attncc.interp.evaluate import Evaluator, device_of
from attncc.ir.expr import Expr


def evaluate_everywhere(
    expr: Expr, env: dict[str, object], tensors: dict[str, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """The value of `expr`; AssertionError when a tensor is read out of range at any position, masked and padded ones
    included.

    Divisions by zero and wide shifts have some value on a GPU and are let pass. A tensor without elements is not
    looked at: kernels evaluate nothing of a segment when there is no key tile.
    """
    return _Everywhere(env, tensors, dtype, device_of(env, tensors)).run(expr, judged=False)[0]


class _Everywhere(Evaluator):
    def load(self, node: Expr, indices: list[torch.Tensor]) -> torch.Tensor:
        tensor = self.tensors[node.value]
        for axis, (at, extent) in enumerate(zip(indices, tensor.shape)):
            if tensor.numel() and bool(((at < 0) | (at >= extent)).any()):
                raise AssertionError(f"{node!r} is read out of range in dimension {axis}, which has extent {extent}")
        return super().load(node, indices)
