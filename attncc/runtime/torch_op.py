"""The torch custom operator `attncc::attention`, which keeps a kernel in the graph under torch.compile and export.

Outside of tracing a kernel is called directly: the dispatcher would add more time than the whole call takes.
"""

from __future__ import annotations

import torch

from attncc.ir.packing import ARGUMENTS, CU_KV, CU_Q, MAX_KV, MAX_Q

LIBRARY = torch.library.Library("attncc", "DEF")
LIBRARY.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor[] tensors, SymInt[] ints, float[] floats, str kernel) -> (Tensor, Tensor)"
)
KERNELS: dict[str, object] = {}
"""Kernels that a graph refers to, by name; a graph may outlive the caller's reference."""


def registrar(kernel):
    """Two functions that name `kernel` (a runtime.kernel.Kernel) and its form for packed sequences for graphs, to be called while one is
    traced.

    They take no argument because torch before 2.13 lets a function of assumed constant result take constants only. The mark is what
    torch.compiler.assume_constant_result sets; calling that would import torch._dynamo, which takes longer than importing torch.
    """

    def register() -> str:
        return _known(kernel)

    def register_packed() -> str:
        return _known(kernel.packed)

    register._dynamo_marked_constant = register_packed._dynamo_marked_constant = True
    return register, register_packed


def _known(kernel) -> str:
    KERNELS[kernel.key] = kernel
    return kernel.key


def traced(kernel, q, k, v, out, given, packed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The call as one operator of the graph that is being traced."""
    a = kernel.attention
    why = _irregular(kernel, (q, k, v), out, given, packed)
    if why:
        # Behind the break nothing is traced, and the call says what is wrong; under fullgraph=True this text is what the user reads.
        torch._dynamo.graph_break(msg=f"attncc cannot put this call into a graph: {why}; call it without torch.compile for more")
        return (kernel.packed if packed else kernel).caller(q, k, v, out, given)
    tensors = [given[t.name] for t in a.tensors]
    ints = [int(given[s.name]) for s in a.scalars if s.type != "float"]
    floats = [float(given[s.name]) for s in a.scalars if s.type == "float"]
    if packed:
        tensors += [given[CU_Q], given[CU_KV]]
        ints += [given[MAX_Q], given[MAX_KV]]
        result = torch.ops.attncc.attention(q, k, v, tensors, ints, floats, kernel.register_packed())
    else:
        result = torch.ops.attncc.attention(q, k, v, tensors, ints, floats, kernel.register())
    return result if out is None else (out.copy_(result[0]), result[1])


def _irregular(kernel, operands, out, given, packed: bool) -> str:
    """Why a call is none that the operator takes as it is, "" when it is one. The operator would lose gradients, cut numbers short and
    cast into `out`. Tracers follow this function: it builds no AttnError, which they cannot."""
    a = kernel.attention
    wanted = [d.name for d in a.tensors] + [d.name for d in a.scalars] + (list(ARGUMENTS) if packed else [])
    for name in given:
        if name not in wanted:
            return f"E302, there is no argument `{name}`"
    for name in wanted:
        if name not in given:
            return f"E301, the argument `{name}` is missing"
    tensors = [*operands, *[given[t.name] for t in a.tensors]]
    if not all(isinstance(x, torch.Tensor) for x in tensors):
        return "E303, an argument is no tensor"
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "E317, a tensor requires a gradient and there is no backward pass (torch.no_grad() or detach() helps)"
    kinds = [(s.name, s.type) for s in a.scalars] + ([(MAX_Q, "int"), (MAX_KV, "int")] if packed else [])
    for name, kind in kinds:
        x = given[name]
        if isinstance(x, bool) != (kind == "bool") or not isinstance(x, (int, float) if kind == "float" else int):
            return f"E318, `{name}` is no Python {kind}"
    q = operands[0]
    if out is not None and not (isinstance(out, torch.Tensor) and out.dtype == q.dtype and out.shape == (*q.shape[:-1], a.dim_v)):
        return "E319, `out` has another type or shape than the result"
    return ""


def _call(q, k, v, tensors, ints, floats, kernel):
    target = KERNELS[kernel]
    a = target.attention
    ints, floats = iter(ints), iter(floats)
    given = {t.name: x for t, x in zip(a.tensors, tensors)}
    for s in a.scalars:
        given[s.name] = next(floats) if s.type == "float" else bool(next(ints)) if s.type == "bool" else next(ints)
    return target.caller(q, k, v, None, given)


def _fake(q, k, v, tensors, ints, floats, kernel):
    a = KERNELS[kernel].attention
    out = q.new_empty((*q.shape[:-1], a.dim_v))
    lse = q.new_empty((*q.shape[:-3], a.heads_q, q.shape[-3]), dtype=torch.float32)
    return out, lse


LIBRARY.impl("attention", _call, "CUDA")
LIBRARY.impl("attention", _call, "CPU")
torch.library.register_fake("attncc::attention", _fake, lib=LIBRARY)
