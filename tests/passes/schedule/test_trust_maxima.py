"""Loops that keep their maxima: which do, that rows whose maximum is out of date are repaired, and what a repair may not do."""

import dataclasses

import pytest
import torch

from attncc.interp import schedule_numbers
from attncc.interp.data import make_inputs
from attncc.interp.explore_schedule import explore
from attncc.interp.reference import reference
from attncc.interp.run_schedule import run_schedule
from attncc.interp.schedule_state import Fault
from attncc.ir import schedule as l3
from attncc.ir.check_expr import IllegalProgram
from attncc.ir.check_schedule import check_schedule
from attncc.ir.schedule_ops import compute_role, operations
from attncc.ir.tile import Mask
from attncc.passes.schedule.trust_maxima import LIMIT, trust_maxima
from attncc.targets import TARGETS
from tests.schedules import attention, change, schedule

HOPPER = TARGETS["hopper"]

pytestmark = pytest.mark.usefixtures("one_thread")


def repairs(s):
    return [op for op in operations(compute_role(s).body) if isinstance(op, l3.Repair)]


@pytest.fixture
def repaired(monkeypatch):
    """Collects, for each repair met, how many rows of all blocks at hand were repaired, and how many there are."""
    found = []

    def counted(n, i, op, env):
        schedule_numbers._repair(n, i, op, env)
        found.append((int(n.kept[i][0].sum()), n.kept[i][0].numel()))

    monkeypatch.setitem(schedule_numbers.RULES, l3.Repair, counted)
    return found


@pytest.mark.parametrize("name", ["causal", "dense", "wide", "pairs", "distances", "gates", "packed"])
def test_loops_of_full_tiles_keep_their_maxima(name):
    s = schedule(name, "hopper")
    loops = [op for op in operations(compute_role(s).body) if isinstance(op, l3.For) and any(isinstance(o, l3.SoftmaxStep) for o in op.body)]
    for loop in loops:
        masked = any(isinstance(op, Mask) for op in loop.body)
        assert any(isinstance(op, l3.Repair) for op in loop.body) == (not masked)
        assert any(isinstance(op, l3.Rescale) for op in loop.body) == masked
    assert len(repairs(s)) == 1 and repairs(s)[0].limit == LIMIT["bf16"]


@pytest.mark.parametrize("name", ["capped", "sigmoid"])
def test_bounded_scores_and_other_weights_stay_as_they_are(name):
    s = schedule(name, "hopper", until="trust_maxima")
    assert trust_maxima(s, HOPPER) == s


@pytest.mark.parametrize("target", ["ampere", "blackwell"])
def test_targets_without_products_of_single_warps_stay_as_they_are(target):
    s = schedule("causal", target)
    assert trust_maxima(s, TARGETS[target]) == s


@pytest.mark.parametrize("name", ["causal", "narrow", "pairs", "distances", "gates", "packed"])
def test_scores_that_leave_the_first_behind(name, repaired):
    s = schedule(name, "hopper")
    for seed in range(2):
        q, k, v, inputs = make_inputs(s.attention, 2, 200, 500, seed, steep=True)
        out, lse = run_schedule(s, q, k, v, inputs, seed=seed)
        want, want_lse = reference(s.attention, q, k, v, inputs)
        torch.testing.assert_close(out, want.to(out.dtype), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(lse, want_lse.to(lse.dtype), rtol=1e-9, atol=1e-9)
    assert any(0 < rows < of for rows, of in repaired)
    assert all(rows % 16 == 0 for rows, _ in repaired)  # whole warps


def test_rows_that_have_no_key_for_tiles(repaired):
    """A bias of -inf for all but the first keys, which are visited last: tiles of nothing are no work, the first key's is."""
    s = schedule("pairs", "hopper")
    q, k, v, inputs = make_inputs(attention("pairs"), 1, 64, 500)
    pair = torch.full_like(inputs["pair"], -float("inf"))
    pair[..., 3] = 1.5
    pair[:, 10] = -float("inf")  # and one row without any
    out, lse = run_schedule(s, q, k, v, {"pair": pair})
    want, want_lse = reference(attention("pairs"), q, k, v, {"pair": pair})
    torch.testing.assert_close(out, want.to(out.dtype), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lse, want_lse.to(lse.dtype), rtol=1e-9, atol=1e-9)
    assert [rows for rows, _ in repaired if rows] == [2 * 64]  # both heads, in the last tile


def test_a_row_of_nan_stays_one():
    s = schedule("causal", "hopper")
    q, k, v, inputs = make_inputs(attention("causal"), 1, 64, 300)
    q[0, 5] = float("nan")
    out, _ = run_schedule(s, q, k, v, inputs)
    want, _ = reference(attention("causal"), q, k, v, inputs)
    assert out[0, 5].isnan().all()
    torch.testing.assert_close(out, want.to(out.dtype), rtol=1e-9, atol=1e-9, equal_nan=True)


def test_every_interleaving():
    s = schedule("dense", "hopper")
    explore(s, 1, 64, 200)


def test_keys_given_back_before_the_repair_are_noticed():
    def early(op):
        if not any(isinstance(o, l3.Repair) for o in getattr(op, "body", ())):
            return (op,)
        release = l3.Release("K")
        rest = [o for o in op.body if o != release]
        rest.insert(next(i for i, o in enumerate(rest) if isinstance(o, l3.Repair)), release)
        return (dataclasses.replace(op, body=tuple(rest)),)

    s = change(schedule("causal", "hopper"), "consumer", early)
    q, k, v, inputs = make_inputs(attention("causal"), 1, 64, 300)
    with pytest.raises(Fault, match="without a wait"):
        run_schedule(s, q, k, v, inputs)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda op: dataclasses.replace(op, body=(l3.Sync("block"), *op.body)),
        lambda op: dataclasses.replace(op, body=tuple(dataclasses.replace(o, asynchronous=True) if isinstance(o, l3.Mma) else o for o in op.body)),
        lambda op: dataclasses.replace(op, body=(*op.body, l3.Release("K"))),
    ],
    ids=["sync", "asynchronous", "release"],
)
def test_what_single_warps_cannot_do_is_refused(wrong):
    s = change(schedule("causal", "hopper"), "consumer", lambda op: (wrong(op),) if isinstance(op, l3.Repair) else (op,))
    with pytest.raises(IllegalProgram, match="which single warps do"):
        check_schedule(s, HOPPER)


def test_maxima_that_nothing_repairs_are_refused():
    s = change(schedule("causal", "hopper"), "consumer", lambda op: () if isinstance(op, l3.Repair) else (op,))
    with pytest.raises(IllegalProgram, match="nothing repairs the rows of tile_sum"):
        check_schedule(s, HOPPER)


@pytest.mark.parametrize("wrong", [{"sums": None}, {"keeps": False, "first": True}], ids=["keeps", "begins"])
def test_steps_with_sums_in_the_wrong_place_are_refused(wrong):
    change_step = lambda op: (dataclasses.replace(op, **wrong),) if isinstance(op, l3.SoftmaxStep) and op.keeps else (op,)
    with pytest.raises(IllegalProgram, match="a softmax step that (keeps maxima with sums nowhere|begins rows with sums tile_sum)"):
        check_schedule(change(schedule("causal", "hopper"), "consumer", change_step), HOPPER)
