"""Solving a mask for the keys it keeps.

`alternatives` turns a mask into a disjunction of conjunctions of atoms. An atom is a linear form that must be >= 0, or
a condition that no rule opens. Minima, maxima, absolute values and conditionals over varying indices become
alternatives.
`solve` isolates one variable in a linear atom, through floor division by constants.

A `Piece` is what one conjunction says about a query tile: the rows and keys it can reach, each one interval, a
condition without indices, and the atoms that were of no use. Every kept cell of the tile lies in some piece; where all
atoms are used and the keys of neighbouring rows touch, the pieces hold no other tile columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Union

from attncc.ir.algebra import LARGEST, Algebra, Linear, clamp, conjoin, is_clamp, linear, negate, number, to_expr
from attncc.ir.expr import BOOL, FLOAT, TRUE, ZERO, Expr, apply, select, variables
from attncc.ir.intervals import Intervals, Summarise

MOST_ALTERNATIVES = 32
Q, KV = "q_idx", "kv_idx"
INDICES = frozenset((Q, KV))

Atom = Union[Linear, Expr]
"""A linear form that must be >= 0, or a condition that must be true."""
Conjunction = tuple[Atom, ...]


class TooManyAlternatives(Exception):
    """The mask has more than MOST_ALTERNATIVES alternatives."""


def depends(atom: Atom) -> frozenset[str]:
    """Which of q_idx and kv_idx an atom mentions."""
    if isinstance(atom, Expr):
        return variables(atom) & INDICES
    return frozenset().union(*(variables(t) for t, _ in atom.terms)) & INDICES if atom.terms else frozenset()


def atom_expr(atom: Atom) -> Expr:
    """The condition an atom stands for."""
    return atom if isinstance(atom, Expr) else apply("le", ZERO, to_expr(atom))


# ---------------------------------------------------------------- conditions -> alternatives


def alternatives(expr: Expr, wanted: bool, algebra: Algebra) -> tuple[Conjunction, ...]:
    """Conjunctions of which at least one holds exactly where `expr` is `wanted`."""
    if expr.op == "const":
        return ((),) if expr.value == wanted else ()
    if not variables(expr) & INDICES or (expr.op in _COMPARE and not _opens(expr, algebra)):
        return ((expr if wanted else negate(expr),),)
    if expr.op == "not":
        return alternatives(expr.args[0], not wanted, algebra)
    if expr.op in ("and", "or"):
        parts = [alternatives(a, wanted, algebra) for a in expr.args]
        return _product(*parts) if (expr.op == "and") == wanted else _union(*parts)
    if expr.op == "select":
        return _either_branch(expr.args[0], *(alternatives(a, wanted, algebra) for a in expr.args[1:]), algebra)
    if expr.op in _COMPARE:
        return _comparison(_COMPARE[expr.op][not wanted], *expr.args, algebra)
    return ((expr if wanted else negate(expr),),)


def _opens(expr: Expr, algebra: Algebra) -> bool:
    """Whether a comparison may be turned round: no float one (both are false for NaN), and no int one that overflows."""
    return expr.args[0].type != FLOAT and algebra.trusted(expr)


_COMPARE = {
    "eq": ("eq", "ne"), "ne": ("ne", "eq"), "lt": ("lt", "ge"),
    "ge": ("ge", "lt"), "gt": ("gt", "le"), "le": ("le", "gt"),
}  # fmt: skip


def _product(*parts: tuple[Conjunction, ...]) -> tuple[Conjunction, ...]:
    out: tuple[Conjunction, ...] = ((),)
    for part in parts:
        out = _limited(tuple(dict.fromkeys(tuple(dict.fromkeys(x + y)) for x in out for y in part)))
    return out


def _union(*parts: tuple[Conjunction, ...]) -> tuple[Conjunction, ...]:
    return _limited(tuple(dict.fromkeys(c for part in parts for c in part)))


def _limited(found: tuple[Conjunction, ...]) -> tuple[Conjunction, ...]:
    found = tuple(c for c in found if not any(isinstance(a, Expr) and negate(a) in c for a in c))
    sets = [frozenset(map(_key, c)) for c in found]
    kept = tuple(c for c, s in zip(found, sets) if not any(other < s for other in sets))
    if len(kept) > MOST_ALTERNATIVES:
        raise TooManyAlternatives
    return kept


def _key(atom: Atom):
    return (frozenset(atom.terms), atom.constant) if isinstance(atom, Linear) else atom


def _either_branch(condition: Expr, taken, other, algebra: Algebra) -> tuple[Conjunction, ...]:
    return _union(
        _product(alternatives(condition, True, algebra), taken),
        _product(alternatives(condition, False, algebra), other),
    )


def _comparison(op: str, a: Expr, b: Expr, algebra: Algebra) -> tuple[Conjunction, ...]:
    if a.type == BOOL:
        (a1, a0), (b1, b0) = ((alternatives(x, True, algebra), alternatives(x, False, algebra)) for x in (a, b))
        return _union(_product(a1, b1), _product(a0, b0)) if op == "eq" else _union(_product(a1, b0), _product(a0, b1))
    gap = tamed(linear(b).plus(linear(a), -1), algebra)
    if abs(gap.constant) > 2 * LARGEST:
        return ((apply(op, a, b),),)
    if op in ("eq", "ne") and _is_congruence(gap):
        return ((apply(op, a, b),),)
    if op == "eq":
        return _product(_at_least(gap, algebra), _at_least(gap.times(-1), algebra))
    if op == "ne":
        return _union(_at_least(gap.plus(number(-1)), algebra), _at_least(gap.times(-1).plus(number(-1)), algebra))
    if op in ("gt", "ge"):
        gap = gap.times(-1)
    return _at_least(gap.plus(number(-1)) if op in ("lt", "gt") else gap, algebra)


def tamed(gap: Linear, algebra: Algebra) -> Linear:
    """Values known at run time only, and a constant beside plain positions, are clamped, so that bounds do not
    overflow.
    """
    out = gap
    for term, k in gap.terms:
        if (
            abs(k) == 1
            and term.op in ("var", "load")
            and algebra.range(term) == (None, None)
            and not variables(term) & _POSITIONS
        ):
            out = out.without(term).plus(linear(clamp(term)), k)
    if all(abs(k) == 1 and (t.op == "var" or is_clamp(t)) for t, k in out.terms):
        out = replace(out, constant=max(min(out.constant, LARGEST), -LARGEST))
    return out


_POSITIONS = INDICES | {"off"}


def _is_congruence(gap: Linear) -> bool:
    varying = [t for t, _ in gap.terms if variables(t) & INDICES]
    return len(varying) == 1 and varying[0].op == "mod"


def _at_least(form: Linear, algebra: Algebra) -> tuple[Conjunction, ...]:
    """Alternatives of form >= 0."""
    here = depends(form)
    for term, k in form.terms:
        on = variables(term) & INDICES
        if not on or (KV in here and KV not in on and term.op != "select"):
            continue
        rest = form.without(term)
        if term.op in ("min", "max", "abs"):
            parts = term.args if term.op != "abs" else (term.args[0], apply("neg", term.args[0]))
            cases = [_at_least(rest.plus(linear(p), k), algebra) for p in parts]
            some = (term.op == "min") != (k > 0)
            return _union(*cases) if some else _product(*cases)
        if term.op == "select" and variables(term.args[0]) & INDICES:
            cases = [_at_least(rest.plus(linear(p), k), algebra) for p in term.args[1:]]
            return _either_branch(term.args[0], *cases, algebra)
    if not form.terms:
        return ((),) if form.constant >= 0 else ()
    return ((form,),)


# ---------------------------------------------------------------- one variable


def solve(form: Linear, name: str, algebra: Algebra) -> tuple[str, Expr] | None:
    """("low" or "high", bound): form >= 0 says name >= bound, or name <= bound. None when `name` cannot be isolated."""
    found = [(t, k) for t, k in form.terms if name in variables(t)]
    if len(found) > 1:
        opened = _open_remainders(form, name)
        found = [(t, k) for t, k in opened.terms if name in variables(t)]
        form = opened
    if len(found) != 1:
        return None
    term, k = found[0]
    rest = to_expr(form.without(term))
    if k > 0:
        return _isolate(term, "low", algebra.ceildiv(algebra.scale(rest, -1), k), name, algebra)
    return _isolate(term, "high", algebra.floordiv(rest, -k), name, algebra)


def _open_remainders(form: Linear, name: str) -> Linear:
    """`x % c` written x - c * (x // c), where that leaves fewer places for the variable."""
    for term, k in form.terms:
        if term.op == "mod" and term.args[1].op == "const" and name in variables(term):
            x, c = term.args[0], term.args[1].value
            form = form.without(term).plus(linear(x), k).plus(Linear(((apply("floordiv", x, c), c),), 0), -k)
    return form


def _isolate(term: Expr, side: str, bound: Expr, name: str, algebra: Algebra) -> tuple[str, Expr] | None:
    """Solves term >= bound ("low") or term <= bound ("high")."""
    if term.op == "var":
        return side, bound
    c = term.args[1].value if term.op == "floordiv" and term.args[1].op == "const" else 0
    if c <= 0:
        return None
    inner = linear(term.args[0])
    reached = linear(algebra.scale(bound, c))
    if side == "low":
        return solve(inner.plus(reached, -1), name, algebra)
    return solve(reached.plus(number(c - 1)).plus(inner, -1), name, algebra)


# ---------------------------------------------------------------- one conjunction


@dataclass(frozen=True)
class Piece:
    """Rows and keys (both ends inclusive) that a conjunction can reach in a query tile where `when` holds."""

    rows: tuple[Expr, Expr]
    keys: tuple[Expr, Expr]
    when: Expr
    unused: Conjunction


def piece(
    conjunction: Conjunction, algebra: Algebra, rows: tuple[Expr, Expr], keys: tuple[Expr, Expr],
    summarise: Summarise | None = None,
) -> Piece:  # fmt: skip
    """What a conjunction leaves of the box `rows` x `keys`."""
    conjunction = _tighten_periodic(conjunction)
    when, rest = TRUE, []
    row_ends, joint = (list(rows[:1]), list(rows[1:])), []
    for atom in conjunction:
        on = depends(atom)
        solved = None if isinstance(atom, Expr) or not on else solve(atom, KV if KV in on else Q, algebra)
        if not on:
            when = conjoin(when, _decided(atom, algebra))
        elif solved is None:
            rest.append(atom)
        elif KV in on:
            joint.append((atom, solved))
        else:
            row_ends[solved[0] == "high"].append(solved[1])
    rows = algebra.maximum(*row_ends[0]), algebra.minimum(*row_ends[1])
    when = conjoin(when, algebra.le(*rows))
    when = conjoin(when, *_nonempty_rows(joint, algebra))
    keys, lost = _keys(joint, rows, keys, algebra, summarise)
    return Piece(rows, keys, when, (*rest, *lost))


def _nonempty_rows(joint, algebra: Algebra):
    """Conditions under which a lower and an upper bound that keep their distance leave a key: a window of 0 keys
    leaves none.
    """
    lows, highs = ([bound for _, (at, bound) in joint if at == side] for side in ("low", "high"))
    for low in lows:
        for high in highs:
            if not variables(algebra.sub(high, low)) & INDICES:
                yield algebra.le(low, high)


def _decided(atom: Atom, algebra: Algebra) -> Expr:
    return atom if isinstance(atom, Expr) else algebra.le(ZERO, to_expr(atom))


def _keys(joint, rows, keys, algebra: Algebra, summarise) -> tuple[tuple[Expr, Expr], list[Atom]]:
    """The interval of keys that the solved atoms leave, over all `rows`; and the atoms whose bound has no bounds."""
    lows, highs, lost = [keys[0]], [keys[1]], []
    over = Intervals(algebra, {Q: rows}, summarise)
    for atom, (side, bound) in joint:
        low, high = over.of(bound)
        end = low if side == "low" else high
        if end is None:
            lost.append(atom)
        else:
            (lows if side == "low" else highs).append(end)
    return (algebra.maximum(*lows), algebra.minimum(*highs)), lost


def _tighten_periodic(conjunction: Conjunction) -> Conjunction:
    """With x % c == r, a bound on x moves to the next number that is r modulo c: the last step of a dilated window."""
    periods = [_period(a) for a in conjunction if isinstance(a, Expr) and a.op == "eq"]
    out = []
    for atom in conjunction:
        for x, c, r in filter(None, periods):
            if isinstance(atom, Linear):
                atom = _next_in_step(atom, x, c, r)
        out.append(atom)
    return tuple(out)


def _period(atom: Expr) -> tuple[Linear, int, int] | None:
    a, b = atom.args if atom.args[0].op == "mod" else atom.args[::-1]
    if a.op != "mod" or a.args[1].op != "const" or b.op != "const" or not 0 <= b.value < a.args[1].value:
        return None
    return linear(a.args[0]), a.args[1].value, b.value


def _next_in_step(atom: Linear, x: Linear, c: int, r: int) -> Linear:
    for sign in (1, -1):
        offset = atom.plus(x, -sign)
        if not offset.terms:
            # sign * x >= -offset; the least such multiple: sign * x = sign * r (mod c)
            least = -offset.constant
            return atom.plus(number(-((sign * r - least) % c)))
    return atom


__all__ = [
    "INDICES", "Piece", "TooManyAlternatives", "alternatives", "atom_expr", "depends", "piece", "select", "solve",
]  # fmt: skip
