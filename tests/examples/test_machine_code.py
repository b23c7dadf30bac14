"""Every example cross-compiles for every target without a GPU: tensor instructions in a loop, no spills, no stack frame."""

import pytest

from attncc.driver import lower
from attncc.ir.check_schedule import ELEMENT_BYTES
from attncc.ir.schedule_ops import shared_bytes
from attncc.lower import load
from attncc.targets import get_target, target_for_arch
from tests.emit.compiling import compile_schedule
from tests.examples.small import EXAMPLES, NAMES

MACHINES = {"hopper": ("sm_90a", "GMMA"), "ampere": ("sm_80", "HMMA")}
"""Target -> the chip compiled for, and a part of the name of its tensor instructions."""


OTHER_CHIPS = {"sm_86": "llama3_8b", "sm_89": "packed_documents", "sm_120a": "gemma2_local"}
"""Chips that run the code of an older one within limits of their own -> an example that is compiled for it."""


@pytest.mark.slow
@pytest.mark.parametrize("chip", OTHER_CHIPS)
def test_chips_with_less_shared_memory(chip):
    target = target_for_arch(chip)
    path = EXAMPLES[NAMES.index(OTHER_CHIPS[chip])]
    schedule = lower(load(str(path)), target).schedule
    assert shared_bytes(schedule, ELEMENT_BYTES.__getitem__) <= target.shared_limit < get_target("ampere").shared_limit
    outcome = compile_schedule(schedule, chip, "HMMA")
    assert outcome.resources.frame == 0 and outcome.loops


@pytest.mark.slow
@pytest.mark.parametrize("target", MACHINES)
@pytest.mark.parametrize("name", NAMES)
def test_machine_code(name, target):
    chip, tensor = MACHINES[target]
    path = EXAMPLES[NAMES.index(name)]
    outcome = compile_schedule(lower(load(str(path)), get_target(target)).schedule, chip, tensor)
    assert outcome.resources.frame == 0, f"{outcome.resources.frame} bytes of stack: the tile is too large for this score or mask"
    assert outcome.loops, f"no loop holds {tensor} instructions"
