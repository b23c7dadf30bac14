"""Every planted fault is found, by the right name, within 8 seeds."""

import pytest

from attncc.emulator.findings import KINDS
from tests.emulator.faults import FAULTS
from tests.emulator.support import run


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kernel}: {f.name}")
def test_planted_fault_is_found(fault):
    result, _ = run(fault.kernel, 192 if fault.kernel == "fa2" else 256, seeds=8, change=fault.change, **fault.options)
    found = {f.kind for f in result.findings}
    assert found & fault.kinds, f"expected {sorted(fault.kinds)}:\n{result}"


def test_fault_kinds_are_known():
    assert all(fault.kinds <= set(KINDS) for fault in FAULTS)
    assert len(FAULTS) >= 20
