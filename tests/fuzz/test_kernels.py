"""A sample of the generated specs as device code: it compiles without a GPU, and gives the reference's result in the PTX emulator."""

from importlib import import_module

import pytest

from attncc.fuzz.cases import small_cases
from attncc.fuzz.kernels import examine_kernel
from attncc.fuzz.run import fuzz
from attncc.targets import TARGETS

CASES = 5


def architectures() -> dict[str, str]:
    """One target for each kind of device code there is: the first that has the folder of its templates."""
    return {target.templates: name for name, target in reversed(TARGETS.items())}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", architectures().values())
def test_kernels_of_generated_specs_are_right(target, tmp_path, monkeypatch):
    """Where full tiles keep their maxima so little is let pass that many are computed again."""
    limits = import_module("attncc.passes.schedule.trust_maxima").LIMIT
    for dtype in limits:
        monkeypatch.setitem(limits, dtype, 3.0)
    summary = fuzz(
        cases=CASES, seed=20, run=lambda case: examine_kernel(case, target), strategy=small_cases(), directory=tmp_path,
        shrink_seconds=0,
    )  # fmt: skip
    assert summary.ok, str(summary.finding)
    assert summary.compared >= CASES - 1, f"refused: {summary.refusals}"
