"""Every example cross-compiles for every target without a GPU: tensor instructions in a loop, no spills, no stack frame."""

import pytest

from attncc.driver import lower
from attncc.lower import load
from attncc.targets import get_target
from tests.emit.compiling import compile_schedule
from tests.examples.small import EXAMPLES, NAMES

MACHINES = {"hopper": ("sm_90a", "GMMA"), "ampere": ("sm_80", "HMMA")}
"""Target -> the chip compiled for, and a part of the name of its tensor instructions."""


@pytest.mark.slow
@pytest.mark.parametrize("target", MACHINES)
@pytest.mark.parametrize("name", NAMES)
def test_machine_code(name, target):
    chip, tensor = MACHINES[target]
    path = EXAMPLES[NAMES.index(name)]
    outcome = compile_schedule(lower(load(str(path)), get_target(target)).schedule, chip, tensor)
    assert outcome.resources.frame == 0, f"{outcome.resources.frame} bytes of stack: the tile is too large for this score or mask"
    assert outcome.loops, f"no loop holds {tensor} instructions"
