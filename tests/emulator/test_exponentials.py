"""2**x by a polynomial: its coefficients are the best ones, and its error over every weight that bf16 can tell apart."""

import itertools

import cutlass
import numpy as np
import pytest
import torch
from cutlass import Float32, cute
from cutlass.cute.runtime import make_fake_compact_tensor

from attncc.device import rows
from attncc.emulator import emulate, keep_ptx

BOUND = 2.0**-13.5
"""Of the relative error: the polynomial's 7.5e-5 and the rounding of its steps."""
THREADS, EACH = 128, 64


@cute.kernel
def _kernel(x: cute.Tensor, y: cute.Tensor):
    thread, _, _ = cute.arch.thread_idx()
    block, _, _ = cute.arch.block_idx()
    first = (block * THREADS + thread) * EACH
    for i in cutlass.range(0, EACH, 2, unroll=1):
        y[first + i], y[first + i + 1] = rows.exp2_pair(x[first + i], x[first + i + 1])


@cute.jit
def _launch(x: cute.Tensor, y: cute.Tensor):
    _kernel(x, y).launch(grid=(cute.size(x) // (THREADS * EACH), 1, 1), block=(THREADS, 1, 1))


def computed(x: torch.Tensor) -> torch.Tensor:
    """rows.exp2_pair of every number, by the emulator."""
    n = THREADS * EACH
    padded = torch.cat([x, torch.zeros(-len(x) % n)])
    fake = make_fake_compact_tensor(Float32, (cute.sym_int(divisibility=n),), assumed_align=16)
    other = make_fake_compact_tensor(Float32, (cute.sym_int(divisibility=n),), assumed_align=16)
    with keep_ptx():
        compiled = cute.compile(_launch, fake, other, options="--gpu-arch sm_100a --enable-tvm-ffi")
    y = torch.zeros_like(padded)
    result = emulate(compiled, padded, y)
    assert result.ok, str(result)
    return y[: len(x)]


def every_exponent() -> torch.Tensor:
    """Every bf16 number from -125 to -2**-20, and 32 float32 numbers between any two of them down to -32."""
    bits = torch.arange(0x3580, 0x42FA, dtype=torch.int32)
    coarse = -(bits << 16).view(torch.float32)
    steps = torch.arange(0, 1 << 16, 1 << 11, dtype=torch.int32)
    fine = -((torch.arange(0x3F00, 0x4200, dtype=torch.int32) << 16).unsqueeze(1) + steps).flatten().view(torch.float32)
    return torch.cat([torch.zeros(1), coarse, fine])


def test_the_error_over_every_weight():
    x = every_exponent()
    ends = torch.tensor([-torch.inf, -1e30, -126.0, -125.0])
    y = computed(torch.cat([x, ends]))
    wanted = torch.exp2(x.double())
    error = ((y[: len(x)].double() - wanted) / wanted).abs().max()
    assert error <= BOUND, f"2**{float(torch.log2(error)):.2f}"
    assert error > BOUND / 2, "the bound is stated as it is"
    assert torch.allclose(y[len(x) :], torch.full((4,), 2.0**-125), rtol=1e-4, atol=0.0), "what is less becomes 2**-125"
    assert y[0].to(torch.bfloat16) == 1.0, "the largest weight of a row stays exact"


@pytest.mark.parametrize("count,wanted", [(0, 0), (1, 4), (2, 8), (8, 32), (16, 64)])
def test_polynomials_are_spread_evenly(count, wanted):
    chosen = [pair for pair in range(64) if rows.by_polynomial(pair, count)]
    assert len(chosen) == wanted
    assert len({b - a for a, b in itertools.pairwise(chosen)}) <= 1


def best(degree: int) -> tuple[np.ndarray, float]:
    """Coefficients of the polynomial with the smallest greatest relative error from 2**x on [-1/2, 1/2], and that error (Remez)."""
    n = degree + 2
    x = -0.5 * np.cos(np.pi * np.arange(n) / (n - 1))
    grid = np.linspace(-0.5, 0.5, 40001)
    for _ in range(12):
        system = np.array([[*(t**j / 2**t for j in range(degree + 1)), (-1) ** i] for i, t in enumerate(x)])
        p = np.linalg.solve(system, np.ones(n))[:-1]
        error = np.polyval(p[::-1], grid) / 2**grid - 1
        turns = np.flatnonzero(np.sign(error[1:]) != np.sign(error[:-1])) + 1
        x = np.array([grid[part[np.argmax(np.abs(error[part]))]] for part in np.split(np.arange(len(grid)), turns)])
    return p, float(np.abs(error).max())


def test_the_coefficients_are_the_best_ones():
    p, error = best(len(rows.EXP2_COEFFICIENTS) - 1)
    assert error == pytest.approx(7.48e-5, rel=1e-2)
    assert np.allclose(p, rows.EXP2_COEFFICIENTS, rtol=0, atol=2e-7)
