"""The schedule interpreter: right schedules give the reference's numbers in every interleaving, planted faults are found by name."""

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
from attncc.ir.expr import const
from attncc.ir.tile import SHARED, Let, Store
from attncc.targets import get_target
from tests.schedules import TEXTS, attention, change, drop, schedule, with_channel

TARGETS = ("hopper", "ampere")
LENGTHS = ((1, 129), (129, 1), (127, 257), (257, 127), (70, 0))


pytestmark = pytest.mark.usefixtures("one_thread")


def close(s, name, seq_q, seq_kv, batch=1, **options):
    """Runs `s` and compares with the reference."""
    q, k, v, inputs = make_inputs(attention(name), batch, seq_q, seq_kv)
    out, lse = run_schedule(s, q, k, v, inputs, **options)
    want, want_lse = reference(attention(name), q, k, v, inputs)
    torch.testing.assert_close(out, want.to(out.dtype), rtol=1e-9, atol=1e-9)
    if want_lse is not None:
        torch.testing.assert_close(lse, want_lse.to(lse.dtype), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sorted(TEXTS))
def test_numbers_equal_the_reference(name, target):
    for seed, (seq_q, seq_kv) in enumerate(LENGTHS):
        close(schedule(name, target), name, seq_q, seq_kv, batch=2, seed=seed, strict=True)


@pytest.mark.parametrize("target", TARGETS)
def test_every_interleaving_gives_the_same_numbers(target):
    q, k, v, inputs = make_inputs(attention("window"), 1, 200, 200)
    runs = [run_schedule(schedule("window", target), q, k, v, inputs, seed=seed)[0] for seed in range(12)]
    runs.append(run_schedule(schedule("window", target), q, k, v, inputs, mode="in_order")[0])
    assert all(torch.equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sorted(TEXTS))
def test_no_interleaving_goes_wrong(name, target):
    inputs = make_inputs(attention(name), 1, 130, 200)[3]
    found = explore(schedule(name, target), 1, 130, 200, inputs)
    assert found.complete and found.states > 50


# -------------------------------------------------------------------- planted faults

WAIT, RELEASE = l3.Wait, l3.Release


def swap(first, second):
    """A rule that puts `second` before `first` where they follow one another."""

    def rule(body):
        out = list(body)
        for i in range(len(out) - 1):
            if out[i] == first and out[i + 1] == second:
                out[i], out[i + 1] = second, first
        return tuple(out)

    return rule


def reorder(s, role, rule):
    """`s` with `rule` applied to every body of a role."""

    def inside(op):
        return (dataclasses.replace(op, body=rule(op.body)),) if hasattr(op, "body") else (op,)

    return change(s, role, inside)


def one_more(channel):
    """A copy of the first key tile into `channel`."""
    return l3.Acquire(channel), l3.Copy(channel, channel.lower(), const(0)), l3.Commit(channel)


HOPPER_FAULTS = {
    "no release of K": (lambda s: drop(s, "consumer", RELEASE("K")), {"protocol", "deadlock"}),
    "one arrival too many expected": (lambda s: with_channel(s, "K", arrivals=3), {"deadlock"}),
    "one arrival too few expected": (lambda s: with_channel(s, "K", arrivals=1), {"overwritten", "protocol"}),
    "no wait for V": (lambda s: drop(s, "consumer", WAIT("V")), {"unfinished"}),
    "no wait for the first product": (lambda s: drop(s, "consumer", l3.MmaWait(1)), {"overwritten", "unfinished"}),
    "no wait for the second product": (lambda s: drop(s, "consumer", l3.MmaWait(0)), {"overwritten", "unfinished"}),
    "K released before its product is done": (
        lambda s: reorder(s, "consumer", swap(l3.MmaWait(1), RELEASE("K"))), {"overwritten"},
    ),
    "commit before acquire": (
        lambda s: reorder(s, "producer", lambda b: tuple(o for o in b if o != l3.Acquire("V"))), {"protocol"},
    ),
    "commit without a copy": (
        lambda s: change(s, "producer", lambda o: () if isinstance(o, l3.Copy) and o.channel == "V" else (o,)), {"protocol"},
    ),
    "no commit of V": (lambda s: drop(s, "producer", l3.Commit("V")), {"protocol", "deadlock"}),
    "turns never given on": (lambda s: drop(s, "consumer", l3.Arrive("turn")), {"deadlock"}),
    "turn barrier for too many threads": (
        lambda s: dataclasses.replace(s, barriers=tuple(dataclasses.replace(b, threads=384) for b in s.barriers)), {"deadlock"},
    ),
    "accumulator not filled": (lambda s: drop(s, "consumer", l3.Fill("O", 0.0)), {"uninitialised"}),
    "output stored before it is visible": (lambda s: drop(s, "consumer", l3.Sync("rows")), {"unfinished"}),
    "one K tile too many": (
        lambda s: change(s, "producer", lambda o: (o, *one_more("K")) if o == l3.Commit("Q") else (o,)), {"never read", "deadlock"},
    ),
}  # fmt: skip

AMPERE_FAULTS = {
    "no wait for copies": (lambda s: drop(s, "compute", l3.CopyWait(0)), {"unfinished"}),
    "one group too many left in flight": (
        lambda s: change(s, "compute", lambda o: (l3.CopyWait(1),) if o == l3.CopyWait(0) else (o,)), {"unfinished"},
    ),
    "no barrier of the block": (lambda s: drop(s, "compute", l3.Sync("block")), {"unfinished"}),
    "wait before the copies are closed": (
        lambda s: reorder(s, "compute", lambda b: tuple(o for o in b if o != l3.Commit("V"))), {"unfinished", "overwritten"},
    ),
}  # fmt: skip

@pytest.mark.parametrize("what", sorted(HOPPER_FAULTS))
def test_planted_fault_between_roles(what):
    plant, kinds = HOPPER_FAULTS[what]
    options = {"tile_m": 192} if what.startswith("turn") else {}  # only three groups take turns
    options |= {"without": ("trust_maxima",)} if what.startswith("K released") else {}  # else K is kept long after its product
    with pytest.raises(Fault) as found:
        explore(plant(schedule("dense", "hopper", **options)), 1, 100, 256)
    assert found.value.kind in kinds, str(found.value)
    assert "[" in found.value.message  # names a worker


@pytest.mark.parametrize("what", sorted(AMPERE_FAULTS))
def test_planted_fault_within_a_role(what):
    plant, kinds = AMPERE_FAULTS[what]
    with pytest.raises(Fault) as found:
        explore(plant(schedule("dense", "ampere")), 1, 100, 128)
    assert found.value.kind in kinds, str(found.value)


def test_a_stage_too_few_is_found():
    """Copying the next K before the present one is used needs two stages; the pass that places waits does not help."""
    early = schedule("dense", "ampere")

    def rule(body):
        out = [o for o in body if not (isinstance(o, l3.If) or o == l3.Commit("K"))]
        ahead = [o for o in body if isinstance(o, l3.If) or o == l3.Commit("K")]
        at = next((i for i, o in enumerate(out) if isinstance(o, l3.Mma)), None)
        return tuple(body) if at is None or len(ahead) != 2 else (*out[:at], *ahead, *out[at:])

    early = reorder(early, "compute", rule)
    with pytest.raises(Fault) as found:
        explore(early, 1, 100, 128)
    assert found.value.kind == "overwritten" and "K" in found.value.message


def test_copies_two_tiles_ahead_need_two_stages():
    """A producer that sends K_i+2 before V_i: with one stage nobody can go on, with two all is well."""
    tiles = range(4)
    order = [("K", 0), ("K", 1), *(item for t in tiles for item in ((("K", t + 2),) if t + 2 < 4 else ()) + (("V", t),))]
    s = schedule("dense", "hopper")
    name = {"K": "k", "V": "v"}
    copies = tuple(
        op for c, t in [("Q", 0), *order]
        for op in (l3.Acquire(c), l3.Copy(c, name.get(c, "q"), const(t)), l3.Commit(c))
    )  # fmt: skip
    s = dataclasses.replace(s, roles=tuple(dataclasses.replace(r, body=copies) if r.name == "producer" else r for r in s.roles))
    explore(s, 1, 100, 256)
    one = with_channel(s, "K", stages=1)
    with pytest.raises(Fault, match="deadlock.*producer.*acquire K"):
        explore(one, 1, 100, 256)


def test_output_over_a_tile_that_is_still_read():
    """OUT lies over Q: it may not be written while a product that reads Q is unfinished."""
    s = schedule("dense", "hopper")
    write = l3.Convert("OUT", "O")
    early = change(s, "consumer", lambda o: (o, write) if isinstance(o, l3.Mma) and o.transposed else (o,))
    with pytest.raises(Fault, match="overwritten.*OUT lies over Q, which an unfinished product reads"):
        explore(early, 1, 100, 64)


def test_a_wrong_guard_shows_as_nan():
    s = change(
        schedule("window", "hopper"), "consumer",
        lambda o: (dataclasses.replace(o, guard=False),) if isinstance(o, l3.SoftmaxStep) else (o,),
    )  # fmt: skip
    q, k, v, inputs = make_inputs(attention("window"), 1, 257, 127)
    assert bool(run_schedule(s, q, k, v, inputs)[0].isnan().any())


def test_a_block_that_computes_another_tile_is_noticed():
    s = schedule("dense", "hopper")
    prelude = tuple(Let("q_tile", const(0)) if op.name == "q_tile" else op for op in s.prelude)
    q, k, v, inputs = make_inputs(attention("dense"), 1, 257, 64)
    with pytest.raises(Fault, match="never read: output row"):
        run_schedule(dataclasses.replace(s, prelude=prelude), q, k, v, inputs)


def test_random_runs_report_faults_too():
    q, k, v, inputs = make_inputs(attention("dense"), 1, 100, 256)
    broken = with_channel(schedule("dense", "hopper"), "V", arrivals=3)
    with pytest.raises(Fault, match=r"deadlock: .*producer\[0\] waits at acquire V"):
        run_schedule(broken, q, k, v, inputs, seed=5)


# -------------------------------------------------------------------- the checker


CHECKED = {
    "arrivals": (lambda s: with_channel(s, "K", arrivals=1), "emptied by 1 arrivals, 2 groups"),
    "bytes": (lambda s: with_channel(s, "K", bytes=100), "counts 100 bytes a stage, 4096 arrive"),
    "stages": (
        lambda s: dataclasses.replace(s, buffers=tuple(dataclasses.replace(b, stages=1) for b in s.buffers)),
        "has 2 stages, its buffer K 1",
    ),
    "shared memory": (lambda s: with_channel(s, "K", stages=64), "bytes of shared memory"),
    "registers": (
        lambda s: dataclasses.replace(s, roles=tuple(dataclasses.replace(r, registers=248) for r in s.roles)),
        "registers; there are 65536",
    ),
    "threads": (lambda s: dataclasses.replace(s, threads=256), "the block has 256 threads, its roles 384"),
    "barrier threads": (
        lambda s: dataclasses.replace(s, barriers=tuple(dataclasses.replace(b, threads=100) for b in s.barriers)),
        "not a whole number",
    ),
    "unbound name": (
        lambda s: change(s, "consumer", lambda o: () if isinstance(o, Let) and o.name == "count_1" else (o,)),
        "reads count_1, which is not bound there",
    ),
    "unknown buffer": (lambda s: change(s, "consumer", lambda o: (o, l3.Fill("X", 0.0)) if isinstance(o, Store) else (o,)),
                       "names dst X, which is not declared"),
    "unfilled register": (lambda s: drop(s, "consumer", l3.Fill("O", 0.0)), "O, which holds nothing yet"),
    "balance": (lambda s: drop(s, "consumer", WAIT("V"), RELEASE("V")), "channel V: producer fills"),
    "release without wait": (lambda s: drop(s, "consumer", WAIT("V")), "V is released without a wait"),
    "acquire": (lambda s: drop(s, "producer", l3.Acquire("K")), "a copy into K before a stage is acquired"),
    "product": (lambda s: drop(s, "consumer", l3.MmaWait(1)), "S while the product into it is unfinished"),
    "wrong role": (lambda s: change(s, "producer", lambda o: (o, WAIT("K")) if o == l3.Commit("Q") else (o,)),
                   "role producer does Wait on channel K"),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(CHECKED))
def test_the_checker_finds_it_without_a_run(what):
    plant, text = CHECKED[what]
    with pytest.raises(IllegalProgram, match=text):
        check_schedule(plant(schedule("dense", "hopper")), get_target("hopper"))


def test_shared_buffers_are_declared_shared():
    assert {b.name for b in schedule("dense", "hopper").buffers if b.space == SHARED} == {"Q", "K", "V", "OUT"}
