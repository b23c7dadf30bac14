"""Every example runs in the emulator: one CTA of it, compared row by row with the reference.

Each example runs for one target, the targets taking turns; with ATTNCC_EMULATE_ALL=1 for every target.
"""

import os
from pathlib import Path

import pytest
import torch

import attncc
from attncc.diagnostics import AttnError
from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.interp.run_attention import run_attention
from attncc.measure import SLACK, distance
from attncc.runtime.emulated import emulate_calls
from attncc.targets import TARGETS

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))
QUERIES, KEYS = 128, 256


def example_kernel(path: Path, target: str):
    """The kernel, or None if the target refuses the spec with a diagnostic."""
    try:
        kernel = attncc.compile(str(path), target=target)
        kernel.stages()
    except AttnError:
        return None
    return kernel


def cases() -> list[tuple[Path, str]]:
    """(example, target) pairs of this run."""
    names = sorted(TARGETS)
    if os.environ.get("ATTNCC_EMULATE_ALL"):
        return [(path, name) for path in EXAMPLES for name in names]
    names = [name for name in names if not TARGETS[name].has("tensor_memory")]  # test_examples_on_tensor_memory.py
    return [(path, names[i % len(names)]) for i, path in enumerate(EXAMPLES)]


@pytest.mark.slow
@pytest.mark.parametrize("path,target", cases(), ids=lambda x: x.stem if isinstance(x, Path) else x)
def test_one_cta(path, target):
    kernel = example_kernel(path, target)
    if kernel is None:
        return
    results = emulate_calls(kernel, clusters=1)
    q, k, v, tensors = make_inputs(kernel.attention, 1, QUERIES, KEYS, 0, "cpu")
    out = torch.full((1, QUERIES, q.shape[2], kernel.attention.dim_v), torch.nan, dtype=q.dtype)
    kernel(q, k, v, out=out, **tensors)
    assert all(result.ok for result in results), "\n".join(map(str, results))
    written = ~torch.isnan(out.float()).any(-1)
    assert bool(written.any()), "the CTA wrote no row"
    wanted, _ = reference(kernel.attention, q, k, v, tensors)
    eager, _ = run_attention(kernel.attention, q, k, v, tensors)
    assert distance(out[written], wanted[written]) <= 2 * distance(eager, wanted) + SLACK
