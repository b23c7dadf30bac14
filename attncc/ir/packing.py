"""Packed sequences: a layout of the call that every attention has, no variant of it.

Sequence b has rows cu_seqlens_q[b] to cu_seqlens_q[b + 1] of q (total_q, heads, dim) and of the output, and rows cu_seqlens_kv[b] to
cu_seqlens_kv[b + 1] of k and v. Everything that the spec says is said of one sequence: q_idx and kv_idx count within it, b is its number,
seq_q, seq_kv and off are its own. In the shapes of declared tensors, which all sequences share, seq_q and seq_kv are the longest
lengths, max_seqlen_q and max_seqlen_kv. lse is (heads, total_q).

    before  attention causal heads_q=4, ...
    after   attention causal heads_q=4, ..., packed=true
            tensor cu_seqlens_q: i32[batch + 1], cu_seqlens_kv: i32[batch + 1]; scalar max_seqlen_q: int, max_seqlen_kv: int

At the levels below, a schedule's prelude binds GRID_TILES, then, where `b` is bound, FIRST_Q and FIRST_KV, the sequence's first rows, and seq_q,
seq_kv, off, q_tiles and kv_tiles to the sequence's own values. Before that, and in the grid, these names mean the longest sequence; what
comes after the place of a tile is bound does not look back at them, so that the place may be bound again and again in a loop.
"""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.attention import Attention, ScalarDecl, TensorDecl
from attncc.ir.expr import INT, ONE, Expr, add, apply, const, floordiv, load, sub, var, variables

CU_Q, CU_KV, MAX_Q, MAX_KV = "cu_seqlens_q", "cu_seqlens_kv", "max_seqlen_q", "max_seqlen_kv"
ARGUMENTS = (CU_Q, CU_KV, MAX_Q, MAX_KV)
FIRST_Q, FIRST_KV = "__first_q", "__first_kv"
"""Names of the sequence's first row in q and in k."""
GRID_TILES = "__grid_tiles"
"""The name of the query tiles of the longest sequence, for which the grid has room."""
LENGTHS = frozenset(("seq_q", "seq_kv", "off"))


def pack(attention: Attention) -> Attention:
    """`attention` for packed sequences. Promises that speak of lengths are left out: sequences have different ones."""
    starts = tuple(TensorDecl(n, "i32", (add(var("batch"), ONE),)) for n in (CU_Q, CU_KV))
    longest = tuple(ScalarDecl(n, INT, const(0), None) for n in (MAX_Q, MAX_KV))
    return replace(
        attention,
        tensors=(*(_without_lengths(t) for t in attention.tensors), *starts),
        scalars=(*(_without_lengths(s) for s in attention.scalars), *longest),
        packed=True,
    )


def unpack(attention: Attention) -> Attention:
    """The attention of one sequence."""
    return replace(
        attention,
        tensors=tuple(t for t in attention.tensors if t.name not in ARGUMENTS),
        scalars=tuple(s for s in attention.scalars if s.name not in ARGUMENTS),
        packed=False,
    )


def taken(attention: Attention) -> tuple[str, ...]:
    """Names of the packed call that the attention gives another meaning."""
    declared = {d.name for d in (*attention.tensors, *attention.scalars)}
    return tuple(n for n in ARGUMENTS if n in declared)


def _without_lengths(decl):
    """`decl` without a range that depends on lengths."""
    bounds = [e for e in (decl.low, decl.high) if e is not None]
    return replace(decl, low=None, high=None) if any(variables(e) & LENGTHS for e in bounds) else decl


def fixed_extents(attention: Attention, name: str) -> tuple[Expr | None, ...]:
    """The extents of a declared tensor as far as indices may rely on them. With packed sequences the extent of the memory is at least the
    declared one at the sequence's own lengths only where that grows with them, which is plain of a length alone."""
    shape = attention.tensor(name).shape
    if not attention.packed:
        return shape
    plain = ("batch", "seq_q", "seq_kv")
    return tuple(e if e is None or not variables(e) & LENGTHS or e.value in plain else None for e in shape)


def lengths(tile_m: int, tile_n: int) -> tuple[tuple[str, Expr], ...]:
    """(name, value) of what a sequence's lengths bind, in order; `b` is its number."""

    def start(name: str, index: Expr) -> Expr:
        return load(name, (index,), INT)

    def tiles(size: str, tile: int) -> Expr:
        return floordiv(add(var(size), const(tile - 1)), const(tile))

    b, after = var("b"), add(var("b"), ONE)
    return (
        (FIRST_Q, start(CU_Q, b)),
        (FIRST_KV, start(CU_KV, b)),
        ("seq_q", sub(start(CU_Q, after), var(FIRST_Q))),
        ("seq_kv", sub(start(CU_KV, after), var(FIRST_KV))),
        ("off", sub(var("seq_kv"), var("seq_q"))),
        ("q_tiles", tiles("seq_q", tile_m)),
        ("kv_tiles", tiles("seq_kv", tile_n)),
    )


def has_tile() -> Expr:
    """Whether the query tile at hand is one of its sequence: short sequences have fewer than the grid."""
    return apply("lt", var("q_tile"), var("q_tiles"))
