"""Forward kernels of the flash-attn-4 wheel (a test dependency) run without errors and give the reference result."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = int(os.environ.get("ATTNCC_EMULATOR_SEEDS", "2"))
# capability, head dim, causal, query heads, key heads, query length, key length
CASES = [
    (80, 64, 0, 2, 1, 128, 256),
    (80, 64, 1, 4, 1, 100, 300),
    (80, 128, 1, 2, 2, 100, 130),
    (90, 64, 0, 2, 1, 128, 256),
    (90, 64, 1, 4, 1, 100, 300),
    (90, 128, 0, 2, 2, 129, 257),
    (90, 128, 1, 4, 2, 200, 200),
    (100, 64, 0, 2, 1, 256, 256),
    (100, 64, 1, 2, 1, 100, 300),
    (100, 128, 0, 2, 1, 129, 300),
    (100, 128, 1, 2, 2, 200, 200),
]


BACKWARD = [(90, 64, 0, 2, 1, 128, 128), (90, 128, 1, 2, 2, 128, 256), (100, 128, 0, 2, 2, 256, 256)]


def run(case, *extra) -> tuple[list[int], float]:
    """(errors per kernel, largest error) of one case, in a process of its own: the wheel picks its architecture once."""
    command = [sys.executable, "-m", "tests.emulator.fa4_wheel", *map(str, case), str(SEEDS), *extra]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    errors = [int(n) for n in re.findall(r"^(\d+) errors", done.stdout, re.MULTILINE)]
    assert errors and not any(errors), done.stdout[-4000:]
    return errors, float(re.search(r"^error (\S+)", done.stdout, re.MULTILINE).group(1))


installed = pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash-attn-4 is not installed")
name = "sm{}-d{}-causal{}-h{}/{}-{}x{}".format


@installed
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: name(*c))
def test_forward(case):
    # bf16 P and O round once each; values of magnitude up to 4
    assert run(case)[1] < 2e-2


@installed
@pytest.mark.slow
@pytest.mark.parametrize("case", BACKWARD, ids=lambda c: name(*c))
def test_backward(case):
    # bf16 P, dS and results; gradients of magnitude up to 7
    assert run(case, "backward")[1] < 4e-2
