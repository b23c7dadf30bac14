"""Every example on the target with tensor memory: one compilation each, of which machine code, resources and results are looked at.

Eight interleavings take turns by the day, and so do generated specs. All at once:

    ATTNCC_TURN=all python -m pytest -n 0 tests/emulator/test_examples_on_tensor_memory.py
    python -m tests.emulator.sweep --target blackwell --seeds 8
    python -m tests.emit.census --chips sm_100a,sm_103a --fuzz 300
"""

import pytest

from attncc.runtime import build, cubin
from attncc.targets import get_target
from tests.emit.census import generated, is_bad, row
from tests.emulator.sweep import examine
from tests.emulator.sweep import is_bad as is_wrong
from tests.examples.small import EXAMPLES
from tests.rotation import today, turn

TARGET = "blackwell"
SEEDS = 8
GENERATED = 300
DAILY = 4
"""Generated specs that are compiled in one run."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, monkeypatch):
    made = []
    compile_module = build.compile_module
    monkeypatch.setattr(build, "compile_module", lambda *how: made.append(compile_module(*how)) or made[-1])
    outcome = examine(path, TARGET, seeds=1, first=today() % SEEDS)
    assert not is_wrong(outcome), outcome
    (image,) = cubin.cubins(made[-1])
    used = cubin.resources(image).values()
    assert max(r.frame for r in used) == 0, "spills: the tile is too large for this score or mask"
    assert cubin.tensor_loops(cubin.sass(image), "UTCHMMA"), "no loop holds products into tensor memory"


@pytest.mark.slow
@pytest.mark.parametrize("number", turn(list(range(GENERATED)), GENERATED // DAILY))
def test_generated_spec_compiles(number):
    archs = get_target(TARGET).archs
    made = row(f"generated {number}", generated(number), archs[number % len(archs)])
    assert not is_bad(made), made
