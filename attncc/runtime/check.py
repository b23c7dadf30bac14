"""Checks the arguments of a call and says what is wrong with them. Off the hot path: it runs once for each new combination of
shapes, strides and types, and again when a launch fails.

Codes: E301 missing, E302 unknown, E303 not a tensor, E304 element type, E312 rank, E313 shape, E314 device, E315 last dimension not
contiguous, E316 alignment, E317 gradient, E318 scalar, E319 `out`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from attncc.diagnostics import AttnError, Diagnostic, did_you_mean
from attncc.ir import packing
from attncc.ir.attention import Attention, ScalarDecl, TensorDecl
from attncc.ir.expr import OPS, Expr, walk
from attncc.runtime.storage import ALIGNMENT, TORCH_DTYPES, spell

INT_LOW, INT_HIGH = -(2**31), 2**31 - 1


@dataclass(frozen=True)
class Sizes:
    """The sizes of one call; of packed sequences their number and the longest lengths."""

    batch: int
    seq_q: int
    seq_kv: int

    @property
    def variables(self) -> dict[str, int]:
        return {"batch": self.batch, "seq_q": self.seq_q, "seq_kv": self.seq_kv, "off": self.seq_kv - self.seq_q}


def evaluate(expr: Expr, values: Mapping[str, object]):
    """The Python value of an expression without tensors; None where it has none (a division by zero)."""
    done: dict[Expr, object] = {}
    try:
        for node in walk(expr):
            if node.op == "const":
                done[node] = node.value
            elif node.op == "var":
                done[node] = values[node.value]
            else:
                done[node] = OPS[node.op].evaluate(*(done[a] for a in node.args))
    except ArithmeticError:
        return None
    return done[expr]


def names(attention: Attention, given: Mapping[str, object], packed: bool = False) -> None:
    """E301 and E302: `given` must name every declared tensor and scalar, and nothing else; with `packed` also what a packed call takes."""
    declared = {d.name: d for d in (*attention.tensors, *attention.scalars)}
    if packed:
        declared |= {n: None for n in packing.ARGUMENTS if n not in declared}
    problems = []
    for name in given:
        if name not in declared:
            takes = ", ".join(f"`{n}`" for n in declared) or "no arguments beside q, k and v"
            hint = did_you_mean(name, [n for n in declared if n not in given] or declared)
            problems.append(
                Diagnostic(
                    "E302",
                    f"`{attention.name}` has no argument `{name}`",
                    argument=name,
                    hint=hint or f"it takes {takes}",
                )
            )
    for name, decl in declared.items():
        if name not in given:
            what = _declared(decl)
            problems.append(
                Diagnostic(
                    "E301",
                    f"the call lacks the argument `{name}`: {what}",
                    decl and decl.span,
                    argument=name,
                    hint=f"pass {name}=... to the kernel",
                )
            )
    if problems:
        raise AttnError(*problems)


def _declared(decl: TensorDecl | ScalarDecl | None) -> str:
    if decl is None or decl.name in packing.ARGUMENTS:
        return f"a packed call takes {', '.join(packing.ARGUMENTS)}"
    if isinstance(decl, ScalarDecl):
        return f"a run-time {decl.type}"
    return f"a {decl.dtype} tensor of shape {_shape(decl)}"


def _shape(decl: TensorDecl) -> str:
    from attncc.ir.text import format_expr

    return (
        "("
        + ", ".join("any" if e is None else format_expr(e) for e in decl.shape)
        + ("," if len(decl.shape) == 1 else "")
        + ")"
    )


def _bad(code: str, name: str, message: str, hint: str | None = None, span=None, notes=()) -> AttnError:
    return AttnError(Diagnostic(code, message, span, argument=name, hint=hint, notes=tuple(notes)))


def _tensor(name: str, value, rank: int, dtype: str, span=None, what: str = "", hint: str | None = None) -> None:
    """E303, E304 and E312 for one tensor; `hint` is a way out for a wrong rank."""
    if not isinstance(value, torch.Tensor):
        raise _bad(
            "E303", name, f"`{name}` must be a torch tensor, but it is of type {type(value).__name__}", "pass a torch tensor", span
        )
    if value.is_nested or value.layout != torch.strided:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise _bad("E303", name, f"`{name}` is a {kind} tensor; expected a dense one", "pass a dense tensor, packed sequences by cu_seqlens_q", span)
    if value.dim() != rank:
        found = f"`{name}` has {value.dim()} dimension(s), shape {tuple(value.shape)}; expected {rank}{what}"
        hint = hint or (f"reshape `{name}`, or change the spec" if span else f"reshape `{name}`")
        raise _bad("E312", name, found, hint, span)
    if value.dtype != TORCH_DTYPES[dtype]:
        wanted = TORCH_DTYPES[dtype]
        message = f"`{name}` has element type {spell(value.dtype)}; expected {spell(wanted)}"
        other = "" if name in packing.ARGUMENTS else ", or declare another type in the spec"
        raise _bad("E304", name, message, f"call {name}.to({wanted}){other}", span)


def operands(a: Attention, q, k, v, given: Mapping[str, object] = {}) -> Sizes:
    """Checks q, k and v against the spec and each other; the sizes of the call. `given` has the lengths of packed sequences."""
    axes = ("total", "heads", "dim") if a.packed else ("batch", "seq", "heads", "dim")
    for name, value in (("q", q), ("k", k), ("v", v)):
        fits = isinstance(value, torch.Tensor) and value.dim() == len(axes)
        _tensor(name, value, len(axes), a.dtype, a.span("dtype") if fits else None, f": ({', '.join(axes)})", _packed_hint(a, value))
    outer_kv = (k.shape[0],) if a.packed else (q.shape[0], k.shape[1])
    wanted = {
        "q": (*q.shape[:-2], a.heads_q, a.dim_qk),
        "k": (*outer_kv, a.heads_kv, a.dim_qk),
        "v": (*outer_kv, a.heads_kv, a.dim_v),
    }
    for name, value in (("q", q), ("k", k), ("v", v)):
        _operand_shape(a, axes, name, value, wanted[name])
    _same_device(q, {"k": k, "v": v})
    for name, value in (("q", q), ("k", k), ("v", v)):
        layout(name, value)
    return _longest(a, given) if a.packed else Sizes(q.shape[0], q.shape[1], k.shape[1])


def _packed_hint(a: Attention, value) -> str | None:
    """A way out for three dimensions where four are expected."""
    if a.packed or not isinstance(value, torch.Tensor) or value.dim() != 3:
        return None
    return f"for sequences packed into (total, heads, dim) pass {', '.join(packing.ARGUMENTS)} as well"


def _longest(a: Attention, given: Mapping[str, object]) -> Sizes:
    """The number of packed sequences and their longest lengths."""
    for decl in a.tensors:
        if decl.name in packing.ARGUMENTS:
            _tensor(decl.name, given[decl.name], 1, decl.dtype, None, ": (number of sequences + 1,)")
            if not given[decl.name].numel():
                message = f"`{decl.name}` is empty; expected 0 and then the running sum of the lengths"
                raise _bad("E313", decl.name, message, "for no sequence at all pass a tensor that holds a 0")
    longest = {s.name: scalar(s, given[s.name], 0, INT_HIGH) for s in a.scalars if s.name in packing.ARGUMENTS}
    return Sizes(given[packing.CU_Q].numel() - 1, longest[packing.MAX_Q], longest[packing.MAX_KV])


def _operand_shape(a: Attention, axes: tuple[str, ...], name: str, value: torch.Tensor, wanted: tuple[int, ...]) -> None:
    for axis, (found, expected) in enumerate(zip(value.shape, wanted)):
        if found == expected:
            continue
        what = axes[axis]
        span = a.span(what)
        hint = None
        if what == "heads" and value.shape[axis - 1] == expected:
            other = (*axes[:-3], "heads", axes[-3], "dim")
            hint = f"the layout is ({', '.join(axes)}): call {name}.transpose({axis - 1}, {axis}) for ({', '.join(other)}) tensors"
        elif what in ("heads", "dim"):
            hint = "pass tensors of the declared size, or change the spec"
        why = {"batch": "as q has", "seq": "as k has", "total": "as k has"}.get(what, "as the spec declares")
        raise _bad(
            "E313",
            name,
            f"`{name}` has {what} {found}, expected {expected} {why}; its shape is {tuple(value.shape)}",
            hint,
            span,
        )


def _same_device(q: torch.Tensor, others: Mapping[str, torch.Tensor]) -> None:
    for name, value in others.items():
        if value.device != q.device:
            message = f"`{name}` is on {value.device}, but q is on {q.device}"
            raise _bad("E314", name, message, f"call {name}.to(q.device)")


def layout(name: str, x: torch.Tensor) -> None:
    """E315 and E316: what the kernel's vector copies need of q, k, v and out."""
    if x.dim() and x.shape[-1] > 1 and x.stride(-1) != 1 and x.numel():
        message = f"the last dimension of `{name}` is not contiguous: its stride is {x.stride(-1)}, expected 1"
        raise _bad("E315", name, message, f"call {name}.contiguous()")
    if x.device.type == "cpu":
        return
    step = ALIGNMENT // x.element_size()
    for axis in range(x.dim() - 1):
        if x.shape[axis] > 1 and x.stride(axis) % step:
            message = f"stride {x.stride(axis)} of dimension {axis} of `{name}` is not a multiple of {step} elements ({ALIGNMENT} bytes)"
            raise _bad("E316", name, message, f"call {name}.contiguous()")
    if x.numel() and x.data_ptr() % ALIGNMENT:
        message = (
            f"`{name}` starts at an address that is not a multiple of {ALIGNMENT} bytes (a view with an odd offset?)"
        )
        raise _bad("E316", name, message, f"call {name}.clone()")


def user_tensors(a: Attention, q: torch.Tensor, given: Mapping[str, torch.Tensor], sizes: Sizes) -> None:
    """Every declared tensor: type, rank, shape, device."""
    for decl in a.tensors:
        value = given[decl.name]
        _tensor(decl.name, value, len(decl.shape), decl.dtype, decl.span, f": {_shape(decl)}")
        expected = tuple(None if e is None else evaluate(e, sizes.variables) for e in decl.shape)
        if any(e is not None and e != n for e, n in zip(expected, value.shape)):
            shown = (
                "("
                + ", ".join("any" if e is None else str(e) for e in expected)
                + ("," if len(expected) == 1 else "")
                + ")"
            )
            message = f"`{decl.name}` has shape {tuple(value.shape)}, expected {shown}, which is {_shape(decl)}"
            source = ", ".join(packing.ARGUMENTS[::2] + packing.ARGUMENTS[3:]) if a.packed else "q and k"
            where = f"batch = {sizes.batch}, seq_q = {sizes.seq_q}, seq_kv = {sizes.seq_kv} come from {source}"
            raise _bad("E313", decl.name, message, "pass that shape, or declare another in the spec", decl.span, (where,))
        _same_device(q, {decl.name: value})


def bounds(decl: ScalarDecl, sizes: Sizes) -> tuple[float, float]:
    """The half-open range [low, high) of a scalar in a call of these sizes."""
    low = evaluate(decl.low, sizes.variables) if decl.low is not None else None
    high = evaluate(decl.high, sizes.variables) if decl.high is not None else None
    if decl.type == "int":
        return (INT_LOW if low is None else low), (INT_HIGH + 1 if high is None else high)
    return (float("-inf") if low is None else low), (float("inf") if high is None else high)


def scalar(decl: ScalarDecl, value, low: float, high: float):
    """`value` as the number that is passed to the kernel: int, or float; E318."""
    if isinstance(value, torch.Tensor):
        message = f"`{decl.name}` is a run-time {decl.type}, but a tensor was passed"
        raise _bad(
            "E318",
            decl.name,
            message,
            "pass a Python number (a tensor would have to be fetched from the GPU), or declare a tensor",
            decl.span,
        )
    number = _number(decl, value)
    unbounded = decl.type == "float" and decl.high is None
    inside = low <= number and (number < high or (unbounded and number == high))
    if not inside and not (math.isnan(number) and decl.low is None and decl.high is None):
        message = f"`{decl.name}` is {number}, outside its range {low} .. {high}"
        raise _bad("E318", decl.name, message, "pass a number in that range, or correct the range in the spec", decl.span)
    return number


def _number(decl: ScalarDecl, value):
    import numbers

    kinds = {"int": numbers.Integral, "float": numbers.Real, "bool": numbers.Integral}
    is_bool = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    fits = is_bool if decl.type == "bool" else isinstance(value, kinds[decl.type]) and not is_bool
    if not fits:
        raise _bad(
            "E318",
            decl.name,
            f"`{decl.name}` must be of type {decl.type}, but it is {value!r}"[:300],
            f"pass a Python {decl.type}, or declare another type in the spec",
            decl.span,
        )
    try:
        return float(value) if decl.type == "float" else int(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def gradients(tensors: Mapping[str, torch.Tensor]) -> None:
    """E317: gradients do not flow through a kernel yet."""
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor) and value.requires_grad:
            raise _bad(
                "E317",
                name,
                f"`{name}` requires a gradient, but this kernel has no backward pass",
                f"call it under torch.no_grad(), or pass {name}.detach()",
            )


def output(a: Attention, out, q: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> None:
    """E319 and layout errors of the caller's `out`."""
    expected = (*q.shape[:-1], a.dim_v)
    if (
        not isinstance(out, torch.Tensor)
        or tuple(out.shape) != expected
        or out.dtype != q.dtype
        or out.device != q.device
    ):
        found = (
            f"{tuple(out.shape)}, {out.dtype}, {out.device}" if isinstance(out, torch.Tensor) else type(out).__name__
        )
        raise _bad(
            "E319",
            "out",
            f"`out` is {found}; expected {expected}, {q.dtype}, {q.device}",
            "leave it away to have it allocated",
        )
    layout("out", out)
    if _folded(out):
        raise _bad("E319", "out", f"elements of `out` share memory: shape {tuple(out.shape)}, strides {out.stride()}", "call out.contiguous()")
    for name, value in inputs.items():
        if (
            out.numel()
            and value.numel()
            and out.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
            and _overlap(out, value)
        ):
            raise _bad(
                "E319",
                "out",
                f"`out` shares memory with `{name}`, which other parts of the kernel still read",
                "pass another tensor",
            )


def _folded(x: torch.Tensor) -> bool:
    """Whether two elements of `x` may lie at one place: a stride is within the reach of the smaller ones."""
    reach = 0
    for stride, extent in sorted((s, n) for s, n in zip(x.stride(), x.shape) if n > 1):
        if stride <= reach:
            return bool(x.numel())
        reach += (extent - 1) * stride
    return False


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    (a0, a1), (b0, b1) = _extent(a), _extent(b)
    return a0 < b1 and b0 < a1


def _extent(x: torch.Tensor) -> tuple[int, int]:
    """First byte and the one past the last that `x` may touch; strides are never negative."""
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride()))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()
