"""One case of the benchmark: the compiled kernels and every peer that can do it, on the same data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

import torch

from attncc.accuracy import distance
from attncc.bench.peers import PEERS, Call, Cannot, Packed, call_for
from attncc.bench.timing import interleaved
from attncc.diagnostics import AttnError, fail
from attncc.explain.work import Shape, kept_pairs
from attncc.interp.data import make_inputs
from attncc.ir.attention import Attention
from attncc.ir.expr import walk
from attncc.measure import flops_of
from attncc.runtime.kernel import Kernel


@dataclass(frozen=True)
class Row:
    """One implementation on one case. `difference` is the largest one from the first kernel's output; `reason` says why there is
    no time."""

    case: str
    implementation: str
    ms: float | None = None
    tflops: float | None = None
    ratio: float | None = None
    spread: float | None = None
    difference: float | None = None
    reason: str | None = None


def bench(
    case: str,
    kernels: dict[str, Kernel],
    shape: Shape,
    peers: Sequence[str] = tuple(PEERS),
    seed: int = 0,
    step: Callable[[str], None] = lambda title: None,
    lengths: Sequence[int] = (),
) -> list[Row]:
    """Times `kernels` (by the name they are shown under) and `peers` on generated data; `ratio` is to the best peer's speed. With `lengths`
    the call is packed sequences of that many queries and keys, and `shape` is not used."""
    attention = next(iter(kernels.values())).attention
    call, flops = packed_call(attention, lengths, seed) if lengths else _padded_call(attention, shape, seed)
    q, k, v = call.q, call.k, call.v
    given = {**call.inputs, **(call.packed.arguments if call.packed else {})}
    makers = {name: lambda kernel=kernel: lambda: kernel(q, k, v, **given) for name, kernel in kernels.items()}
    makers |= {name: lambda name=name: PEERS[name](call) for name in peers}
    ready, outputs, reasons = {}, {}, {}
    for name, make in makers.items():
        step(name)
        try:
            ready[name] = make()
            outputs[name] = ready[name]().clone()
            torch.cuda.synchronize()
        except (Cannot, AttnError) as error:
            reasons[name] = str(error).splitlines()[0]
            ready.pop(name, None)
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way; the others are timed
            reasons[name] = (
                f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[
                    :200
                ]
            )
            ready.pop(name, None)
    step("timing")
    times = interleaved(ready)
    best = min((times[n].ms for n in peers if n in times), default=None)
    first = next((outputs[n] for n in kernels if n in outputs), None)
    rows = []
    for name in makers:
        if name not in times:
            rows.append(Row(case, name, reason=reasons[name]))
            continue
        t = times[name]
        off = distance(outputs[name], first) if first is not None else None
        rows.append(Row(case, name, t.ms, flops / t.ms / 1e9, best / t.ms if best else None, t.spread, off))
    return rows


def _padded_call(attention: Attention, shape: Shape, seed: int) -> tuple[Call, int]:
    """The call on generated data of this shape, and its flops."""
    q, k, v, inputs = make_inputs(attention, shape.batch, shape.seq_q, shape.seq_kv, seed, "cuda")
    return call_for(attention, q, k, v, inputs), flops_of(attention, q, k, inputs)


def packed_call(attention: Attention, lengths: Sequence[int], seed: int, device: str = "cuda") -> tuple[Call, int]:
    """The call on sequences of these lengths side by side, and the flops of all. E610 where the mask depends on more than the length."""
    if any(n.op == "load" or n.value == "b" for n in walk(attention.mask)):
        raise fail("E610", "the pairs that a mask of tensors or of the batch entry keeps are not counted for packed sequences")
    q, k, v, inputs = make_inputs(attention, len(lengths), max(lengths), max(lengths), seed, device)
    q, k, v = (torch.cat([x[b, :n] for b, n in enumerate(lengths)]) for x in (q, k, v))
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=q.device)
    kept = sum(count * kept_pairs(attention, 1, n, n, inputs, q.device) for n, count in Counter(lengths).items())
    return call_for(attention, q, k, v, inputs, Packed(starts, max(lengths))), 2 * kept * (attention.dim_qk + attention.dim_v)


def as_json(rows: Sequence[Row]) -> list[dict]:
    return [{k: v for k, v in asdict(r).items() if v is not None} for r in rows]


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as text."""
    lines = [f"{'implementation':<16} {'ms':>9} {'TFLOP/s':>9} {'to best peer':>13} {'spread':>7} {'difference':>11}"]
    for r in rows:
        if r.ms is None:
            lines.append(f"{r.implementation:<16} {'-':>9}  {r.reason}")
            continue
        ratio = f"{100 * r.ratio:.0f} %" if r.ratio else "-"
        off = f"{r.difference:.1e}" if r.difference is not None else "-"
        lines.append(
            f"{r.implementation:<16} {r.ms:>9.4f} {r.tflops:>9.1f} {ratio:>13} {100 * r.spread:>5.1f} % {off:>11}"
        )
    return lines
