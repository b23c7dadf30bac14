"""The call of a kernel: what happens between `kernel(q, k, v)` and the launch.

The hot path makes a key of shapes, strides, types and devices. A key seen before leads to its Plan: everything is known to be
right, memory is allocated and the kernel launched. A new key goes through attncc.runtime.check once. Nothing on the hot path
synchronises, takes a lock or asks CUDA anything, so a call can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter

import torch

from attncc.diagnostics import AttnError
from attncc.ir.attention import Attention
from attncc.runtime import check
from attncc.runtime.check import Sizes
from attncc.runtime.launch import Launcher

PLANS = 1024
"""Plans kept for one kernel; when there are more, all are dropped and made again as they are needed."""
_EMPTY_LIKE, _GRAD = torch.empty_like, torch.is_grad_enabled
_KINDS = {"int": int, "float": float, "bool": None}
"""The Python type of a scalar that is passed on as it is; any other value is looked at by check.scalar."""


@dataclass(frozen=True)
class Plan:
    """What is known about calls with one combination of shapes, strides, types and devices.

    `launch(q, k, v, o, lse, *tensors, *scalars, *work)` runs the kernel. `out` and `lse` are one-element tensors
    spread over the result's shape: allocating like them (contiguous) is cheaper than from a list of sizes; `work` likewise, the
    work space of the kernels that list key tiles. `ranges` has the least value and the limit of every scalar.
    `restride` maps positions among (q, k, v) to strides that say the same and that the kernel accepts; None for none.
    """

    sizes: Sizes
    launch: Callable
    out: torch.Tensor
    lse: torch.Tensor
    work: tuple[torch.Tensor, ...]
    ranges: tuple[tuple[float, float], ...]
    restride: Mapping[int, tuple[int, ...]] | None
    trivial: bool


class Caller:
    """Checks and launches one attention. `launchers(device)` gives the kernel for a device; it may compile."""

    def __init__(self, attention: Attention, launchers: Callable[[torch.device], Launcher]):
        self.attention = attention
        self.launchers = launchers
        self.plans: dict[tuple, Plan] = {}
        self.scalars = tuple((s.name, _KINDS[s.type], s) for s in attention.scalars)
        self.tensor_names = tuple(t.name for t in attention.tensors)
        self.count = len(attention.tensors) + len(attention.scalars)
        self._tensors = _getter(self.tensor_names)

    def __call__(self, q, k, v, out=None, given: Mapping[str, object] = {}) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, lse) for q, k, v and the declared tensors and scalars by name; see attncc.Kernel."""
        try:
            tensors = self._tensors(given)
            key = (
                q.shape, q.stride(), q.dtype, q.device, k.shape, k.stride(), k.dtype, k.device, v.shape, v.stride(), v.dtype, v.device,
            )  # fmt: skip
            grad = q.requires_grad or k.requires_grad or v.requires_grad
            for x in tensors:
                key += (x.shape, x.stride(), x.dtype, x.device)
                grad = grad or x.requires_grad
            if out is not None:
                key += (out.shape, out.stride(), out.dtype, out.device)
            plan = self.plans[key]
        except (KeyError, AttributeError, TypeError):
            return self.first(q, k, v, out, given)
        if (grad and _GRAD()) or len(given) != self.count or out is not None:
            self.check(q, k, v, out, given)
        return self.launch(plan, q, k, v, out, tensors, given)

    def first(self, q, k, v, out, given) -> tuple[torch.Tensor, torch.Tensor]:
        """A call with a key that was not seen before: all checks, then a plan."""
        sizes = self.check(q, k, v, out, given)
        tensors = self._tensors(given)
        plan = self.plan(q, k, v, tensors, sizes)
        parts = (q, k, v, *tensors) if out is None else (q, k, v, *tensors, out)
        if len(self.plans) >= PLANS:
            self.plans.clear()
        self.plans[tuple(item for x in parts for item in (x.shape, x.stride(), x.dtype, x.device))] = plan
        return self.launch(plan, q, k, v, out, tensors, given)

    def check(self, q, k, v, out, given) -> Sizes:
        """Raises AttnError for the first thing that is wrong with the arguments; the sizes of the call."""
        a = self.attention
        check.names(a, given)
        sizes = check.operands(a, q, k, v)
        check.user_tensors(a, q, given, sizes)
        for s in a.scalars:
            check.scalar(s, given[s.name], *check.bounds(s, sizes))
        inputs = {"q": q, "k": k, "v": v, **{n: given[n] for n in self.tensor_names}}
        if _GRAD():
            check.gradients(inputs)
        if out is not None:
            check.output(a, out, q, inputs, sizes)
        return sizes

    def plan(self, q, k, v, tensors, sizes: Sizes) -> Plan:
        """The plan for checked arguments; compiles the kernel for their device when that has not happened yet."""
        a, device = self.attention, q.device
        launcher = self.launchers(device)
        empty = sizes.batch == 0 or sizes.seq_q == 0
        return Plan(
            sizes=sizes,
            launch=launcher.launch,
            out=_proto((sizes.batch, sizes.seq_q, a.heads_q, a.dim_v), q.dtype, device),
            lse=_proto((sizes.batch, a.heads_q, sizes.seq_q), torch.float32, device),
            work=() if empty else tuple(_proto(shape, dtype, device) for shape, dtype in launcher.workspaces(sizes)),
            ranges=tuple(check.bounds(s, sizes) for s in a.scalars),
            restride=None if device.type == "cpu" else _restrides((q, k, v)),
            trivial=empty or sizes.seq_kv == 0,
        )

    def launch(self, plan: Plan, q, k, v, out, tensors, given) -> tuple[torch.Tensor, torch.Tensor]:
        """Allocates and launches."""
        if out is None:
            out = _EMPTY_LIKE(plan.out)
        lse = _EMPTY_LIKE(plan.lse)
        rest = tensors
        if self.scalars:
            rest = [*tensors]
            for (name, kind, decl), (low, high) in zip(self.scalars, plan.ranges):
                x = given[name]
                rest.append(x if type(x) is kind and low <= x < high else check.scalar(decl, x, low, high))
        if plan.work:
            rest = (*rest, *[_EMPTY_LIKE(w) for w in plan.work])
        if plan.trivial:
            return self.without_keys(q, k, v, out, lse, given)
        if plan.restride:
            q, k, v = (x.as_strided(x.shape, plan.restride.get(i, x.stride())) for i, x in enumerate((q, k, v)))
        try:
            plan.launch(q, k, v, out, lse, *rest)
        except AttnError:
            raise
        except Exception:
            # The compiled function checks what the key does not hold (addresses): say which argument it was.
            self.check(q, k, v, out, given)
            raise
        return out, lse

    def without_keys(self, q, k, v, out, lse, given) -> tuple[torch.Tensor, torch.Tensor]:
        """No key at all: the output is zero; the log-sum-exp is that of the sink alone, -inf without one."""
        if self.attention.reduction.sink is None or not lse.numel():
            return out.zero_(), lse.fill_(-torch.inf)
        from attncc.interp.reference import reference

        return out.zero_(), lse.copy_(reference(self.attention, q, k, v, dict(given))[1])


def _getter(names: tuple[str, ...]) -> Callable[[Mapping[str, object]], tuple]:
    if not names:
        return lambda given: ()
    if len(names) == 1:
        return lambda given, name=names[0]: (given[name],)
    return itemgetter(*names)


def _proto(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.empty((1,) * len(shape), dtype=dtype, device=device).expand(shape)


def _restrides(operands: tuple[torch.Tensor, ...]) -> dict[int, tuple[int, ...]] | None:
    """A dimension of extent 1 may come with any stride, but the kernel relies on aligned ones: such dimensions get the stride
    of a contiguous tensor. By position among q, k, v; None when nothing needs to change."""
    found = {}
    for i, x in enumerate(operands):
        wanted = [
            s if n > 1 else math.prod(x.shape[axis + 1 :]) for axis, (n, s) in enumerate(zip(x.shape, x.stride()))
        ]
        if any(s % 8 for s in x.stride()[:3]) or x.stride(3) != 1:
            found[i] = tuple(wanted)
    return found or None
