"""The call of a kernel: what happens between `kernel(q, k, v)` and the launch.

The hot path makes a key of what the call depends on. A key seen before leads to its Plan: memory is allocated and the kernel launched. A
new key goes through attncc.runtime.check once. Nothing on the hot path synchronises, takes a lock or asks CUDA anything, so a call
can be captured in a CUDA graph.

What is not in the key the compiled function looks at itself, in machine code, at every launch: types, ranks, devices, that
shapes agree with each other and with the spec, strides and addresses. When it refuses, attncc.runtime.check says what was wrong. The
interpreter does not, so before it every call is checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter

import torch

from attncc.diagnostics import AttnError
from attncc.ir.attention import Attention
from attncc.ir.packing import MAX_KV, MAX_Q
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
    """What is known about calls with one key.

    `launch(q, k, v, o, lse, *tensors, *scalars, *work)` runs the kernel; with `careful` it takes anything, and the arguments are to
    be checked first. `out` and `lse` are one-element tensors spread over the result's shape: allocating like them
    (contiguous) is cheaper than from a list of sizes; `work` likewise, the work space of the kernels that list key tiles. `unread` is where
    the log-sum-exp goes that nobody asked for, None to allocate it. `ranges` has the least value and the limit of every scalar.
    """

    sizes: Sizes
    launch: Callable
    careful: bool
    out: torch.Tensor
    lse: torch.Tensor
    unread: torch.Tensor | None
    work: tuple[torch.Tensor, ...]
    ranges: tuple[tuple[float, float], ...]
    trivial: bool
    plain: bool
    """`launch` takes nothing after lse, and has something to do."""


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
        self._longest = (MAX_Q, MAX_KV) if attention.packed else ()

    def __call__(
        self, q, k, v, out=None, given: Mapping[str, object] = {}, want_lse: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, lse) for q, k, v and the declared tensors and scalars by name; see attncc.Kernel. Without `want_lse` the
        second has no defined contents."""
        tensors = ()
        try:
            key = (q.shape, k.shape, q.device)
            if given:
                tensors = self._tensors(given)
                for x in tensors:
                    key += (x.shape, x.dtype)
                for name in self._longest:
                    key += (given[name],)
            plan = self.plans[key]
            grad = _GRAD() and (q.requires_grad or k.requires_grad or v.requires_grad or _any_grad(tensors))
        except (KeyError, AttributeError, TypeError):
            return self.first(q, k, v, out, given, want_lse)
        if plan.careful or grad or out is not None or len(given) != self.count:
            self.check(q, k, v, out, given)
        if out is None:
            out = _EMPTY_LIKE(plan.out)
        lse = plan.unread
        if want_lse or lse is None:
            lse = _EMPTY_LIKE(plan.lse)
        if plan.plain:
            try:
                plan.launch(q, k, v, out, lse)
                return out, lse
            except Exception as error:  # noqa: BLE001 - `refused` raises it again where it has no answer
                return self.refused(error, plan, (q, k, v, out, lse), (), given)
        return self.launch(plan, q, k, v, out, lse, tensors, given)

    def first(self, q, k, v, out, given, want_lse) -> tuple[torch.Tensor, torch.Tensor]:
        """A call with a key that was not seen before: all checks, then a plan."""
        sizes = self.check(q, k, v, out, given)
        tensors = self._tensors(given)
        plan = self.plan(q, k, v, tensors, sizes)
        if len(self.plans) >= PLANS:
            self.plans.clear()
        of_tensors = (item for x in tensors for item in (x.shape, x.dtype))
        self.plans[(q.shape, k.shape, q.device, *of_tensors, *(given[n] for n in self._longest))] = plan
        out = _EMPTY_LIKE(plan.out) if out is None else out
        return self.launch(plan, q, k, v, out, _EMPTY_LIKE(plan.lse), tensors, given)

    def check(self, q, k, v, out, given) -> Sizes:
        """Raises AttnError for the first thing that is wrong with the arguments; the sizes of the call."""
        a = self.attention
        check.names(a, given)
        sizes = check.operands(a, q, k, v, given)
        check.user_tensors(a, q, given, sizes)
        for s in a.scalars:
            check.scalar(s, given[s.name], *check.bounds(s, sizes))
        inputs = {"q": q, "k": k, "v": v, **{n: given[n] for n in self.tensor_names}}
        if _GRAD():
            check.gradients(inputs)
        if out is not None:
            check.output(a, out, q, inputs)
        return sizes

    def plan(self, q, k, v, tensors, sizes: Sizes) -> Plan:
        """The plan for checked arguments; compiles the kernel for their device when that has not happened yet."""
        a, device = self.attention, q.device
        launcher = self.launchers(device)
        empty = not q.numel() or sizes.batch == 0 or sizes.seq_q == 0
        no_keys = not k.numel() or sizes.seq_kv == 0
        work = () if empty else tuple(_proto(shape, dtype, device) for shape, dtype in launcher.workspaces(sizes))
        lse_shape = (*q.shape[:-3], a.heads_q, q.shape[-3])
        return Plan(
            sizes=sizes,
            launch=launcher.launch,
            careful=not launcher.checks,
            out=_proto((*q.shape[:-1], a.dim_v), q.dtype, device),
            lse=_proto(lse_shape, torch.float32, device),
            unread=None if empty or device.type == "cpu" else _unread(lse_shape, device),
            work=work,
            ranges=tuple(check.bounds(s, sizes) for s in a.scalars),
            trivial=empty or no_keys,
            plain=not (self.count or work or empty or no_keys),
        )

    def launch(self, plan: Plan, q, k, v, out, lse, tensors, given) -> tuple[torch.Tensor, torch.Tensor]:
        """Gathers the arguments that are no operands, and launches."""
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
        try:
            plan.launch(q, k, v, out, lse, *rest)
        except Exception as error:  # noqa: BLE001 - `refused` raises it again where it has no answer
            return self.refused(error, plan, (q, k, v, out, lse), rest, given)
        return out, lse

    def refused(self, error: Exception, plan: Plan, operands, rest, given) -> tuple[torch.Tensor, torch.Tensor]:
        """After a failed launch: says which argument it was that the compiled function refused. Where that was a stride that says
        nothing (of a dimension of one), launches with another."""
        if isinstance(error, AttnError):
            raise error
        *tensors, lse = operands
        self.check(*tensors, given)
        regular = [_regular(x) for x in tensors]
        if plan.careful or all(x is y for x, y in zip(tensors, regular)):
            raise error
        plan.launch(*regular, lse, *rest)
        return tensors[3], lse

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


def _any_grad(tensors) -> bool:
    return any(x.requires_grad for x in tensors)


_UNREAD: dict[torch.device, torch.Tensor] = {}
_KEPT: list[torch.Tensor] = []


def _unread(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """A tensor of `shape` whose rows lie over each other, for results that nobody reads. Its memory is never given back: captured
    graphs write there as long as they live."""
    rows = shape[-1]
    memory = _UNREAD.get(device)
    if memory is None or memory.numel() < rows:
        memory = torch.empty(max(1 << 14, 1 << (rows - 1).bit_length()), dtype=torch.float32, device=device)
        _KEPT.append(memory)
        _UNREAD[device] = memory
    return memory[:rows].expand(shape)


def _regular(x: torch.Tensor) -> torch.Tensor:
    """A dimension of extent 1 may come with any stride, but the kernel relies on aligned ones: a view of `x` in which such
    dimensions have the stride of a contiguous tensor; `x` itself where its strides are fit."""
    if not any(s % 8 for s in x.stride()[:-1]) and x.stride(-1) == 1:
        return x
    return x.as_strided(
        x.shape, [s if n > 1 else math.prod(x.shape[i + 1 :]) for i, (n, s) in enumerate(zip(x.shape, x.stride()))]
    )
