"""Strategies for well-typed specs, as `.attn` text.

Every statement of the language that can be compiled today is drawn, in any combination: the combinations are the point, since
libraries are wrong in them silently (a cap dropped beside a bias, a causal flag beside a mask function, a mask evaluated on
boundary tiles only, a scale applied twice).
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from attncc.fuzz.builder import Builder
from attncc.fuzz.conditions import Maker
from attncc.fuzz.prelude import bias_call, mask_call, score_call
from attncc.fuzz.terms import Scope, Tensor, Term

DIMS = (16, 64, 8, 32, 24, 40, 96, 128, 72, 192, 256)
DTYPES = ("bf16", "f16")
UNNORMALISED = ("sigmoid", "relu", "silu", "gelu", "none")


@st.composite
def specs(draw, depth: int = 3) -> str:
    """The text of a spec whose float64 reference is finite on generated data. `depth` bounds how deep expressions nest."""
    b = Builder(draw)
    declare_sizes(b)
    declare_parameters(b)
    declare_tensors(b)
    declare_scalars(b)
    declare_lets(b, depth)
    kind = b.one("softmax", "softmax", "softmax", "softmax", *UNNORMALISED)
    order = b.one("m", "", "b", "mb", "bm", "bb", "mm", "bmb", "mbm", "bbm", "bbbm", "mbmmb")
    body = [f"mask {mask(b, depth)}" if step == "m" else transform(b, depth) for step in order]
    body += [f"mask {m}" for m in b.required] + [reduction(b, kind)]
    head = f"({', '.join(b.parameters)})" if b.parameters else ""
    lines = "".join(f"    {line}\n" for line in (*b.head, *body) if line)
    return "".join(f"{d}\n" for d in b.definitions) + f"attention fuzzed{head} {{\n{lines}}}\n"


# ---------------------------------------------------------------- declarations


def declare_sizes(b: Builder) -> None:
    heads_q, heads_kv = b.scope.heads
    b.head.append(f"heads q = {heads_q}, kv = {heads_kv}")
    qk = b.one(*DIMS)
    v = b.one(qk, qk, *DIMS)
    b.head.append(f"dim {qk}" if v == qk and b.one(True, False) else f"dim qk = {qk}, v = {v}")
    b.head.append(f"dtype {b.one(*DTYPES)}")
    scale = b.one(None, None, 0.25, 0.125, 1.0)
    if scale is not None:
        b.head.append(f"scale {b.one('', '0.5 * ')}{min(scale, 2.0 / qk**0.5)!r}")


def declare_parameters(b: Builder) -> None:
    """Compile-time parameters, with the defaults that will be used."""
    for i in b.count(0, 0, 1, 2):
        type = b.one("int", "float", "bool")
        if type == "int":
            value = b.draw(st.integers(1, 64))
            b.scope = replace(b.scope, ints=(*b.scope.ints, Term(f"par{i}", value)))
            default = str(value)
        elif type == "float":
            default = str(b.draw(st.integers(1, 64)) / 8)
            b.scope = replace(b.scope, floats=(*b.scope.floats, Term(f"par{i}", float(default))))
        else:
            default = b.one("true", "false")
            b.scope = replace(b.scope, bools=(*b.scope.bools, Term(f"par{i}")))
        b.parameters.append(f"par{i}: {type} = {default}")


def declare_scalars(b: Builder) -> None:
    """Run-time scalars."""
    for i in b.count(0, 0, 1, 2):
        type = b.one("int", "float", "bool")
        name = f"run{i}"
        if type == "int":
            high = b.one("9", "64", "200", "seq_kv + 1")
            b.head.append(f"scalar {name}: int in {b.one('0', '0', '1', '-20')}..{high}")
            b.scope = replace(b.scope, ints=(*b.scope.ints, Term(name, 300)))
        elif type == "float":
            b.head.append(f"scalar {name}: float in 0.5..4.0")
            b.scope = replace(b.scope, floats=(*b.scope.floats, Term(name, 4.0)))
        else:
            b.head.append(f"scalar {name}: bool")
            b.scope = replace(b.scope, bools=(*b.scope.bools, Term(name)))


def declare_tensors(b: Builder) -> None:
    for i in b.count(0, 1, 2, 3, 4):
        tensor = b.one(row_and_key, any_tensor, any_tensor, table, table, limits)(b, f"ten{i}")
        b.scope = replace(b.scope, tensors=(*b.scope.tensors, *tensor))


def any_tensor(b: Builder, name: str) -> tuple[Tensor, ...]:
    """Any rank, extents and type."""
    rank = b.one(1, 2, 2, 3, 4, 5)
    extents = [b.one("batch", "heads_q", "heads_kv", "seq_q", "seq_kv", "4", "3") for _ in range(rank)]
    while sum(e.startswith("seq") for e in extents) > 2:
        extents[next(i for i, e in enumerate(extents) if e.startswith("seq"))] = "2"
    kind = b.one("float", "int", "bool")
    return (b.declare(name, kind, tuple(extents)),)


def row_and_key(b: Builder, name: str) -> tuple[Tensor, ...]:
    """A tensor over rows and one over keys with the same values: documents, segments, times."""
    lead = b.one(("batch",), ("batch",), (), ("heads_q",))
    in_order = b.one(True, True, False)
    high = b.one("4", "8", "2")
    return tuple(b.declare(f"{name}{axis[4:]}", "int", (*lead, axis), high, in_order) for axis in ("seq_q", "seq_kv"))


def limits(b: Builder, name: str) -> tuple[Tensor, ...]:
    """Numbers of keys or positions: lengths, per-row limits, permutations to gather through."""
    extents = b.one(("batch",), ("batch", "seq_q"), ("seq_q",), ("batch", "seq_kv"), ("heads_q", "seq_q"), ("batch", "heads_q"))
    return (b.declare(name, "int", extents, b.one("seq_kv", "seq_kv + 1", "seq_q", "seq_kv"), b.one(False, False, True)),)


def table(b: Builder, name: str) -> tuple[Tensor, ...]:
    """A small table of real numbers, and indices into it."""
    size = b.one("8", "4", "16")
    values = b.declare(name, "float", (*b.one(("heads_q",), (), ("heads_q", "3"), ("batch", "heads_kv")), size))
    if b.one(True, False):
        return (values,)
    return values, b.declare(f"{name}at", "int", b.one(("seq_q", "seq_kv"), ("batch", "seq_kv"), ("seq_q",), ("4", "4")), size)


def declare_lets(b: Builder, depth: int) -> None:
    for i in b.count(0, 0, 1, 2):
        name, maker = f"let{i}", b.maker()
        kind = b.one("int", "float", "bool")
        if kind == "int":
            term = maker.integer(depth - 1)
        else:
            term = maker.real(depth - 1) if kind == "float" else maker.boolean(depth - 1)
        b.head.append(f"let {name} = {term.text}")
        b.scope = replace(b.scope, locals=(*b.scope.locals, (kind, Term(name, term.size))))


# ---------------------------------------------------------------- statements


def mask(b: Builder, depth: int) -> str:
    maker = b.maker()
    choice = b.one("library", "random", "random", "own", "both", "library")
    if choice == "library":
        return mask_call(b)
    if choice == "both":
        return f"{Term(mask_call(b)).tight} {b.one('and', 'or')} {maker.negation(2).tight}"
    return own_mask(b, depth) if choice == "own" else maker.boolean(depth).text


def own_mask(b: Builder, depth: int) -> str:
    """A definition of the text itself that takes a mask and a number, used on a random mask."""
    name, n = f"own{len(b.definitions)}", b.one(2, 8, 16, 32)
    inner = Maker(b.draw, Scope(ints=(Term("n", n),), bools=(Term("m"), Term("m"))))
    body = b.one(
        "m(q_idx // n, kv_idx // n)", "m(q_idx % n, kv_idx % n) and q_idx // n == kv_idx // n", "m and kv_idx % n != 0",
        "not m(q_idx - q_idx % n, kv_idx)", "any(m(q_idx, max(kv_idx - i, 0)) for i in 0..3)", None,
    )  # fmt: skip
    b.definitions.append(f"mask {name}(m: mask, n: int = 5) = {body or inner.boolean(2).text}")
    argument = mask_call(b) if b.one(True, False) else b.maker().boolean(depth - 1).text
    return f"{name}({argument}, {n})"


def transform(b: Builder, depth: int) -> str:
    """A `score` or `bias` statement. Once a score may be -inf, what follows must neither negate it nor multiply it by 0."""
    maker = b.maker()
    options = ["bias", "cap", "call", "alibi", "raised", "branch", "forbidden", "logs"]
    option = b.one(*options, *(() if b.infinite else ("scaled", "shaped", "own", "own")))
    if option == "cap":
        return f"score {b.one('softcap(20.0)', 'softcap(cap = 5.0)', '8.0 * tanh(s / 8.0)')}"
    if option == "bias":
        return f"bias {maker.real(depth).text}"
    if option in ("call", "alibi"):
        return f"bias {bias_call(b)}" if option == "alibi" or b.one(True, False) else f"score {score_call(b)}"
    if option == "raised":
        return f"score {b.one('max(s, 0.5 * s - 1.0)', 's - 0.5 * abs(s)', 'min(s, 3.0)', '0.5 * s', 's + 1.5')}"
    if option == "shaped":
        return f"score {b.one('s * sigmoid(s)', 's + sin(s)', '-s', 's * s * 0.125', 'abs(s)', '-0.5')}"
    if option == "scaled":
        return f"score s * {maker.over(replace(b.scope, indices=('b', 'h', 'hkv'), locals=())).real(1).tight} * 0.125"
    if option == "forbidden":
        b.infinite = True
        return f"bias -inf if {maker.boolean(depth - 1).tight} else {maker.real(1).tight}"
    if option == "branch":
        other = b.one("0.5 * s", "-inf", "s - 4.0", maker.real(1).tight)
        b.infinite = b.infinite or other == "-inf"
        return f"score s if {maker.boolean(depth - 1).tight} else {other}"
    return f"bias log(sigmoid(4.0 * tanh({maker.real(1).text})))" if option == "logs" else own_transform(b)


def own_transform(b: Builder) -> str:
    """A definition of the text itself: a function of numbers, a score or a bias."""
    name, kind = f"own{len(b.definitions)}", b.one("def", "score", "bias")
    scope = Scope(floats=(Term("x", 4.0),), ints=(Term("n", 8),))
    inner = Maker(b.draw, replace(scope, floats=(*scope.floats, Term("s", 10.0))) if kind == "score" else scope)
    body = inner.real(2)
    b.definitions.append(f"{kind} {name}(x: float, n: int = 3){' -> float' if kind == 'def' else ''} = {body.text}")
    argument = b.maker().real(1).text
    if kind == "def":
        return f"bias {name}({argument}, n = {b.one(1, 5)})"
    return f"{kind} {name}({argument})" if kind == "bias" else f"score 0.5 * s + {name}(n = 2, x = {argument})"


def reduction(b: Builder, kind: str) -> str:
    rows = ("b", "h", "hkv", "q_idx")
    if kind == "softmax":
        option = b.one("", "", "plain", "sink", "sink")
        if option == "sink":
            return f"reduction softmax(sink = {b.maker(*rows).real(2).text})"
        return "reduction softmax" if option else ""
    scale = b.one(None, "1.0 / max(seq_kv, 1)", "1.0 / (1.0 + q_idx)", b.maker(*rows).real(1).text)
    return f"reduction {kind}" + (f"(weight_scale = {scale})" if scale else "")
