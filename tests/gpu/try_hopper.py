"""Runs hand-written Hopper schedules on a GPU: error against float64, then time.

    python tests/gpu/try_hopper.py            every case, each in a process of its own under a time limit
    python tests/gpu/try_hopper.py CASE       one case

Prints one line for each shape: errors of O and LSE, the bound on O's (twice the eager same-dtype error + 1e-5), and for the timed shape
milliseconds and TFLOP/s.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LIMIT = 150

CASES = {
    "d128": {"dim_qk": 128},
    "d128_causal": {"dim_qk": 128, "causal": True},
    "d128_no_overlap": {"dim_qk": 128, "overlap": False},
    "d128_no_pingpong": {"dim_qk": 128, "pingpong": False},
    "d128_causal_no_pingpong": {"dim_qk": 128, "pingpong": False, "causal": True},
    "d128_f16_causal": {"dim_qk": 128, "dtype": "f16", "causal": True},
    "d128_n176": {"dim_qk": 128, "tile_n": 176},
    "d64": {"dim_qk": 64, "tile_m": 192},
    "d64_causal": {"dim_qk": 64, "tile_m": 192, "causal": True},
    "d96": {"dim_qk": 96},
    "d192_128": {"dim_qk": 192, "dim_v": 128, "tile_n": 112},
    "d256": {"dim_qk": 256, "tile_n": 80},
    "d256_causal": {"dim_qk": 256, "tile_n": 80, "causal": True},
    "d72": {"dim_qk": 72},
    "d80_40": {"dim_qk": 80, "dim_v": 40, "tile_m": 64, "tile_n": 64},
    "d64_sigmoid": {"dim_qk": 64, "kind": "sigmoid"},
}
SHAPES = ((1, 128, 128), (2, 127, 257), (1, 257, 129), (1, 1, 64), (2, 640, 1024))


def build(case: dict):
    """The compiled launch function and the schedule of a case."""
    from cutlass import cute

    from attncc.emit import emit
    from attncc.runtime import fakes, load
    from tests.emit.schedules import causal, hopper_dense

    options = dict(case)
    mask = {"mask": causal} if options.pop("causal", False) else {}
    schedule = hopper_dense(**options, **mask)
    text = emit(schedule)
    path = Path(tempfile.mkdtemp()) / f"kernel_{hashlib.sha256(text.encode()).hexdigest()[:12]}.py"
    path.write_text(text)
    module = load.module(path)
    arguments = fakes.fake_arguments(module.ARGUMENTS, schedule.attention, module.launch)
    return cute.compile(module.launch, *arguments, options="--gpu-arch sm_90a --enable-tvm-ffi"), schedule


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
    is_causal, kind = case.get("causal", False), case.get("kind", "softmax")
    exact, exact_lse = attend(q, k, v, is_causal, kind, torch.float64)
    eager, _ = attend(q, k, v, is_causal, kind, q.dtype)
    error, bound = (o.double() - exact).abs().max().item(), 2 * (eager.double() - exact).abs().max().item() + 1e-5
    both = lse.double().isfinite() | exact_lse.isfinite()
    lse_error = (lse.double() - exact_lse)[both].abs().max().item() if kind == "softmax" and both.any() else 0.0
    good = error <= bound and not o.isnan().any() and lse_error < 1e-3
    print(f"  {shape}: O {error:.2e} (bound {bound:.2e}), LSE {lse_error:.2e}  {'ok' if good else 'WRONG'}", flush=True)


def time(function, schedule, case: dict, seq: int = 4096) -> None:
    import torch

    batch = 16384 // seq * (16 // schedule.attention.heads_q)
    tensors = inputs(schedule, batch, seq, seq)
    flush = torch.empty(64 << 20, device="cuda", dtype=torch.int8)
    spans = []
    for i in range(13):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function(*tensors)
        end.record()
        torch.cuda.synchronize()
        spans.append(begin.elapsed_time(end))
    ms = sorted(spans[3:])[5]
    a = schedule.attention
    flop = 2 * batch * a.heads_q * seq * seq * (a.dim_qk + a.dim_v) * (0.5 if case.get("causal") else 1.0)
    print(f"  s{seq}: {ms:.3f} ms, {flop / ms / 1e9:.0f} TFLOP/s", flush=True)


def main() -> None:
    if len(sys.argv) > 1:
        name = sys.argv[1]
        print(name, flush=True)
        function, schedule = build(CASES[name])
        for shape in SHAPES:
            check(function, schedule, CASES[name], shape)
        time(function, schedule, CASES[name])
        return
    for name in CASES:
        try:
            done = subprocess.run([sys.executable, __file__, name], timeout=LIMIT, check=False)
            if done.returncode:
                print(f"  {name}: exit status {done.returncode}", flush=True)
        except subprocess.TimeoutExpired:
            print(f"  {name}: no end within {LIMIT} s", flush=True)


if __name__ == "__main__":
    main()
