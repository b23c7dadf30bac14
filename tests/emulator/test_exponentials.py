"""2**x and tanh by polynomials: their coefficients are the best ones, and their errors over every number that bf16 can tell apart."""

import itertools

import cutlass
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cutlass import Float32, cute
from cutlass.cute.runtime import make_fake_compact_tensor

from attncc.device import rows
from attncc.emulator import emulate, keep_ptx

BOUND = 2.0**-13.5
"""Of the relative error: the polynomial's 7.5e-5 and the rounding of its steps."""
THREADS, EACH = 128, 64
WEIGHTS = (("silu", 1.0), ("silu", 0.25), ("gelu", 1.0), ("none", 2.0), ("relu", 1.0), ("sigmoid", 1.0))


@cute.kernel
def _kernel(x: cute.Tensor, y: cute.Tensor):
    thread, _, _ = cute.arch.thread_idx()
    block, _, _ = cute.arch.block_idx()
    first = (block * THREADS + thread) * EACH
    for i in cutlass.range(0, EACH, 2, unroll=1):
        y[first + i], y[first + i + 1] = rows.exp2_pair(x[first + i], x[first + i + 1])


@cute.kernel
def _odd_kernel(x: cute.Tensor, y: cute.Tensor):
    thread, _, _ = cute.arch.thread_idx()
    block, _, _ = cute.arch.block_idx()
    first = (block * THREADS + thread) * EACH
    for i in cutlass.range(0, EACH, 2, unroll=1):
        zero = (Float32(0.0), Float32(0.0))
        y[first + i], y[first + i + 1] = rows.odd_pair((x[first + i], x[first + i + 1]), rows.TANH_COEFFICIENTS, zero)


@cute.kernel
def _weights_kernel(x: cute.Tensor, y: cute.Tensor):
    thread, _, _ = cute.arch.thread_idx()
    held = rows.tile(2 * len(WEIGHTS))
    for i, (kind, multiplier) in enumerate(WEIGHTS):
        pair = cute.make_tensor(held.iterator + 2 * i, cute.make_layout((1, 2)))
        for j in range(2):
            pair[0, j] = x[thread * EACH + j]
        rows.weigh(pair, kind, multiplier)
        for j in range(2):
            y[thread * EACH + 2 * i + j] = pair[0, j]


@cute.jit
def _weights_launch(x: cute.Tensor, y: cute.Tensor):
    _weights_kernel(x, y).launch(grid=(1, 1, 1), block=(THREADS, 1, 1))


@cute.jit
def _odd_launch(x: cute.Tensor, y: cute.Tensor):
    _odd_kernel(x, y).launch(grid=(cute.size(x) // (THREADS * EACH), 1, 1), block=(THREADS, 1, 1))


@cute.jit
def _launch(x: cute.Tensor, y: cute.Tensor):
    _kernel(x, y).launch(grid=(cute.size(x) // (THREADS * EACH), 1, 1), block=(THREADS, 1, 1))


def computed(x: torch.Tensor, launch=_launch) -> torch.Tensor:
    """rows.exp2_pair (or what `launch` runs) of every number, by the emulator."""
    n = THREADS * EACH
    padded = torch.cat([x, torch.zeros(-len(x) % n)])
    fake = make_fake_compact_tensor(Float32, (cute.sym_int(divisibility=n),), assumed_align=16)
    other = make_fake_compact_tensor(Float32, (cute.sym_int(divisibility=n),), assumed_align=16)
    with keep_ptx():
        compiled = cute.compile(launch, fake, other, options="--gpu-arch sm_100a --enable-tvm-ffi")
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


def test_the_error_of_tanh_over_its_range():
    """A sixth of tanh.approx's 2**-11."""
    bits = torch.arange(0x3180, 0x3F81, dtype=torch.int32)
    x = (bits << 16).view(torch.float32)
    fine = torch.linspace(0.01, rows.NEAR, 20000)
    x = torch.cat([x, -x, fine])
    y = computed(x, _odd_launch)
    wanted = torch.tanh(x.double())
    error = ((y.double() - wanted) / wanted).abs().max()
    assert BOUND / 2 < error <= BOUND, f"2**{float(torch.log2(error)):.2f}"
    assert computed(torch.zeros(2), _odd_launch).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("count,wanted", [(0, 0), (1, 4), (2, 8), (8, 32), (16, 64)])
def test_polynomials_are_spread_evenly(count, wanted):
    chosen = [pair for pair in range(64) if rows.by_polynomial(pair, count)]
    assert len(chosen) == wanted
    assert len({b - a for a, b in itertools.pairwise(chosen)}) <= 1


def best(powers: list[int], function, grid: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients of the polynomial in `powers` with the smallest greatest relative error from `function` on the grid, and that error (Remez)."""
    n = len(powers) + 1
    x = grid[0] + (grid[-1] - grid[0]) * (1 - np.cos(np.pi * np.arange(n) / (n - 1))) / 2
    for _ in range(12):
        system = np.array([[*(t**j / function(t) for j in powers), (-1) ** i] for i, t in enumerate(x)])
        p = np.linalg.solve(system, np.ones(n))[:-1]
        error = sum(c * grid**j for c, j in zip(p, powers)) / function(grid) - 1
        turns = np.flatnonzero(np.sign(error[1:]) != np.sign(error[:-1])) + 1
        x = np.array([grid[part[np.argmax(np.abs(error[part]))]] for part in np.split(np.arange(len(grid)), turns)])
    return p, float(np.abs(error).max())


def test_the_coefficients_are_the_best_ones():
    p, error = best(list(range(len(rows.EXP2_COEFFICIENTS))), np.exp2, np.linspace(-0.5, 0.5, 40001))
    assert error == pytest.approx(7.48e-5, rel=1e-2)
    assert np.allclose(p, rows.EXP2_COEFFICIENTS, rtol=0, atol=2e-7)
    p, error = best([1, 3, 5, 7], np.tanh, np.linspace(1e-6, rows.NEAR, 40001))
    assert error == pytest.approx(8.18e-5, rel=1e-2)
    assert np.allclose(p, rows.TANH_COEFFICIENTS, rtol=0, atol=2e-7)


def test_weights_of_scores_that_are_left_out_are_zero():
    """And those of what is no number are none."""
    x = torch.zeros(THREADS, EACH)
    scores = torch.linspace(-30, 30, THREADS)
    scores[:5] = torch.tensor([-torch.inf, torch.nan, -1e30, -3.4e38, 90.0])
    x[:, 0], x[:, 1] = scores, scores.flip(0)
    y = computed(x.flatten(), _weights_launch).view(THREADS, EACH)
    by_kind = {"silu": F.silu, "gelu": F.gelu, "none": lambda s: s, "relu": torch.relu, "sigmoid": torch.sigmoid}
    for i, (kind, multiplier) in enumerate(WEIGHTS):
        for j in range(2):
            wanted = by_kind[kind]((x[:, j] * multiplier).double()).float()
            wanted = torch.where(x[:, j] == -torch.inf, 0.0, wanted)
            known = ~torch.isnan(x[:, j]) if kind == "relu" else torch.ones(THREADS, dtype=torch.bool)  # relu: the larger of 0 and no number
            torch.testing.assert_close(y[known, 2 * i + j], wanted[known], rtol=1e-5, atol=1e-5, equal_nan=True)
