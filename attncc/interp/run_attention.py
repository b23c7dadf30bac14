"""The L1 interpreter: an attention in the precision of its operands, the way eager PyTorch would compute it.

q, k, v and the weights are rounded to the storage type; products, scores and sums are float32. The error of this
computation against the reference is the yardstick for kernels.
"""

from __future__ import annotations

import torch

from attncc.interp.dense import environment, mask_of, per_row, scores_of, tensors_of
from attncc.interp.inputs import TORCH_TYPES, check_inputs
from attncc.interp.packed import one_by_one
from attncc.interp.reference import activation, softmax
from attncc.ir.attention import Attention
from attncc.ir.packing import unpack


def run_attention(
    attention: Attention, q, k, v, inputs: dict | None = None, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(out, lse): out (batch, seq_q, heads_q, dim_v) of `dtype`, lse (batch, heads_q, seq_q) float32 or None.

    dtype   the storage type, by default the attention's own; float32 and float64 compute in themselves
    """
    inputs = inputs or {}
    check_inputs(attention, q, k, v, inputs, any_float=True)
    dtype = dtype or TORCH_TYPES[attention.dtype]
    if attention.packed:
        one = unpack(attention)
        return one_by_one(lambda *a: _eager(one, dtype, *a), q, k, v, inputs)
    return _eager(attention, dtype, q, k, v, inputs)


def _eager(attention: Attention, dtype: torch.dtype, q, k, v, inputs: dict, entry: tuple[int, int] | None = None):
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    q, k, v = (x.to(dtype) for x in (q, k, v))
    env = environment(attention, q.shape[0], q.shape[1], k.shape[1], inputs, q.device, entry)
    tensors = tensors_of(attention, inputs)
    mask = mask_of(attention, env, tensors, compute)
    scores = scores_of(attention, q, k, env, tensors, mask, compute)
    if attention.reduction.kind == "softmax":
        sink = attention.reduction.sink
        weights, lse = softmax(scores, None if sink is None else per_row(sink, env, tensors, compute))
    else:
        weights, lse = activation(attention.reduction.kind, scores), None
    values = v.to(compute).transpose(1, 2).repeat_interleave(attention.group, dim=1)
    out = weights.to(dtype).to(compute) @ values
    if attention.reduction.weight_scale is not None:
        out = out * per_row(attention.reduction.weight_scale, env, tensors, compute).unsqueeze(-1)
    return out.transpose(1, 2).to(dtype), lse
