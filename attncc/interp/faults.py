"""Values that do not exist, where a call would use them: what the interpreters of L2 and L3, like a kernel, do not look for."""

from __future__ import annotations

from dataclasses import replace

import torch

from attncc.diagnostics import AttnError
from attncc.interp.dense import environment, mask_of, per_row, scores_of, tensors_of
from attncc.interp.packed import sequences
from attncc.ir.attention import Attention
from attncc.ir.expr import Expr, walk
from attncc.ir.packing import ARGUMENTS, unpack

CELLS_AT_ONCE = 1 << 24


def check_values(attention: Attention, q: torch.Tensor, k: torch.Tensor, inputs: dict[str, object]) -> None:
    """Raises AttnError where the call reads a tensor out of range (E321), divides an int by zero (E322) or shifts by a count outside
    0..31 (E323) and uses the result. Looks at every query and key, some rows at a time; at nothing where nothing can fail."""
    roots = (attention.mask, attention.score, *_of_rows(attention))
    if not any(may_fail(node) for e in roots for node in walk(e)):
        return
    try:
        if not attention.packed:
            return _check(attention, q, k, inputs, None)
        own = {name: x for name, x in inputs.items() if name not in ARGUMENTS}
        for s in sequences(inputs):
            _check(unpack(attention), q[None, s.q], k[None, s.kv], own, (s.number, s.batch))
    except AttnError as error:  # with the line that declares the tensor
        found = (replace(d, span=attention.span(d.argument)) if d.argument else d for d in error.diagnostics)
        raise AttnError(*found) from None


def _check(a: Attention, q: torch.Tensor, k: torch.Tensor, inputs: dict, entry: tuple[int, int] | None) -> None:
    env, tensors = environment(a, q.shape[0], q.shape[1], k.shape[1], inputs, entry=entry), tensors_of(a, inputs)
    rows = max(1, CELLS_AT_ONCE // max(1, q.shape[0] * a.heads_q * k.shape[1]))
    for first in range(0, q.shape[1] if q.shape[0] else 0, rows):
        part = slice(first, first + rows)
        here = {**env, "q_idx": env["q_idx"][:, :, part]}
        mask = mask_of(a, here, tensors)
        scores_of(a, q[:, part], k, here, tensors, mask, torch.float64)
        for e in _of_rows(a):
            per_row(e, here, tensors, torch.float64)


def _of_rows(a: Attention) -> tuple[Expr, ...]:
    return tuple(e for e in (a.reduction.sink, a.reduction.weight_scale) if e is not None)


def may_fail(node: Expr) -> bool:
    """Whether an operation has arguments for which it has no value."""
    if node.op == "load":
        return bool(node.args)
    if node.op in ("floordiv", "mod", "shl", "shr"):
        return node.args[1].op != "const"
    return False
