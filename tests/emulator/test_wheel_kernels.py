"""Forward kernels of the flash-attn-4 wheel (a test dependency) run without errors and give the reference result."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = int(os.environ.get("ATTNCC_EMULATOR_SEEDS", "8"))
# capability, head dim, causal, query heads, key heads, query length, key length
CASES = [
    (80, 64, 0, 2, 1, 128, 256),
    (80, 64, 1, 4, 1, 100, 200),
    (80, 128, 1, 2, 2, 100, 130),
    (90, 64, 0, 2, 1, 128, 256),
    (90, 64, 1, 4, 1, 100, 200),
    (90, 128, 0, 1, 1, 129, 257),
    (90, 128, 1, 2, 1, 200, 200),
    (100, 64, 0, 2, 1, 256, 256),
    (100, 64, 1, 2, 1, 100, 300),
    (100, 128, 0, 2, 1, 129, 300),
    (100, 128, 1, 1, 1, 200, 200),
]


BACKWARD = [(90, 64, 0, 2, 1, 128, 128), (90, 128, 1, 1, 1, 128, 256), (100, 128, 0, 1, 1, 256, 256)]


class Runner:
    """A process for one architecture (the wheel picks it once), which runs one case after the other."""

    def __init__(self, capability: int, folder: Path):
        self.log = folder / f"wheel_{capability}.txt"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.emulator.fa4_wheel", str(capability)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
        )

    def __call__(self, case, gradients: bool) -> dict:
        """The answer of `fa4_wheel.run_case`; a process that has ended fails the test with what it said."""
        try:
            self.process.stdin.write(json.dumps([case, SEEDS, gradients]) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            pytest.fail(self.log.read_text()[-2000:])
        except BaseException:  # a time limit: the answer must not become that of the next case
            self.stop()
            raise

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def runners(tmp_path_factory):
    """A function from a capability to its Runner, made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("wheel"), {}

    def runner(capability: int) -> Runner:
        if capability not in made or made[capability].process.poll() is not None:
            made[capability] = Runner(capability, folder)
        return made[capability]

    yield runner
    for one in made.values():
        one.stop()


#: errors that a kernel really has: in the backward kernel for sm_100a nobody waits for the last store of dK and dV, not even
#: for its reads, before the CTA ends (flash_bwd_sm100.py, epilogue_dK_or_dV_tma). Some interleavings show it.
KNOWN = {(100, "backward"): {"exit-pending"}}


def difference(answer: dict, known=frozenset()) -> float:
    """The largest difference from the reference of an answer without other errors, after as many seeds as were asked for."""
    assert answer["seeds"] and set(answer["seeds"]) == {SEEDS}
    assert set(answer["kinds"]) <= known, answer["text"][-4000:]
    return answer["difference"]


installed = pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash-attn-4 is not installed")
name = "sm{}-d{}-causal{}-h{}/{}-{}x{}".format


@installed
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: name(*c))
def test_forward(case, runners):
    # bf16 P and O round once each; values of magnitude up to 4
    assert difference(runners(case[0])(case[1:], False)) < 2e-2


@installed
@pytest.mark.slow
@pytest.mark.parametrize("case", BACKWARD, ids=lambda c: name(*c))
def test_backward(case, runners):
    # bf16 P, dS and results; gradients of magnitude up to 7
    known = KNOWN.get((case[0], "backward"), frozenset())
    assert difference(runners(case[0])(case[1:], True), known) < 4e-2
