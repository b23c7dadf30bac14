"""Scalar arithmetic of generated code: in host functions for its algorithms, on the PTX emulator for the hardware's
approximations."""

from __future__ import annotations

import math

import cutlass
import pytest
import torch
from cutlass import Float32, Int32, cute
from cutlass.cute.runtime import make_fake_tensor

from attncc.device import arith

GENERIC = cutlass.AddressSpace.generic
LANES = 32


def fake(kind, memory):
    return make_fake_tensor(kind, (cute.sym_int(),), (1,), memspace=memory, assumed_align=4)


def on_host(function, *columns, kind=Float32):
    """`function` of each row of the columns, compiled for the CPU."""

    @cute.jit
    def run(a: cute.Tensor, b: cute.Tensor, out: cute.Tensor, n: Int32):
        for i in range(n):
            out[i] = function(a[i], b[i])

    columns = [*columns, columns[0]][:2]
    dtype = {Float32: torch.float32, Int32: torch.int32}[kind]
    a, b = (torch.tensor(c, dtype=dtype) for c in columns)
    out = torch.zeros(len(a), dtype=dtype)
    fakes = [fake(kind, GENERIC) for _ in range(3)]
    cute.compile(run, *fakes, Int32(1), options="--enable-tvm-ffi")(a, b, out, len(a))
    return out.tolist()


def on_device(function, *columns):
    """`function` of 32 rows, one in each lane, on the emulator."""
    from attncc.emulator import emulate, keep_ptx

    @cute.kernel
    def kernel(a: cute.Tensor, b: cute.Tensor, out: cute.Tensor):
        i, _, _ = cute.arch.thread_idx()
        out[i] = function(a[i], b[i])

    @cute.jit
    def run(a: cute.Tensor, b: cute.Tensor, out: cute.Tensor):
        kernel(a, b, out).launch(grid=(1, 1, 1), block=(LANES, 1, 1))

    columns = [*columns, columns[0]][:2]
    a, b = (torch.tensor(c, dtype=torch.float32) for c in columns)
    out = torch.zeros(LANES)
    fakes = [fake(Float32, cutlass.AddressSpace.gmem) for _ in range(3)]
    with keep_ptx():
        compiled = cute.compile(run, *fakes, options="--gpu-arch sm_80 --enable-tvm-ffi")
    emulate(compiled, a, b, out, seeds=1).check()
    return out.tolist()


def spread(low: float, high: float, count: int) -> list[float]:
    return [low + (high - low) * i / (count - 1) for i in range(count)]


@pytest.mark.parametrize(
    "name, arguments, error",
    [
        ("erf", spread(-5.0, 5.0, 2001), 5e-7),
        ("sin", spread(-100.0, 100.0, 2001) + [1e5, -99999.5, 54321.25], 2e-6),
        ("cos", spread(-100.0, 100.0, 2001) + [1e5, -99999.5, 54321.25], 2e-6),
        ("tanh_precise", spread(-12.0, 12.0, 2001), 1e-6),
    ],
)
def test_absolute_errors(name, arguments, error):
    exact = {"erf": math.erf, "sin": math.sin, "cos": math.cos, "tanh_precise": math.tanh}[name]
    found = on_host(lambda a, b: getattr(arith, name)(a), arguments)
    inputs = torch.tensor(arguments, dtype=torch.float32).tolist()
    assert max(abs(f - exact(x)) for f, x in zip(found, inputs)) <= error


@pytest.mark.parametrize("divisor", [1, 7, 8, -1, -3, -8, 1000])
def test_division_floors(divisor):
    numbers = [0, 1, -1, 6, 7, 8, -7, -8, -9, 2**31 - 1, -(2**31) + 1, 12345, -12345]
    for function, exact in ((arith.floordiv, lambda x: x // divisor), (arith.floormod, lambda x: x % divisor)):
        literal = on_host(lambda a, b, f=function: f(a, divisor), numbers, kind=Int32)
        value = on_host(lambda a, b, f=function: f(a, b), numbers, [divisor] * len(numbers), kind=Int32)
        assert literal == value == [exact(x) for x in numbers]


def test_the_least_number_divided_by_minus_one_wraps():
    """Compilers take a division by -1 as one that does not overflow, and what follows it by its word."""
    found = on_host(lambda a, b: arith.floormod(arith.floordiv(a, -1), 10) + arith.floormod(a, -1), [-(2**31), 7], kind=Int32)
    assert found == [-(2**31) % 10, -7 % 10]


def test_a_division_does_not_undo_its_guard():
    """`x // n if n != 0 else 3`: were the division undefined for 0, a compiler might take n for nonzero everywhere."""

    def guarded(a, b):
        n = arith.floormod(arith.to_int(b), 3)
        some = arith.select(n != 0, arith.floordiv(arith.to_int(a), n), 3)
        kept = (n != 0) & (arith.floormod(arith.to_int(a), n) == 0)
        return arith.to_float(some + arith.select(kept, Int32(100), Int32(0)))

    found = on_device(guarded, [float(i) for i in range(LANES)], [float(i // 2) for i in range(LANES)])
    divisors = [i // 2 % 3 for i in range(LANES)]
    assert found == [i // n + (100 if i % n == 0 else 0) if n else 3 for i, n in enumerate(divisors)]


def test_powers():
    bases, exponents = [2.0, 0.5, -2.0, -2.0, 0.0, 3.0, 0.0, 10.0], [3.0, -2.0, 3.0, 2.0, 2.0, 0.5, 0.0, -1.0]
    assert on_host(arith.power, bases, exponents) == pytest.approx([b**e for b, e in zip(bases, exponents)], rel=1e-5)
    assert math.isnan(on_host(arith.power, [-2.0], [0.5])[0])
    assert on_host(lambda a, b: arith.powi(a, 5), bases) == pytest.approx([b**5 for b in bases], rel=1e-6)
    assert on_host(lambda a, b: arith.powi(a, -2), [2.0, -4.0]) == pytest.approx([0.25, 0.0625])


def test_select_keeps_nan_out():
    found = on_host(lambda a, b: arith.select(a > 0.0, arith.log(a), b), [4.0, -1.0], [7.0, 7.0])
    assert found == pytest.approx([math.log(4.0), 7.0], rel=1e-6)


def test_limits():
    infinite = [math.inf, -math.inf]
    assert on_host(lambda a, b: arith.sigmoid(a), infinite) == [1.0, 0.0]
    assert on_host(lambda a, b: arith.tanh(a), infinite) == [1.0, -1.0]
    assert on_host(lambda a, b: arith.exp(a), infinite) == [math.inf, 0.0]
    assert on_host(lambda a, b: arith.erf(a), infinite) == [1.0, -1.0]


DEVICE = {
    "exp": (math.exp, spread(-30.0, 30.0, LANES), 3e-6),
    "log": (math.log, spread(0.01, 50.0, LANES), 3e-6),
    "sqrt": (math.sqrt, spread(0.01, 50.0, LANES), 1e-6),
    "tanh": (math.tanh, spread(-4.0, 4.1, LANES), 2**-10),
    "tanh_precise": (math.tanh, spread(-4.0, 4.1, LANES), 3e-6),
    "sigmoid": (lambda x: 1.0 / (1.0 + math.exp(-x)), spread(-30.0, 30.0, LANES), 5e-6),
    "reciprocal": (lambda x: 1.0 / x, spread(-30.0, 31.0, LANES), 1e-6),
}


@pytest.mark.parametrize("name", DEVICE)
def test_relative_errors_on_the_emulator(name):
    exact, arguments, error = DEVICE[name]
    found = on_device(lambda a, b: getattr(arith, name)(a), arguments)
    inputs = torch.tensor(arguments, dtype=torch.float32).tolist()
    assert found == pytest.approx([exact(x) for x in inputs], rel=error, abs=1e-7)


def test_two_arguments_on_the_emulator():
    left, right = spread(-9.0, 9.0, LANES), spread(5.0, -6.0, LANES)
    a, b = (torch.tensor(x, dtype=torch.float32).tolist() for x in (left, right))
    assert on_device(arith.fmin, left, right) == [min(x, y) for x, y in zip(a, b)]
    assert on_device(arith.fmax, left, right) == [max(x, y) for x, y in zip(a, b)]
    assert on_device(arith.divide, left, right) == pytest.approx([x / y for x, y in zip(a, b)], rel=1e-6)


def test_a_whole_quotient_is_whole():
    """41 times the reciprocal of 41 is less than 1 in float32."""
    whole = [float(n) for n in range(LANES)]
    assert on_device(arith.divide_exactly, [41.0 * n for n in whole], [41.0] * LANES) == whole
