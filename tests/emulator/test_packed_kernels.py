"""Kernels for packed sequences in the emulator: nothing comes from another sequence, nothing goes to one."""

import pytest
import torch

import attncc
from attncc.accuracy import Yardstick, lse_distance
from attncc.interp.data import make_inputs
from attncc.runtime.emulated import emulate_calls
from tests.interp.test_packed import SINK, lengths

STARTS_Q, STARTS_KV = [0, 37, 107, 107, 112], [0, 70, 145, 151, 151]
"""Ends within tiles; an empty sequence of queries, and one of keys."""
WILD = 1
"""The number of the sequence whose rows are NaN and infinity."""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["hopper", "ampere", "blackwell"])
def test_no_sequence_sees_another(target):
    """All rows of one sequence are NaN or infinity in q, k and v: 0 * NaN would show in its neighbours, which share its tiles."""
    kernel = attncc.compile(SINK, target=target)
    results = emulate_calls(kernel.packed)
    a = kernel.packed.attention
    _, _, _, given = make_inputs(a, 4, 70, 75, 3)
    given |= {"cu_seqlens_q": torch.tensor(STARTS_Q, dtype=torch.int32), "cu_seqlens_kv": torch.tensor(STARTS_KV, dtype=torch.int32)}
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(n, h, 64, generator=generator).to(torch.bfloat16) for n, h in ((112, 4), (151, 1), (151, 1))
    )
    yardstick = Yardstick(a, q.clone(), k.clone(), v.clone(), given)
    rows, keys = lengths(given)[WILD]
    q[rows], k[keys], v[keys] = torch.nan, torch.nan, torch.inf
    memory = torch.full((114, 4, 64), torch.nan, dtype=torch.bfloat16)
    out, lse = kernel(q, k, v, return_lse=True, out=memory[1:-1], **given)
    assert all(r.ok for r in results), "\n".join(map(str, results))
    others = torch.ones(112, dtype=torch.bool)
    others[rows] = False
    error, allowed = yardstick.worst(out, others)
    assert error <= allowed
    off, bad = lse_distance(lse[:, others], yardstick.lse[:, others])
    assert bad is None and off < 1e-3
    assert bool(torch.isnan(memory[[0, -1]]).all()), "rows before and after the output are untouched"
