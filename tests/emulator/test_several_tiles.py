"""Blocks that work on several query tiles, in the emulator: on a GPU of two multiprocessors, so that short calls have several for each."""

from importlib import import_module

import pytest
import torch

from attncc.accuracy import LSE_ALLOWED, SLACK, distance, lse_distance
from attncc.entry import lower
from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.interp.run_attention import run_attention
from attncc.lower import load
from attncc.runtime.emulated import emulate_calls
from attncc.runtime.kernel import Kernel
from attncc.targets import get_target
from tests.rotation import turn
from tests.schedules import smaller

EVEN = "attention a { heads q = 2, kv = 1\n dim 64\n dtype bf16 }"
TEXT = "attention a { heads q = 2, kv = 1\n dim 64\n dtype bf16\n mask kv_idx <= q_idx + off }"
PLACES = (("apart", None), ("over Q", 120 * 1024))
"""Where the output lies, by the shared memory there is."""
SEEDS = 2
SEQ_Q, SEQ_KV = 600, 200
"""Three query tiles of two heads, the last cut off; the first of each head has no key, the second some, the last a cut key tile."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@pytest.mark.parametrize("place", turn(PLACES, 2), ids=lambda place: place[0])
def test_three_tiles_for_each_block(place):
    kernel = Kernel(load(TEXT), smaller(get_target("blackwell"), sms=2, shared=place[1]), lower)
    schedule = kernel.stages().schedule
    assert schedule.tile_m == 256 and schedule.buffer("OUT").alias == (None if place[1] is None else "Q")
    out = check(kernel)
    assert bool((out[:, : SEQ_Q - SEQ_KV] == 0).all()), "rows without a key"


@pytest.mark.slow
@pytest.mark.parametrize("text", (TEXT, EVEN), ids=lambda text: "even" if text is EVEN else "causal")
def test_two_copies_of_q(text, monkeypatch):
    """Eight query tiles of 192 rows: every copy of Q is filled twice, and three groups leave it one by one. So little is let pass that tiles are
    computed again, which reads Q once more."""
    limits = import_module("attncc.passes.schedule.trust_maxima").LIMIT
    monkeypatch.setitem(limits, "bf16", 3.0)
    kernel = Kernel(load(text), smaller(get_target("hopper"), sms=2), lower)
    schedule = kernel.stages().schedule
    assert schedule.tile_m == 192 and schedule.channel("Q").stages == 2 and schedule.buffer("OUT").alias is None
    check(kernel)


def check(kernel: Kernel) -> torch.Tensor:
    """The output, which is right in every interleaving, as the log-sum-exp is."""
    results = emulate_calls(kernel, seeds=range(SEEDS))
    a = kernel.attention
    q, k, v, inputs = make_inputs(a, 1, SEQ_Q, SEQ_KV, 3)
    out = torch.full((1, SEQ_Q, a.heads_q, a.dim_v), torch.nan, dtype=q.dtype)
    out, lse = kernel(q, k, v, out=out, return_lse=True, **inputs)
    assert all(r.ok and r.deterministic for r in results), "\n".join(map(str, results))
    assert [launch.grid for r in results for launch in r.launches] == [(2, 1, 1)] * len(results[0].launches)
    wanted, wanted_lse = reference(a, q, k, v, inputs)
    eager, _ = run_attention(a, q, k, v, inputs)
    assert distance(out, wanted) <= 2 * distance(eager, wanted) + SLACK
    off, bad = lse_distance(lse, wanted_lse)
    assert bad is None and off <= LSE_ALLOWED
    return out
