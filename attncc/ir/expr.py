"""Scalar expressions: the one expression language of L1, L2 and L3.

An expression is an interned, immutable node: two structurally equal expressions are the same object, so equality and
hashing are O(1) and a traversal with a memo visits a shared sub-expression once.

Types are `int` (32-bit signed), `float` (computed in float32 on the GPU, float64 in the reference) and `bool`.

Leaves
    const   a literal; `value` holds it
    var     a name: an index (`b h hkv q_idx kv_idx`), a size (`batch seq_q seq_kv off`), a run-time scalar, the raw
            dot product `qk`, or a name bound by a `let` of L2/L3
    load    an element of a declared tensor; `value` is the tensor's name, `args` its indices
Every other node applies an operator of `OPS` to its arguments.

`//` and `%` floor, as in Python; `/` is real division; a shift count is in 0..31.
"""

from __future__ import annotations

import functools
import math
import weakref
from dataclasses import dataclass
from collections.abc import Callable, Iterator

INT, FLOAT, BOOL = "int", "float", "bool"
TYPES = (INT, FLOAT, BOOL)


@dataclass(frozen=True)
class Op:
    """One operator: its arity, the types it takes and gives, and how it is written.

    `takes` is "number" (all int or all float, result the same), "int", "float", "bool", "compare" (two numbers of one
    type, or two bools for eq/ne; result bool) or "select" (bool, x, x; result x's type).
    `symbol` is the infix or prefix spelling, None for a call; `precedence` orders infix spellings, higher binds tighter.
    """

    name: str
    arity: int
    takes: str
    symbol: str | None = None
    precedence: int = 0
    evaluate: Callable | None = None


def _floordiv(a, b):
    return a // b


OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op("select", 3, "select", evaluate=lambda c, a, b: a if c else b),
        Op("or", 2, "bool", "or", 2, lambda a, b: a or b),
        Op("and", 2, "bool", "and", 3, lambda a, b: a and b),
        Op("not", 1, "bool", "not", 4, lambda a: not a),
        Op("eq", 2, "compare", "==", 5, lambda a, b: a == b),
        Op("ne", 2, "compare", "!=", 5, lambda a, b: a != b),
        Op("lt", 2, "compare", "<", 5, lambda a, b: a < b),
        Op("le", 2, "compare", "<=", 5, lambda a, b: a <= b),
        Op("gt", 2, "compare", ">", 5, lambda a, b: a > b),
        Op("ge", 2, "compare", ">=", 5, lambda a, b: a >= b),
        Op("bitor", 2, "int", "|", 6, lambda a, b: a | b),
        Op("bitxor", 2, "int", "^", 7, lambda a, b: a ^ b),
        Op("bitand", 2, "int", "&", 8, lambda a, b: a & b),
        Op("shl", 2, "int", "<<", 9, lambda a, b: a << b),
        Op("shr", 2, "int", ">>", 9, lambda a, b: a >> b),
        Op("add", 2, "number", "+", 10, lambda a, b: a + b),
        Op("sub", 2, "number", "-", 10, lambda a, b: a - b),
        Op("mul", 2, "number", "*", 11, lambda a, b: a * b),
        Op("div", 2, "float", "/", 11, lambda a, b: a / b),
        Op("floordiv", 2, "int", "//", 11, _floordiv),
        Op("mod", 2, "int", "%", 11, lambda a, b: a % b),
        Op("neg", 1, "number", "-", 12, lambda a: -a),
        Op("bitnot", 1, "int", "~", 12, lambda a: ~a),
        Op("pow", 2, "float", evaluate=lambda a, b: a**b),
        Op("min", 2, "number", evaluate=min),
        Op("max", 2, "number", evaluate=max),
        Op("abs", 1, "number", evaluate=abs),
        Op("exp", 1, "float", evaluate=math.exp),
        Op("exp2", 1, "float", evaluate=lambda a: 2.0**a),
        Op("log", 1, "float", evaluate=math.log),
        Op("log2", 1, "float", evaluate=math.log2),
        Op("sqrt", 1, "float", evaluate=math.sqrt),
        Op("tanh", 1, "float", evaluate=math.tanh),
        Op("sigmoid", 1, "float", evaluate=lambda a: 1.0 / (1.0 + math.exp(-a))),
        Op("erf", 1, "float", evaluate=math.erf),
        Op("sin", 1, "float", evaluate=math.sin),
        Op("cos", 1, "float", evaluate=math.cos),
        Op("to_float", 1, "int->float", evaluate=float),
        Op("to_int", 1, "float->int", evaluate=math.floor),
    )
}
"""`to_int` rounds toward minus infinity, like `//`."""

COMMUTATIVE = frozenset({"and", "or", "eq", "ne", "bitor", "bitxor", "bitand", "add", "mul", "min", "max"})


class Expr:
    """An interned expression node. Build it with `const`, `var`, `load` and `apply`, never directly."""

    __slots__ = ("op", "args", "value", "type", "__weakref__")
    _table: weakref.WeakValueDictionary[tuple, Expr] = weakref.WeakValueDictionary()

    op: str
    args: tuple[Expr, ...]
    value: object
    type: str

    def __new__(cls, op: str, args: tuple[Expr, ...], value: object, type: str) -> Expr:
        key = (op, tuple(map(id, args)), type, repr(value))
        node = cls._table.get(key)
        if node is None:
            node = object.__new__(cls)
            for name, item in (("op", op), ("args", args), ("value", value), ("type", type)):
                object.__setattr__(node, name, item)
            cls._table[key] = node
        return node

    def __setattr__(self, name, value):
        raise AttributeError("expressions are immutable")

    def __reduce__(self):
        return (Expr, (self.op, self.args, self.value, self.type))

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __repr__(self) -> str:
        from attncc.ir.text import format_expr

        return format_expr(self)

    def __bool__(self):
        raise TypeError("an expression has no truth value; compare with `is`, or use apply('and', ...)")


class ExprTypeError(TypeError):
    """An operator was given argument types it does not take. The message names both."""


def const(value) -> Expr:
    """A literal; bool, int and float map to the three types."""
    if isinstance(value, bool):
        return Expr("const", (), value, BOOL)
    if isinstance(value, int):
        return Expr("const", (), value, INT)
    return Expr("const", (), float(value), FLOAT)


def var(name: str, type: str = INT) -> Expr:
    return Expr("var", (), name, type)


def load(tensor: str, indices: tuple[Expr, ...], type: str) -> Expr:
    """An element of `tensor`; `type` is the expression type of its storage format."""
    return Expr("load", tuple(indices), tensor, type)


TRUE, FALSE, ZERO, ONE = const(True), const(False), const(0), const(1)


def as_expr(value) -> Expr:
    return value if isinstance(value, Expr) else const(value)


def as_float(value) -> Expr:
    """`value` as a float expression; an int is converted (a literal at once)."""
    value = as_expr(value)
    if value.type == INT:
        return const(float(value.value)) if value.op == "const" else Expr("to_float", (value,), None, FLOAT)
    return value


def result_type(name: str, types: tuple[str, ...]) -> str:
    """The type of `OPS[name]` applied to arguments of `types`; ExprTypeError when it does not take them."""
    op = OPS[name]
    if len(types) != op.arity:
        raise ExprTypeError(f"{name} takes {op.arity} argument(s), got {len(types)}")
    if op.takes == "number":
        ok, out = types[0] in (INT, FLOAT) and len(set(types)) == 1, types[0]
    elif op.takes == "compare":
        ok = len(set(types)) == 1 and (types[0] != BOOL or name in ("eq", "ne"))
        out = BOOL
    elif op.takes == "select":
        ok, out = types[0] == BOOL and types[1] == types[2], types[1]
    elif "->" in op.takes:
        source, out = op.takes.split("->")
        ok = types == (source,)
    else:
        ok, out = all(t == op.takes for t in types), op.takes
    if not ok:
        raise ExprTypeError(f"{name} does not take ({', '.join(types)})")
    return out


def promote(name: str, args: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """`args` with the int ones made float where the operator needs it or another argument is float."""
    takes = OPS[name].takes
    kinds = {a.type for a in (args[1:] if takes == "select" else args)}
    if takes in ("float",) or (takes in ("number", "compare", "select") and kinds == {INT, FLOAT}):
        return tuple(as_float(a) if a.type == INT else a for a in args)
    return args


def apply(name: str, *args) -> Expr:
    """`OPS[name]` applied to `args` (expressions or Python literals), ints promoted to float where they meet floats."""
    operands = promote(name, tuple(as_expr(a) for a in args))
    return Expr(name, operands, None, result_type(name, tuple(a.type for a in operands)))


def add(a, b) -> Expr:
    return apply("add", a, b)


def sub(a, b) -> Expr:
    return apply("sub", a, b)


def mul(a, b) -> Expr:
    return apply("mul", a, b)


def floordiv(a, b) -> Expr:
    return apply("floordiv", a, b)


def minimum(a, b) -> Expr:
    return apply("min", a, b)


def maximum(a, b) -> Expr:
    return apply("max", a, b)


def select(condition, a, b) -> Expr:
    return apply("select", condition, a, b)


def all_of(*conditions: Expr) -> Expr:
    """The conjunction; `true` when there is none."""
    out = TRUE
    for condition in conditions:
        out = condition if out is TRUE else apply("and", out, condition)
    return out


def any_of(*conditions: Expr) -> Expr:
    """The disjunction; `false` when there is none."""
    out = FALSE
    for condition in conditions:
        out = condition if out is FALSE else apply("or", out, condition)
    return out


def rebuild(node: Expr, args: tuple[Expr, ...]) -> Expr:
    """The same operator over new arguments of the same types."""
    return node if args == node.args else Expr(node.op, args, node.value, node.type)


def walk(root: Expr) -> Iterator[Expr]:
    """Every distinct node below `root`, arguments before the nodes that use them, `root` last."""
    return iter(_order(root))


@functools.lru_cache(maxsize=1024)
def _order(root: Expr) -> tuple[Expr, ...]:
    """The interpreters and passes go through the same few expressions again and again."""
    order: list[Expr] = []
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend([(a, False) for a in reversed(node.args)])
    return tuple(order)


def transform(root: Expr, rule: Callable[[Expr], Expr]) -> Expr:
    """Bottom-up rewrite: `rule` sees each node with its arguments already rewritten."""
    done: dict[Expr, Expr] = {}
    for node in walk(root):
        done[node] = rule(rebuild(node, tuple(done[a] for a in node.args)))
    return done[root]


def substitute(root: Expr, bindings: dict[str, Expr]) -> Expr:
    """`root` with every variable named in `bindings` replaced."""
    return transform(root, lambda n: bindings.get(n.value, n) if n.op == "var" else n)


def variables(root: Expr) -> frozenset[str]:
    """Names of the variables that occur in `root` (inside tensor indices too)."""
    return frozenset(n.value for n in walk(root) if n.op == "var")


def tensors(root: Expr) -> frozenset[str]:
    """Names of the tensors read by `root`."""
    return frozenset(n.value for n in walk(root) if n.op == "load")


def conjuncts(root: Expr) -> tuple[Expr, ...]:
    """The operands of a nest of `and`, left to right; () for `true`."""
    if root.op == "and":
        return conjuncts(root.args[0]) + conjuncts(root.args[1])
    return () if root is TRUE else (root,)
