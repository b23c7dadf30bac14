"""Strategies for well-typed integers and real numbers of the language, as text.

Three things hold for everything that is written, so that a generated spec has a finite value on generated data:

- an integer's magnitude is tracked and stays far below 2**31, a real number's stays below `Numbers.limit`;
- a tensor index is in range where its value is used: by its own range, by `%`, by clamping, or behind a condition;
- no real function is used outside its domain.

Real literals are multiples of 1/8 and a comparison of real numbers carries an odd offset, so that rounding, which may
differ between levels, does not decide a comparison.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from attncc.fuzz.terms import EXTENTS, LONGEST, Scope, Tensor, Term, choose

INT_LIMIT = 1 << 20
ODD = "0.0137"
"""Added to one side where real numbers are compared or floored."""


class Numbers:
    """Draws integers and real numbers over a scope. `draw` is hypothesis's, `depth` bounds how deep operators nest."""

    limit = 200.0

    def __init__(self, draw, scope: Scope):
        self.draw, self.scope = draw, scope
        self.counter = 0

    # drawing

    def one(self, *options):
        """Calls one of `options`; an option may be given several times to weigh more. Shrinks towards the first."""
        return choose(self.draw, options)()

    def pick(self, options):
        return choose(self.draw, list(options))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def local(self) -> str:
        """A name for a bound variable that nothing else has."""
        self.counter += 1
        return f"i{self.counter}"

    def over(self, scope: Scope):
        """The same kind of maker over another scope that shares this one's names."""
        other = type(self)(self.draw, scope)
        other.counter = self.counter + 10
        return other

    # integers

    def integer(self, depth: int) -> Term:
        if depth <= 0:
            return self.one(self.int_index, self.int_index, self.int_element, self.int_element, self.int_name, self.int_literal)
        options = [
            self.int_index, lambda: self.int_sum(depth), lambda: self.int_sum(depth), lambda: self.int_product(depth),
            lambda: self.int_floor(depth), lambda: self.int_floor(depth), lambda: self.int_element(depth), self.int_name,
            lambda: self.int_extreme(depth), lambda: self.int_bits(depth), lambda: self.int_conditional(depth),
            lambda: self.int_sum_over_range(depth), lambda: self.int_from_float(depth),
        ]  # fmt: skip
        return self.one(*options)

    def int_index(self) -> Term:
        options = [i for i in self.scope.indices for _ in range(3 if i.endswith("idx") else 1)]
        if not options:
            return self.int_literal()
        name = self.pick(options)
        return Term(name, LONGEST if name.endswith("idx") else 8)

    def int_literal(self) -> Term:
        value = self.number(0, 40)
        return Term(str(value), value)

    def int_name(self) -> Term:
        names = (*self.scope.named("int"), *(Term(s, LONGEST) for s in self.scope.sizes))
        return self.pick(names) if names else self.int_literal()

    def int_element(self, depth: int = 0) -> Term:
        return self.element("int", depth) or self.int_index()

    def int_sum(self, depth: int) -> Term:
        a, b = self.integer(depth - 1), self.integer(depth - 1)
        return self.bounded(Term(f"{a.tight} {self.pick('+-')} {b.tight}", a.size + b.size), a)

    def int_product(self, depth: int) -> Term:
        a, b = self.integer(depth - 1), self.int_literal()
        text = self.pick((f"{b.text} * {a.tight}", f"{a.tight} * {b.text}", f"-{a.tight}", f"abs({a.text})"))
        return self.bounded(Term(text, a.size * max(b.size, 1)), a)

    def int_floor(self, depth: int) -> Term:
        """Floor division and remainder, of negative numbers too, by constants and by numbers known to be positive."""
        a = self.integer(depth - 1)
        divisor, size = self.divisor(depth)
        sign = self.pick(("", "", "", "-"))
        if self.flag():
            return Term(f"{a.tight} // {sign}{divisor}", a.size + 1)
        return Term(f"{a.tight} % {sign}{divisor}", size)

    def divisor(self, depth: int) -> tuple[str, float]:
        if self.number(0, 5) == 5:
            a = self.integer(depth - 1)
            return f"(1 + abs({a.text}))", a.size + 1
        n = self.pick((2, 3, 4, 5, 7, 8, 16, 24, 32, 64, 128))
        return str(n), n

    def int_extreme(self, depth: int) -> Term:
        a, b = self.integer(depth - 1), self.integer(depth - 1)
        return Term(f"{self.pick(('min', 'max'))}({a.text}, {b.text})", max(a.size, b.size))

    def int_bits(self, depth: int) -> Term:
        a, b = self.integer(depth - 1), self.integer(depth - 1)
        kind = self.pick(("&", "|", "^", "<<", ">>", "~"))
        if kind == "~":
            return Term(f"~{a.tight}", a.size + 1)
        if kind == "<<":
            return self.bounded(Term(f"{a.tight} << {(n := self.number(0, 4))}", a.size * 2**n), a)
        if kind == ">>":
            return Term(f"{a.tight} >> {self.number(0, 6)}", a.size)
        return Term(f"{a.tight} {kind} {b.tight}", 2 * (a.size + b.size) + 2)

    def int_conditional(self, depth: int) -> Term:
        a, b = self.integer(depth - 1), self.integer(depth - 1)
        return Term(f"{a.tight} if {self.boolean(depth - 1).tight} else {b.tight}", max(a.size, b.size))

    def int_sum_over_range(self, depth: int) -> Term:
        name, count = self.local(), self.number(1, 4)
        inner = self.over(replace(self.scope, ints=(*self.scope.ints, Term(name, count))))
        body = inner.integer(depth - 1)
        return self.bounded(Term(f"sum({body.text} for {name} in 0..{count})", body.size * count), Term("0"))

    def int_from_float(self, depth: int) -> Term:
        a = self.real(depth - 1)
        return Term(f"floor({a.tight} + {ODD})", a.size + 2)

    def bounded(self, term: Term, otherwise: Term) -> Term:
        return term if term.size < INT_LIMIT else otherwise

    # tensor elements

    def element(self, kind: str, depth: int) -> Term | None:
        """An element of a tensor of that kind, None when the scope has none that can be indexed."""
        able = [t for t in self.scope.tensors if t.kind == kind and all(self.can_index(e) for e in t.extents)]
        if not able:
            return None
        tensor = self.pick(able)
        indices = [self.position(e, depth) for e in tensor.extents]
        return Term(f"{tensor.name}[{', '.join(indices)}]", 0.0 if kind == "bool" else tensor.size)

    def can_index(self, extent: str) -> bool:
        return extent not in EXTENTS or EXTENTS[extent] in self.scope.indices or self.any_position(extent)

    def any_position(self, extent: str) -> bool:
        """Whether an index can be made without the index of that axis. A kv axis may be empty, a q axis is not."""
        return extent == "seq_q" or extent == "seq_kv" and "kv_idx" in self.scope.indices

    def position(self, extent: str, depth: int) -> str:
        """An index that is in range for a dimension of that extent."""
        options = []
        if EXTENTS.get(extent) in self.scope.indices:
            options += [lambda: EXTENTS[extent]] * 4
        if depth > 0:
            gather = [t for t in self.scope.tensors if t.high == extent and all(self.can_index(e) for e in t.extents)]
            options += [lambda: self.gathered(gather, depth)] * (3 if gather else 0)
            if extent not in ("batch", "heads_q", "heads_kv"):
                options += [lambda: self.wrapped(extent, depth), lambda: self.clamped(extent, depth)]
        if options:
            return self.one(*options)
        return f"min(0, {extent} - 1)" if extent in EXTENTS else f"{self.int_index().tight} % {extent}"

    def gathered(self, tensors: list[Tensor], depth: int) -> str:
        tensor = self.pick(tensors)
        return f"{tensor.name}[{', '.join(self.position(e, depth - 1) for e in tensor.extents)}]"

    def wrapped(self, extent: str, depth: int) -> str:
        return f"{self.integer(depth - 1).tight} % {extent}"

    def clamped(self, extent: str, depth: int) -> str:
        last = str(int(extent) - 1) if extent.isdigit() else f"{extent} - 1"
        return f"min(max({self.integer(depth - 1).text}, 0), {last})"

    # real numbers

    def real(self, depth: int) -> Term:
        if depth <= 0:
            return self.one(self.real_literal, self.real_element, self.real_element, self.real_name, self.real_from_int)
        options = [
            self.real_element, lambda: self.real_element(depth), lambda: self.real_sum(depth),
            lambda: self.real_product(depth), lambda: self.real_function(depth), lambda: self.real_function(depth),
            lambda: self.real_quotient(depth),
            lambda: self.real_extreme(depth), lambda: self.real_conditional(depth), lambda: self.real_sum_over_range(depth),
            lambda: self.real_power(depth), lambda: self.real_from_int(depth), self.real_name,
        ]  # fmt: skip
        term = self.one(*options)
        return term if term.size <= self.limit else Term(f"8.0 * tanh({term.tight} * 0.125)", 8.0)

    def real_literal(self) -> Term:
        value = self.number(-32, 32) / 8
        return Term(str(value), abs(value))

    def real_element(self, depth: int = 1) -> Term:
        return self.element("float", depth) or self.real_from_int()

    def real_name(self) -> Term:
        names = self.scope.named("float")
        return self.pick(names) if names else self.real_literal()

    def real_from_int(self, depth: int = 0) -> Term:
        a = self.integer(depth - 1)
        factor = self.pick((0.125, 0.25, 0.0625, 0.015625))
        return Term(self.pick((f"{factor} * {a.tight}", f"float({a.text}) * {factor}")), factor * a.size)

    def real_sum(self, depth: int) -> Term:
        a, b = self.real(depth - 1), self.real(depth - 1)
        return Term(f"{a.tight} {self.pick('+-')} {b.tight}", a.size + b.size)

    def real_product(self, depth: int) -> Term:
        a, b = self.real(depth - 1), self.real(depth - 1)
        return self.one(
            lambda: Term(f"{a.tight} * {b.tight}", a.size * b.size), lambda: Term(f"-{a.tight}", a.size),
            lambda: Term(f"abs({a.text})", a.size),
        )  # fmt: skip

    def real_function(self, depth: int) -> Term:
        a = self.real(depth - 1)
        name = self.pick(("tanh", "sigmoid", "erf", "sin", "cos", "exp", "exp2", "log", "log2", "sqrt"))
        if name in ("exp", "exp2"):
            return Term(f"{name}(-abs({a.text}))", 1.0)
        if name in ("log", "log2"):
            return Term(f"{name}(1.0 + abs({a.text}))", 1.0 + a.size)
        return Term(f"sqrt(abs({a.text}))", 1.0 + a.size) if name == "sqrt" else Term(f"{name}({a.text})", 1.0)

    def real_quotient(self, depth: int) -> Term:
        a, b = self.real(depth - 1), self.real(depth - 1)
        if self.flag():
            return Term(f"{a.tight} / {self.pick(('2.0', '8.0', '3.0'))}", a.size)
        return Term(f"{a.tight} / (1.0 + abs({b.text}))", a.size)

    def real_power(self, depth: int) -> Term:
        a = self.real(depth - 1)
        if self.flag():
            return Term(f"{a.tight} ** 2", a.size**2)
        return Term(f"pow(abs({a.text}) + 0.5, {self.pick(('0.5', '1.5', '-0.5'))})", (a.size + 1.5) ** 1.5)

    def real_extreme(self, depth: int) -> Term:
        a, b = self.real(depth - 1), self.real(depth - 1)
        return Term(f"{self.pick(('min', 'max'))}({a.text}, {b.text})", max(a.size, b.size))

    def real_conditional(self, depth: int) -> Term:
        a, b = self.real(depth - 1), self.real(depth - 1)
        return Term(f"{a.tight} if {self.boolean(depth - 1).tight} else {b.tight}", max(a.size, b.size))

    def real_sum_over_range(self, depth: int) -> Term:
        name, count = self.local(), self.number(1, 3)
        body = self.over(replace(self.scope, ints=(*self.scope.ints, Term(name, count)))).real(depth - 1)
        return Term(f"sum({body.text} for {name} in 0..{count})", body.size * count)
