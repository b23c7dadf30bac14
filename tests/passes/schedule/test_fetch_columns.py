"""What is fetched a key tile ahead, what stays where it is, and that a number of another tile is noticed."""

import dataclasses

import pytest

from attncc.interp.data import make_inputs
from attncc.interp.explore_schedule import explore
from attncc.interp.run_schedule import run_schedule
from attncc.interp.schedule_state import Fault
from attncc.ir import schedule as l3
from attncc.ir.check_expr import IllegalProgram
from attncc.ir.check_schedule import check_schedule
from attncc.ir.expr import ONE, add, load, var
from attncc.ir.schedule_ops import compute_role, operations
from attncc.ir.text import format_expr
from attncc.ir.tile import ColLet, Score
from attncc.passes.schedule.fetch_columns import fetch_columns
from attncc.targets import TARGETS
from tests.passes.schedule.test_schedule_passes import check_numbers
from tests.schedules import attention, change, schedule

HOPPER = TARGETS["hopper"]

pytestmark = pytest.mark.usefixtures("one_thread")


def fetches(s):
    return [op for op in operations(compute_role(s).body) if isinstance(op, l3.ColFetch)]


def retimed(rule):
    """`s` with every fetch at the tile that `rule(tile)` says."""
    return lambda s: change(s, "consumer", lambda op: (dataclasses.replace(op, tile=rule(op.tile)),) if isinstance(op, l3.ColFetch) else (op,))


def without_first(s):
    """`s` without the fetches before its loops."""
    first = [op for op in operations(compute_role(s).body) if isinstance(op, l3.If) and all(isinstance(o, l3.ColFetch) for o in op.body)]
    return change(s, "consumer", lambda op: () if op in first else (op,))


def fetched_too_early(s):
    """`s` whose loops fetch before the number of the tile at hand is taken."""

    def rule(op):
        if not isinstance(op, l3.For):
            return (op,)
        ahead = tuple(o for o in op.body if isinstance(o, l3.ColFetch))
        rest = tuple(o for o in op.body if o not in ahead)
        return (dataclasses.replace(op, body=(rest[0], *ahead, *rest[1:])),)

    return change(s, "consumer", rule)


def test_what_is_fetched():
    """Elements of every type, but those of small tables, and those whose index is an element: of these the index."""
    found = [format_expr(op.expr) for op in fetches(schedule("many", "hopper"))]
    last = "min(kv_idx, tile_0)"
    partial = [f"seen[{last}]", f"gates[b, {last}]", f"at[b, {last}]"]
    assert found == [*partial, *partial, *(["seen[kv_idx]", "gates[b, kv_idx]", "at[b, kv_idx]"] * 2)]
    lets = [format_expr(op.expr) for op in operations(compute_role(schedule("many", "hopper")).body) if isinstance(op, ColLet)]
    assert lets[2:4] == ["select(ahead_0, ahead_1, 0.5)", "of[b, ahead_2] + few[kv_idx % 4]"]


@pytest.mark.parametrize(("name", "target"), (("documents", "hopper"), ("causal", "hopper"), ("gates", "ampere")))
def test_lists_of_tiles_and_targets_with_synchronous_products_are_left_alone(name, target):
    before = schedule(name, target, without=("fetch_columns",))
    assert fetch_columns(before, TARGETS[target]) is before


@pytest.mark.parametrize(("name", "more"), (("gates", {}), ("many", {}), ("gates", {"without": ("peel_first_tile",)})), ids=str)
def test_numbers(name, more):
    """Strictly: full tiles have no bounds on their indices, and nothing but their own elements is loaded."""
    s = schedule(name, "hopper", **more)
    assert fetches(s)
    check_numbers(s, name, 130, 200)
    check_numbers(s, name, 200, 70)
    q, k, v, inputs = make_inputs(attention(name), 1, 300, 330)
    run_schedule(s, q, k, v, inputs, strict=True)
    explore(s, 1, 130, 200, make_inputs(attention(name), 1, 130, 200)[3])


FAULTS = {
    "the next tile but one": (retimed(lambda tile: add(tile, ONE)), "protocol", "fetched for another key tile"),
    "no fetch before the loop": (without_first, "uninitialised", "before it is fetched"),
    "fetched before the present number is taken": (fetched_too_early, "protocol", "fetched for another key tile"),
}


@pytest.mark.parametrize("what", sorted(FAULTS))
def test_a_number_of_another_tile_is_found(what):
    """By a run, and by the checker without one."""
    plant, kind, text = FAULTS[what]
    s = plant(schedule("gates", "hopper"))
    q, k, v, inputs = make_inputs(attention("gates"), 1, 300, 330)
    with pytest.raises(Fault) as found:
        run_schedule(s, q, k, v, inputs)
    assert found.value.kind == kind and "collet col_" in found.value.message
    with pytest.raises(IllegalProgram, match=text):
        check_schedule(s, HOPPER)


def test_the_checker_knows_what_may_be_fetched_and_who_may_read_it():
    s = schedule("gates", "hopper")

    def of_rows(op):
        return (dataclasses.replace(op, expr=load(op.expr.value, (var("q_idx"),), op.expr.type)),) if isinstance(op, l3.ColFetch) else (op,)

    with pytest.raises(IllegalProgram, match="not one element of a tensor for each column"):
        check_schedule(change(s, "consumer", of_rows), HOPPER)
    read = add(var("qk", "float"), var("ahead_0", "float"))
    with pytest.raises(IllegalProgram, match="Score reads ahead_0"):
        check_schedule(change(s, "consumer", lambda op: (dataclasses.replace(op, expr=read),) if isinstance(op, Score) else (op,)), HOPPER)


def test_a_block_of_several_tiles_fetches_for_each():
    """On two multiprocessors: the next query tile's head has numbers of its own."""
    s = schedule("gates", "hopper", sms=2, tile_m=192)
    assert fetches(s) and any(isinstance(op, l3.Place) for op in operations(compute_role(s).body))
    check_numbers(s, "gates", 500, 330)
