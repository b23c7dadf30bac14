"""Vectorised evaluation: every operator against Python, sharing, broadcasting, and values that do not exist."""

import math
import random

import pytest
import torch

from attncc.diagnostics import AttnError
from attncc.interp.evaluate import OPERATIONS, evaluate
from attncc.ir.expr import BOOL, FLOAT, INT, OPS, apply, as_float, const, load, var

Q, K, X, Y = var("q_idx"), var("kv_idx"), var("x", FLOAT), var("y", FLOAT)
GRID = {"q_idx": torch.arange(4)[:, None], "kv_idx": torch.arange(5)[None, :]}


def test_every_operator_is_there():
    assert set(OPERATIONS) | {"to_float"} == set(OPS)


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.takes in ("int", "number", "compare")])
def test_ints_are_pythons(name):
    rng = random.Random(1)
    for _ in range(40):
        args = [rng.randint(-1000, 1000) for _ in range(OPS[name].arity)]
        if name in ("shl", "shr"):
            args[1] %= 20
        if name in ("floordiv", "mod") and args[1] == 0:
            continue
        expected = OPS[name].evaluate(*args)
        got = evaluate(apply(name, *(var(v) for v in "xy"[: len(args)])), dict(zip("xy", args)), {})
        assert got.item() == expected and got.dtype in (torch.int32, torch.bool), (name, args)


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.takes in ("float", "number", "float->int")])
def test_floats_are_pythons(name):
    rng = random.Random(2)
    for _ in range(20):
        args = [rng.uniform(0.1, 5.0) for _ in range(OPS[name].arity)]
        got = evaluate(apply(name, *(v for v in (X, Y)[: len(args)])), dict(zip("xy", args)), {})
        assert math.isclose(got.item(), OPS[name].evaluate(*args), rel_tol=1e-12), (name, args)


def test_types_and_shapes():
    assert evaluate(apply("add", Q, K), GRID, {}).shape == (4, 5) and evaluate(Q, GRID, {}).shape == (4, 1)
    assert evaluate(as_float(Q), GRID, {}).dtype == torch.float64
    assert evaluate(as_float(Q), GRID, {}, dtype=torch.float32).dtype == torch.float32
    assert evaluate(const(True), {}, {}).dtype == torch.bool and evaluate(const(3), {}, {}).dtype == torch.int32
    assert evaluate(apply("shl", var("x"), 31), {"x": 1}, {}).item() == -(2**31)
    assert evaluate(apply("to_int", X), {"x": torch.tensor([-1.5, 1e30, math.nan, -math.inf])}, {}).tolist() == [
        -2,
        2**31 - 1,
        0,
        -(2**31),
    ]


def test_a_shared_node_is_computed_once(monkeypatch):
    calls = []
    monkeypatch.setitem(OPERATIONS, "exp", lambda a: calls.append(1) or torch.exp(a))
    node = apply("exp", X)
    for _ in range(40):
        node = apply("add", node, node)
    assert math.isclose(evaluate(node, {"x": 0.0}, {}).item(), 2.0**40) and calls == [1]


def test_tensors_of_every_type_and_a_gather_of_a_gather():
    table, ids = torch.randn(7, 3).bfloat16(), torch.tensor([6, 0, 3, 3, 2], dtype=torch.uint8)
    node = load("table", (load("ids", (K,), INT), apply("mod", Q, 3)), FLOAT)
    got = evaluate(node, GRID, {"table": table, "ids": ids})
    assert torch.equal(got, table.double()[ids.long()[None, :], (torch.arange(4) % 3)[:, None]])
    assert evaluate(load("f", (), FLOAT), {}, {"f": torch.tensor(2.5)}).item() == 2.5
    assert evaluate(load("m", (Q,), BOOL), GRID, {"m": torch.tensor([True, False, True, True])}).tolist() == [
        [True],
        [False],
        [True],
        [True],
    ]


IDS = load("ids", (apply("add", K, 1),), INT)
INSIDE = apply("lt", K, 4)
SAFE = apply("ge", IDS, 0)


@pytest.mark.parametrize(
    "node",
    [
        apply("and", INSIDE, SAFE),
        apply("and", SAFE, INSIDE),
        apply("or", apply("not", INSIDE), SAFE),
        apply("or", SAFE, apply("not", INSIDE)),
        apply("select", INSIDE, SAFE, True),
        apply("ge", apply("select", INSIDE, IDS, 7), 0),
        apply("and", apply("and", SAFE, SAFE), apply("and", apply("ge", Q, 0), INSIDE)),
    ],
)
def test_reads_that_are_not_used_may_be_out_of_range(node):
    evaluate(node, GRID, {"ids": torch.arange(5)})


@pytest.mark.parametrize(
    "node",
    [
        SAFE,
        apply("or", INSIDE, SAFE),
        apply("select", INSIDE, True, SAFE),
        apply("and", apply("ge", K, 0), SAFE),
        apply("not", SAFE),
    ],
)
def test_reads_that_are_used_may_not(node):
    with pytest.raises(AttnError) as caught:
        evaluate(node, GRID, {"ids": torch.arange(5)})
    message = str(caught.value)
    assert (
        "E321" in message and "tensor `ids` is read out of range: index 5 in dimension 0, which has extent 5" in message
    )
    evaluate(node, GRID, {"ids": torch.arange(5)}, valid=GRID["kv_idx"] < 4)


def test_the_whole_index_is_told():
    node = load("t", (Q, apply("sub", K, 1), const(0)), FLOAT)
    with pytest.raises(AttnError, match=r"index -1 in dimension 1, which has extent 6"):
        evaluate(node, GRID, {"t": torch.zeros(4, 6, 1)})
    with pytest.raises(AttnError, match=r"in `t\[q_idx, kv_idx\]` the index is \[0, 3\], the shape is \(2, 3\)"):
        evaluate(load("t", (Q, K), FLOAT), GRID, {"t": torch.zeros(2, 3)})


def test_empty_tensors():
    node = load("t", (K,), FLOAT)
    assert evaluate(node, GRID, {"t": torch.zeros(0)}, valid=torch.tensor(False)).shape == (1, 5)
    with pytest.raises(AttnError, match="E321"):
        evaluate(node, GRID, {"t": torch.zeros(0)})


@pytest.mark.parametrize(
    "name, bad, code", [("floordiv", 0, "E322"), ("mod", 0, "E322"), ("shl", 32, "E323"), ("shr", -1, "E323")]
)
def test_integer_operations_without_value(name, bad, code):
    env = {"x": torch.tensor([5, 6]), "n": torch.tensor([2, bad])}
    node = apply(name, var("x"), var("n"))
    with pytest.raises(AttnError, match=code):
        evaluate(node, env, {})
    assert evaluate(node, env, {}, valid=torch.tensor([True, False]))[0] == OPS[name].evaluate(5, 2)


def test_gradients_reach_tensors():
    table = torch.randn(5, dtype=torch.float64, requires_grad=True)
    evaluate(apply("mul", load("t", (K,), FLOAT), load("t", (K,), FLOAT)), GRID, {"t": table}).sum().backward()
    torch.testing.assert_close(table.grad, 2 * table.detach())


@pytest.mark.parametrize(
    "name", ["div", "pow", "exp", "exp2", "log", "log2", "sqrt", "tanh", "sigmoid", "erf", "sin", "cos", "abs", "mul"]
)
def test_derivatives(name):
    node = apply(name, *(X, Y)[: OPS[name].arity])
    x = torch.tensor([[0.3], [1.7], [2.2]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0.4, 1.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: evaluate(node, {"x": x, "y": y}, {}), (x, y))


def test_a_branch_that_is_not_taken_does_not_spoil_gradients():
    node = apply("select", apply("gt", X, 0.0), apply("mul", apply("log", X), apply("sqrt", X)), apply("div", 0.0, X))
    x = torch.tensor([0.0, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    value = evaluate(node, {"x": x}, {})
    value[1:].sum().backward()
    assert torch.isfinite(x.grad).all()
