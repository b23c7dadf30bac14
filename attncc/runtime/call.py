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
from attncc.ir.attention import Attention, ScalarDecl
from attncc.ir.packing import MAX_KV, MAX_Q
from attncc.runtime import check
from attncc.runtime.allocate import Allocate, Layout, allocator, contiguous
from attncc.runtime.check import Sizes
from attncc.runtime.launch import Launcher

PLANS = 1024
"""Plans kept for one kernel; when there are more, all are dropped and made again as they are needed."""
_GRAD = torch.is_grad_enabled
_KINDS = {"int": int, "float": float, "bool": None}
"""The Python type of a scalar that is passed on as it is; any other value is looked at by check.scalar."""


@dataclass(frozen=True)
class Plan:
    """What is known about calls with one key.

    `launch(q, k, v, o, lse, *tensors, *scalars, *work)` fills o and lse. With `careful` it takes anything, and the arguments are to be
    checked first. `empty(*layout)` allocates, `out`, `lse` and `work` are layouts: of the results, and of the work
    space of the kernels that list key tiles. `unread` is where the log-sum-exp goes that nobody asked for, None to allocate
    it. `scalars` has name, type, declaration, least value and limit of every scalar.
    """

    sizes: Sizes
    launch: Callable
    careful: bool
    empty: Allocate
    out: Layout
    lse: Layout
    unread: torch.Tensor | None
    work: tuple[Layout, ...]
    scalars: tuple[tuple[str, type | None, ScalarDecl, float, float], ...]
    plain: bool
    """`launch` takes nothing but tensors of the caller."""


class Caller:
    """Checks and launches one attention. `launchers(device)` gives the kernel for a device; it may compile."""

    def __init__(self, attention: Attention, launchers: Callable[[torch.device], Launcher]):
        self.attention = attention
        self.launchers = launchers
        self.plans: dict[tuple, Plan] = {}
        self.tensor_names = tuple(t.name for t in attention.tensors)
        self.count = len(attention.tensors) + len(attention.scalars)
        self._tensors = _getter(self.tensor_names)
        self._longest = (MAX_Q, MAX_KV) if attention.packed else ()

    def __call__(self, q, k, v, out=None, given: Mapping[str, object] = {}) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, lse) for q, k, v and the declared tensors and scalars by name; see attncc.Kernel."""
        return self.run(q, k, v, out, given, True)

    def run(self, q, k, v, out, given: Mapping[str, object], want_lse: bool):
        """(out, lse), or out alone. A method with a name: calling an object takes longer."""
        tensors = ()
        try:
            if given:
                tensors = self._tensors(given)
                plan = self.plans[self.key(q, k, tensors, given)]
            else:
                plan = self.plans[q.shape, k.shape, q.device]
            grad = _GRAD() and (
                q.requires_grad or k.requires_grad or v.requires_grad or (tensors and _any_grad(tensors))
            )
        except (KeyError, AttributeError, TypeError, RuntimeError):
            plan, tensors = self.first(q, k, v, out, given)
        else:
            if plan.careful or grad or (out is not None and _may_overlap(out, q, k, v, *tensors)):
                self.check(q, k, v, out, given)
        if out is None:
            out = plan.empty(*plan.out)
        lse = plan.unread
        if want_lse or lse is None:
            lse = plan.empty(*plan.lse)
        rest = tensors if plan.plain else self.rest(plan, tensors, given)
        try:
            if rest:
                plan.launch(q, k, v, out, lse, *rest)
            else:
                plan.launch(q, k, v, out, lse)
        except Exception as error:  # noqa: BLE001 - `refused` raises it again where it has no answer
            self.refused(error, plan, (q, k, v, out, lse), rest, given)
        return (out, lse) if want_lse else out

    def key(self, q, k, tensors, given) -> tuple:
        """What a plan is made for, where there is more than q, k and v. The number of names says whether one is missing or too much: those
        that are declared are taken from `given` one by one."""
        if self._longest:
            return (q.shape, k.shape, q.device, len(given), given[MAX_Q], given[MAX_KV], *[x.shape for x in tensors])
        return (q.shape, k.shape, q.device, len(given), *[x.shape for x in tensors])

    def first(self, q, k, v, out, given) -> tuple[Plan, tuple[torch.Tensor, ...]]:
        """For a call with a key that was not seen before: all checks, then a plan; the declared tensors."""
        sizes = self.check(q, k, v, out, given)
        tensors = self._tensors(given)
        plan = self.plan(q, k, v, tensors, sizes)
        if len(self.plans) >= PLANS:
            self.plans.clear()
        self.plans[self.key(q, k, tensors, given) if given else (q.shape, k.shape, q.device)] = plan
        return plan, tensors

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
        trivial = not q.numel() or not k.numel() or 0 in (sizes.batch, sizes.seq_q, sizes.seq_kv)
        work = () if trivial else tuple(contiguous(shape, dtype) for shape, dtype in launcher.workspaces(sizes))
        lse_shape = (*q.shape[:-3], a.heads_q, q.shape[-3])
        return Plan(
            sizes=sizes,
            launch=self.without_keys if trivial else launcher.launch,
            careful=trivial or not launcher.checks,
            empty=allocator(device, partly=a.packed),
            out=contiguous((*q.shape[:-1], a.dim_v), q.dtype),
            lse=contiguous(lse_shape, torch.float32),
            unread=None if trivial or device.type == "cpu" else _unread(lse_shape, device),
            work=work,
            scalars=tuple((s.name, _KINDS[s.type], s, *check.bounds(s, sizes)) for s in a.scalars),
            plain=not (a.scalars or work),
        )

    def rest(self, plan: Plan, tensors, given) -> list:
        """What a launch takes after lse."""
        rest = [*tensors]
        for name, kind, decl, low, high in plan.scalars:
            x = given[name] if name in given else check.names(self.attention, given)
            rest.append(x if type(x) is kind and low <= x < high else check.scalar(decl, x, low, high))
        for layout in plan.work:
            rest.append(plan.empty(*layout))
        return rest

    def refused(self, error: Exception, plan: Plan, operands, rest, given) -> None:
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

    def without_keys(self, q, k, v, out, lse, *rest) -> None:
        """A launch where there is no key at all, or nothing to write: the output is zero, the log-sum-exp that of the sink alone, -inf
        without one."""
        out.zero_()
        if self.attention.reduction.sink is None or not lse.numel():
            lse.fill_(-torch.inf)
            return
        from attncc.interp.reference import reference

        names = (*self.tensor_names, *(s.name for s in self.attention.scalars))
        lse.copy_(reference(self.attention, q, k, v, dict(zip(names, rest)))[1])


def _getter(names: tuple[str, ...]) -> Callable[[Mapping[str, object]], tuple]:
    if not names:
        return lambda given: ()
    if len(names) == 1:
        return lambda given, name=names[0]: (given[name],)
    return itemgetter(*names)


def _any_grad(tensors) -> bool:
    for x in tensors:
        if x.requires_grad:
            return True
    return False


def _may_overlap(out, *inputs) -> bool:
    """Whether `out` lies in the memory of one of the inputs, or they are not all tensors."""
    try:
        memory = out.untyped_storage().data_ptr()
        for x in inputs:
            if x.untyped_storage().data_ptr() == memory:
                return True
    except (AttributeError, RuntimeError, TypeError):
        return True
    return False


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
