"""What machine code must hold, without a GPU: tensor instructions in a loop of few instructions, no spills, no stack frame."""

import pytest

from attncc.driver import lower
from attncc.ir.check_schedule import ELEMENT_BYTES
from attncc.ir.schedule_ops import compute_role, shared_bytes
from attncc.lower import load
from attncc.targets import get_target, target_for_arch
from tests.emit.compiling import compile_schedule
from tests.examples.small import EXAMPLES, NAMES

MACHINES = {"hopper": ("sm_90a", "GMMA"), "ampere": ("sm_80", "HMMA")}
"""Target -> the chip compiled for, and a part of the name of its tensor instructions."""
BUDGETS = {
    "bloom_alibi": {"hopper": 8.5, "ampere": 17.7},
    "forgetting_transformer": {"hopper": 7.9, "ampere": 13.5},  # 13.6 on Hopper with a load for each column of a thread
    "gemma2_global": {"hopper": 8.1, "ampere": 14.4},  # 8.8 with 128 keys and a running maximum
    "alphafold_triangle": {"hopper": 7.9},  # 17 with a load for each element
    "natten_2d": {"hopper": 9.3, "ampere": 15.2},  # 14.4 with four comparisons an element
    "llama3_8b": {"hopper": 6.2},  # 8.9 with a maximum for every tile
    "llama4_chunked": {"hopper": 6.7, "ampere": 16.0},  # 14.7 where all tiles were masked, by a division an element
}
"""Most instructions of the loop over key tiles (the shortest of them) for each score that a thread owns; the numbers reached are 5 % below.
Hopper's are those of loops that keep their maxima, without the branch in which warps repair a tile.
What an iteration costs whatever its keys (waits, descriptors, the products' issue) weighs more where fewer keys are taken; on Ampere a thread owns 32 scores and
makes the products too."""


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


def check_machine_code(name: str, target: str, schedule, outcome) -> None:
    """What the machine code of an example must hold. tests/emulator/test_generated_kernels.py compiles every example and asks."""
    tensor = MACHINES[target][1]
    assert outcome.resources.frame == 0, f"{outcome.resources.frame} bytes of stack: the tile is too large for this score or mask"
    assert outcome.loops, f"no loop holds {tensor} instructions"
    role = compute_role(schedule)
    scores = role.rows_per_group * schedule.tile_n / (role.warps * 32 // role.groups)
    assert outcome.size(0) / scores <= BUDGETS.get(name, {}).get(target, 999.0), f"{outcome.size(0)} instructions for {scores} scores"
