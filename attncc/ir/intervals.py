"""Abstract interpretation over intervals: bounds of an expression, and whether a condition may or must hold.

A variable ranges over an interval whose ends are themselves expressions (`q_idx` over the rows of a query tile); so
do the results. `may(e)` false proves that e holds nowhere, `must(e)` true that it holds everywhere in the box the
variables span. Bounds are attained where every variable occurs once; a linear form is gathered first, so that
`q_idx - kv_idx + kv_idx` does not lose.

A tensor element whose indices vary has no bounds of its own. `summarise(expr, axis)` may give some: `expr` is as
large as possible among the sub-expressions that vary along one axis only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from attncc.ir.algebra import LARGEST, SHORT_LENGTH, Algebra, Linear, conjoin, disjoin, linear, negate, to_expr
from attncc.ir.expr import BOOL, FALSE, FLOAT, INT, TRUE, ZERO, Expr, apply, const, select, variables

Interval = tuple[Expr | None, Expr | None]
"""(least, greatest), None where nothing is known."""
Summarise = Callable[[Expr, str], Interval]
UNKNOWN: Interval = (None, None)

_MONOTONE_FLOAT = ("exp", "exp2", "tanh", "sigmoid", "sqrt")
_RANGES = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "erf": (-1.0, 1.0), "sin": (-1.0, 1.0), "cos": (-1.0, 1.0)}
"""What a function's values never leave; the hardware's approximations keep to it too."""


class Intervals:
    """Evaluation in one box: `box` maps each varying variable to its interval."""

    def __init__(self, algebra: Algebra, box: dict[str, Interval], summarise: Summarise | None = None):
        self.algebra, self.box, self.summarise = algebra, box, summarise
        self._known: dict[Expr, Interval] = {}

    def varies(self, expr: Expr) -> frozenset[str]:
        return variables(expr) & self.box.keys()

    def of(self, expr: Expr) -> Interval:
        """Bounds of an int or float expression."""
        if expr not in self._known:
            self._known[expr] = self._bounds(expr)
        return self._known[expr]

    def _bounds(self, expr: Expr) -> Interval:
        if not self.varies(expr):
            return expr, expr
        if expr.op == "var":
            return self.box[expr.value]
        if expr.type == INT:
            return self.of_form(linear(expr))
        return self._summary(expr) if self.wants_summary(expr) else self._float(expr)

    def wants_summary(self, expr: Expr) -> bool:
        """Whether `expr` varies along one axis and reads a tensor at varying indices."""
        return self.summarise is not None and len(self.varies(expr)) == 1 and self.reads_varying(expr)

    def reads_varying(self, expr: Expr) -> bool:
        return (expr.op == "load" and bool(self.varies(expr))) or any(self.reads_varying(a) for a in expr.args)

    def _summary(self, expr: Expr) -> Interval:
        (axis,) = self.varies(expr)
        return self.summarise(expr, axis)

    def of_form(self, form: Linear) -> Interval:
        """Bounds of a linear form. Terms that vary together and read a tensor get one summary for their sum."""
        varying = Linear(tuple((t, k) for t, k in form.terms if self.varies(t)), 0)
        ends: list[Linear | None] = [form.plus(varying, -1)] * 2
        for part, k in self._parts(varying):
            bounds = self.box[part.value] if part.op == "var" else self._term(part)
            for i, bound in enumerate(bounds if k > 0 else bounds[::-1]):
                if ends[i] is not None:
                    ends[i] = None if bound is None else ends[i].plus(linear(bound), k)
        return tuple(None if e is None else to_expr(e) for e in ends)

    def _parts(self, varying: Linear) -> list[tuple[Expr, int]]:
        """The terms to bound one by one; a sum that wants a summary counts as one, its first coefficient positive."""
        if len(varying.terms) > 1:
            sign = 1 if varying.terms[0][1] > 0 else -1
            whole = to_expr(varying.times(sign))
            if self.wants_summary(whole):
                return [(whole, sign)]
        return list(varying.terms)

    def _term(self, term: Expr) -> Interval:
        """Bounds of an int expression that is no sum, or of a sum to be summarised."""
        if self.wants_summary(term):
            return self._summary(term)
        rule = getattr(self, f"_int_{term.op}", None)
        return rule(term) if rule else UNKNOWN

    def _int_load(self, term: Expr) -> Interval:
        """What the caller promised, where nothing better is to be had. Without summaries there is nothing: a range that
        follows from a promise alone may be far too wide, and lists of tiles do better."""
        if self.summarise is None:
            return UNKNOWN
        low, high = self.algebra.range(term)
        return (None if low is None else const(low)), (None if high is None else const(high))

    def _int_mul(self, term: Expr) -> Interval:
        (a, b), (c, d) = (self.of(x) for x in term.args)
        if None in (a, b, c, d):
            return UNKNOWN
        for low, high, factor in ((a, b, c), (c, d, a)):
            fixed = factor is (d if factor is c else b)
            if fixed and (self.algebra.range(factor)[0] or 0) > 0:
                return apply("mul", low, factor), apply("mul", high, factor)
        corners = [apply("mul", x, y) for x in (a, b) for y in (c, d)]
        return self.algebra.minimum(*corners), self.algebra.maximum(*corners)

    def _int_floordiv(self, term: Expr) -> Interval:
        by = self._divisor(term)
        low, high = self.of(term.args[0])
        if by is None:
            return UNKNOWN
        return self._over(low, by), self._over(high, by)

    def _divisor(self, term: Expr) -> Expr | None:
        """The divisor when it is the same everywhere and known to be positive."""
        by = term.args[1]
        positive = not self.varies(by) and (self.algebra.range(by)[0] or 0) > 0
        return by if positive else None

    def _over(self, a: Expr | None, by: Expr) -> Expr | None:
        if a is None:
            return None
        return self.algebra.floordiv(a, by.value) if by.op == "const" else apply("floordiv", a, by)

    def _int_mod(self, term: Expr) -> Interval:
        by = self._divisor(term)
        low, high = self.of(term.args[0])
        if by is None:
            return UNKNOWN
        top = self.algebra.shift(by, -1)
        if low is None or high is None:
            return ZERO, top
        same = self._equal(self._over(low, by), self._over(high, by))
        take = self.algebra.select
        return take(same, self._modulo(low, by), ZERO), take(same, self._modulo(high, by), top)

    def _modulo(self, a: Expr, by: Expr) -> Expr:
        return self.algebra.mod(a, by.value) if by.op == "const" else apply("mod", a, by)

    def _equal(self, a: Expr, b: Expr) -> Expr:
        """a == b for a <= b."""
        return self.algebra.le(b, a)

    def _int_min(self, term: Expr) -> Interval:
        return self._extreme(term, self.algebra.minimum, True)

    def _int_max(self, term: Expr) -> Interval:
        return self._extreme(term, self.algebra.maximum, False)

    def _extreme(self, term: Expr, pick, is_min: bool) -> Interval:
        (a, b), (c, d) = (self.of(x) for x in term.args)
        low = pick(a, c) if a is not None and c is not None else None
        high = pick(b, d) if b is not None and d is not None else None
        if is_min and high is None:
            high = b if d is None else d
        if not is_min and low is None:
            low = a if c is None else c
        return low, high

    def _int_abs(self, term: Expr) -> Interval:
        low, high = self.of(term.args[0])
        if low is None or high is None:
            return ZERO, None
        flipped = self.algebra.scale(high, -1), self.algebra.scale(low, -1)
        return self.algebra.maximum(low, flipped[0], ZERO), self.algebra.maximum(high, flipped[1])

    def _int_select(self, term: Expr) -> Interval:
        return self._choose(term, self.algebra.minimum, self.algebra.maximum)

    def _choose(self, term: Expr, least, greatest) -> Interval:
        condition, x, y = term.args
        (a, b), (c, d) = self.of(x), self.of(y)
        sure, never = self.must(condition), negate(self.may(condition))
        ends = []
        for p, q, pick in ((a, c, least), (b, d, greatest)):
            if p is None or q is None:
                ends.append(p if sure is TRUE else q if never is TRUE else None)
            else:
                ends.append(self.algebra.select(sure, p, self.algebra.select(never, q, pick(p, q))))
        return ends[0], ends[1]

    def _int_bitand(self, term: Expr) -> Interval:
        ranges = [self.of(x) for x in term.args]
        tops = [high for low, high in ranges if low is not None and (self.algebra.range(low)[0] or -1) >= 0]
        if not tops:
            return UNKNOWN
        known = [t for t in tops if t is not None]
        return ZERO, (self.algebra.minimum(*known) if known else None)

    def _int_to_int(self, term: Expr) -> Interval:
        if not self.never_nan(term.args[0]):
            return UNKNOWN  # the int of NaN is 0
        low, high = self.of(term.args[0])
        return tuple(None if x is None else apply("to_int", x) for x in (low, high))

    # ---- floats: operations that round to nearest keep order, so bounds are sound in the same arithmetic

    def _float(self, expr: Expr) -> Interval:
        if expr.op in ("min", "max", "select") and not all(self.never_nan(a) for a in expr.args if a.type == FLOAT):
            return UNKNOWN  # they lose a NaN, and with it the bound of the numbers beside it
        if expr.op in ("min", "max"):
            return self._extreme(expr, lambda *x: _nest(expr.op, x), expr.op == "min")
        if expr.op in _RANGES:
            known = self._float_monotone(expr) if expr.op in _MONOTONE_FLOAT else UNKNOWN
            return tuple(const(limit) if end is None else end for end, limit in zip(known, _RANGES[expr.op]))
        if expr.op in ("add", "sub", "to_float", "neg", *_MONOTONE_FLOAT):
            return self._float_monotone(expr)
        if expr.op in ("mul", "div"):
            return self._float_scaled(expr)
        if expr.op == "select":
            return self._choose(expr, lambda *x: _nest("min", x), lambda *x: _nest("max", x))
        if expr.op == "abs":
            low, high = self.of(expr.args[0])
            return const(0.0), None if low is None or high is None else apply("max", high, apply("neg", low))
        return UNKNOWN

    def _float_monotone(self, expr: Expr) -> Interval:
        ranges = [self.of(a) for a in expr.args]
        if expr.op == "sub":
            ranges[1] = ranges[1][::-1]
        if expr.op == "neg":
            ranges = [ranges[0][::-1]]
        return tuple(None if None in ends else apply(expr.op, *ends) for ends in zip(*ranges))

    def _float_scaled(self, expr: Expr) -> Interval:
        a, b = expr.args
        if expr.op == "mul" and a.op == "const":
            a, b = b, a
        if b.op != "const" or b.value == 0.0:
            return UNKNOWN
        low, high = self.of(a)
        low, high = (low, high) if b.value > 0 else (high, low)
        return tuple(None if x is None else apply(expr.op, x, b) for x in (low, high))

    # ---- numbers and NaN

    def never_nan(self, expr: Expr) -> bool:
        """Whether a float expression is a number everywhere. An infinity less another one is none."""
        if expr.op in ("exp", "exp2", "tanh", "sigmoid", "neg", "abs", "min", "max"):
            return all(map(self.never_nan, expr.args))
        return self._is_finite(expr)

    def _is_finite(self, expr: Expr) -> bool:
        if expr.op == "const":
            return math.isfinite(expr.value)
        if expr.op in ("load", "var"):
            return expr.value in self.algebra.facts.finite
        if expr.op == "to_float":
            return True
        if expr.op in ("tanh", "sigmoid"):
            return self.never_nan(expr.args[0])
        if expr.op == "select":
            return all(map(self._is_finite, expr.args[1:]))
        if expr.op in ("mul", "div"):
            a, b = expr.args if expr.args[1].op == "const" else expr.args[::-1]
            known = b.op == "const" and (expr.op == "mul" or b is expr.args[1]) and 1 / _FINITE <= abs(b.value) <= _FINITE
            return known and self._is_finite(a)
        return expr.op in ("add", "sub", "neg", "abs", "min", "max") and all(map(self._is_finite, expr.args))

    # ---- conditions

    def may(self, expr: Expr) -> Expr:
        """A condition without varying variables; where it is false, `expr` holds nowhere in the box."""
        return self._condition(expr, True)

    def must(self, expr: Expr) -> Expr:
        """A condition without varying variables; where it is true, `expr` holds everywhere in the box."""
        return negate(self._condition(expr, False))

    def _condition(self, expr: Expr, wanted: bool) -> Expr:
        """Whether `expr` may be `wanted` somewhere."""
        if not self.varies(expr):
            return expr if wanted else negate(expr)
        if expr.op == "not":
            return self._condition(expr.args[0], not wanted)
        if self.wants_summary(expr):
            low, high = self._summary(select(expr, 1, 0))
            return apply("eq", high, 1) if wanted else apply("eq", low, 0)
        if expr.op in ("and", "or"):
            join = conjoin if (expr.op == "and") == wanted else disjoin
            return join(*(self._condition(a, wanted) for a in expr.args))
        if expr.op == "select":
            c, a, b = expr.args
            taken = conjoin(self._condition(c, True), self._condition(a, wanted))
            other = conjoin(self._condition(c, False), self._condition(b, wanted))
            return disjoin(taken, other)
        if expr.op in _COMPARISONS and expr.args[0].type != BOOL:
            if not self.algebra.trusted(expr, SHORT_LENGTH):
                return TRUE
            if not wanted and not all(a.type == INT or self.never_nan(a) for a in expr.args):
                return TRUE  # a comparison with NaN is false, and no bound shows it
            return self.compare(expr.op if wanted else _INVERSE[expr.op], *expr.args)
        return TRUE

    def compare(self, op: str, a: Expr, b: Expr) -> Expr:
        """Whether `a op b` may hold somewhere. A bound that is NaN says nothing: it must not decide."""
        if op == "eq":
            special = self._congruence(a, b)
            if special is not None:
                return special
            return conjoin(self.compare("le", a, b), self.compare("ge", a, b))
        if op == "ne":
            return self._differ(a, b)
        if op in ("gt", "ge"):
            return self.compare("lt" if op == "gt" else "le", b, a)
        if a.type == FLOAT:
            low, high = self.of(a)[0], self.of(b)[1]
            if low is None or high is None:
                return TRUE
            return apply(op, low, high) if self.never_nan(a) and self.never_nan(b) else apply("not", apply(_INVERSE[op], low, high))
        left, right = _two_sides(linear(a).plus(linear(b), -1))
        if abs(right.constant) > 2 * LARGEST:
            return TRUE
        low, high = self.of_form(left)[0], self.of_form(right)[1]
        if low is None or high is None:
            return TRUE
        return self.algebra.le(low if op == "le" else self.algebra.shift(low, 1), high)

    def _differ(self, a: Expr, b: Expr) -> Expr:
        """Everything equal only where both sides are one and the same number."""
        if a.type == FLOAT:
            return disjoin(self.compare("lt", a, b), self.compare("gt", a, b))
        return disjoin(self.compare("lt", a, b), self.compare("lt", b, a))

    def _congruence(self, a: Expr, b: Expr) -> Expr | None:
        """Whether x % c == r has a solution for x in its interval: the first number from its least on that is r
        modulo c.
        """
        if a.op != "mod":
            a, b = b, a
        if a.op != "mod" or a.args[1].op != "const" or b.op != "const" or a.args[1].value <= 0:
            return None
        c, r = a.args[1].value, b.value
        low, high = self.of(a.args[0])
        if not 0 <= r < c:
            return FALSE
        if low is None or high is None:
            return TRUE
        return self.algebra.le(
            self.algebra.add(low, self.algebra.mod(self.algebra.sum((low, -1), constant=r), c)), high
        )


_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_INVERSE = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}


_FINITE = 1e6
"""Constant factors up to this keep an int, or a few products of it, inside float32."""


def _two_sides(form: Linear) -> tuple[Linear, Linear]:
    """(left, right) with left - right = form and positive coefficients only, so that neither side overflows early."""
    left = Linear(tuple((t, k) for t, k in form.terms if k > 0), 0)
    right = Linear(tuple((t, -k) for t, k in form.terms if k < 0), -form.constant)
    return left, right


def _nest(op: str, items) -> Expr:
    out = items[0]
    for item in items[1:]:
        out = apply(op, out, item)
    return out


__all__ = ["INT", "UNKNOWN", "Interval", "Intervals"]
