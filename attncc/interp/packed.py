"""Packed sequences on the CPU: each by itself, in a loop. That loop is what a packed call means (attncc.ir.packing)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from attncc.diagnostics import Diagnostic
from attncc.ir.packing import ARGUMENTS, CU_KV, CU_Q, MAX_KV, MAX_Q

NAN = float("nan")


@dataclass(frozen=True)
class Sequence:
    """Sequence `number` of `batch`: its rows in q and in k."""

    number: int
    batch: int
    q: slice
    kv: slice


def sequences(inputs: dict) -> list[Sequence]:
    """The sequences that cu_seqlens_q and cu_seqlens_kv describe."""
    q, kv = inputs[CU_Q].tolist(), inputs[CU_KV].tolist()
    return [Sequence(b, len(q) - 1, slice(q[b], q[b + 1]), slice(kv[b], kv[b + 1])) for b in range(len(q) - 1)]


def one_by_one(run: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: dict) -> tuple:
    """(out, lse) for packed q, k, v, where `run(q, k, v, inputs, entry)` gives (out, lse) of a batch of one, which is batch entry
    `entry` = (number, batch); out (total_q, heads, dim_v), lse (heads, total_q) or None. Rows outside all sequences are NaN."""
    own = {name: x for name, x in inputs.items() if name not in ARGUMENTS}
    out, log = None, None
    for s in sequences(inputs):
        o, lse = run(q[None, s.q], k[None, s.kv], v[None, s.kv], own, (s.number, s.batch))
        if out is None:
            out = torch.full((*q.shape[:2], v.shape[2]), NAN, dtype=o.dtype, device=o.device)
            log = None if lse is None else torch.full((q.shape[1], q.shape[0]), NAN, dtype=lse.dtype, device=o.device)
        out[s.q] = o[0]
        if lse is not None:
            log[:, s.q] = lse[0]
    return (q.new_zeros((*q.shape[:2], v.shape[2])), None) if out is None else (out, log)


def spread(x: torch.Tensor, rows: list[slice], longest: int) -> torch.Tensor:
    """(total, heads, dim) -> (batch, longest, heads, dim), zeros after the end of a sequence."""
    out = x.new_zeros((len(rows), longest, *x.shape[1:]))
    for b, part in enumerate(rows):
        out[b, : part.stop - part.start] = x[part]
    return out


def check_lengths(q: torch.Tensor, k: torch.Tensor, inputs: dict):
    """E340 for each of cu_seqlens_q and cu_seqlens_kv that does not divide the rows into sequences of at most the longest length."""
    for cu, longest, x, what in ((CU_Q, MAX_Q, q, "q"), (CU_KV, MAX_KV, k, "k and v")):
        starts = inputs[cu].tolist()
        lengths = [b - a for a, b in pairwise(starts)]
        message, hint = None, "cu_seqlens is 0 and then the running sum of the lengths"
        if starts[0] != 0:
            message = f"`{cu}` starts with {starts[0]}, expected 0"
        elif min(lengths, default=0) < 0:
            b = next(i for i, n in enumerate(lengths) if n < 0)
            message = f"`{cu}` falls from {starts[b]} to {starts[b + 1]} at sequence {b}"
        elif starts[-1] != x.shape[0]:
            message = f"`{cu}` ends with {starts[-1]}, but {what} has {x.shape[0]} rows"
        elif max(lengths, default=0) > inputs[longest]:
            message = f"`{longest}` is {inputs[longest]}, but `{cu}` has a sequence of {max(lengths)}"
            hint = f"pass the longest length, or more, as {longest}"
        if message:
            yield Diagnostic("E340", message, argument=cu, hint=hint)
