"""Vectorised evaluation of scalar expressions over torch tensors.

One call evaluates an expression at every position of a broadcast grid: `env` maps each variable to a number or a tensor,
and the result has the broadcast shape of what it depends on. A node that several others share is computed once.

Integers are 32-bit and wrap; floats have the `dtype` asked for. Reading a tensor out of range, an integer division by zero
and a shift count outside 0..31 have no value. Such a position is an error only where its value is used: not where `valid`
is false, not behind `and` or `or` when the other operand settles the result, and not in the branch that a conditional
does not take. This is Kleene's three-valued logic, so the order of operands does not matter.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from attncc.diagnostics import AttnError, Diagnostic
from attncc.ir.expr import BOOL, INT, Expr, walk

INT_DTYPE = torch.int32
INT_LOW, INT_HIGH = -(2**31), 2**31 - 1
UNUSED = torch.tensor(False)
"""For `evaluate(valid=)`: no value is used, so nothing is reported and nothing is looked for."""


@dataclass(frozen=True)
class _Fault:
    """Positions of one node that have no value (`where`, a bool tensor), and what to say about them."""

    node: Expr
    where: torch.Tensor


def evaluate(
    expr: Expr,
    env: dict[str, object],
    tensors: dict[str, torch.Tensor],
    *,
    valid: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """The value of `expr`: int32, bool or `dtype`, in the broadcast shape of the variables it depends on.

    env      a number or a tensor for every variable; they broadcast against each other
    tensors  the tensor arguments; real ones are converted to `dtype` and keep their gradient history
    valid    bool tensor that broadcasts against the result: where it is false the value is not used and may be anything
    Raises AttnError (E321 index out of range, E322 integer division by zero, E323 shift count) naming the first offender.
    """
    machine = Evaluator(env, tensors, dtype, torch.device(device) if device is not None else device_of(env, tensors))
    value, poison = machine.run(expr, judged=valid is not UNUSED)
    if poison is not None:
        used = poison if valid is None else poison & valid
        if bool(used.any()):
            raise machine.error(used)
    return value


def device_of(env, tensors) -> torch.device:
    for item in (*env.values(), *tensors.values()):
        if isinstance(item, torch.Tensor):
            return item.device
    return torch.device("cpu")


class Evaluator:
    """The state of one evaluation: values and poisons of live nodes, and the faults seen so far."""

    def __init__(self, env, tensors, dtype, device):
        self.env, self.tensors, self.dtype, self.device = env, tensors, dtype, device
        self.faults: list[_Fault] = []
        self.values: dict[Expr, torch.Tensor] = {}
        self.poisons: dict[Expr, torch.Tensor | None] = {}
        self.indices: dict[Expr, tuple[torch.Tensor, ...]] = {}

    def run(self, root: Expr, judged: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The value of `root`, and where it has none if that is to be `judged`."""
        for node, done in _schedule(root):
            args = [self.values[a] for a in node.args]
            self.values[node] = self.value(node, args)
            if judged:
                self.poisons[node] = self.poison(node, args, [self.poisons[a] for a in node.args])
            for a in done:
                del self.values[a]
                self.poisons.pop(a, None)
        return self.values[root], self.poisons.get(root)

    def value(self, node: Expr, args: list[torch.Tensor]) -> torch.Tensor:
        if node.op == "const":
            return _number(node.value, self.torch_type(node.type), self.device)
        if node.op == "var":
            if node.value not in self.env:
                raise KeyError(f"no value for the variable `{node.value}`")
            return self.variable(self.env[node.value], node.type)
        if node.op == "load":
            return self.load(node, args)
        if node.op == "to_float":
            return args[0].to(self.dtype)
        return OPERATIONS[node.op](*args)

    def variable(self, value, type: str) -> torch.Tensor:
        """A number goes through the widest type, so that a Python float keeps its 53 bits and an int wraps."""
        if not isinstance(value, torch.Tensor):
            value = _number(value, {INT: torch.int64, BOOL: torch.bool}.get(type, torch.float64), self.device)
        return value.to(device=self.device, dtype=self.torch_type(type))

    def torch_type(self, type: str) -> torch.dtype:
        return BOOL_DTYPE if type == BOOL else INT_DTYPE if type == INT else self.dtype

    def load(self, node: Expr, indices: list[torch.Tensor]) -> torch.Tensor:
        tensor = self.tensors[node.value]
        if tensor.dim() != len(indices):
            raise AttnError(
                Diagnostic(
                    "E312",
                    f"tensor `{node.value}` has {tensor.dim()} dimension(s), but is indexed with {len(indices)}",
                    argument=node.value,
                )
            )
        self.indices[node] = tuple(indices)
        if tensor.numel() == 0:
            shape = torch.broadcast_shapes(*(i.shape for i in indices)) if indices else ()
            return torch.zeros(shape, dtype=self.torch_type(node.type), device=self.device)
        inside = tuple(i.long().clamp(0, n - 1) for i, n in zip(indices, tensor.shape))
        return tensor[inside].to(self.torch_type(node.type))

    def poison(self, node: Expr, args, poisons) -> torch.Tensor | None:
        """Where `node` has no value; None for nowhere."""
        here = self.fault(node, args)
        if here is not None:
            self.faults.append(_Fault(node, here))
        if all(p is None for p in poisons):
            return here
        if node.op in ("and", "or"):
            below = _kleene(node.op, args, poisons)
        elif node.op == "select":
            below = _union(poisons[0], torch.where(args[0], *(_full(p, args[0]) for p in poisons[1:])))
        else:
            below = _union(*poisons)
        return _union(here, below)

    def fault(self, node: Expr, args) -> torch.Tensor | None:
        """Where `node` itself fails, whatever its arguments; None for nowhere."""
        if node.op == "load":
            shape = self.tensors[node.value].shape
            where = _union(*((i < 0) | (i >= n) for i, n in zip(args, shape)))
        elif node.op in ("floordiv", "mod"):
            where = args[1] == 0
        elif node.op in ("shl", "shr"):
            where = (args[1] < 0) | (args[1] > 31)
        else:
            return None
        return where if where is not None and bool(where.any()) else None

    def error(self, used: torch.Tensor) -> AttnError:
        """The diagnostic for the first fault that reaches a position where `used` holds."""
        for fault in self.faults:
            hit = fault.where & used
            if bool(hit.any()):
                return AttnError(self.describe(fault.node, torch.nonzero(hit)[0]))
        raise AssertionError("a poisoned value has no fault")

    def describe(self, node: Expr, position: torch.Tensor) -> Diagnostic:
        if node.op != "load":
            what = {"shl": "a shift count outside 0..31", "shr": "a shift count outside 0..31"}
            code = "E323" if node.op in what else "E322"
            message = f"{what.get(node.op, 'integer division by zero')}, at a position that is not masked"
            return Diagnostic(code, message, notes=(f"in `{node!r}`",), hint="mask the position, or guard it with a conditional")
        tensor = self.tensors[node.value]
        indices = [_at(i, position) for i in self.indices[node]]
        axis, index, extent = next((a, i, n) for a, (i, n) in enumerate(zip(indices, tensor.shape)) if not 0 <= i < n)
        return Diagnostic(
            "E321",
            f"tensor `{node.value}` is read out of range: index {index} in dimension {axis}, which has extent {extent}",
            argument=node.value,
            notes=(f"in `{node!r}` the index is [{', '.join(map(str, indices))}], the shape is {tuple(tensor.shape)}",),
            hint="mask the position, clamp the index with min and max, or pass a larger tensor",
        )


BOOL_DTYPE = torch.bool


@functools.lru_cache(maxsize=1024)
def _schedule(root: Expr) -> tuple[tuple[Expr, tuple[Expr, ...]], ...]:
    """Every node in the order of evaluation, with the arguments that nothing needs afterwards."""
    order = tuple(walk(root))
    last_use = {a: i for i, node in enumerate(order) for a in node.args}
    return tuple((node, tuple(a for a in dict.fromkeys(node.args) if last_use[a] == i)) for i, node in enumerate(order))


def _number(value, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of one number; nothing writes into a value, so one serves all who ask for it."""
    return _one_number(value, math.copysign(1.0, value), dtype, device)


@functools.lru_cache(maxsize=4096)
def _one_number(value, sign: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`sign` keeps 0.0 and -0.0 apart; what a caller under inference_mode asks for first may be differentiated by the next."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device=device)


def _at(value: torch.Tensor, position: torch.Tensor) -> int:
    """The element of `value` at `position` of the grid it broadcasts to."""
    lead = len(position) - value.dim()
    return int(value[tuple(int(p) if n > 1 else 0 for p, n in zip(position[lead:], value.shape))])


def _full(poison: torch.Tensor | None, beside: torch.Tensor) -> torch.Tensor:
    return torch.tensor(False, device=beside.device) if poison is None else poison


def _union(*poisons: torch.Tensor | None) -> torch.Tensor | None:
    out = None
    for p in poisons:
        out = p if out is None else out if p is None else out | p
    return out


def _kleene(op: str, args, poisons) -> torch.Tensor:
    """`and` is settled by a clean false operand, `or` by a clean true one."""
    settled = [(a if op == "or" else ~a) & ~_full(p, a) for a, p in zip(args, poisons)]
    return _union(*poisons) & ~(settled[0] | settled[1])


class _Singular(torch.autograd.Function):
    """An elementwise function that keeps a zero gradient zero.

    A masked position may hold inf or NaN, and its gradient is 0; multiplied by an infinite derivative it would be NaN.
    """

    @staticmethod
    def forward(ctx, function, derivative, *args):
        ctx.derivative = derivative
        ctx.save_for_backward(*args)
        return function(*args)

    @staticmethod
    def backward(ctx, gradient):
        args = ctx.saved_tensors
        zero = torch.zeros((), dtype=gradient.dtype, device=gradient.device)
        grads = (torch.where(gradient == 0, zero, gradient * d) for d in ctx.derivative(*args))
        return (None, None, *(_reduce_to(g, a.shape) for g, a in zip(grads, args)))


def _reduce_to(gradient: torch.Tensor, shape) -> torch.Tensor:
    """Sum over the dimensions that broadcasting added."""
    gradient = gradient.sum(dim=tuple(range(gradient.dim() - len(shape)))) if gradient.dim() > len(shape) else gradient
    extra = tuple(i for i, (g, n) in enumerate(zip(gradient.shape, shape)) if n == 1 and g != 1)
    return gradient.sum(dim=extra, keepdim=True) if extra else gradient


def _singular(function, derivative):
    def call(*args):
        if torch.is_grad_enabled() and any(a.requires_grad for a in args):
            return _Singular.apply(function, derivative, *args)
        return function(*args)

    return call


def _floor_divide(a, b):
    return torch.div(a, torch.where(b == 0, torch.ones_like(b), b), rounding_mode="floor")


def _modulo(a, b):
    return torch.remainder(a, torch.where(b == 0, torch.ones_like(b), b))


def _to_int(a):
    return torch.floor(torch.nan_to_num(a, nan=0.0)).clamp(INT_LOW, INT_HIGH).to(torch.int64).to(INT_DTYPE)


def _pow_derivative(a, b):
    return b * torch.pow(a, b - 1), torch.pow(a, b) * torch.log(a)


def _number_of_two(ints, floats):
    """A minimum or maximum: of a number and NaN, the number."""
    return lambda a, b: floats(a, b) if a.is_floating_point() else ints(a, b)


LN2 = math.log(2.0)

OPERATIONS = {
    "select": torch.where,
    "or": torch.logical_or,
    "and": torch.logical_and,
    "not": torch.logical_not,
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "bitor": torch.bitwise_or,
    "bitxor": torch.bitwise_xor,
    "bitand": torch.bitwise_and,
    "shl": lambda a, b: torch.bitwise_left_shift(a, b.clamp(0, 31)),
    "shr": lambda a, b: torch.bitwise_right_shift(a, b.clamp(0, 31)),
    "add": torch.add,
    "sub": torch.sub,
    "mul": _singular(torch.mul, lambda a, b: (b, a)),
    "div": _singular(torch.div, lambda a, b: (1 / b, -a / (b * b))),
    "floordiv": _floor_divide,
    "mod": _modulo,
    "neg": torch.neg,
    "bitnot": torch.bitwise_not,
    "pow": _singular(torch.pow, _pow_derivative),
    "min": _number_of_two(torch.minimum, torch.fmin),
    "max": _number_of_two(torch.maximum, torch.fmax),
    "abs": _singular(torch.abs, lambda a: (torch.sign(a),)),
    "exp": _singular(torch.exp, lambda a: (torch.exp(a),)),
    "exp2": _singular(torch.exp2, lambda a: (torch.exp2(a) * LN2,)),
    "log": _singular(torch.log, lambda a: (1 / a,)),
    "log2": _singular(torch.log2, lambda a: (1 / (a * LN2),)),
    "sqrt": _singular(torch.sqrt, lambda a: (0.5 / torch.sqrt(a),)),
    "tanh": _singular(torch.tanh, lambda a: (1 - torch.tanh(a) ** 2,)),
    "sigmoid": _singular(torch.sigmoid, lambda a: (torch.sigmoid(a) * (1 - torch.sigmoid(a)),)),
    "erf": _singular(torch.erf, lambda a: (torch.exp(-a * a) * (2 / math.sqrt(math.pi)),)),
    "sin": _singular(torch.sin, lambda a: (torch.cos(a),)),
    "cos": _singular(torch.cos, lambda a: (-torch.sin(a),)),
    "to_int": _to_int,
}
"""Every operator of `attncc.ir.expr.OPS` except `to_float`, which depends on the float type in use."""
