"""Runs hand-written mma.sync schedules on a GPU: error against float64, then time beside PyTorch's flash backend.

    python tests/gpu/try_ampere.py            every case, each in a process of its own under a time limit
    python tests/gpu/try_ampere.py CASE ...   some cases

A case prints one line for each shape (errors of O and LSE, and the bound on O's: twice the eager same-dtype error +
1e-5), and for the
timed shape the medians of interleaved runs, TFLOP/s, and the ratio to scaled_dot_product_attention with the flash
backend.
"""

from __future__ import annotations

import hashlib
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LIMIT = 150
ARCHS = {(8, 0): "sm_80", (8, 6): "sm_86", (8, 7): "sm_87", (8, 9): "sm_89", (9, 0): "sm_90", (12, 0): "sm_120"}

CASES = {
    "d128": {},
    "d128_causal": {"causal": True},
    "d128_two": {"blocks_per_sm": 2},
    "d128_causal_two": {"blocks_per_sm": 2, "causal": True},
    "d128_stages2": {"stages": 2},
    "d128_causal_stages2": {"stages": 2, "causal": True},
    "d128_n32_stages2": {"tile_n": 32, "stages": 2},
    "d128_peel": {"peel": True},
    "d128_n128_8warps": {"tile_n": 128, "warps": 8},
    "d128_f16_causal": {"dtype": "f16", "causal": True},
    "d64": {"dim_qk": 64, "tile_n": 112},
    "d64_n64": {"dim_qk": 64, "tile_n": 64},
    "d64_causal": {"dim_qk": 64, "causal": True},
    "d96": {"dim_qk": 96},
    "d192_128": {"dim_qk": 192, "dim_v": 128, "tile_n": 64},
    "d256": {"dim_qk": 256, "tile_n": 64, "warps": 8},
    "d256_causal": {"dim_qk": 256, "tile_n": 64, "warps": 8, "causal": True},
    "d72": {"dim_qk": 72},
    "d80_40": {"dim_qk": 80, "dim_v": 40, "tile_m": 64},
    "d128_registers": {"staged": False},
    "d64_sigmoid": {"dim_qk": 64, "kind": "sigmoid"},
}
SHAPES = ((1, 128, 128), (2, 127, 257), (1, 257, 129), (1, 1, 64), (2, 640, 1024))


def build(case: dict):
    """The compiled launch function and the schedule of a case."""
    import torch
    from cutlass import cute

    from attncc.emit import emit
    from attncc.runtime import fakes, load
    from tests.emit.ampere_schedules import CAUSAL, ampere_dense

    options = dict(case)
    mask = {"mask": CAUSAL} if options.pop("causal", False) else {}
    schedule = ampere_dense(**options, **mask)
    text = emit(schedule)
    path = Path(tempfile.mkdtemp()) / f"kernel_{hashlib.sha256(text.encode()).hexdigest()[:12]}.py"
    path.write_text(text)
    module = load.module(path)
    arguments = fakes.fake_arguments(module.ARGUMENTS, schedule.attention, module.launch)
    arch = ARCHS[torch.cuda.get_device_capability()]
    return cute.compile(module.launch, *arguments, options=f"--gpu-arch {arch} --enable-tvm-ffi"), schedule


def attend(q, k, v, causal: bool, kind: str, dtype):
    """Dense attention in `dtype` on (batch, seq, heads, dim): O and LSE."""
    import torch

    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    keep = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device)
    if causal:
        keep = keep.tril(s.shape[-1] - s.shape[-2])
    s = s.masked_fill(~keep, -torch.inf)
    lse = torch.logsumexp(s.double(), -1)
    p = torch.sigmoid(s) if kind == "sigmoid" else torch.softmax(s, -1).nan_to_num(0.0)
    return (p @ v).transpose(1, 2), lse


def inputs(schedule, batch: int, seq_q: int, seq_kv: int):
    """Random q, k, v and poisoned o, lse."""
    import torch

    a = schedule.attention
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[a.dtype]

    def make(s, h, d):
        return torch.randn(batch, s, h, d, device="cuda", dtype=torch.float32).to(dtype)

    q, k, v = make(seq_q, a.heads_q, a.dim_qk), make(seq_kv, a.heads_kv, a.dim_qk), make(seq_kv, a.heads_kv, a.dim_v)
    o = torch.full((batch, seq_q, a.heads_q, a.dim_v), float("nan"), device="cuda", dtype=dtype)
    lse = torch.full((batch, a.heads_q, seq_q), float("nan"), device="cuda", dtype=torch.float32)
    return q, k, v, o, lse


def check(function, schedule, case: dict, shape: tuple[int, int, int]) -> None:
    import torch

    q, k, v, o, lse = inputs(schedule, *shape)
    function(q, k, v, o, lse)
    torch.cuda.synchronize()
    causal, kind = case.get("causal", False), case.get("kind", "softmax")
    exact, exact_lse = attend(q, k, v, causal, kind, torch.float64)
    eager, _ = attend(q, k, v, causal, kind, q.dtype)
    error, bound = (o.double() - exact).abs().max().item(), 2 * (eager.double() - exact).abs().max().item() + 1e-5
    both = lse.double().isfinite() | exact_lse.isfinite()
    lse_error = (lse.double() - exact_lse)[both].abs().max().item() if kind == "softmax" and both.any() else 0.0
    good = error <= bound and not o.isnan().any() and lse_error < 1e-3
    print(f"  {shape}: O {error:.2e} (bound {bound:.2e}), LSE {lse_error:.2e}  {'ok' if good else 'WRONG'}", flush=True)


def milliseconds(functions: list) -> list[float]:
    """Medians of interleaved runs, with the L2 cache flushed before each."""
    import torch

    flush = torch.empty(64 << 20, device="cuda", dtype=torch.int8)
    spans: list[list[float]] = [[] for _ in functions]
    for _ in range(15):
        for function, span in zip(functions, spans):
            flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            torch.cuda.synchronize()
            span.append(begin.elapsed_time(end))
    return [statistics.median(s[4:]) for s in spans]


def time(function, schedule, case: dict, seq: int = 4096) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    a = schedule.attention
    batch = 16384 // seq * (16 // a.heads_q)
    tensors = inputs(schedule, batch, seq, seq)
    q, k, v = (x.transpose(1, 2) for x in tensors[:3])
    causal = case.get("causal", False)

    def peer():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    has_peer = a.dim_qk == a.dim_v and case.get("kind", "softmax") == "softmax"
    spans = milliseconds([lambda: function(*tensors), *([peer] if has_peer else [])])
    flop = 2 * batch * a.heads_q * seq * seq * (a.dim_qk + a.dim_v) * (0.5 if causal else 1.0)
    rates = [flop / ms / 1e9 for ms in spans]
    beside = f", torch flash {rates[1]:.0f}, ratio {rates[0] / rates[1]:.3f}" if has_peer else ""
    print(f"  s{seq}: {spans[0]:.3f} ms, {rates[0]:.0f} TFLOP/s{beside}", flush=True)


def run_case(name: str) -> None:
    function, schedule = build(CASES[name])
    for shape in SHAPES:
        check(function, schedule, CASES[name], shape)
    time(function, schedule, CASES[name])


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--inside":
        run_case(sys.argv[2])
        return
    for name in sys.argv[1:] or CASES:
        print(name, flush=True)
        try:
            done = subprocess.run([sys.executable, __file__, "--inside", name], timeout=LIMIT, check=False)
            if done.returncode:
                print(f"  exit status {done.returncode}", flush=True)
        except subprocess.TimeoutExpired:
            print(f"  no end within {LIMIT} s", flush=True)


if __name__ == "__main__":
    main()
