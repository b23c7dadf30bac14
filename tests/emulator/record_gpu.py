"""Records what a GPU makes of the calls in gpu_cases.py, for tests/emulator/test_against_gpu.py to compare the emulator with.

    python -m tests.emulator.record_gpu -o tests/emulator/h100.npz          on an H100 or H200
    python -m tests.emulator.record_gpu --emulate -o /tmp/self.npz [CASE ...]   what the emulator makes of them

The file holds raw results (equal arrays once), and as JSON the device, the date, versions, and for each call digests of the
inputs and of the generated text. Needs nothing but the package and its run-time dependencies.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import attncc
from tests.emulator.gpu_cases import CASES, CHIPS, TARGETS, against_reference, call, inputs

RECORDED = Path(__file__).parent / "h100.npz"


class Recording:
    """Results by (case, target), as read from a file or about to be written to one."""

    def __init__(self, about: dict, arrays: dict | None = None):
        self.about, self.arrays = about, arrays or {}

    @classmethod
    def read(cls, path: Path) -> Recording:
        """The recording in a file."""
        with np.load(path) as data:
            arrays = {name: data[name] for name in data.files}
        return cls(json.loads(bytes(arrays.pop("about")).decode()), arrays)

    def pairs(self) -> list[tuple[str, str]]:
        """What it holds."""
        return [tuple(key.split("/")) for key in self.about["calls"]]

    def entry(self, case: str, target: str) -> dict:
        """Digests and array names of one call."""
        return self.about["calls"][f"{case}/{target}"]

    def result(self, case: str, target: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Output words and log-sum-exp."""
        entry = self.entry(case, target)
        return self.arrays[entry["out"]], self.arrays[entry["lse"]] if entry["lse"] else None

    def add(self, case: str, target: str, source: str, result: tuple) -> None:
        """Keep one result."""
        names = [None if array is None else self._keep(array) for array in result]
        self.about["calls"][f"{case}/{target}"] = {
            "out": names[0],
            "lse": names[1],
            "inputs": inputs(CASES[case]).digest,
            "source": hashlib.sha256(source.encode()).hexdigest()[:16],
        }

    def _keep(self, array: np.ndarray) -> str:
        name = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()[:16]
        self.arrays[name] = array
        return name

    def write(self, path: Path) -> None:
        """To one compressed file."""
        about = np.frombuffer(json.dumps(self.about, indent=1).encode(), np.uint8)
        np.savez_compressed(path, about=about, **self.arrays)


def run(case: str, target: str, emulated: bool, seeds: int = 1) -> tuple[str, tuple]:
    """(generated text, result) of one call, on the GPU or in the emulator, there in `seeds` interleavings that must agree."""
    kernel = attncc.compile(CASES[case].text, target=target)
    if not emulated:
        return kernel.source, call(kernel, CASES[case], "cuda")
    from attncc.runtime.emulated import emulate_calls

    results = emulate_calls(kernel, chip=CHIPS[target], seeds=seeds)
    found = call(kernel, CASES[case])
    assert results[-1].check().deterministic
    return kernel.source, found


def about(emulated: bool) -> dict:
    """Device, date and versions."""
    import cutlass
    import torch

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], check=False, capture_output=True, text=True, cwd=Path(__file__).parent
        )
        return done.stdout.strip()

    device = "the emulator" if emulated else torch.cuda.get_device_name()
    if not emulated and torch.cuda.get_device_capability() != (9, 0):
        sys.exit(f"the recording is made on an H100 or H200 (sm_90); this is {device}")
    return {
        "device": device,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cutlass": cutlass.__version__,
            "cuda": torch.version.cuda,
        },
        "commit": git("rev-parse", "--short", "HEAD"),
        "calls": {},
    }


def main(argv: list[str]) -> int:
    """Exit status 1 when a result is not what the reference says; the file is written all the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=RECORDED)
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], default=[])
    options = parser.parse_args(argv)
    recording, bad = Recording(about(options.emulate)), 0
    for case in options.cases or CASES:
        for target in TARGETS:
            source, result = run(case, target, options.emulate)
            recording.add(case, target, source, result)
            wrong = against_reference(CASES[case], result)
            bad += wrong is not None
            print(f"{case:24s} {target:8s} {wrong or 'ok'}", flush=True)
            recording.write(options.output)
    print(f"{options.output}: {options.output.stat().st_size} bytes, {bad} of {len(recording.pairs())} wrong")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
