"""Prints expressions as CuTe-DSL Python source: the only place where expression text of a generated file is made.

`to_statements` gives a list of assignments in dependence order (a sub-expression that is used twice is computed
once) and one
source text for each result. Every node is a call of `attncc.device.arith` (imported as `arith`) or an operator on
Int32, Float32
and Boolean values.

No name, number or string of a spec reaches the file as it stands. Names go through `Names`: the built-in variables
print as
themselves, any other name gets a prefix and only ASCII letters, digits and `_`, injectively. Numbers are printed
from their value.

Numeric meaning on the GPU: integers wrap at 32 bits, floats are float32. `select`, `and` and `or` evaluate all their
operands, so
tensor indices must be in range whatever a guard says; a pass sees to that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from attncc.ir.attention import INDEX_VARIABLES, RAW_SCORE, SIZE_VARIABLES, Attention
from attncc.ir.expr import BOOL, FLOAT, INT, OPS, Expr, apply, const, transform, variables, walk
from attncc.ir.packing import FIRST_KV, FIRST_Q, GRID_TILES, fixed_extents
from attncc.ir.schedule import BLOCK_VARIABLES, PAIR_VARIABLE
from attncc.ir.tile import TILE_COUNT, TILE_LIST, TILE_VARIABLES, extent_name

BUILTIN_VARIABLES = frozenset((*INDEX_VARIABLES, *SIZE_VARIABLES, *TILE_VARIABLES, *BLOCK_VARIABLES, PAIR_VARIABLE, RAW_SCORE))
TENSOR_PREFIX, SCALAR_PREFIX, LOCAL_PREFIX = "t_", "p_", "x_"
LONGEST_TEXT = 80
"""A sub-expression longer than this gets a statement of its own."""

_ATOM, _UNARY, _PRODUCT, _SUM, _SHIFT, _AND, _XOR, _OR, _COMPARE = 20, 12, 11, 10, 9, 8, 7, 6, 5
_INFIX = {
    "add": ("+", _SUM), "sub": ("-", _SUM), "mul": ("*", _PRODUCT),
    "bitor": ("|", _OR), "bitxor": ("^", _XOR), "bitand": ("&", _AND), "or": ("|", _OR), "and": ("&", _AND),
    "shl": ("<<", _SHIFT), "shr": (">>", _SHIFT),
    "eq": ("==", _COMPARE), "ne": ("!=", _COMPARE), "lt": ("<", _COMPARE),
    "le": ("<=", _COMPARE), "gt": (">", _COMPARE), "ge": (">=", _COMPARE),
}  # fmt: skip
_CALLS = {
    "select": "select", "not": "logical_not", "floordiv": "floordiv", "mod": "floormod", "div": "divide",
    "pow": "power",
    "exp": "exp", "exp2": "exp2", "log": "log", "log2": "log2", "sqrt": "sqrt", "tanh": "tanh", "sigmoid": "sigmoid",
    "erf": "erf", "sin": "sin", "cos": "cos", "to_float": "to_float", "to_int": "to_int",
}  # fmt: skip
_BY_TYPE = {
    "min": {INT: "imin", FLOAT: "fmin"},
    "max": {INT: "imax", FLOAT: "fmax"},
    "abs": {INT: "iabs", FLOAT: "fabs"},
}
_LOADS = {INT: "load_int", FLOAT: "load_float", BOOL: "load_bool"}


@dataclass(frozen=True)
class Names:
    """How the names of a spec appear in a generated file.

    `scalars` maps a run-time scalar's name to its type; `tensors` holds the names that may be loaded. `variables`
    overrides the text of
    a variable (an atom: a name, a literal, a subscript or a call). `temporary` starts the names of the statements'
    results. `precise` chooses the slower functions that fp16 operands need (tanh). `extents` holds the texts of the
    variables for extents
    that declarations leave open.
    """

    scalars: Mapping[str, str] = field(default_factory=dict)
    tensors: frozenset[str] = frozenset()
    variables: Mapping[str, str] = field(default_factory=dict)
    temporary: str = "e"
    precise: bool = False
    extents: Mapping[str, str] = field(default_factory=dict)

    def variable(self, name: str, type: str) -> str:
        """The text of variable `name`; a Boolean run-time scalar is stored as an Int32."""
        if name in self.variables:
            return self.variables[name]
        if name in self.extents:
            return self.extents[name]
        if name in self.scalars:
            text = SCALAR_PREFIX + identifier(name)
            return f"({text} != 0)" if type == BOOL else text
        return name if name in BUILTIN_VARIABLES else local_name(name)

    def tensor(self, name: str) -> str:
        """The text of tensor argument `name`; KeyError for a name that was not declared."""
        if name not in self.tensors:
            raise KeyError(f"tensor {name!r} is not an argument")
        return tensor_name(name)


def names_of(attention: Attention) -> Names:
    """The names of a kernel for `attention`; fp16 gets the precise functions."""
    open_extents = [
        (t.name, axis)
        for t in attention.tensors
        for axis, extent in enumerate(fixed_extents(attention, t.name))
        if extent is None
    ]
    return Names(
        variables={FIRST_Q: "first_q", FIRST_KV: "first_kv", GRID_TILES: "grid_tiles"},
        extents={extent_name(t, axis): f"Int32({tensor_name(t)}.shape[{axis}])" for t, axis in open_extents},
        scalars={s.name: s.type for s in attention.scalars},
        tensors=frozenset(t.name for t in attention.tensors) | {TILE_COUNT, TILE_LIST},
        precise=attention.dtype == "f16",
    )


def identifier(name: str) -> str:
    """`name` itself if it is an ASCII identifier, else its UTF-8 bytes in hex after a 0 (so that no two names meet)."""
    plain = name.isascii() and name.isidentifier()
    return name if plain else "0" + name.encode("utf-8", "surrogatepass").hex()


def tensor_name(name: str) -> str:
    return TENSOR_PREFIX + identifier(name)


def scalar_name(name: str) -> str:
    return SCALAR_PREFIX + identifier(name)


def local_name(name: str) -> str:
    """The name of a Let, RowLet, ColLet or loop counter."""
    return LOCAL_PREFIX + identifier(name)


def literal(value: object) -> str:
    """A bool, int (wrapped to 32 bits) or float as source."""
    if isinstance(value, bool):
        return f"Boolean({value})"
    if isinstance(value, int):
        return repr(wrap(value))
    if math.isnan(value):
        return "arith.NAN"
    if math.isinf(value):
        return "arith.INF" if value > 0 else "-arith.INF"
    return repr(float(value))


def wrap(value: int) -> int:
    """`value` as a 32-bit signed integer."""
    return (int(value) + 2**31) % 2**32 - 2**31


def to_source(expr: Expr, names: Names) -> str:
    """`expr` as one Python expression (shared sub-expressions are repeated: for small index expressions)."""
    done: dict[Expr, tuple[str, int]] = {}
    root = fold(expr)
    exact = _exact_divisions(root)
    for node in walk(root):
        done[node] = _print_node(node, [done[a] for a in node.args], names, exact)
    return done[root][0]


def to_statements(exprs: tuple[Expr, ...], names: Names) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Assignments in dependence order, and the text of each of `exprs` in terms of them."""
    roots = tuple(fold(e) for e in exprs)
    nodes = tuple(dict.fromkeys(n for root in roots for n in walk(root)))
    uses, exact = _count_uses(roots, nodes), _exact_divisions(*roots)
    lines: list[str] = []
    done: dict[Expr, tuple[str, int]] = {}
    for node in nodes:
        text, rank = _print_node(node, [done[a] for a in node.args], names, exact)
        if node.op not in ("const", "var") and (uses[node] > 1 or len(text) > LONGEST_TEXT):
            name = f"{names.temporary}{len(lines)}"
            lines.append(f"{name} = {text}")
            text, rank = name, _ATOM
        done[node] = text, rank
    return tuple(lines), tuple(done[root][0] for root in roots)


def _count_uses(roots: tuple[Expr, ...], nodes: tuple[Expr, ...]) -> Counter[Expr]:
    """How often each node is an argument of a distinct node, or a result."""
    return Counter((*roots, *(a for node in nodes for a in node.args)))


def _exact_divisions(*roots: Expr) -> frozenset[Expr]:
    """Divisions on whose last bit a decision may hang: those below a comparison of floats or a rounding to int, and those of an
    int that is computed for a row or a column (its comparison may stand in another statement). 41.0 times the reciprocal of
    41.0 is less than 1.0 in float32, so floor(41.0 / 41.0) would be 0."""
    waiting = [
        a for root in roots for node in walk(root) if node.op in ("to_int", *_ORDERS) for a in node.args if a.type == FLOAT
    ]
    below: set[Expr] = set()
    while waiting:
        node = waiting.pop()
        if node not in below:
            below.add(node)
            waiting += [a for a in node.args if a.type == FLOAT]
    divisions = [node for root in roots for node in walk(root) if node.op == "div"]
    return frozenset(node for node in divisions if node in below or _of_a_line(node.args[0]))


def _of_a_line(expr: Expr) -> bool:
    """Whether it is an int made float that does not depend on both positions."""
    return expr.op == "to_float" and not {"q_idx", "kv_idx"} <= variables(expr)


_ORDERS = ("eq", "ne", "lt", "le", "gt", "ge")


def _print_node(
    node: Expr, args: list[tuple[str, int]], names: Names, exact: frozenset[Expr] = frozenset()
) -> tuple[str, int]:
    """The text of `node` over the (text, precedence) of its arguments, and its own precedence."""
    if node.op == "const":
        text = literal(node.value)
        return text, _UNARY if text.startswith("-") else _ATOM
    if node.op == "var":
        return names.variable(node.value, node.type), _ATOM
    if node.op == "load":
        index = "".join(f"{text}, " for text, _ in args) or "0, "
        return f"arith.{_LOADS[node.type]}({names.tensor(node.value)}, ({index.strip()}))", _ATOM
    if node in exact:
        return f"arith.divide_exactly({args[0][0]}, {args[1][0]})", _ATOM
    special = _SPECIAL.get(node.op)
    found = special(node, args) if special else None
    return found or _print_operator(node, args, names)


def _print_operator(node: Expr, args: list[tuple[str, int]], names: Names) -> tuple[str, int]:
    if node.op in _INFIX:
        symbol, rank = _INFIX[node.op]
        # a comparison of a comparison would chain; the right operand of a non-associative operator keeps its
        # parentheses
        left = _operand(args[0], rank + 1 if rank == _COMPARE else rank)
        return f"{left} {symbol} {_operand(args[1], rank + 1)}", rank
    if node.op in ("neg", "bitnot"):
        return ("-" if node.op == "neg" else "~") + _operand(args[0], _UNARY + 1), _UNARY
    name = _BY_TYPE[node.op][node.type] if node.op in _BY_TYPE else _CALLS[node.op]
    if node.op == "tanh" and names.precise:
        name = "tanh_precise"
    return f"arith.{name}({', '.join(text for text, _ in args)})", _ATOM


def _operand(printed: tuple[str, int], rank: int) -> str:
    text, own = printed
    return text if own >= rank else f"({text})"


def _print_division(node: Expr, args: list[tuple[str, int]]) -> tuple[str, int] | None:
    """Division by a literal is a multiplication by its reciprocal."""
    divisor = node.args[1]
    if divisor.op != "const" or divisor.value == 0.0 or not math.isfinite(1.0 / divisor.value):
        return None
    return f"{_operand(args[0], _PRODUCT)} * {_operand((literal(1.0 / divisor.value), _ATOM), _ATOM)}", _PRODUCT


def _print_floordiv(node: Expr, args: list[tuple[str, int]]) -> tuple[str, int] | None:
    """A power of two is a shift."""
    divisor = node.args[1]
    if divisor.op != "const" or not _is_power_of_two(divisor.value):
        return None
    return f"{_operand(args[0], _SHIFT)} >> {wrap(divisor.value).bit_length() - 1}", _SHIFT


def _print_mod(node: Expr, args: list[tuple[str, int]]) -> tuple[str, int] | None:
    """A power of two is a mask of bits."""
    divisor = node.args[1]
    if divisor.op != "const" or not _is_power_of_two(divisor.value):
        return None
    return f"{_operand(args[0], _AND)} & {wrap(divisor.value) - 1}", _AND


def _print_pow(node: Expr, args: list[tuple[str, int]]) -> tuple[str, int] | None:
    """Small literal powers are products; a half is a square root."""
    exponent = node.args[1]
    if exponent.op != "const":
        return None
    if exponent.value == 0.5:
        return f"arith.sqrt({args[0][0]})", _ATOM
    if exponent.value == math.floor(exponent.value) and abs(exponent.value) <= _LARGEST_UNROLLED_POWER:
        return f"arith.powi({args[0][0]}, {int(exponent.value)})", _ATOM
    return None


_LARGEST_UNROLLED_POWER = 16
_SPECIAL = {"div": _print_division, "floordiv": _print_floordiv, "mod": _print_mod, "pow": _print_pow}


def _is_power_of_two(value: int) -> bool:
    value = wrap(value)
    return value > 0 and value & (value - 1) == 0


def fold(root: Expr) -> Expr:
    """`root` with operators on literals evaluated (32-bit wrapped), and literals removed from `and`, `or`, `not`,
    `select`, `==`, `!=`."""
    return transform(root, _fold_node)


def _fold_node(node: Expr) -> Expr:
    if node.op == "const":
        return const(wrap(node.value)) if node.type == INT else node
    if node.op in ("var", "load") or not node.args:
        return node
    if all(a.op == "const" for a in node.args):
        return _evaluate(node)
    if node.op == "select" and node.args[0].op == "const":
        return node.args[1] if node.args[0].value else node.args[2]
    return _fold_boolean(node) if node.op in ("and", "or", "eq", "ne") and node.args[0].type == BOOL else node


def _fold_boolean(node: Expr) -> Expr:
    """A Boolean operator with one literal operand is the other operand, its negation, or the literal."""
    known = next((a for a in node.args if a.op == "const"), None)
    if known is None:
        return node
    other = node.args[1] if node.args[0] is known else node.args[0]
    if node.op in ("and", "or"):
        return other if known.value == (node.op == "and") else known
    return other if known.value == (node.op == "eq") else apply("not", other)


def _evaluate(node: Expr) -> Expr:
    """The literal that an operator on literals gives; an undefined float result is NaN, an undefined int one 0."""
    try:
        value = OPS[node.op].evaluate(*(a.value for a in node.args))
    except OverflowError:
        value = math.inf if node.type == FLOAT else 0
    except (ValueError, ArithmeticError):
        value = math.nan if node.type == FLOAT else 0
    if isinstance(value, complex):
        value = math.nan
    if node.type == INT:
        return const(wrap(value))
    return const(bool(value)) if node.type == BOOL else const(float(value))
