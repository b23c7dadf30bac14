"""Pairs of blocks in the schedule interpreter: both blocks' roles in random and in all orders, planted faults, what the checker refuses."""

import dataclasses

import pytest
import torch

from attncc.interp.data import make_inputs
from attncc.interp.explore_schedule import explore
from attncc.interp.reference import reference
from attncc.interp.run_schedule import run_schedule
from attncc.interp.schedule_state import Fault
from attncc.ir import schedule as l3
from attncc.ir.check_expr import IllegalProgram
from attncc.ir.check_schedule import check_schedule
from attncc.ir.expr import ONE, ZERO, const, mul, var
from attncc.ir.schedule_ops import operations
from attncc.ir.text import format_program, parse_program
from attncc.targets import get_target
from tests.rotation import turn
from tests.schedules import attention, change, drop, paired, with_channel

LITTLE = 22 * 1024
"""Shared memory in which the output of 128 rows lies over Q, so that blocks work on one tile each."""


pytestmark = pytest.mark.usefixtures("one_thread")


def run(s, name, seq_q, seq_kv, seed=0):
    q, k, v, inputs = make_inputs(attention(name), 1, seq_q, seq_kv)
    out, lse = run_schedule(s, q, k, v, inputs, seed=seed)
    want, want_lse = reference(attention(name), q, k, v, inputs)
    torch.testing.assert_close(out, want.to(out.dtype), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lse, want_lse.to(lse.dtype), rtol=1e-9, atol=1e-9)


def test_the_text_says_what_a_pair_is():
    s = paired("dense")
    text = format_program(s)
    assert parse_program(text) == s and "cluster=2" in text and "pair=true" in text
    assert "tile=kv_tile * 2 + pair_half" in text and "column=pair_half" in text and "drain channel=V" in text
    assert [r.name for r in s.roles if r.pair] == ["issuer"]
    assert [c.name for c in s.channels if not c.pair] == ["FACTOR"], "softmax and correction of a block are its own affair"


@pytest.mark.parametrize("lengths", ((1, 129), (300, 257), (257, 1), (70, 0)), ids=str)
def test_pairs_give_the_reference(lengths):
    """An odd number of query tiles leaves the second block of the last pair without rows."""
    for seed, kwargs in enumerate(({"shared": LITTLE}, {"tile_m": 256, "shared": 36 * 1024}, {"sms": 2}, {"sms": 3, "tile_m": 256})):
        s = paired("dense", **kwargs)
        assert (s.grid[1] is ONE) == ("sms" in kwargs), "one tile to a block where the output lies over Q"
        run(s, "dense", *lengths, seed=seed)


def every_interleaving():
    """Of one part and one key tile: both blocks' roles, and all that goes between them."""
    found = explore(paired("dense", shared=LITTLE), 1, 256, 64)
    assert found.complete and found.states > 1000


def interleavings_of_one_tile():
    for seed in range(40):
        run(paired("dense", shared=LITTLE), "dense", 140, 330, seed=seed)


def interleavings_of_several_tiles():
    for seed in range(30):
        run(paired("dense", sms=2), "dense", 300, 200, seed=seed)


@pytest.mark.parametrize("check", turn((every_interleaving, interleavings_of_one_tile, interleavings_of_several_tiles), 3))
def test_interleavings(check):
    check()


def alone(name):
    """A channel whose ends belong to one block."""
    return lambda s: with_channel(s, name, pair=False)


def same_half(tensor):
    """Both blocks copy the first half."""

    def rule(op):
        if not isinstance(op, l3.Copy) or op.tensor != tensor:
            return (op,)
        return (dataclasses.replace(op, tile=mul(var("kv_tile"), const(2)) if tensor == "k" else op.tile, column=ZERO if tensor == "v" else None),)

    return lambda s: change(s, "producer", rule)


FAULTS = {
    "scores are told to one block": (alone("TS"), {"deadlock", "overwritten"}),
    "the partner's weights are not waited for": (alone("TP"), {"unfinished"}),
    "the partner's sums are not waited for": (alone("TO"), {"unfinished"}),
    "the partner's half of K is not waited for": (alone("K"), {"unfinished"}),
    "the partner's half of V is not waited for": (alone("V"), {"unfinished"}),
    "the partner's Q is not waited for": (alone("Q"), {"unfinished"}),
    "no product waits for weights": (lambda s: drop(s, "issuer", l3.Wait("TP")), {"unfinished", "protocol"}),
    "copies may be released into a block that has ended": (lambda s: drop(s, "producer", l3.Drain("V")), {"unfinished"}),
    "weights may be released into a block that has ended": (lambda s: drop(s, "consumer", l3.Drain("TP")), {"unfinished"}),
    "softmax of both blocks never releases scores": (lambda s: drop(s, "consumer", l3.Release("TS")), {"deadlock", "protocol"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault):
    plant, kinds = FAULTS[fault]
    s = plant(paired("dense", shared=LITTLE))
    q, k, v, inputs = make_inputs(attention("dense"), 1, 256, 330)
    with pytest.raises(Fault) as found:
        for seed in range(8):
            run_schedule(s, q, k, v, inputs, seed=seed)
    assert found.value.kind in kinds, found.value


@pytest.mark.parametrize("tensor", ("k", "v"))
def test_the_wrong_half_gives_wrong_numbers(tensor):
    with pytest.raises(AssertionError):
        run(same_half(tensor)(paired("dense", shared=LITTLE)), "dense", 256, 330)


def test_the_checker_knows_pairs():
    target, s = get_target("blackwell"), paired("dense", shared=LITTLE)
    check_schedule(s, target)
    wrong = {
        "not for a pair": with_channel(s, "TP", pair=False),
        "channel FACTOR is for a pair": with_channel(s, "FACTOR", pair=True),
        "columns": dataclasses.replace(s, buffers=tuple(dataclasses.replace(b, rows=64) if b.name == "K" else b for b in s.buffers)),
        "odd number of blocks": dataclasses.replace(s, grid=(var("q_tiles"), *s.grid[1:])),
        "clusters of 1": dataclasses.replace(s, cluster=1),
        "Drain on channel K": change(s, "correction", lambda op: (op, l3.Drain("K")) if isinstance(op, l3.StoreWait) else (op,)),
    }  # fmt: skip
    for words, bad in wrong.items():
        with pytest.raises(IllegalProgram, match=words):
            check_schedule(bad, target)
    with pytest.raises(IllegalProgram, match="no products for pairs"):
        check_schedule(s, target.without("mma_pairs"))
    assert not any(isinstance(op, l3.Drain) for r in paired("dense").roles if r.pair for op in operations(r.body))
