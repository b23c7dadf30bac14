"""Schedules with tensor memory: right in every interleaving, and planted faults are found by name."""

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
from attncc.ir.expr import ONE, ZERO, apply, var
from attncc.ir.schedule_ops import compute_role, operations
from attncc.ir.tile import TENSOR, Finalize
from attncc.targets import get_target
from tests.schedules import TEXTS, attention, change, drop, schedule, with_channel

TARGET = "blackwell"
LENGTHS = ((1, 129), (129, 1), (300, 257), (257, 127), (70, 0))


pytestmark = pytest.mark.usefixtures("one_thread")


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
        return (op, l3.Fill("S", 0.0)) if isinstance(op, l3.Fill) and op.dst == "row_max" else (op,)

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
    assert {op.label for op in operations(corrector.body) if isinstance(op, l3.For)} <= {"work tiles"}
    assert not any(isinstance(op, l3.Rescale) for op in operations(corrector.body))
    assert [op.sets or op.first for op in operations(compute_role(s).body) if isinstance(op, l3.SoftmaxStep)] == [True, True, False]
    (end,) = [op for op in operations(compute_role(s).body) if isinstance(op, Finalize)]
    assert (end.accumulator, end.gap) == ("last_factor", "correction")
    plain = schedule("causal", TARGET)
    assert [r.registers for r in s.roles] == [208, 48, 48, 48] and [r.registers for r in plain.roles] == [192, 80, 48, 48]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault):
    plant, kinds = FAULTS[fault]
    s = plant(schedule("dense", TARGET))
    q, k, v, inputs = make_inputs(attention("dense"), 1, 256, 330)
    with pytest.raises(Fault) as found:
        for seed in range(8):
            run_schedule(s, q, k, v, inputs, seed=seed)
    assert found.value.kind in kinds, found.value


LITTLE = 44 * 1024
"""Shared memory in which the output has to lie over Q."""
SEVERAL = (("apart", None), ("over Q", LITTLE))


@pytest.mark.parametrize("place", SEVERAL, ids=lambda place: place[0])
@pytest.mark.parametrize("name", ("dense", "causal", "window", "sigmoid"))
def test_blocks_that_work_on_several_tiles(name, place):
    """Six or eight work tiles on two blocks or one, full and cut off, some of them without a key."""
    for sms, lengths in ((2, (700, 257)), (1, (513, 300)), (2, (700, 0))):
        s = schedule(name, TARGET, sms=sms, shared=place[1])
        assert s.buffer("OUT").alias == (None if place[1] is None else "Q") and s.grid[1] is s.grid[2] is ONE
        run(s, name, *lengths, seed=sms)


@pytest.mark.parametrize("place", SEVERAL, ids=lambda place: place[0])
def test_twenty_interleavings_of_several_tiles(place):
    for seed in range(20):
        run(schedule("causal", TARGET, sms=1, shared=place[1]), "causal", 260, 130, seed=seed)


@pytest.mark.parametrize("place", SEVERAL, ids=lambda place: place[0])
def test_every_interleaving_of_several_work_tiles(place):
    """Four, of one part."""
    shared = place[1] and 30 * 1024
    found = explore(schedule("causal", TARGET, tile_m=128, sms=1, shared=shared), 1, 256, 128)
    assert found.complete and found.states > 1000


def each_time(s):
    """The correction takes its sums anew for every work tile."""

    def rule(op):
        return (l3.ForParts((l3.Acquire("TO"), *op.body)),) if isinstance(op, l3.ForParts) and isinstance(op.body[0], l3.Fill) else (op,)

    return change(s, "correction", rule)


def release_at_once(s):
    """Q is released when it has come."""
    s = drop(s, "issuer", l3.Release("Q"))
    return change(s, "issuer", lambda op: (op, l3.Release("Q")) if op == l3.Wait("Q") else (op,))


def release_first(s):
    """Q is given away before the output over it has been read."""

    def rule(op):
        return () if op == l3.Release("Q") else (l3.Release("Q"), op) if isinstance(op, l3.StoreWait) else (op,)

    return change(s, "correction", rule)


def products_alone(s):
    """Only the products say when Q may be written over."""
    return with_channel(drop(s, "correction", l3.Wait("Q"), l3.Release("Q")), "Q", second=None, arrivals=1)


def without_factor(s):
    """Tiles without a key hand no factor on."""

    def rule(op):
        conditional = op == l3.Acquire("FACTOR") or op == l3.Commit("FACTOR") or isinstance(op, l3.Convert) and op.dst == "FACTOR"
        return (l3.If(apply("gt", var("tiles_total"), ZERO), (op,)),) if conditional else (op,)

    return change(s, "consumer", rule)


def early_output(s):
    """The output is written over Q without the sums having been asked for."""

    def rule(op):
        last = isinstance(op, l3.If) and op.body == (l3.Acquire("TO"),)
        return () if last else (op,)

    return change(s, "correction", rule)


SEVERAL_FAULTS = {
    "Q is never released": ("apart", lambda s: drop(s, "issuer", l3.Release("Q")), {"deadlock", "protocol"}),
    "the output waits for no store": ("apart", lambda s: drop(s, "correction", l3.StoreWait()), {"overwritten"}),
    "sums are taken each time": ("apart", each_time, {"protocol"}),
    "a tile without keys leaves a ring behind": ("apart", without_factor, {"deadlock"}),
    "the store over Q is not waited for": ("over Q", lambda s: drop(s, "correction", l3.StoreWait()), {"overwritten"}),
    "Q is released before the output has been read": ("over Q", release_first, {"overwritten"}),
    "Q is released by products alone": ("over Q", products_alone, {"overwritten"}),
    "one of two arrivals is enough for Q": ("over Q", lambda s: with_channel(s, "Q", arrivals=1), {"overwritten", "protocol"}),
    "the output never asks for Q": ("over Q", lambda s: drop(s, "correction", l3.Wait("Q")), {"overwritten", "protocol"}),
    "Q is released when it has come": ("over Q", release_at_once, {"unfinished", "protocol"}),
    "the output does not wait for products": ("over Q", early_output, {"overwritten", "unfinished", "protocol"}),
}


@pytest.mark.parametrize("fault", SEVERAL_FAULTS)
def test_planted_faults_of_several_tiles_are_found(fault):
    place, plant, kinds = SEVERAL_FAULTS[fault]
    s = plant(schedule("causal", TARGET, sms=1, shared=dict(SEVERAL)[place]))
    q, k, v, inputs = make_inputs(attention("causal"), 1, 700, 330)
    with pytest.raises(Fault) as found:
        for seed in range(8):
            run_schedule(s, q, k, v, inputs, seed=seed)
    assert found.value.kind in kinds, found.value


@pytest.mark.parametrize(("name", "role", "buffers"), (("causal", "consumer", ("row_max", "row_sum")), ("dense", "correction", ("TO",))), ids=str)
def test_what_is_set_for_the_first_tile_alone_is_wrong_for_the_next(name, role, buffers):
    """Statistics and sums begin anew: else a tile without keys has the log-sum-exp of the one before, and outputs add up."""

    def rule(op):
        return (l3.If(apply("eq", var("round"), ZERO), (op,)),) if isinstance(op, l3.Fill) and op.dst in buffers else (op,)

    with pytest.raises(AssertionError):
        run(change(schedule(name, TARGET, sms=1), role, rule), name, 600, 100)


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


def test_both_readers_of_q_release_it():
    s = schedule("causal", TARGET, shared=LITTLE)
    assert s.channel("Q").consumers == ("issuer", "correction") and {r.name for r in s.roles} >= {"producer", "queries"}
    with pytest.raises(IllegalProgram, match="emptied by 1 arrivals, 2 groups"):
        check_schedule(with_channel(s, "Q", arrivals=1), get_target(TARGET))
    with pytest.raises(IllegalProgram, match="which is for issuer and correction"):
        check_schedule(change(s, "consumer", lambda op: (op, l3.Wait("Q")) if isinstance(op, l3.Finalize) else (op,)), get_target(TARGET))


def test_one_warp_issues_every_product_and_weights_lie_over_scores():
    s = schedule("causal", TARGET)
    issuing = [r for r in s.roles if any(isinstance(op, l3.Mma) for op in operations(r.body))]
    assert [(r.name, r.warps) for r in issuing] == [("issuer", 1)]
    weights = s.buffer("TP")
    assert weights.alias == "TS" and weights.column + weights.cols // 2 == s.buffer("TS").cols
    assert {b.name for b in s.buffers if b.space == TENSOR} == {"TS", "TP", "TO"}
