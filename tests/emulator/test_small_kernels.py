"""The small attention kernels give the reference result for every seed, with no finding."""

import pytest

from tests.emulator.support import run

# bf16 inputs and outputs of magnitude <= 4: P and O each round once to bf16
TOLERANCE = 8e-3


@pytest.mark.parametrize("name", ["fa2", "fa3", "fa4"])
def test_reference_result_over_seeds(name):
    result, error = run(name, 192 if name == "fa2" else 256, seeds=8)
    assert result.ok, str(result)
    assert not result.findings, str(result)
    assert error < TOLERANCE
    assert result.deterministic
