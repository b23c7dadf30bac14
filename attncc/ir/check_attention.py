"""The rules of L1, checked after every pass on it."""

from __future__ import annotations

from attncc.ir.attention import INDEX_VARIABLES, RAW_SCORE, REDUCTIONS, SIZE_VARIABLES, STORAGE_TYPES, Attention
from attncc.ir.check_expr import IllegalProgram, expression_problems
from attncc.ir.expr import BOOL, FLOAT, INT

DTYPES = ("bf16", "f16")


def check_attention(attention: Attention) -> None:
    """Raises IllegalProgram when an L1 attention breaks a rule of its level."""
    problems = (*_shape_problems(attention), *_name_problems(attention), *_expression_problems(attention))
    if problems:
        raise IllegalProgram(f"L1 {attention.name}", *problems)


def _shape_problems(a: Attention):
    if min(a.heads_q, a.heads_kv, a.dim_qk, a.dim_v) < 1:
        yield "numbers of heads and head dims are positive"
    elif a.heads_q % a.heads_kv:
        yield f"{a.heads_q} query heads are no multiple of {a.heads_kv} key heads"
    if a.dtype not in DTYPES:
        yield f"dtype {a.dtype} is none of {', '.join(DTYPES)}"
    if a.reduction.kind not in REDUCTIONS:
        yield f"unknown reduction {a.reduction.kind}"
    elif a.reduction.kind != "softmax" and a.reduction.sink is not None:
        yield f"reduction {a.reduction.kind} has no sink"
    elif a.reduction.kind == "softmax" and a.reduction.weight_scale is not None:
        yield "softmax has no weight_scale"


def _name_problems(a: Attention):
    builtin = {*INDEX_VARIABLES, *SIZE_VARIABLES, RAW_SCORE}
    seen: set[str] = set()
    for declared in (*a.tensors, *a.scalars):
        if declared.name in builtin or declared.name in seen:
            yield f"`{declared.name}` is declared twice or has a meaning of its own"
        seen.add(declared.name)
    for tensor in a.tensors:
        if tensor.dtype not in STORAGE_TYPES:
            yield f"tensor `{tensor.name}` has unknown dtype {tensor.dtype}"


def _expression_problems(a: Attention):
    sizes = {name: INT for name in SIZE_VARIABLES}
    scalars = {s.name: s.type for s in a.scalars}
    indices = {name: INT for name in INDEX_VARIABLES}
    rows = {**sizes, **scalars, **{n: INT for n in INDEX_VARIABLES if n != "kv_idx"}}
    yield from expression_problems("score", a.score, FLOAT, {**sizes, **scalars, **indices, RAW_SCORE: FLOAT}, a)
    yield from expression_problems("mask", a.mask, BOOL, {**sizes, **scalars, **indices}, a)
    for what, expr in (("sink", a.reduction.sink), ("weight_scale", a.reduction.weight_scale)):
        if expr is not None:
            yield from expression_problems(what, expr, FLOAT, rows, a)
    for t in a.tensors:
        for extent in t.shape:
            if extent is not None:
                yield from expression_problems(f"shape of `{t.name}`", extent, INT, sizes, a)
