"""Runs a kernel on generated data: its error against the float64 reference beside that of eager PyTorch, and its time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from attncc.accuracy import LSE_ALLOWED, Yardstick, lse_distance
from attncc.explain.work import Shape, kept_pairs
from attncc.interp.data import make_inputs
from attncc.ir.attention import Attention
from attncc.runtime.kernel import Kernel

POISON = float("nan")


@dataclass(frozen=True)
class CheckResult:
    """One run: the shapes of q, k and v, seconds of a call, flops over the kept pairs, the error of the element nearest to what it is
    allowed, and that (accuracy.Yardstick).

    `lse_error` is the largest error of the log-sum-exp relative to 1 + |lse| (0 without one), `bad` says in words what is wrong beyond size (a NaN,
    a missing infinity), None for nothing.
    """

    shapes: tuple[tuple[int, ...], ...]
    seconds: float
    flops: int
    error: float
    allowed: float
    lse_error: float = 0.0
    bad: str | None = None

    @property
    def ok(self) -> bool:
        return self.bad is None and self.error <= self.allowed and self.lse_error <= LSE_ALLOWED


def measure(kernel: Kernel, shape: Shape, seed: int = 0, device: str = "cpu", strided: bool = False, steep: bool = False) -> CheckResult:
    """Runs once for the error, on poisoned output, and once (many times on a GPU) for the time.

    `strided` passes q as a view of (batch, heads, seq, dim) memory, and k and v as parts of one tensor. `steep` as for make_inputs.
    """
    q, k, v, inputs = make_inputs(kernel.attention, shape.batch, shape.seq_q, shape.seq_kv, seed, device, steep)
    if strided:
        both = torch.cat([k, v], dim=-1)
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
        k, v = both[..., : k.shape[-1]], both[..., k.shape[-1] :]
    result = compare(kernel, q, k, v, inputs)
    seconds = seconds_of(lambda: kernel(q, k, v, **inputs), q.device) if device != "cpu" else result.seconds
    return CheckResult(
        result.shapes,
        seconds,
        flops_of(kernel.attention, q, k, inputs),
        result.error,
        result.allowed,
        result.lse_error,
        result.bad,
    )


def compare(kernel: Kernel, q, k, v, inputs: dict) -> CheckResult:
    """One call whose output memory is full of NaN beforehand, against the reference."""
    a = kernel.attention
    has_lse = kernel.has_lse
    buffer = torch.full((q.shape[0] + 2, *q.shape[1:-1], a.dim_v), POISON, dtype=q.dtype, device=q.device)
    out = buffer[1:-1]
    poison = torch.full(q.shape[:-1], POISON, device=q.device)
    del poison  # so that the memory the log-sum-exp gets holds NaN
    start = time.perf_counter()
    found = kernel(q, k, v, return_lse=has_lse, out=out, **inputs)
    if q.is_cuda:
        torch.cuda.synchronize(q.device)
    seconds = time.perf_counter() - start
    got, lse = found if has_lse else (found, None)
    again = kernel(q, k, v, **inputs)
    yardstick = Yardstick(a, q, k, v, inputs)
    error, allowed = yardstick.worst(got)
    lse_error, bad = 0.0, None
    if not bool(torch.isfinite(got).all()):
        bad = "the output holds NaN or infinity, or was not written everywhere"
    elif not torch.equal(got, again):
        bad = "a second call gave another result"
    elif not bool(torch.isnan(buffer[[0, -1]]).all()):
        bad = "something was written before or after the output"
    elif lse is not None:
        lse_error, bad = lse_distance(lse, yardstick.lse)
    return CheckResult((tuple(q.shape), tuple(k.shape), tuple(v.shape)), seconds, 0, error, allowed, lse_error, bad)


def measure_written(kernel: Kernel, shape: Shape, seed: int = 0, whole: bool = True) -> tuple[CheckResult, int]:
    """One call on CPU tensors whose rows may be written in part, for kernels in the emulator: (the errors over the rows that were written,
    their number). With `whole` every row must have been."""
    a = kernel.attention
    q, k, v, inputs = make_inputs(a, shape.batch, shape.seq_q, shape.seq_kv, seed, "cpu")
    out = torch.full((*q.shape[:3], a.dim_v), POISON, dtype=q.dtype)
    start = time.perf_counter()
    found = kernel(q, k, v, return_lse=kernel.has_lse, out=out, **inputs)
    seconds = time.perf_counter() - start
    written = ~torch.isnan(out.float()).all(-1)
    yardstick = Yardstick(a, q, k, v, inputs)
    rows, bad, lse_error = int(written.sum()), None, 0.0
    if kernel.has_lse:
        rows_of_lse = written.transpose(1, 2)
        lse_error, bad = lse_distance(found[1][rows_of_lse], yardstick.lse[rows_of_lse])
    if whole and rows < written.numel() or not rows and written.numel():
        bad = f"{rows} of {written.numel()} rows were written"
    elif bool(torch.isnan(out[written].float()).any()):
        bad = "the output holds NaN"
    shapes = tuple(q.shape), tuple(k.shape), tuple(v.shape)
    return CheckResult(shapes, seconds, 0, *yardstick.worst(out, written), lse_error, bad), rows


def time_kernel(kernel: Kernel, shape: Shape, seed: int = 0) -> CheckResult:
    """The time alone, on the current GPU."""
    q, k, v, inputs = make_inputs(kernel.attention, shape.batch, shape.seq_q, shape.seq_kv, seed, "cuda")
    seconds = seconds_of(lambda: kernel(q, k, v, **inputs), q.device)
    return CheckResult(
        (tuple(q.shape), tuple(k.shape), tuple(v.shape)), seconds, flops_of(kernel.attention, q, k, inputs), 0.0, 0.0
    )


def seconds_of(call, device: torch.device, repeats: int = 20, least: float = 0.02) -> float:
    """The median time of a call on the GPU, after a warm-up of at least `least` seconds."""
    start = time.perf_counter()
    while time.perf_counter() - start < least:
        call()
        torch.cuda.synchronize(device)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return sorted(begin.elapsed_time(end) for begin, end in events)[repeats // 2] / 1e3


def flops_of(a: Attention, q: torch.Tensor, k: torch.Tensor, inputs: dict) -> int:
    """Flops of both products over the pairs that the mask keeps, as every paper on attention counts them."""
    return 2 * kept_pairs(a, q.shape[0], q.shape[1], k.shape[1], inputs, q.device) * (a.dim_qk + a.dim_v)
