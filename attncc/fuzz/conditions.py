"""Strategies for well-typed conditions of the language, as text: what masks are made of."""

from __future__ import annotations

from dataclasses import replace

from attncc.fuzz.numbers import ODD, Numbers
from attncc.fuzz.terms import Term


class Maker(Numbers):
    """Draws truth values too."""

    def boolean(self, depth: int) -> Term:
        if depth <= 0:
            return self.one(self.affine, self.affine, self.blocks, self.bool_element, self.bool_name)
        options = [
            self.affine, self.affine, self.blocks, self.stripes, self.bool_element, self.same_element, self.bool_name,
            lambda: self.connective(depth), lambda: self.connective(depth), lambda: self.connective(depth),
            lambda: self.negation(depth), lambda: self.comparison(depth), lambda: self.chain(depth),
            lambda: self.real_comparison(depth), lambda: self.quantifier(depth), lambda: self.bool_conditional(depth),
            lambda: self.guarded_element(depth), lambda: self.element_bound(depth),
            self.hashed, lambda: self.undefined(depth), lambda: self.whole_quotient(depth),
        ]  # fmt: skip
        return self.one(*options)

    def affine(self) -> Term:
        """An affine condition of the positions: what closed-form key ranges are for."""
        a, b = self.pick(self.POSITIONS), self.pick(self.POSITIONS)
        if not self.sees(a, b):
            return self.bool_name()
        compare = self.pick(("<=", "<", ">=", ">"))
        left = a if self.flag() else f"{a} {self.pick('+-')} {self.number(0, 150)}"
        right = f"{b} {self.pick('+-')} {self.number(0, 150)}" if self.flag() else b
        return self.one(
            lambda: Term(f"{left} {compare} {right}"),
            lambda: Term(f"{a} - ({b}) {compare} {self.number(-150, 150)}"),
            lambda: Term(f"{a} {compare} {self.number(0, 260)}"),
            lambda: Term(f"abs({a} - ({b})) {compare} {self.number(0, 150)}"),
            lambda: Term(f"{self.number(1, 3)} * ({a}) {compare} {right}"),
        )

    POSITIONS = ("q_idx", "kv_idx", "kv_idx", "q_idx + off")

    def sees(self, *texts: str) -> bool:
        """Whether every index those texts name is in scope."""
        return all(i in self.scope.indices or i not in t.split() for t in texts for i in ("q_idx", "kv_idx"))

    def blocks(self) -> Term:
        """A condition between block numbers, shifted ones (negative positions) included."""
        size = self.pick((2, 3, 8, 16, 24, 32, 64, 100, 128))
        shift = self.pick(("", " - 20", " + 7", " - 300"))
        if not self.sees("q_idx", "kv_idx"):
            return self.bool_name()
        row, compare = self.pick(("q_idx", "q_idx", "q_idx + off")), self.pick(("==", "==", "<=", ">=", "<", "!=", ">"))
        return Term(f"({row}{shift}) // {size} {compare} (kv_idx{self.pick(('', shift))}) // {size}")

    def stripes(self) -> Term:
        size = self.pick((2, 3, 5, 8, 64))
        differences = ("q_idx - kv_idx", "kv_idx - q_idx", "q_idx + off - kv_idx")
        what = self.pick(("kv_idx", *differences, "q_idx", "q_idx + kv_idx", "kv_idx + h"))
        if not self.sees(what):
            return self.bool_name()
        return Term(f"({what}) % {size} {self.pick(('==', '!=', '<', '>='))} {self.number(0, size - 1)}")

    def bool_element(self) -> Term:
        return self.element("bool", 1) or self.same_element()

    def same_element(self) -> Term:
        """Elements of one integer tensor at a row's and at a key's position: documents, segments, colours."""
        a = self.element("int", 0)
        if a is None:
            return self.bool_name()
        b = self.element("int", 0) or a
        return Term(f"{a.text} {self.pick(('==', '==', '!=', '<=', '>'))} {b.text}")

    def element_bound(self, depth: int) -> Term:
        """A position compared with an element: lengths, limits, per-token windows."""
        a = self.element("int", depth)
        index = self.pick(("kv_idx", "kv_idx", "q_idx", "q_idx - kv_idx"))
        if a is None or not self.sees(index):
            return self.bool_name()
        return Term(f"{index} {self.pick(('<', '<', '<=', '>=', '>'))} {a.text}")

    def bool_name(self) -> Term:
        names = self.scope.named("bool")
        if names and self.number(0, 3):
            return self.pick(names)
        a = self.integer(0)
        return Term(f"{a.tight} {self.pick(('<', '>=', '!='))} {self.number(0, 9)}")

    def connective(self, depth: int) -> Term:
        a, b = self.boolean(depth - 1), self.boolean(depth - 1)
        return Term(f"{a.tight} {self.pick(('and', 'or'))} {b.tight}")

    def negation(self, depth: int) -> Term:
        return Term(f"not {self.boolean(depth - 1).tight}")

    def comparison(self, depth: int) -> Term:
        a, b = self.integer(depth - 1), self.integer(depth - 1)
        return Term(f"{a.tight} {self.pick(('<', '<=', '>', '>=', '==', '!='))} {b.tight}")

    def chain(self, depth: int) -> Term:
        a, b, c = (self.integer(depth - 1).tight for _ in range(3))
        return Term(f"{a} {self.pick(('<=', '<'))} {b} {self.pick(('<=', '<'))} {c}")

    def real_comparison(self, depth: int) -> Term:
        a, b = self.real(depth - 1), self.real(depth - 1)
        return Term(f"{a.tight} {self.pick(('<', '>', '<=', '>='))} {b.tight} + {ODD}")

    def quantifier(self, depth: int) -> Term:
        name, count = self.local(), self.number(1, 4)
        body = self.over(replace(self.scope, ints=(*self.scope.ints, Term(name, count)))).boolean(depth - 1)
        return Term(f"{self.pick(('any', 'all'))}({body.text} for {name} in 0..{count})")

    def bool_conditional(self, depth: int) -> Term:
        a, b, c = (self.boolean(depth - 1).tight for _ in range(3))
        return self.one(lambda: Term(f"{a} if {b} else {c}"), lambda: Term(f"{a} == {b}"), lambda: Term(f"{a} != {b}"))

    def hashed(self) -> Term:
        """Bits of the positions mixed by products that wrap: what no bound follows from."""
        if not self.sees("q_idx", "kv_idx"):
            return self.bool_name()
        row, key = self.pick((1103515245, 22695477, 134775813)), self.pick((69069, 1664525, 1073741824))
        mixed = self.pick(
            (f"q_idx * {row} + kv_idx * {key}", f"(q_idx * {row}) ^ (kv_idx * {key})", f"abs(kv_idx * {key} - q_idx * {row} << 3)")
        )
        return Term(f"(({mixed}) >> {self.pick((0, 9, 16))}) % 10 {self.pick(('<', '!=', '>='))} {self.number(1, 8)}")

    def undefined(self, depth: int) -> Term:
        """A comparison with what is no number for some positions (then it is false), also after a minimum or maximum."""
        if not self.sees("kv_idx"):
            return self.bool_name()
        a = f"float(kv_idx - {self.integer(depth - 1).tight}) + {ODD}"
        root = self.pick((f"sqrt({a})", f"log({a})"))
        c = self.number(0, 12)
        root = self.pick((root, root, f"min({root}, {c + 2}.5)", f"max({c / 2}, {root})"))
        return Term(f"{self.pick(('', 'not '))}({root} {self.pick(('<', '>', '<=', '>='))} {c}.0 + {ODD})")

    def whole_quotient(self, depth: int) -> Term:
        """A rounding that hangs on the last bit of a quotient of whole numbers, which is exact where the quotient is whole."""
        a, n = self.integer(depth - 1), self.pick((3, 7, 41, 47, 61))
        return Term(f"floor(float({a.text}) / {n}.0) {self.pick(('<', '>=', '==', '!='))} {self.number(-2, 5)}")

    def guarded_element(self, depth: int) -> Term:
        """A read that may be out of range, behind a condition that keeps it in range."""
        able = [t for t in self.scope.tensors if t.kind == "int" and t.extents[-1:] == ("seq_kv",)]
        able = [t for t in able if all(map(self.can_index, t.extents))]
        if not able or not self.sees("kv_idx"):
            return self.bool_name()
        tensor, step = self.pick(able), self.number(1, 3)
        lead = [self.position(e, 0) for e in tensor.extents[:-1]]
        here, there = (f"{tensor.name}[{', '.join((*lead, i))}]" for i in ("kv_idx", f"kv_idx + {step}"))
        compare = self.pick(("==", "<=", "!="))
        return self.one(
            lambda: Term(f"kv_idx + {step} < seq_kv and {there} {compare} {here}"),
            lambda: Term(f"kv_idx + {step} >= seq_kv or {there} {compare} {here}"),
            lambda: Term(f"({there} {compare} {here}) if kv_idx + {step} < seq_kv else {self.pick(('true', 'false'))}"),
        )
