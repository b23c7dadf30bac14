"""Scores and masks as dense (batch, heads, seq_q, seq_kv) arrays: what the reference and the L1 interpreter share."""

from __future__ import annotations

import torch

from attncc.interp.evaluate import evaluate
from attncc.ir.attention import RAW_SCORE, Attention
from attncc.ir.expr import Expr


def environment(
    attention: Attention,
    batch: int,
    seq_q: int,
    seq_kv: int,
    inputs: dict,
    device="cpu",
    entry: tuple[int, int] | None = None,
) -> dict[str, object]:
    """Every variable of an expression: indices shaped to broadcast over (batch, heads, seq_q, seq_kv), sizes, scalars. With `entry` =
    (b, n) a batch of one stands for batch entry b of n."""
    heads = torch.arange(attention.heads_q, dtype=torch.int32, device=device)
    first, batch = (entry[0], entry[1]) if entry else (0, batch)
    last = first + 1 if entry else batch
    return {
        "b": torch.arange(first, last, dtype=torch.int32, device=device).view(-1, 1, 1, 1),
        "h": heads.view(1, -1, 1, 1),
        "hkv": (heads // attention.group).view(1, -1, 1, 1),
        "q_idx": torch.arange(seq_q, dtype=torch.int32, device=device).view(1, 1, -1, 1),
        "kv_idx": torch.arange(seq_kv, dtype=torch.int32, device=device).view(1, 1, 1, -1),
        "batch": batch,
        "seq_q": seq_q,
        "seq_kv": seq_kv,
        "off": seq_kv - seq_q,
        **{s.name: inputs[s.name] for s in attention.scalars},
    }


def tensors_of(attention: Attention, inputs: dict) -> dict[str, torch.Tensor]:
    return {t.name: inputs[t.name] for t in attention.tensors}


def dot_products(attention: Attention, q: torch.Tensor, k: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """<q, k> for every pair, (batch, heads_q, seq_q, seq_kv)."""
    queries = q.to(dtype).transpose(1, 2)
    keys = k.to(dtype).transpose(1, 2).repeat_interleave(attention.group, dim=1)
    return queries @ keys.transpose(2, 3)


def mask_of(attention: Attention, env: dict, tensors: dict, dtype=torch.float64) -> torch.Tensor:
    """The mask, expanded to (batch, heads_q, seq_q, seq_kv)."""
    shape = torch.broadcast_shapes(*(env[n].shape for n in ("b", "h", "q_idx", "kv_idx")))
    device = env["b"].device
    cells = torch.ones((), dtype=torch.bool, device=device).expand(shape)  # none, with no key: then nothing is read
    return evaluate(attention.mask, env, tensors, valid=cells, dtype=dtype, device=device).expand(shape)


def scores_of(attention: Attention, q, k, env: dict, tensors: dict, mask: torch.Tensor, dtype) -> torch.Tensor:
    """The scores, -inf where the mask removes the key."""
    env = {**env, RAW_SCORE: dot_products(attention, q, k, dtype)}
    score = evaluate(attention.score, env, tensors, valid=mask, dtype=dtype, device=q.device).expand(mask.shape)
    return score.masked_fill(~mask, -torch.inf)


def per_row(expr: Expr, env: dict, tensors: dict, dtype) -> torch.Tensor:
    """A value of b, h and q_idx, shaped to broadcast over (batch, heads_q, seq_q)."""
    value = evaluate(expr, env, tensors, dtype=dtype, device=env["b"].device)
    return value.squeeze(-1) if value.dim() == 4 else value
