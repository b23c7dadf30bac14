"""The libraries that an attention is timed beside. Each says why it cannot do it, or gives a function that does."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch

from attncc.bench.features import Features, describe, features
from attncc.ir.attention import Attention


@dataclass(frozen=True)
class Call:
    """One call to be timed: the attention and its arguments, and what flags say the same (None for none)."""

    attention: Attention
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    inputs: dict
    features: Features | None
    packed: Packed | None = None


@dataclass(frozen=True)
class Packed:
    """Sequences side by side, queries and keys alike: int32 [0, running sum of the lengths], and the longest."""

    cu_seqlens: torch.Tensor
    longest: int

    @property
    def arguments(self) -> dict:
        """What an attncc kernel is given besides its tensors."""
        cu, longest = self.cu_seqlens, self.longest
        return {"cu_seqlens_q": cu, "cu_seqlens_kv": cu, "max_seqlen_q": longest, "max_seqlen_kv": longest}


def call_for(a: Attention, q, k, v, inputs: dict, packed: Packed | None = None) -> Call:
    return Call(a, q, k, v, inputs, features(a), packed)


class Cannot(Exception):
    """A peer is not there or cannot express the attention; the message says why."""


def fa4(c: Call) -> Callable[[], torch.Tensor]:
    """FlashAttention-4, flash_attn.cute."""
    f = _flags(c)
    if importlib.util.find_spec("flash_attn") is None or importlib.util.find_spec("flash_attn.cute") is None:
        raise Cannot("flash_attn.cute is not installed")
    if f.mask == "causal_top_left":
        raise Cannot("its causal mask is aligned at the last query")
    from flash_attn.cute.interface import flash_attn_func, flash_attn_varlen_func

    options = {"softmax_scale": f.scale, "softcap": f.softcap, "causal": f.mask == "causal"}
    if f.mask == "window":
        options["window_size"] = (f.window - 1, 0)
    if c.packed is None:
        return lambda: _first(flash_attn_func(c.q, c.k, c.v, **options))
    options |= {"cu_seqlens_q": c.packed.cu_seqlens, "cu_seqlens_k": c.packed.cu_seqlens}
    options |= {"max_seqlen_q": c.packed.longest, "max_seqlen_k": c.packed.longest}
    return lambda: _first(flash_attn_varlen_func(c.q, c.k, c.v, **options))


def fa3(c: Call) -> Callable[[], torch.Tensor]:
    """FlashAttention-3, fa3_fwd_interface (the forward-only wheel)."""
    f = _flags(c)
    if importlib.util.find_spec("fa3_fwd_interface") is None:
        raise Cannot("fa3_fwd_interface is not installed")
    if f.mask == "causal_top_left":
        raise Cannot("its causal mask is aligned at the last query")
    from fa3_fwd_interface import flash_attn_func, flash_attn_varlen_func

    options = {"softmax_scale": f.scale, "softcap": f.softcap or 0.0, "causal": f.mask in ("causal", "window")}
    if f.mask == "window":
        options["window_size"] = (f.window - 1, 0)
    if c.packed is None:
        return lambda: _first(flash_attn_func(c.q, c.k, c.v, **options))
    cu, longest = c.packed.cu_seqlens, c.packed.longest
    return lambda: _first(flash_attn_varlen_func(c.q, c.k, c.v, cu, cu, longest, longest, **options))


def _sdpa(backend: str) -> Callable[[Call], Callable]:
    def peer(c: Call) -> Callable[[], torch.Tensor]:
        f = _flags(c)
        if c.packed:
            raise Cannot("scaled_dot_product_attention takes no packed sequences")
        if f.softcap or f.mask == "window":
            raise Cannot(f"scaled_dot_product_attention has no {describe(f)}")
        aligned = c.q.shape[1] == c.k.shape[1]
        if f.mask == "causal" and not aligned:
            raise Cannot("its causal mask is aligned at the first query")
        from torch.nn.attention import SDPBackend, sdpa_kernel

        q, k, v = (x.transpose(1, 2) for x in (c.q, c.k, c.v))
        options = {"is_causal": f.mask != "full", "scale": f.scale, "enable_gqa": c.attention.group > 1}

        def run():
            with sdpa_kernel([getattr(SDPBackend, backend)]):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)

        return run

    return peer


def flex(c: Call) -> Callable[[], torch.Tensor]:
    """FlexAttention, compiled."""
    a = c.attention
    if c.packed:
        raise Cannot("it has packed sequences only as a mask of documents")
    if a.reduction.kind != "softmax" or a.reduction.sink is not None:
        raise Cannot(
            "it has no "
            + ("sink inside the softmax" if a.reduction.sink is not None else f"reduction {a.reduction.kind}")
        )
    from torch.nn.attention.flex_attention import create_block_mask

    from attncc.bench.flex import compiled, score_and_mask
    from attncc.ir.expr import TRUE, variables

    batch, seq_q, seq_kv = c.q.shape[0], c.q.shape[1], c.k.shape[1]
    sizes = {"batch": batch, "seq_q": seq_q, "seq_kv": seq_kv, "off": seq_kv - seq_q}
    score_mod, mask_mod = score_and_mask(a, c.inputs, sizes, c.q.device)
    block_mask = None
    if a.mask is not TRUE:
        used = variables(a.mask)
        b, h = batch if "b" in used else None, a.heads_q if used & {"h", "hkv"} else None
        block_mask = create_block_mask(mask_mod, b, h, seq_q, seq_kv, device=c.q.device, _compile=c.q.is_cuda)
    run = compiled()
    q, k, v = (x.transpose(1, 2) for x in (c.q, c.k, c.v))
    options = {"score_mod": score_mod, "block_mask": block_mask, "scale": 1.0, "enable_gqa": a.group > 1}
    return lambda: run(q, k, v, **options).transpose(1, 2)


PEERS: dict[str, Callable[[Call], Callable[[], torch.Tensor]]] = {
    "fa3": fa3,
    "fa4": fa4,
    "sdpa_cudnn": _sdpa("CUDNN_ATTENTION"),
    "sdpa_flash": _sdpa("FLASH_ATTENTION"),
    "flex": flex,
}


def _flags(c: Call) -> Features:
    if c.features is None:
        raise Cannot("its flags cannot say this attention")
    return c.features


def _first(result):
    return result[0] if isinstance(result, (tuple, list)) else result
