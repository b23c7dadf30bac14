"""The reference: dense attention in float64, with gradients. Written to be read; it defines what every kernel computes.

Memory and time are O(seq_q * seq_kv): it is for checking, not for use.
"""

from __future__ import annotations

import math

import torch

from attncc.interp.dense import environment, mask_of, per_row, scores_of, tensors_of
from attncc.interp.inputs import check_inputs
from attncc.interp.packed import one_by_one
from attncc.ir.attention import Attention
from attncc.ir.packing import unpack


def reference(attention: Attention, q, k, v, inputs: dict | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(out, lse): out (batch, seq_q, heads_q, dim_v) and, for softmax, lse (batch, heads_q, seq_q), both float64.

    q (batch, seq_q, heads_q, dim_qk), k (batch, seq_kv, heads_kv, dim_qk), v (batch, seq_kv, heads_kv, dim_v) and the
    tensors in `inputs` may be of any real type. A row that keeps no key is zero, its lse -inf (log of the sink's weight
    if there is a sink), its gradients zero. Differentiable in q, k, v and every real tensor. Of packed sequences (total_q,
    heads, dim) each is computed by itself; out (total_q, heads_q, dim_v), lse (heads_q, total_q). Raises AttnError.
    """
    inputs = inputs or {}
    check_inputs(attention, q, k, v, inputs, any_float=True)
    if attention.packed:
        one = unpack(attention)
        return one_by_one(lambda *a: _dense(one, *a), q, k, v, inputs)
    return _dense(attention, q, k, v, inputs)


def _dense(attention: Attention, q, k, v, inputs: dict, entry: tuple[int, int] | None = None):
    dtype = torch.float64
    env = environment(attention, q.shape[0], q.shape[1], k.shape[1], inputs, q.device, entry)
    tensors = tensors_of(attention, inputs)
    mask = mask_of(attention, env, tensors, dtype)
    scores = scores_of(attention, q, k, env, tensors, mask, dtype)
    if attention.reduction.kind == "softmax":
        sink = attention.reduction.sink
        weights, lse = softmax(scores, None if sink is None else per_row(sink, env, tensors, dtype))
    else:
        weights, lse = activation(attention.reduction.kind, scores), None
    values = v.to(dtype).transpose(1, 2).repeat_interleave(attention.group, dim=1)
    out = weights @ values
    if attention.reduction.weight_scale is not None:
        out = out * per_row(attention.reduction.weight_scale, env, tensors, dtype).unsqueeze(-1)
    return out.transpose(1, 2), lse


def softmax(scores: torch.Tensor, sink: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, lse) over the last dimension; `sink` is one more logit of each row, whose weight is dropped."""
    logits = scores
    if sink is not None:
        logits = torch.cat([scores, sink.unsqueeze(-1).expand(*scores.shape[:-1], 1)], dim=-1)
    if logits.shape[-1] == 0:
        return scores, scores.new_full(scores.shape[:-1], -torch.inf)
    empty = torch.isneginf(logits).all(dim=-1, keepdim=True)
    safe = logits.masked_fill(empty, 0.0)
    lse = torch.logsumexp(safe, dim=-1)
    weights = torch.exp(safe - lse.unsqueeze(-1)).masked_fill(empty, 0.0)
    return weights[..., : scores.shape[-1]], lse.masked_fill(empty.squeeze(-1), -torch.inf)


def activation(kind: str, scores: torch.Tensor) -> torch.Tensor:
    """Unnormalised weights; a key whose score is -inf weighs nothing."""
    gone = torch.isneginf(scores)
    s = scores.masked_fill(gone, 0.0)
    weights = {
        "sigmoid": torch.sigmoid,
        "relu": torch.relu,
        "silu": lambda x: x * torch.sigmoid(x),
        "gelu": lambda x: 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0))),
        "none": lambda x: x,
    }[kind](s)
    return weights.masked_fill(gone, 0.0)


def reference_gradients(attention: Attention, q, k, v, inputs: dict | None, grad_out, grad_lse=None) -> dict:
    """Gradients of <grad_out, out> + <grad_lse, lse> by name: q, k, v and every real tensor, all float64."""
    inputs = dict(inputs or {})
    leaves = {n: x.detach().double().requires_grad_() for n, x in (("q", q), ("k", k), ("v", v))}
    for decl in attention.tensors:
        if inputs[decl.name].dtype.is_floating_point:
            leaves[decl.name] = inputs[decl.name] = inputs[decl.name].detach().double().requires_grad_()
    out, lse = reference(attention, leaves["q"], leaves["k"], leaves["v"], inputs)
    total = (out * grad_out.double()).sum()
    if grad_lse is not None and lse is not None:
        finite = torch.isfinite(lse)
        total = total + torch.where(finite, lse, 0.0)[finite].mul(grad_lse.double()[finite]).sum()
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), grads)}


def dense_mask(attention: Attention, batch: int, seq_q: int, seq_kv: int, inputs: dict | None = None) -> torch.Tensor:
    """Which keys the mask keeps: bool (batch, heads_q, seq_q, seq_kv)."""
    inputs = inputs or {}
    device = next((x.device for x in inputs.values() if isinstance(x, torch.Tensor)), "cpu")
    env = environment(attention, batch, seq_q, seq_kv, inputs, device)
    return mask_of(attention, env, tensors_of(attention, inputs))
