"""Generated specs: L1, L2, L3 and the reference agree. The seeds are fixed; a failure prints the spec and how to run it again."""

from dataclasses import replace

import pytest

from attncc.fuzz.compare import emitted_targets, examine
from attncc.fuzz.run import fuzz

CHUNKS, CASES = 12, 44
"""At least 500 distinct specs a run, in pieces that can share the cores."""


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_generated_specs_agree(chunk, tmp_path):
    """Each spec through L1 and L2, and through L3 of one target, which changes from case to case; after every pass for a third of
    the seeds, and with packed sequences for a fifth, numbers that share no factor with the number of targets, so that each of them has some."""
    targets = emitted_targets()

    def run(case):
        case = replace(case, packed=case.seed % 5 == 4)
        return examine(case, (targets[case.seed % len(targets)],), every_pass=case.seed % 3 == 0)

    summary = fuzz(cases=CASES, seed=1000 * chunk, run=run, directory=tmp_path)
    assert summary.ok, f"{summary.finding}\n{summary.file.read_text().splitlines()[0]}"
    assert summary.cases == CASES
    refused = sum(summary.refusals.values())
    assert refused <= CASES // 20, f"the generated specs should be ones that every target takes: {summary.refusals}"
