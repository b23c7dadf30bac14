"""Generated arguments for an attention: sensible values for every tensor and scalar it declares."""

from __future__ import annotations

import torch

from attncc.interp.evaluate import evaluate
from attncc.interp.inputs import TORCH_TYPES
from attncc.ir.attention import STORAGE_TYPES, Attention, ScalarDecl, TensorDecl
from attncc.ir.expr import BOOL, FLOAT, INT, Expr, walk
from attncc.ir.packing import CU_KV, CU_Q, MAX_KV, MAX_Q

DEFAULT_INTS = 4
"""Integers without a declared range that index nothing are drawn from 0..4."""

STEEP = 8.0
KEY_SIZES = (0.0, 1.0, 4.0, 30.0)
"""A key of the last size has scores that leave those of others far behind: rows must take a new maximum (passes/schedule/trust_maxima)."""


def make_inputs(
    attention: Attention, batch: int, seq_q: int, seq_kv: int, seed: int = 0, device="cpu", steep: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict]:
    """(q, k, v, inputs): q, k, v of the attention's type, (batch, seq, heads, dim), standard normal.

    A tensor with a declared range is uniform in it, sorted along the last dimension where that is declared. An integer
    tensor without a range that is used as an index stays inside what it indexes. Other reals are standard normal, bools
    are mostly true. Values differ from one batch entry to the next. The same seed gives the same values. For packed
    sequences there are `batch` of them of up to seq_q and seq_kv rows, some empty; q, k and v are (total, heads, dim).
    `steep`: scores of hundreds beside scores of none. q is STEEP times as large, each key times one of KEY_SIZES.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = TORCH_TYPES[attention.dtype]
    sizes = {"batch": batch, "seq_q": seq_q, "seq_kv": seq_kv, "off": seq_kv - seq_q}
    inputs: dict = {}
    rows_q, rows_kv = (batch, seq_q), (batch, seq_kv)
    if attention.packed:
        inputs |= {name: _starts(batch, longest, generator) for name, longest in ((CU_Q, seq_q), (CU_KV, seq_kv))}
        inputs |= {MAX_Q: seq_q, MAX_KV: seq_kv}
        rows_q, rows_kv = ((int(inputs[name][-1]),) for name in (CU_Q, CU_KV))

    def normal(rows: tuple[int, ...], heads: int, dim: int) -> torch.Tensor:
        return torch.randn(*rows, heads, dim, generator=generator).to(dtype).to(device)

    q = normal(rows_q, attention.heads_q, attention.dim_qk)
    k = normal(rows_kv, attention.heads_kv, attention.dim_qk)
    v = normal(rows_kv, attention.heads_kv, attention.dim_v)
    if steep:
        drawn = torch.randint(0, len(KEY_SIZES), (*rows_kv, 1, 1), generator=generator)
        q, k = STEEP * q, torch.tensor(KEY_SIZES)[drawn].to(dtype).to(device) * k
    for decl in attention.tensors:
        found = inputs[decl.name] if decl.name in inputs else _tensor(attention, decl, sizes, generator)
        inputs[decl.name] = found.to(device)
    for decl in attention.scalars:
        if decl.name not in inputs:
            inputs[decl.name] = _scalar(decl, sizes, generator)
    return q, k, v, inputs


def _starts(batch: int, longest: int, generator) -> torch.Tensor:
    """cu_seqlens of `batch` lengths up to `longest`: the first is that long, every fourth is empty."""
    lengths = torch.randint(0, longest + 1, (batch,), generator=generator)
    lengths[2::4] = 0
    lengths[:1] = longest
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def extents(attention: Attention, decl: TensorDecl, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of a tensor; an open dimension (`?`) gets the longer of the two sequences, at least 64."""
    open_size = max(sizes["seq_q"], sizes["seq_kv"], 64)
    return tuple(open_size if e is None else _number(e, sizes) for e in decl.shape)


def _number(expr: Expr, sizes: dict[str, int]):
    return evaluate(expr, sizes, {}).item()


def _tensor(attention: Attention, decl: TensorDecl, sizes: dict[str, int], generator) -> torch.Tensor:
    shape = tuple(max(0, n) for n in extents(attention, decl, sizes))
    kind = STORAGE_TYPES[decl.dtype]
    if kind == BOOL:
        return torch.rand(shape, generator=generator) < 0.8
    if kind == INT:
        values = _integers(attention, decl, shape, sizes, generator)
    elif decl.low is None:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
    else:
        low, high = _number(decl.low, sizes), _number(decl.high, sizes)
        values = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        values = values.to(TORCH_TYPES[decl.dtype])
        values = torch.where(values < high, values, torch.full_like(values, low))
    if decl.is_sorted:
        values = values.sort(dim=-1).values
    return values.to(TORCH_TYPES[decl.dtype])


def _integers(attention: Attention, decl: TensorDecl, shape, sizes: dict[str, int], generator) -> torch.Tensor:
    low = 0 if decl.low is None else _number(decl.low, sizes)
    high = _number(decl.high, sizes) if decl.high is not None else _index_bound(attention, decl.name, sizes)
    return torch.randint(low, max(low + 1, high), shape, generator=generator)


def _index_bound(attention: Attention, name: str, sizes: dict[str, int]) -> int:
    """The least extent among the dimensions that the elements of `name` index directly."""
    bounds = []
    for root in _expressions(attention):
        for node in walk(root):
            if node.op != "load":
                continue
            shape = extents(attention, attention.tensor(node.value), sizes)
            bounds += [n for n, index in zip(shape, node.args) if index.op == "load" and index.value == name]
    return min(bounds, default=DEFAULT_INTS)


def _expressions(attention: Attention) -> list[Expr]:
    r = attention.reduction
    return [e for e in (attention.score, attention.mask, r.sink, r.weight_scale) if e is not None]


def _scalar(decl: ScalarDecl, sizes: dict[str, int], generator):
    if decl.type == BOOL:
        return bool(torch.rand((), generator=generator) < 0.5)
    uniform = float(torch.rand((), generator=generator))
    if decl.type == FLOAT:
        low, high = (0.5, 1.5) if decl.low is None else (_number(decl.low, sizes), _number(decl.high, sizes))
        return low + (high - low) * uniform
    low, high = (1, DEFAULT_INTS + 1) if decl.low is None else (_number(decl.low, sizes), _number(decl.high, sizes))
    return min(high - 1, low + int(uniform * (high - low)))
