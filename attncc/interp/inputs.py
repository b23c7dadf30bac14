"""The arguments of a call, checked against what the attention declares. Every message names the argument."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from attncc.diagnostics import AttnError, Diagnostic, did_you_mean
from attncc.interp.evaluate import evaluate
from attncc.interp.packed import check_lengths
from attncc.ir.attention import Attention, TensorDecl
from attncc.ir.expr import BOOL, FLOAT, INT, Expr
from attncc.ir.packing import ARGUMENTS, CU_KV, CU_Q, MAX_KV, MAX_Q
from attncc.ir.tile import TILE_COUNT, TILE_LIST

TORCH_TYPES: dict[str, torch.dtype] = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "i8": torch.int8, "u8": torch.uint8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64, "bool": torch.bool,
}  # fmt: skip
"""Storage formats of tensor arguments and of q, k, v."""


def sizes(attention: Attention, q: torch.Tensor, k: torch.Tensor, inputs: Mapping) -> dict[str, int]:
    """The run-time sizes that the shape of an argument may name; of packed sequences the longest lengths."""
    batch, seq_q, seq_kv = q.shape[0], q.shape[1], k.shape[1]
    if attention.packed:
        batch, seq_q, seq_kv = inputs[CU_Q].numel() - 1, inputs[MAX_Q], inputs[MAX_KV]
    return {"batch": batch, "seq_q": seq_q, "seq_kv": seq_kv, "off": seq_kv - seq_q}


def check_inputs(attention: Attention, q, k, v, inputs: dict, *, any_float: bool = False, ranges: bool = True) -> None:
    """Raise AttnError with every argument that does not fit.

    any_float   accept any real type where a real type is declared (the interpreters compute in their own)
    ranges      also check the promises `in low..high` and `sorted` (a pass over the data)
    """
    problems = [*_check_qkv(attention, q, k, v)]
    names = {d.name for d in (*attention.tensors, *attention.scalars)}
    for name in inputs:
        if name not in names:
            hint = did_you_mean(name, names) or (f"it takes {', '.join(sorted(names))}" if names else "it takes none")
            problems.append(_problem("E302", f"`{attention.name}` has no argument `{name}`", name, hint))
    if problems:
        raise AttnError(*problems)
    if attention.packed:
        problems += _check_lengths(inputs)
        if problems:
            raise AttnError(*problems)
    env = sizes(attention, q, k, inputs)
    for decl in attention.tensors:
        problems += _check_tensor(decl, inputs.get(decl.name), env, any_float, ranges)
    for decl in attention.scalars:
        problems += _check_scalar(decl, inputs.get(decl.name), env)
    if attention.packed and not problems:
        problems += check_lengths(q, k, inputs)
    if problems:
        raise AttnError(*problems)


def _check_lengths(inputs: dict):
    """E301 and E303 for the arguments from which the sizes are taken."""
    for name in ARGUMENTS:
        if name not in inputs:
            yield _problem("E301", f"the call lacks `{name}`", name)
        elif name in (CU_Q, CU_KV) and not isinstance(inputs[name], torch.Tensor):
            yield _problem("E303", f"`{name}` must be a torch tensor, found {type(inputs[name]).__name__}", name)


def check_promises(attention: Attention, inputs: Mapping[str, torch.Tensor], q, k) -> None:
    """E320 for every tensor of the right type and shape that breaks its `in low..high` or `sorted`; a pass over the data. E340 for lengths
    of packed sequences that contradict each other."""
    env = sizes(attention, q, k, inputs)
    declared = [d for d in attention.tensors if d.name not in (TILE_COUNT, TILE_LIST)]
    problems = [p for d in declared for p in _check_promises(d, inputs[d.name], env)]
    if attention.packed:
        problems += check_lengths(q, k, inputs)
    if problems:
        raise AttnError(*problems)


def _problem(code: str, message: str, argument: str, hint: str | None = None) -> Diagnostic:
    return Diagnostic(code, message, argument=argument, hint=hint)


def _check_qkv(attention: Attention, q, k, v):
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor):
            yield _problem("E303", f"`{name}` must be a torch tensor, found {type(x).__name__}", name)
            return
        if x.dim() != (3 if attention.packed else 4):
            layout = "(total, heads, dim)" if attention.packed else "(batch, seq, heads, dim)"
            yield _problem("E312", f"`{name}` must be {layout}, found the shape {tuple(x.shape)}", name)
            return
    outer_q = q.shape[:-2]
    outer_kv = k.shape[:1] if attention.packed else (q.shape[0], k.shape[1])
    wanted = {
        "q": (q, (*outer_q, attention.heads_q, attention.dim_qk)),
        "k": (k, (*outer_kv, attention.heads_kv, attention.dim_qk)),
        "v": (v, (*outer_kv, attention.heads_kv, attention.dim_v)),
    }
    for name, (x, shape) in wanted.items():
        if tuple(x.shape) != shape:
            message = f"`{name}` has the shape {tuple(x.shape)}; expected {shape}"
            layout = "(total, heads, dim)" if attention.packed else "(batch, seq, heads, dim)"
            yield _problem("E313", message, name, f"the layout is {layout}")
        if not x.dtype.is_floating_point:
            yield _problem("E304", f"`{name}` has the type {_shown(x.dtype)}; expected a real type", name)


def _check_tensor(decl: TensorDecl, x, env: dict[str, int], any_float: bool, ranges: bool):
    declared = f"it is declared `tensor {decl.name}: {decl.dtype}[{_shape_text(decl)}]`"
    if x is None:
        yield _problem("E301", f"the tensor `{decl.name}` is missing", decl.name, declared)
        return
    if not isinstance(x, torch.Tensor):
        yield _problem("E303", f"`{decl.name}` must be a torch tensor, found {type(x).__name__}", decl.name, declared)
        return
    wanted = TORCH_TYPES[decl.dtype]
    if x.dtype != wanted and not (any_float and x.dtype.is_floating_point and wanted.is_floating_point):
        message = f"`{decl.name}` has the element type {_shown(x.dtype)}; expected {_shown(wanted)}"
        yield _problem("E304", message, decl.name, declared)
        return
    if x.dim() != len(decl.shape):
        message = f"`{decl.name}` has {x.dim()} dimension(s); expected {len(decl.shape)}"
        yield _problem("E312", message, decl.name, declared)
        return
    for axis, (found, extent) in enumerate(zip(x.shape, decl.shape)):
        size = found if extent is None else _number(extent, env)
        if size != found:
            message = f"dimension {axis} of `{decl.name}` is {found}; expected {size} (`{extent!r}`)"
            yield _problem("E313", message, decl.name, declared)
            return
    if ranges:
        yield from _check_promises(decl, x, env)


def _check_promises(decl: TensorDecl, x: torch.Tensor, env: dict[str, int]):
    if x.numel() == 0:
        return
    for bound, ok, word in ((decl.low, torch.ge, "at least"), (decl.high, torch.lt, "below")):
        if bound is None:
            continue
        limit = _number(bound, env)
        bad = ~ok(x.detach(), limit)
        if bool(bad.any()):
            where = tuple(torch.nonzero(bad)[0].tolist())
            message = f"`{decl.name}`{list(where) or ''} is {x[where].item()}; the declared range asks for {word} {limit}"
            yield _problem("E320", message, decl.name, "correct the data, or the range in the text")
            return
    if decl.is_sorted and x.shape[-1] > 1:
        falls = x.detach()[..., 1:] < x.detach()[..., :-1]
        if bool(falls.any()):
            where = tuple(torch.nonzero(falls)[0].tolist())
            message = f"`{decl.name}` is declared sorted, but falls after {list(where)}"
            yield _problem("E320", message, decl.name, "sort it, or leave `sorted` out of the text")


def _check_scalar(decl, x, env: dict[str, int]):
    declared = f"it is declared `scalar {decl.name}: {decl.type}`"
    if x is None:
        yield _problem("E301", f"the scalar `{decl.name}` is missing", decl.name, declared)
        return
    allowed = {INT: (int,), FLOAT: (int, float), BOOL: (bool,)}[decl.type]
    if not isinstance(x, allowed) or (isinstance(x, bool) and decl.type != BOOL):
        yield _problem("E318", f"`{decl.name}` must be {decl.type}, found {type(x).__name__}", decl.name, declared)
        return
    low = None if decl.low is None else _number(decl.low, env)
    high = None if decl.high is None else _number(decl.high, env)
    if (low is not None and not x >= low) or (high is not None and not x < high):
        message = f"`{decl.name}` is {x}; the declared range is {low}..{high}"
        yield _problem("E318", message, decl.name, "correct the value, or the range in the text")


def _number(expr: Expr, env: dict[str, int]):
    return evaluate(expr, env, {}).item()


def _shape_text(decl: TensorDecl) -> str:
    return ", ".join("?" if e is None else repr(e) for e in decl.shape)


def _shown(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
