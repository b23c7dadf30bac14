"""The emulator and a GPU make the same of generated kernels: every bit where the arithmetic is exact, a bound elsewhere.

The GPU's results are in h100.npz, which record_gpu.py writes; spec and inputs of each call are in gpu_cases.py. The cases take turns
with the targets; with ATTNCC_EMULATE_ALL=1 each runs for both.
"""

import datetime
import os

import numpy as np
import pytest

from tests.emulator.gpu_cases import CASES, TARGETS, against_reference, difference, inputs, values
from tests.emulator.record_gpu import RECORDED, Recording, about, run

SEEDS = 8
recording = Recording.read(RECORDED) if RECORDED.exists() else None


def pairs() -> list[tuple[str, str]]:
    """(case, target) of this run, of what the recording holds."""
    every = recording.pairs() if recording else []
    if os.environ.get("ATTNCC_EMULATE_ALL"):
        return every
    turn = {case: TARGETS[i % len(TARGETS)] for i, case in enumerate(CASES)}
    return [(case, target) for case, target in every if turn[case] == target]


@pytest.mark.slow
@pytest.mark.parametrize("case,target", pairs())
def test_as_recorded_on_the_gpu(case, target):
    assert recording.entry(case, target)["inputs"] == inputs(CASES[case]).digest, "the inputs are not those recorded"
    _, found = run(case, target, emulated=True, seeds=SEEDS)
    assert against_reference(CASES[case], found) is None
    assert difference(CASES[case], found, recording.result(case, target)) is None


def test_the_recording_is_whole():
    assert set(recording.pairs()) == {(case, target) for case in CASES for target in TARGETS}
    assert recording.about["device"].startswith("NVIDIA H")
    datetime.date.fromisoformat(recording.about["date"])
    assert recording.about["versions"]["cutlass"]
    assert RECORDED.stat().st_size < 300_000


@pytest.mark.parametrize("case", ["one_query", "softcap"])
def test_a_difference_would_be_seen(case, tmp_path):
    """A recording made by the emulator itself goes through a file; then one element is changed."""
    _, found = run(case, "ampere", emulated=True)
    made = Recording(about(True))
    made.add(case, "ampere", "", found)
    made.write(tmp_path / "self.npz")
    out, lse = Recording.read(tmp_path / "self.npz").result(case, "ampere")
    assert difference(CASES[case], found, (out, lse)) is None
    changed = out.copy()
    largest = int(values(out, CASES[case]).abs().argmax())
    changed.flat[largest] ^= 1 if CASES[case].exact else 64  # the last bit, or a quarter at least
    assert "differ" in difference(CASES[case], found, (changed, lse))
    if lse is not None:
        assert "log-sum-exp" in difference(CASES[case], found, (out, lse + np.float32(0.05)))
