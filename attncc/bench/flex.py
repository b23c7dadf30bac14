"""An attention as FlexAttention's two functions, made from L1: its score and mask expressions become torch operations."""

from __future__ import annotations

from collections.abc import Callable

import torch

from attncc.interp.evaluate import OPERATIONS
from attncc.ir.attention import Attention
from attncc.ir.expr import BOOL, FLOAT, INT, Expr, walk

TYPES = {INT: torch.int32, FLOAT: torch.float32, BOOL: torch.bool}
SIMPLE = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "min": torch.minimum, "max": torch.maximum, "exp": torch.exp, "exp2": torch.exp2, "log": torch.log, "log2": torch.log2,
    "sqrt": torch.sqrt, "pow": torch.pow, "floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b,
    "to_int": lambda a: torch.floor(a).to(torch.int32), "to_float": lambda a: a.to(torch.float32),
    "shl": torch.bitwise_left_shift, "shr": torch.bitwise_right_shift,
}  # fmt: skip
"""Operations whose reference form has more than torch.compile needs to see (guards, gradients)."""


def as_function(expr: Expr, tensors: dict[str, torch.Tensor], numbers: dict[str, object], device) -> Callable:
    """`f(qk, b, h, q_idx, kv_idx, hkv)` that computes `expr` for one element."""
    order = list(walk(expr))

    def number(value, kind: str) -> torch.Tensor:
        """Made by an operation: FlexAttention's compiler cannot lower tensors that are constants of the function (PyTorch 2.11)."""
        return torch.full((), value, dtype=TYPES[kind], device=device)

    def function(qk, b, h, q_idx, kv_idx, hkv):
        env = {"qk": qk, "b": b, "h": h, "q_idx": q_idx, "kv_idx": kv_idx, "hkv": hkv}
        done = {}
        for n in order:
            if n.op == "const":
                done[n] = number(n.value, n.type)
            elif n.op == "var":
                done[n] = env[n.value].to(TYPES[n.type]) if n.value in env else number(numbers[n.value], n.type)
            elif n.op == "load":
                done[n] = tensors[n.value][tuple(done[i].long() for i in n.args)].to(TYPES[n.type])
            else:
                done[n] = (SIMPLE.get(n.op) or OPERATIONS[n.op])(*(done[x] for x in n.args))
        return done[expr]

    return function


def compiled() -> Callable:
    """flex_attention, compiled anew: one function that was compiled for many cases runs eagerly from the ninth on."""
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    return torch.compile(flex_attention, dynamic=False)


def score_and_mask(a: Attention, inputs: dict, sizes: dict[str, int], device) -> tuple[Callable, Callable]:
    """(score_mod, mask_mod) of FlexAttention, to be used with scale 1: the scale is part of the score."""
    tensors = {t.name: inputs[t.name] for t in a.tensors}
    numbers = {**sizes, **{s.name: inputs[s.name] for s in a.scalars}}
    score = as_function(a.score, tensors, numbers, device)
    mask = as_function(a.mask, tensors, numbers, device)

    def score_mod(s, b, h, q_idx, kv_idx):
        return score(s.to(torch.float32), b, h, q_idx, kv_idx, h // a.group)

    def mask_mod(b, h, q_idx, kv_idx):
        return mask(None, b, h, q_idx, kv_idx, h // a.group)

    return score_mod, mask_mod
