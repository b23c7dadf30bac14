"""Terms of the distance where a thread owns a whole row, in the emulator: tiles near the diagonal and far from it, one term and two (in turns, by the day)."""

import pytest
import torch

import attncc
from attncc.accuracy import SLACK, distance
from attncc.interp.reference import reference
from attncc.interp.run_attention import run_attention
from attncc.runtime.emulated import emulate_calls
from tests.rotation import turn

ROWS, KEYS, REACH = 20, 300, 8
BODIES = {
    "added": "bias relative_table(t, 8)\n mask causal",
    "two, one multiplied": "score s * relative_table(u, 8)\n bias relative_table(t, 8)\n score softcap(5.0)",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", turn(list(BODIES), 2))
def test_near_and_far_tiles(name):
    body = BODIES[name]
    names = [n for n in "tu" if f"({n}, 8)" in body]
    declared = "\n".join(f"tensor {n}: f32[heads_q, 17]" for n in names)
    kernel = attncc.compile(f"attention near {{ heads q = 1, kv = 1\n dim 32\n dtype bf16\n {declared}\n {body} }}", target="blackwell")
    q, k, v = (torch.randn(1, n, 1, 32, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (ROWS, KEYS, KEYS))
    tables = {n: torch.randn(1, 2 * REACH + 1, generator=torch.Generator().manual_seed(i)) for i, n in enumerate(names)}
    results = emulate_calls(kernel)
    out = kernel(q, k, v, **tables)
    assert all(r.ok for r in results), "\n".join(map(str, results))
    wanted, _ = reference(kernel.attention, q, k, v, tables)
    eager, _ = run_attention(kernel.attention, q, k, v, tables)
    assert distance(out, wanted) <= 2 * distance(eager, wanted) + SLACK
    assert "level_0" in kernel.source and f"near_{len(names) - 1}[c]" in kernel.source
