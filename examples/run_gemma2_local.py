"""Gemma 2's local layer from Python: on the GPU if there is one, else on the CPU interpreter."""

from pathlib import Path

import torch

import attncc

device = "cuda" if torch.cuda.is_available() else "cpu"
length = 4096 if device == "cuda" else 256
q = torch.randn(1, length, 16, 256, dtype=torch.bfloat16, device=device)
k, v = (torch.randn(1, length, 8, 256, dtype=torch.bfloat16, device=device) for _ in range(2))

kernel = attncc.compile(Path(__file__).with_name("gemma2_local.attn"), window=length // 4)
out, lse = kernel(q, k, v, return_lse=True)
print(
    f"out {tuple(out.shape)} {out.dtype}, lse {tuple(lse.shape)} from {lse.min().item():.2f} to {lse.max().item():.2f}"
)
