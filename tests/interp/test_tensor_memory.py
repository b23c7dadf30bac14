"""Schedules with tensor memory: right in every interleaving, and planted faults are found by name."""

import dataclasses

import pytest
import torch

from attncc.interp.data import make_inputs
from attncc.interp.explore_schedule import explore
from attncc.interp.reference import reference
from attncc.interp.run_schedule import run_schedule
from attncc.interp.schedule_machine import Fault
from attncc.ir import schedule as l3
from attncc.ir.check_expr import IllegalProgram
from attncc.ir.check_schedule import check_schedule
from attncc.ir.expr import ZERO
from attncc.ir.schedule_ops import compute_role, operations
from attncc.ir.tile import TENSOR, Finalize
from attncc.targets import get_target
from tests.schedules import TEXTS, attention, change, drop, schedule, with_channel

TARGET = "blackwell"
LENGTHS = ((1, 129), (129, 1), (300, 257), (257, 127), (70, 0))


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(s, name, seq_q, seq_kv, seed=0):
    q, k, v, inputs = make_inputs(attention(name), 1, seq_q, seq_kv)
    out, lse = run_schedule(s, q, k, v, inputs, seed=seed)
    want, want_lse = reference(attention(name), q, k, v, inputs)
    torch.testing.assert_close(out, want.to(out.dtype), rtol=1e-9, atol=1e-9)
    if want_lse is not None:
        torch.testing.assert_close(lse, want_lse.to(lse.dtype), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_right_schedules_give_the_reference(name, lengths):
    for seed in range(2):
        run(schedule(name, TARGET, small=name != "wide"), name, *lengths, seed=seed)


def test_two_hundred_interleavings():
    for seed in range(200):
        run(schedule("causal", TARGET), "causal", 20, 330, seed=seed)


@pytest.mark.parametrize("name", ("dense", "causal", "documents", "sigmoid", "capped"))
def test_every_interleaving_of_two_tiles(name):
    """Of one part: what the parts have to do with each other is the order of the warp that issues their products."""
    inputs = make_inputs(attention(name), 1, 128, 128)[3]
    found = explore(schedule(name, TARGET, tile_m=128), 1, 128, 128, inputs)
    assert found.complete and found.states > 100


def test_every_interleaving_of_two_parts():
    found = explore(schedule("dense", TARGET), 1, 256, 128)
    assert found.complete and found.states > 1000


def after(kind, name, role, new):
    """A change that puts operations before each `kind` of channel `name` in a role."""

    def rule(op):
        return (*new, op) if isinstance(op, kind) and op.channel == name else (op,)

    return lambda s: change(s, role, rule)


def early_weights(s):
    """The weights are put over the scores before these were read."""

    def rule(op):
        if isinstance(op, l3.Convert) and op.src == "TS":
            return (l3.Acquire("TP"), l3.Convert("TP", "S"), op)
        return () if op in (l3.Acquire("TP"), l3.Convert("TP", "S")) else (op,)

    def start(op):
        return (op, l3.Fill("S", 0.0)) if isinstance(op, l3.SetRegisters) else (op,)

    return change(change(s, "consumer", rule), "consumer", start)


FAULTS = {
    "the products do not wait for the weights": (lambda s: drop(s, "issuer", l3.Wait("TP")), {"unfinished", "protocol"}),
    "the products do not wait for the correction": (lambda s: drop(s, "issuer", l3.Wait("TO")), {"unfinished", "protocol"}),
    "softmax does not wait for the scores": (lambda s: drop(s, "consumer", l3.Wait("TS")), {"unfinished", "protocol"}),
    "scores are written over without asking": (lambda s: drop(s, "issuer", l3.Acquire("TS")), {"overwritten", "protocol"}),
    "softmax never releases the scores": (lambda s: drop(s, "consumer", l3.Release("TS")), {"deadlock", "protocol"}),
    "weights are never committed": (lambda s: drop(s, "consumer", l3.Commit("TP")), {"deadlock", "protocol"}),
    "the correction does not ask for the sums": (lambda s: drop(s, "correction", l3.Acquire("TO")), {"overwritten", "protocol"}),
    "sums are not cleared": (lambda s: drop(s, "correction", l3.Fill("TO", 0.0)), {"uninitialised"}),
    "the factor is read without a wait": (lambda s: drop(s, "correction", l3.Wait("FACTOR")), {"unfinished", "protocol"}),
    "weights lie over scores that are still to be read": (early_weights, {"overwritten"}),
    "keys need two arrivals to be free": (lambda s: with_channel(s, "K", arrivals=2), {"deadlock"}),
    "scores need two arrivals to be free": (lambda s: with_channel(s, "TS", arrivals=2), {"deadlock"}),
}


BOUNDED_FAULTS = {
    "the products do not wait for cleared sums": (lambda s: drop(s, "issuer", l3.Wait("TO")), {"unfinished", "protocol"}),
    "the output does not wait for the last product": (lambda s: drop(s, "issuer", l3.Release("TO")), {"deadlock", "protocol"}),
    "the last factor is read without a wait": (lambda s: drop(s, "correction", l3.Wait("FACTOR")), {"unfinished", "protocol"}),
    "the last factor is never committed": (lambda s: drop(s, "consumer", l3.Commit("FACTOR")), {"deadlock", "protocol"}),
    "weights are never committed": (lambda s: drop(s, "consumer", l3.Commit("TP")), {"deadlock", "protocol"}),
}


@pytest.mark.parametrize("fault", BOUNDED_FAULTS)
def test_planted_faults_are_found_where_scores_are_bounded(fault):
    plant, kinds = BOUNDED_FAULTS[fault]
    s = plant(schedule("capped", TARGET))
    q, k, v, inputs = make_inputs(attention("capped"), 1, 256, 330)
    with pytest.raises(Fault) as found:
        for seed in range(8):
            run_schedule(s, q, k, v, inputs, seed=seed)
    assert found.value.kind in kinds, found.value


def test_bounded_scores_need_no_correction():
    """The correcting role begins and ends the sums; the last factor is made in a number of its own, beside what rounding added."""
    s = schedule("capped", TARGET)
    corrector = next(r for r in s.roles if r.name == "correction")
    assert not any(isinstance(op, (l3.For, l3.Rescale)) for op in operations(corrector.body))
    assert [op.sets or op.first for op in operations(compute_role(s).body) if isinstance(op, l3.SoftmaxStep)] == [True, True, False]
    (end,) = [op for op in operations(compute_role(s).body) if isinstance(op, Finalize)]
    assert (end.accumulator, end.gap) == ("last_factor", "correction")
    plain = schedule("causal", TARGET)
    assert [r.registers for r in s.roles] == [200, 64, 48, 48] and [r.registers for r in plain.roles] == [192, 80, 48, 48]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault):
    plant, kinds = FAULTS[fault]
    s = plant(schedule("dense", TARGET))
    q, k, v, inputs = make_inputs(attention("dense"), 1, 256, 330)
    with pytest.raises(Fault) as found:
        for seed in range(8):
            run_schedule(s, q, k, v, inputs, seed=seed)
    assert found.value.kind in kinds, found.value


def keys_first(op):
    """The copying role sends all key tiles before any values (for three tiles of keys)."""
    if not (isinstance(op, l3.For) and op.label == "full tiles"):
        return (op,)
    keys = tuple(o for o in op.body if getattr(o, "channel", "") == "K")
    rest = dataclasses.replace(op, body=tuple(o for o in op.body if o not in keys))
    ahead = tuple(dataclasses.replace(o, tile=ZERO) if isinstance(o, l3.Copy) else o for o in keys)
    return (*ahead, *ahead, *ahead, rest)


def test_one_stage_too_few_is_found():
    """Static where a ring has more stages than its buffer; by every interleaving where a role runs further ahead than the ring is long."""
    s = schedule("dense", TARGET, tile_m=128)
    with pytest.raises(IllegalProgram, match="stages, its buffer K"):
        check_schedule(dataclasses.replace(s, channels=tuple(
            dataclasses.replace(c, stages=c.stages + 1) if c.name == "K" else c for c in s.channels
        )), get_target(TARGET))  # fmt: skip
    hasty = change(s, "producer", keys_first)
    assert explore(with_channel(hasty, "K", stages=2), 1, 128, 192).complete
    with pytest.raises(Fault) as found:
        explore(with_channel(hasty, "K", stages=1), 1, 128, 192)
    assert found.value.kind == "deadlock" and "acquire K" in found.value.message


def moved(s, name, **fields):
    return dataclasses.replace(s, buffers=tuple(dataclasses.replace(b, **fields) if b.name == name else b for b in s.buffers))


@pytest.mark.parametrize("fields", ({"column": 100}, {"column": 500}, {"pitch": 16}), ids=str)
def test_columns_that_overlap_or_do_not_exist_are_illegal(fields):
    with pytest.raises(IllegalProgram, match="tensor memory"):
        check_schedule(moved(schedule("dense", TARGET), "TO", **fields), get_target(TARGET))


def test_overlapping_columns_are_found_by_running():
    s = moved(schedule("dense", TARGET), "TO", column=32)
    q, k, v, inputs = make_inputs(attention("dense"), 1, 256, 330)
    with pytest.raises(Fault, match="written over"):
        run_schedule(s, q, k, v, inputs)


def test_an_arrival_count_off_by_one_is_illegal():
    with pytest.raises(IllegalProgram, match="emptied by 2 arrivals"):
        check_schedule(with_channel(schedule("dense", TARGET), "TS", arrivals=2), get_target(TARGET))


def test_one_warp_issues_every_product_and_weights_lie_over_scores():
    s = schedule("causal", TARGET)
    issuing = [r for r in s.roles if any(isinstance(op, l3.Mma) for op in operations(r.body))]
    assert [(r.name, r.warps) for r in issuing] == [("issuer", 1)]
    weights = s.buffer("TP")
    assert weights.alias == "TS" and weights.column + weights.cols // 2 == s.buffer("TS").cols
    assert {b.name for b in s.buffers if b.space == TENSOR} == {"TS", "TP", "TO"}
