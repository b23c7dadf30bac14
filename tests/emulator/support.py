"""Compiles the small kernels of these tests and prepares their tensors."""

from __future__ import annotations

import functools
import math

import torch

from attncc.emulator import emulate, keep_ptx

TARGETS = {"fa2": "sm_80", "fa3": "sm_90a", "fa4": "sm_100a"}


@functools.cache
def compiled(name: str, **options):
    """A compiled small kernel on (S, 64) bf16 tensors."""
    import importlib

    import cutlass
    import cutlass.cute as cute
    from cutlass.cute.runtime import make_fake_compact_tensor

    kernel = getattr(importlib.import_module(f"tests.emulator.kernels.{name}"), name.capitalize())
    n = cute.sym_int(divisibility=64)
    fakes = [
        make_fake_compact_tensor(cutlass.BFloat16, (n, 64), stride_order=(1, 0), assumed_align=16) for _ in range(4)
    ]
    with keep_ptx():
        return cute.compile(
            kernel(cutlass.BFloat16, **options),
            *fakes,
            cutlass.Float32(1.0),
            options=f"--gpu-arch {TARGETS[name]} --enable-tvm-ffi",
        )


def inputs(length: int):
    """q, k, v and a poisoned o."""
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(length, 64, generator=generator).bfloat16() for _ in range(3))
    return q, k, v, torch.full((length, 64), math.nan).bfloat16()


SCALE = math.log2(math.e) / 8


def run(name: str, length: int, seeds=1, change=None, **options):
    """(result, max abs error) of a small kernel; `change` edits the PTX before it is run."""
    c = compiled(name, **options)
    q, k, v, o = inputs(length)
    result = emulate(c, q, k, v, o, SCALE, seeds=seeds, ptx=change(c.__ptx__) if change else None)
    s = q.float() @ k.float().T
    p = torch.exp2(s * SCALE) if name == "fa4" else torch.softmax(s / 8, 1)
    expected = p @ v.float() / p.sum(1, keepdim=True)
    return result, (o.float() - expected).abs().max().item()
