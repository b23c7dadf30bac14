"""Every example's kernel for Hopper and Ampere, compiled once: what the machine code holds, and one CTA of it in the emulator.

Emulator: interleavings that must leave the same bytes, which are compared with the reference; two (ATTNCC_EMULATOR_SEEDS), as a GPU
has run these kernels. Ada has Ampere's templates and takes part with every eighth example. Blackwell is the subject of
test_examples_on_tensor_memory.py.
"""

import os
from pathlib import Path

import pytest
import torch

import attncc
from attncc.accuracy import Yardstick
from attncc.interp.data import make_inputs
from attncc.runtime.emulated import compile_to_emulate, emulate_calls
from tests.emit.compiling import outcome_of
from tests.examples.test_machine_code import MACHINES, check_machine_code

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))
QUERIES, KEYS = 100, 140
SEEDS = int(os.environ.get("ATTNCC_EMULATOR_SEEDS", "2"))
CASES = [(path, target) for target in ("ampere", "hopper") for path in EXAMPLES]
CASES += [(path, "ada") for path in EXAMPLES[::8]]


@pytest.mark.slow
@pytest.mark.parametrize("path,target", CASES, ids=lambda x: x.stem if isinstance(x, Path) else x)
def test_kernel(path, target):
    kernel = attncc.compile(str(path), target=target)
    made = compile_to_emulate(kernel)
    if target in MACHINES:
        check_machine_code(path.stem, target, kernel.schedule, outcome_of(made.compiled, MACHINES[target][1]))
    first = EXAMPLES.index(path)  # another CTA and other interleavings for each example
    results = emulate_calls(kernel, made=made, clusters=1, seeds=range(first, first + SEEDS))
    check_result(kernel, results)


def check_result(kernel, results: list) -> None:
    """The rows that the chosen CTA wrote, beside the reference."""
    q, k, v, tensors = make_inputs(kernel.attention, 1, QUERIES, KEYS, 0, "cpu")
    out = torch.full((1, QUERIES, q.shape[2], kernel.attention.dim_v), torch.nan, dtype=q.dtype)
    kernel(q, k, v, out=out, **tensors)
    assert all(result.ok for result in results), "\n".join(map(str, results))
    assert all(result.deterministic for result in results)
    written = ~torch.isnan(out.float()).any(-1)
    assert bool(written.any()), "the CTA wrote no row"
    error, allowed = Yardstick(kernel.attention, q, k, v, tensors).worst(out, written)
    assert error <= allowed
