"""The expression printer: its text, and its numbers (compiled for the CPU) against the meaning of ir/expr.py."""

import math
import random

import pytest

from attncc.emit.expressions import Names, fold, identifier, literal, to_source, to_statements, wrap
from attncc.ir.expr import BOOL, FLOAT, INT, OPS, Expr, apply, const, load, select, var, walk

Q, K = var("q_idx"), var("kv_idx")
QK = var("qk", FLOAT)


def test_a_shared_sub_expression_is_computed_once():
    scaled = apply("mul", QK, 0.5)
    capped = apply("tanh", scaled)
    lines, results = to_statements((apply("add", capped, scaled), capped), Names())
    assert lines == ("e0 = qk * 0.5", "e1 = arith.tanh(e0)")
    assert results == ("e1 + e0", "e1")


@pytest.mark.parametrize(
    "expr, text",
    [
        (apply("floordiv", Q, 8), "q_idx >> 3"),
        (apply("mod", Q, 64), "q_idx & 63"),
        (apply("mod", Q, 7), "arith.floormod(q_idx, 7)"),
        (apply("div", QK, 50.0), "qk * 0.02"),
        (apply("to_int", apply("div", QK, 41.0)), "arith.to_int(arith.divide_exactly(qk, 41.0))"),
        (apply("lt", apply("div", QK, 41.0), 1.0), "arith.divide_exactly(qk, 41.0) < 1.0"),
        (apply("div", apply("to_float", K), 41.0), "arith.divide_exactly(arith.to_float(kv_idx), 41.0)"),
        (apply("sub", Q, apply("sub", K, Q)), "q_idx - (kv_idx - q_idx)"),
        (
            apply("and", apply("le", K, Q), apply("not", apply("lt", K, 5))),
            "(kv_idx <= q_idx) & arith.logical_not(kv_idx < 5)",
        ),
        (apply("eq", apply("lt", K, Q), apply("lt", Q, 4)), "(kv_idx < q_idx) == (q_idx < 4)"),
        (apply("min", QK, 1.0), "arith.fmin(qk, 1.0)"),
        (apply("min", Q, 1), "arith.imin(q_idx, 1)"),
        (apply("pow", QK, 3.0), "arith.powi(qk, 3)"),
        (select(apply("lt", K, Q), QK, const(-math.inf)), "arith.select(kv_idx < q_idx, qk, -arith.INF)"),
        (apply("neg", apply("neg", QK)), "-(-qk)"),
        (apply("add", Q, 2**31), "q_idx + -2147483648"),
        (load("doc", (var("b"), K), INT), "arith.load_int(t_doc, (b, kv_idx,))"),
        (load("tau", (), FLOAT), "arith.load_float(t_tau, (0,))"),
        (var("tau", FLOAT), "p_tau"),
        (var("flag", BOOL), "(p_flag != 0)"),
        (var("lo"), "x_lo"),
    ],
)
def test_text(expr, text):
    names = Names(scalars={"tau": FLOAT, "flag": BOOL}, tensors=frozenset({"doc", "tau"}))
    assert to_source(expr, names) == text


@pytest.mark.parametrize("name", ["__import__('os')", "a;b", "é", "class", "t_x", "", "1", "a\nb", 'x"""', "{{ x }}"])
def test_no_name_becomes_code(name):
    for expr in (var(name), load(name, (Q,), INT)):
        text = to_source(expr, Names(tensors=frozenset({name})))
        assert text.isascii()
        assert all(c.isalnum() or c in "_(), ." for c in text)
    assert f"x_{identifier(name)}".isidentifier()


def test_names_never_meet():
    names = ["é", "c3a9", "0c3a9", "_c3a9", "x", "X"]
    assert len({identifier(n) for n in names}) == len(names)


def test_an_undeclared_tensor_is_refused():
    with pytest.raises(KeyError):
        to_source(load("nobody", (Q,), INT), Names())


@pytest.mark.parametrize("value", [0.1, 1e-45, 3.4e38, -2.5, 1.0 / 3.0, 1e22])
def test_float_literals_are_exact(value):
    assert eval(literal(value)) == value


def test_undefined_literals_do_not_stop_the_printer():
    assert literal(fold(apply("div", 1.0, 0.0)).value) == "arith.NAN"
    assert fold(apply("floordiv", 1, 0)).value == 0
    assert fold(apply("exp", 1e9)).value == math.inf


# ---------------------------------------------------------------------------------------------------------------------
# numbers: random expressions, compiled as one CPU function over a table of inputs

INTS = ("q_idx", "kv_idx", "h")
FLOATS = ("qk", "tau")
SMOOTH = ("tanh", "sigmoid", "erf", "sin", "cos", "exp2", "exp")


def random_int(rng: random.Random, depth: int) -> Expr:
    if depth == 0:
        return rng.choice(
            [var(rng.choice(INTS)), const(rng.choice([0, 1, -1, 2, 3, 7, -5, 8, 64, 1000, 2**31 - 1, -(2**31)]))]
        )
    op = rng.choice(
        "add sub mul floordiv mod neg bitnot bitand bitor bitxor shl shr min max abs select to_int load".split()
    )
    sub = lambda: random_int(rng, depth - 1)  # noqa: E731
    if op in ("floordiv", "mod"):
        dynamic = apply("add", apply("bitand", sub(), 15), 1)
        divisor = rng.choice([const(rng.choice([1, 2, 3, 7, 8, 64, 100, -1, -3, -8])), dynamic, apply("neg", dynamic)])
        return apply(op, apply("sub", apply("bitand", sub(), 2**30 - 1), 2**29), divisor)  # -2**31 // -1 overflows
    if op in ("shl", "shr"):
        return apply(op, sub(), rng.choice([const(rng.randrange(32)), apply("bitand", sub(), 31)]))
    if op == "select":
        return select(random_bool(rng, depth - 1), sub(), sub())
    if op == "to_int":
        return apply("to_int", apply("mul", apply("sin", random_float(rng, depth - 1)), 1000.0))
    if op == "load":
        return load("table", (apply("bitand", sub(), 15),), INT)
    return apply(op, *(sub() for _ in range(OPS[op].arity)))


def random_float(rng: random.Random, depth: int) -> Expr:
    """Values stay moderate: every operator's result is squashed or an average."""
    if depth == 0:
        return rng.choice([var(rng.choice(FLOATS), FLOAT), const(rng.choice([0.0, 1.0, -2.5, 0.125, 3.0]))])
    op = rng.choice("mean sub mul div min max abs neg select to_float pow log sqrt load".split() + list(SMOOTH))
    sub = lambda: random_float(rng, depth - 1)  # noqa: E731
    small = lambda: apply("min", apply("max", sub(), -8.0), 8.0)  # noqa: E731
    if op == "mean":
        return apply("mul", apply("add", sub(), sub()), 0.5)
    if op == "mul":
        return apply("mul", small(), small())
    if op == "div":
        return apply("div", sub(), rng.choice([const(50.0), apply("add", apply("abs", sub()), 0.5)]))
    if op == "select":
        return select(random_bool(rng, depth - 1), sub(), sub())
    if op == "to_float":
        return apply("to_float", apply("mod", random_int(rng, depth - 1), 100))
    if op == "pow":
        return rng.choice(
            [apply("pow", small(), 2.0), apply("pow", apply("add", apply("abs", small()), 0.5), apply("sin", sub()))]
        )
    if op in ("log", "sqrt"):
        return apply(op, apply("add", apply("abs", sub()), 0.25))
    if op == "load":
        return load(
            "bias", (apply("bitand", random_int(rng, depth - 1), 15), apply("bitand", random_int(rng, 0), 3)), FLOAT
        )
    if op in SMOOTH:
        return apply(op, small())
    return apply(op, *(sub() for _ in range(OPS[op].arity)))


def random_bool(rng: random.Random, depth: int) -> Expr:
    if depth == 0:
        return rng.choice([apply("le", var("kv_idx"), var("q_idx")), const(rng.random() < 0.5)])
    op = rng.choice("and or not eq ne lt le gt ge boolean load".split())
    if op in ("and", "or"):
        return apply(op, random_bool(rng, depth - 1), random_bool(rng, depth - 1))
    if op == "not":
        return apply("not", random_bool(rng, depth - 1))
    if op == "boolean":
        return apply(rng.choice(["eq", "ne"]), random_bool(rng, depth - 1), random_bool(rng, depth - 1))
    if op == "load":
        return load("keep", (apply("bitand", random_int(rng, depth - 1), 15),), BOOL)
    return apply(op, random_int(rng, depth - 1), random_int(rng, depth - 1))


TABLES = {
    "table": [(i * 7919) % 97 - 40 for i in range(16)],
    "bias": [[math.sin(i * 4 + j) for j in range(4)] for i in range(16)],
    "keep": [i % 3 == 0 for i in range(16)],
}


def reference(root: Expr, point: dict):
    """The numeric meaning: ints wrapped at 32 bits after each operator, floats as float64."""
    value: dict[Expr, object] = {}
    for node in walk(root):
        if node.op == "const":
            out = node.value
        elif node.op == "var":
            out = point[node.value]
        elif node.op == "load":
            out = TABLES[node.value]
            for a in node.args:
                out = out[value[a]]
        else:
            out = OPS[node.op].evaluate(*(value[a] for a in node.args))
        value[node] = wrap(out) if node.type == INT else out
    return value[root]


POINTS = [
    {"q_idx": q, "kv_idx": k, "h": h, "qk": x, "tau": t}
    for q, k, h, x, t in [
        (0, 0, 0, 0.0, 1.0), (5, 9, 1, -3.25, 0.5), (127, 128, 7, 12.5, -1.5), (4095, 17, 3, -20.0, 2.0),
        (-1, -7, 2, 0.01, 0.0), (2**31 - 1, -(2**31), 31, 1.0, -0.25), (100003, 65536, 15, -0.5, 7.0),
    ]
]  # fmt: skip


def run_on_cpu(exprs, tmp_path):
    """The values of `exprs` at every point, through the printed source compiled for the host."""
    torch = pytest.importorskip("torch")
    cutlass = pytest.importorskip("cutlass")
    import importlib.util

    import cutlass.cute as cute
    from cutlass.cute.runtime import make_fake_compact_tensor

    names = Names(scalars={"tau": FLOAT}, tensors=frozenset(TABLES))
    lines, results = to_statements(tuple(exprs), names)
    body = [
        *lines,
        *(
            f"{'out_f' if e.type == FLOAT else 'out_i'}[p, {i}] = {_stored(e, r)}"
            for i, (e, r) in enumerate(zip(exprs, results))
        ),
    ]
    source = [
        "import cutlass, cutlass.cute as cute", "from cutlass import Boolean, Float32, Int32", "from attncc.device import arith", "",
        "@cute.jit",
        "def run(ints: cute.Tensor, floats: cute.Tensor, t_table: cute.Tensor, t_bias: cute.Tensor, t_keep: cute.Tensor, out_i: cute.Tensor, out_f: cute.Tensor, n: Int32):",
        "    for p in range(n):",
        "        q_idx = ints[p, 0]; kv_idx = ints[p, 1]; h = ints[p, 2]; qk = floats[p, 0]; p_tau = floats[p, 1]",
        *("        " + line for line in body), "",
    ]  # fmt: skip
    path = tmp_path / "generated.py"
    path.write_text("\n".join(source))
    spec = importlib.util.spec_from_file_location(f"generated_{tmp_path.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    points, count = len(POINTS), len(exprs)
    data = [
        torch.tensor([[p[n] for n in INTS] for p in POINTS], dtype=torch.int32),
        torch.tensor([[p[n] for n in FLOATS] for p in POINTS], dtype=torch.float32),
        torch.tensor(TABLES["table"], dtype=torch.int64),
        torch.tensor(TABLES["bias"], dtype=torch.float32),
        torch.tensor(TABLES["keep"], dtype=torch.uint8),
        torch.zeros(points, count, dtype=torch.int32),
        torch.zeros(points, count, dtype=torch.float32),
    ]
    kinds = {
        torch.int32: cutlass.Int32,
        torch.int64: cutlass.Int64,
        torch.float32: cutlass.Float32,
        torch.uint8: cutlass.Uint8,
    }
    fakes = [
        make_fake_compact_tensor(
            kinds[t.dtype],
            tuple(t.shape),
            stride_order=tuple(reversed(range(t.ndim))),
            memspace=cutlass.AddressSpace.generic,
        )
        for t in data
    ]
    compiled = cute.compile(module.run, *fakes, cutlass.Int32(1), options="--enable-tvm-ffi")
    compiled(*data, points)
    return data[5].tolist(), data[6].tolist()


def _stored(expr, text):
    """The statement's right-hand side: a result that is a plain literal is made a value of its type."""
    return (
        f"arith.select({text}, 1, Int32(0))"
        if expr.type == BOOL
        else f"Int32({text})"
        if expr.type == INT
        else f"Float32({text})"
    )


@pytest.mark.parametrize("seed", range(6))
def test_random_expressions_agree_with_their_meaning(seed, tmp_path):
    rng = random.Random(seed)
    makers = (random_int, random_float, random_bool)
    exprs = [makers[i % 3](rng, rng.choice([1, 2, 3, 4])) for i in range(45)]
    ints, floats = run_on_cpu(exprs, tmp_path)
    for p, point in enumerate(POINTS):
        for i, expr in enumerate(exprs):
            want = reference(expr, point)
            if expr.type == FLOAT:
                assert floats[p][i] == pytest.approx(want, rel=2e-3, abs=2e-3), (expr.op, point)
            else:
                assert ints[p][i] == int(want), (
                    to_source(expr, Names(scalars={"tau": FLOAT}, tensors=frozenset(TABLES))),
                    point,
                )
