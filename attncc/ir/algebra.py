"""Integer algebra over expressions: linear forms, proofs of `a <= b`, and constructors that fold what is known.

Everything here reads an expression as a number without a word size: index arithmetic is taken not to overflow. That
holds for sequence lengths up to 2**29; `Algebra.trusted` says whether an expression also keeps inside 32 bits for
positions up to 2**20 (2**15 where intervals bound it), and analyses leave alone what does not (a hash of an index, for
example).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from attncc.ir.expr import (
    BOOL,
    FALSE,
    INT,
    TRUE,
    ZERO,
    Expr,
    apply,
    const,
    floordiv,
    select,
    substitute,
    transform,
    var,
    walk,
)  # fmt: skip

INT_LOW, INT_HIGH = -(2**31), 2**31 - 1
TYPICAL_LENGTH = 2**20
SHORT_LENGTH = 2**15
"""Products of two positions stay inside 32 bits up to this length."""
_DEPTH = 14


@dataclass(frozen=True)
class Linear:
    """sum of coefficient * term, plus a constant; the terms are int expressions that are no sums themselves."""

    terms: tuple[tuple[Expr, int], ...]
    constant: int

    def plus(self, other: Linear, factor: int = 1) -> Linear:
        """self + factor * other."""
        out = dict(self.terms)
        for term, k in other.terms:
            out[term] = out.get(term, 0) + factor * k
        return Linear(tuple((t, k) for t, k in out.items() if k), self.constant + factor * other.constant)

    def times(self, factor: int) -> Linear:
        return Linear((), 0).plus(self, factor)

    def without(self, term: Expr) -> Linear:
        return Linear(tuple((t, k) for t, k in self.terms if t is not term), self.constant)

    def coefficient(self, term: Expr) -> int:
        return next((k for t, k in self.terms if t is term), 0)


def number(value: int) -> Linear:
    return Linear((), value)


@functools.lru_cache(maxsize=1 << 16)
def linear(expr: Expr) -> Linear:
    """The linear form of an int expression. Shifts and low-bit masks by constants become products, `//` and `%`."""
    if expr.op == "const":
        return number(expr.value)
    if expr.op in ("add", "sub"):
        return linear(expr.args[0]).plus(linear(expr.args[1]), 1 if expr.op == "add" else -1)
    if expr.op == "neg":
        return linear(expr.args[0]).times(-1)
    if expr.op == "bitnot":
        return number(-1).plus(linear(expr.args[0]), -1)
    if expr.op == "mul":
        a, b = (linear(x) for x in expr.args)
        if not a.terms or not b.terms:
            return b.times(a.constant) if not a.terms else a.times(b.constant)
    return _power_of_two(expr) or Linear(((expr, 1),), 0)


def _power_of_two(expr: Expr) -> Linear | None:
    """Shifts by a constant, and `&` with low bits, in terms of `*`, `//` and `%`."""
    shift = _constant(expr, 1) if expr.op in ("shl", "shr") else None
    if shift is not None and 0 <= shift < 31:
        if expr.op == "shl":
            return linear(expr.args[0]).times(2**shift)
        return Linear(((floordiv(expr.args[0], 2**shift), 1),), 0)
    if expr.op == "bitand":
        for x, m in (expr.args, expr.args[::-1]):
            if m.op == "const" and m.value >= 0 and (m.value & (m.value + 1)) == 0:
                return Linear(((apply("mod", x, m.value + 1), 1),), 0)
    return None


def _constant(node: Expr, i: int) -> int | None:
    return node.args[i].value if node.args[i].op == "const" else None


def to_expr(form: Linear) -> Expr:
    """The expression of a linear form: positive terms, then negative ones, then the constant."""
    ordered = [tk for tk in form.terms if tk[1] > 0] + [tk for tk in form.terms if tk[1] < 0]
    out = None
    if form.constant > 0 and ordered and ordered[0][1] < 0:
        out = const(form.constant)
    for term, k in ordered:
        item = term if abs(k) == 1 else apply("mul", term, abs(k))
        if out is None:
            out = item if k > 0 else (apply("neg", item) if abs(k) == 1 else apply("mul", term, k))
        else:
            out = apply("add" if k > 0 else "sub", out, item)
    if out is None:
        return const(form.constant)
    if form.constant > 0 and ordered[0][1] > 0:
        out = apply("add", out, form.constant)
    elif form.constant < 0:
        out = apply("sub", out, -form.constant)
    return out


@dataclass(frozen=True)
class Facts:
    """What is known: numeric bounds of variables, of tensor elements, and what some variables are equal to.

    ranges   name -> (least, greatest), None where there is none
    tensors  tensor name -> (least, greatest) of its elements
    equal    name -> the expression it stands for; used in proofs only
    finite   names of real tensors and scalars that hold numbers: data without a promised range may hold NaN
    """

    ranges: dict[str, tuple[int | None, int | None]]
    tensors: dict[str, tuple[int | None, int | None]]
    equal: dict[str, Expr]
    finite: frozenset[str] = frozenset()


class Algebra:
    """Constructors and proofs under one set of facts."""

    def __init__(self, facts: Facts):
        self.facts = facts
        self._proved: dict[Linear, bool] = {}
        self._ranges: dict[Expr, tuple[int | None, int | None]] = {}
        self._expanded: dict[Expr, Expr] = {}
        self._trusted: dict[tuple[Expr, int], bool] = {}

    # ---- sums

    def sum(self, *items: tuple[Expr, int], constant: int = 0) -> Expr:
        form = number(constant)
        for expr, k in items:
            form = form.plus(linear(expr), k)
        return self._built(form)

    def _built(self, form: Linear) -> Expr:
        """The expression of a form; a constant added to one minimum or maximum moves into it."""
        if len(form.terms) == 1 and form.terms[0][0].op in ("min", "max") and abs(form.terms[0][1]) == 1:
            term, k = form.terms[0]
            if is_clamp(term):
                return to_expr(form)
            parts = [self.sum((x, k), constant=form.constant) for x in term.args]
            return self.minimum(*parts) if (term.op == "min") == (k > 0) else self.maximum(*parts)
        return to_expr(form)

    def add(self, a: Expr, b: Expr) -> Expr:
        return self.sum((a, 1), (b, 1))

    def sub(self, a: Expr, b: Expr) -> Expr:
        return self.sum((a, 1), (b, -1))

    def shift(self, a: Expr, by: int) -> Expr:
        return self.sum((a, 1), constant=by)

    def scale(self, a: Expr, by: int) -> Expr:
        return self.sum((a, by))

    # ---- division

    def floordiv(self, a: Expr, by: int) -> Expr:
        """a // by for by > 0, with whole multiples taken out and minima and maxima divided part by part."""
        form = linear(a)
        whole = Linear(tuple((t, k // by) for t, k in form.terms if k % by == 0), form.constant // by)
        rest = Linear(tuple((t, k) for t, k in form.terms if k % by), form.constant % by)
        if by == 1 or not rest.terms:
            return self._built(whole)
        return self._built(whole.plus(linear(self._divide(rest, by))))

    def _divide(self, rest: Linear, by: int) -> Expr:
        term, k = rest.terms[0]
        if len(rest.terms) == 1 and k == 1 and term.op in ("min", "max", "select") and not is_clamp(term):
            parts = [self.floordiv(self.shift(x, rest.constant), by) for x in term.args[-2:]]
            if term.op == "select":
                return self.select(term.args[0], *parts)
            return self.minimum(*parts) if term.op == "min" else self.maximum(*parts)
        if len(rest.terms) == 1 and k == 1 and term.op == "floordiv" and (_constant(term, 1) or 0) > 0:
            inner = _constant(term, 1)
            return self.floordiv(self.shift(term.args[0], rest.constant * inner), by * inner)
        low, high = self.form_range(rest)
        if low is not None and high is not None and low // by == high // by:
            return const(low // by)
        quotient = floordiv(to_expr(rest), by)
        return next((var(name) for name in COUNTS if self.facts.equal.get(name) is quotient), quotient)

    def ceildiv(self, a: Expr, by: int) -> Expr:
        return self.floordiv(self.shift(a, by - 1), by)

    def mod(self, a: Expr, by: int) -> Expr:
        """a % by for by > 0."""
        form = linear(a)
        rest = Linear(tuple((t, k % by) for t, k in form.terms if k % by), form.constant % by)
        if not rest.terms:
            return const(rest.constant)
        low, high = self.form_range(rest)
        if low is not None and high is not None and low // by == high // by:
            return to_expr(rest.plus(number(low // by * by), -1))
        return apply("mod", to_expr(rest), by)

    # ---- order

    def minimum(self, *items: Expr) -> Expr:
        return self._extreme("min", items)

    def maximum(self, *items: Expr) -> Expr:
        return self._extreme("max", items)

    def _extreme(self, op: str, items: tuple[Expr, ...]) -> Expr:
        flat: list[Expr] = []
        for item in items:
            flat += _operands(op, item)
        kept: list[Expr] = []
        for item in flat:
            if any(self._wins(op, k, item) for k in kept):
                continue
            kept = [k for k in kept if not self._wins(op, item, k)] + [item]
        out = kept[0]
        for item in kept[1:]:
            out = apply(op, out, item)
        return out

    def _wins(self, op: str, a: Expr, b: Expr) -> bool:
        return self.proves_le(a, b) if op == "min" else self.proves_le(b, a)

    def le(self, a: Expr, b: Expr) -> Expr:
        """a <= b, decided where it can be."""
        if self.proves_le(a, b):
            return TRUE
        if self.proves_le(self.shift(b, 1), a):
            return FALSE
        form = linear(b).plus(linear(a), -1)
        left = Linear(tuple((t, -k) for t, k in form.terms if k < 0), max(-form.constant, 0))
        right = Linear(tuple((t, k) for t, k in form.terms if k > 0), max(form.constant, 0))
        if left.constant == 1 and left.terms:  # spares an addition, and its overflow
            return apply("lt", to_expr(left.plus(number(-1))), to_expr(right))
        return apply("le", to_expr(left), to_expr(right))

    def select(self, condition: Expr, a: Expr, b: Expr) -> Expr:
        if condition is TRUE or a is b:
            return a
        return b if condition is FALSE else select(condition, a, b)

    # ---- proofs

    def proves_le(self, a: Expr, b: Expr) -> bool:
        """Whether a <= b follows from the facts. False means "not shown"."""
        if a is b:
            return True
        form = linear(self.expand(b)).plus(linear(self.expand(a)), -1)
        return self._nonnegative(form, _DEPTH)

    def expand(self, expr: Expr) -> Expr:
        """`expr` in terms of what the facts leave free, with quotients brought to their simplest form again."""
        if expr not in self._expanded:
            bare = Algebra(Facts(self.facts.ranges, self.facts.tensors, {}))
            self._expanded[expr] = transform(substitute(expr, self.facts.equal), bare._simple_quotient)
        return self._expanded[expr]

    def _simple_quotient(self, node: Expr) -> Expr:
        by = _constant(node, 1) if node.op == "floordiv" else None
        return self.floordiv(node.args[0], by) if by is not None and by > 0 else node

    def _nonnegative(self, form: Linear, depth: int) -> bool:
        low, _ = self.form_range(form)
        if low is not None and low >= 0:
            return True
        if depth == 0 or not form.terms:
            return False
        known = self._proved.get(form)
        if known is None:
            self._proved[form] = False
            known = self._proved[form] = self._by_cases(form, depth - 1)
        return known

    def _by_cases(self, form: Linear, depth: int) -> bool:
        for term, k in form.terms:
            if term.op in ("min", "max", "select"):
                rest = form.without(term)
                cases = (self._nonnegative(rest.plus(linear(x), k), depth) for x in term.args[-2:])
                every = term.op == "select" or (term.op == "min") == (k > 0)
                if all(cases) if every else any(cases):
                    return True
        return self._by_monotony(form, depth) or self._by_relaxing(form, depth)

    def _by_monotony(self, form: Linear, depth: int) -> bool:
        """k * (x // c) - k * (y // c) + rest >= 0 from x >= y and rest >= 0."""
        quotients = [(t, k) for t, k in form.terms if t.op == "floordiv" and (_constant(t, 1) or 0) > 0]
        for x, k in quotients:
            for y, j in quotients:
                if k > 0 and j == -k and x.args[1] is y.args[1]:
                    rest = form.without(x).without(y)
                    gap = linear(x.args[0]).plus(linear(y.args[0]), -1)
                    whole = rest.constant // k if not rest.terms else 0  # k * (a - b) >= -rest needs a - b >= ceil(-rest / k)
                    if not rest.terms and self._nonnegative(gap.plus(number(whole * x.args[1].value)), depth):
                        return True
                    if self._nonnegative(rest, depth) and self._nonnegative(gap, depth):
                        return True
        return False

    def _by_relaxing(self, form: Linear, depth: int) -> bool:
        """x // c lies between (x - c + 1) / c and x / c."""
        for term, k in form.terms:
            c = _constant(term, 1) if term.op == "floordiv" else None
            if c is not None and c > 0:
                slack = number(-(c - 1) if k > 0 else 0)
                relaxed = form.without(term).times(c).plus(linear(term.args[0]).plus(slack), k)
                return self._nonnegative(relaxed, depth)
        return False

    # ---- numbers

    def range(self, expr: Expr) -> tuple[int | None, int | None]:
        """Numeric bounds of an int expression; None where unknown."""
        return self.form_range(linear(expr))

    def form_range(self, form: Linear) -> tuple[int | None, int | None]:
        low: int | None = form.constant
        high: int | None = form.constant
        for term, k in form.terms:
            a, b = self._term_range(term)
            a, b = (a, b) if k > 0 else (b, a)
            low = None if low is None or a is None else low + k * a
            high = None if high is None or b is None else high + k * b
        return low, high

    def _term_range(self, term: Expr) -> tuple[int | None, int | None]:
        if term.op == "var":
            return self.facts.ranges.get(term.value, (None, None))
        if term.op == "load":
            return self.facts.tensors.get(term.value, (None, None))
        if term not in self._ranges:
            self._ranges[term] = self._compute_range(term)
        return self._ranges[term]

    def _compute_range(self, term: Expr) -> tuple[int | None, int | None]:
        if term.op in ("min", "max", "select"):
            (a, b), (c, d) = (self.range(x) for x in term.args[-2:])
            if term.op == "select":
                return _both(min, a, c), _both(max, b, d)
            either = _either if term.op == "max" else _both
            return either(max if term.op == "max" else min, a, c), (_both if term.op == "max" else _either)(
                max if term.op == "max" else min, b, d
            )
        if term.op in ("floordiv", "mod"):
            c = _constant(term, 1)
            if c is None or c <= 0:
                return None, None
            low, high = self.range(term.args[0])
            if term.op == "floordiv":
                return (None if low is None else low // c), (None if high is None else high // c)
            inside = low is not None and high is not None and low // c == high // c
            return (low % c, high % c) if inside else (0, c - 1)
        if term.op == "abs":
            low, high = self.range(term.args[0])
            return max(0, low or 0, -(high or 0)), (None if low is None or high is None else max(-low, high))
        if term.op == "mul":
            (a, b), (c, d) = (self.range(x) for x in term.args)
            if None not in (a, b, c, d):
                corners = [x * y for x in (a, b) for y in (c, d)]
                return min(corners), max(corners)
            return (0 if a is not None and c is not None and min(a, c) >= 0 else None), None
        return None, None

    def trusted(self, expr: Expr, length: int = TYPICAL_LENGTH) -> bool:
        """Whether every int below `expr` stays inside 32 bits while positions and lengths stay below `length`."""
        if (expr, length) not in self._trusted:
            known = {**{n: (0, length) for n in _LENGTHS}, "off": (-length, length), **self._finite()}
            probe = Algebra(Facts(known, self.facts.tensors, {}))
            self._trusted[expr, length] = all(probe._fits(node) for node in walk(expr) if node.type == INT)
        return self._trusted[expr, length]

    def fits(self, expr: Expr) -> bool:
        """As `trusted`, and the range of `expr` is known: it reads nothing that may hold any number."""
        typical = Facts({n: (0, TYPICAL_LENGTH) for n in _LENGTHS} | {"off": (-TYPICAL_LENGTH, TYPICAL_LENGTH)}, {}, {})
        low, high = Algebra(typical).range(expr)
        return low is not None and high is not None and low >= INT_LOW and high <= INT_HIGH and self.trusted(expr)

    def _finite(self) -> dict[str, tuple[int | None, int | None]]:
        return {n: r for n, r in self.facts.ranges.items() if None not in r}

    def _fits(self, node: Expr) -> bool:
        low, high = self.range(node)
        return (low is None or low >= INT_LOW) and (high is None or high <= INT_HIGH)


COUNTS = ("kv_tiles", "q_tiles")
"""Names for the quotients that facts say they are equal to."""
_LENGTHS = ("q_idx", "kv_idx", "seq_q", "seq_kv", "batch", "b", "q_tile", "kv_tile", "q_tiles", "kv_tiles")


LARGEST = 2**29


def clamp(value: Expr) -> Expr:
    """A run-time value brought into +-LARGEST, where a sum with positions cannot overflow: a window of 2**31 - 1
    means no window.

    It changes no comparison with a position below LARGEST / 2. Nothing is moved into it: `tau + 1` could overflow.
    """
    return apply("max", apply("min", value, LARGEST), -LARGEST)


def is_clamp(term: Expr) -> bool:
    return term.op in ("min", "max") and term.args[1].op == "const" and abs(term.args[1].value) == LARGEST


def _both(pick, a, b):
    return None if a is None or b is None else pick(a, b)


def _either(pick, a, b):
    return b if a is None else a if b is None else pick(a, b)


def _operands(op: str, item: Expr) -> list[Expr]:
    return _operands(op, item.args[0]) + _operands(op, item.args[1]) if item.op == op else [item]


def conjoin(*items: Expr) -> Expr:
    """`and` with true, false and repetitions folded."""
    return _fold("and", TRUE, FALSE, items)


def disjoin(*items: Expr) -> Expr:
    """`or` with true, false and repetitions folded."""
    return _fold("or", FALSE, TRUE, items)


def _fold(op: str, neutral: Expr, absorbing: Expr, items: tuple[Expr, ...]) -> Expr:
    kept: list[Expr] = []
    for item in items:
        if item is absorbing:
            return absorbing
        if item is not neutral and item not in kept:
            kept.append(item)
    out = kept[0] if kept else neutral
    for item in kept[1:]:
        out = apply(op, out, item)
    return out


_INVERSE = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}


def negate(item: Expr) -> Expr:
    """`not item`, pushed into an int or bool comparison."""
    if item.op == "const":
        return const(not item.value)
    if item.op == "not":
        return item.args[0]
    if item.op in _INVERSE and item.args[0].type in (INT, BOOL):
        return apply(_INVERSE[item.op], *item.args)
    return apply("not", item)


__all__ = [
    "ZERO",
    "Algebra",
    "Facts",
    "Linear",
    "conjoin",
    "disjoin",
    "linear",
    "negate",
    "number",
    "to_expr",
    "transform",
    "var",
]  # fmt: skip
