"""Small specs and a stand-in for compiled kernels."""

import torch

from attncc.lower import load
from attncc.runtime.call import Caller
from attncc.runtime.launch import Launcher

PLAIN = """attention plain {
    heads q = 4, kv = 2
    dim 64
    dtype bf16
    mask causal
}
"""
RICH = """attention rich {
    heads q = 4, kv = 2
    dim qk = 64, v = 32
    dtype bf16
    tensor doc: i32[batch, seq_kv]
    tensor bonus: f32[4, seq_q + 1]
    tensor seen: bool[?]
    scalar window: int in 0..100
    scalar tau: float in -100.0..100.0
    bias bonus[h, q_idx] * tau
    mask doc[b, kv_idx] == 0 and q_idx - kv_idx < window and seen[0]
}
"""


class Recorder:
    """Launches nothing: remembers the arguments of each launch and counts compilations."""

    def __init__(self):
        self.calls, self.compiles = [], 0

    def launcher(self, device) -> Launcher:
        self.compiles += 1
        return Launcher(lambda *arguments: self.calls.append(arguments), lambda sizes: [])


def caller(text: str = PLAIN, **parameters) -> tuple[Caller, Recorder]:
    recorder = Recorder()
    return Caller(load(text, **parameters), recorder.launcher), recorder


def operands(batch=2, seq_q=8, seq_kv=8, heads_q=4, heads_kv=2, dim_qk=64, dim_v=64, dtype=torch.bfloat16):
    return (
        torch.randn(batch, seq_q, heads_q, dim_qk).to(dtype),
        torch.randn(batch, seq_kv, heads_kv, dim_qk).to(dtype),
        torch.randn(batch, seq_kv, heads_kv, dim_v).to(dtype),
    )


def rich_arguments(batch=2, seq_q=8, seq_kv=8) -> dict:
    return {
        "doc": torch.zeros(batch, seq_kv, dtype=torch.int32),
        "bonus": torch.zeros(4, seq_q + 1),
        "seen": torch.ones(3, dtype=torch.bool),
        "window": 5,
        "tau": 0.5,
    }
