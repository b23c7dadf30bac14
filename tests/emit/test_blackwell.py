"""Kernels for tensor memory, cross-compiled: who issues products, what the loops hold, registers, columns."""

import re
from collections import Counter

import pytest

import attncc
from attncc.emit import emit
from attncc.emit.flatten import view_of
from attncc.ir.schedule_ops import compute_role, operations
from attncc.runtime import cubin
from attncc.targets import get_target
from tests.emit.compiling import compile_schedule

TARGET = "blackwell"
BUDGETS = {"producer": 45, "issuer": 140, "softmax": 545, "correction": 130}
"""Instructions of one iteration of each role's loop at head dim 64, both parts of the query tile where a role works on both, without retries of waits.
(In a loop over work tiles the issuer's addresses of operands in tensor memory do not all fit uniform registers: 8 are fetched from others.)"""


def schedule(dims: str, mask: str = ""):
    text = f"attention plain {{ heads q = 2, kv = 1\n {dims}\n dtype bf16\n {mask} }}"
    return attncc.compile(text, target=TARGET).stages().schedule


@pytest.mark.parametrize("chip", get_target(TARGET).archs)
def test_products_are_in_the_loop_of_one_warp(chip):
    outcome = compile_schedule(schedule("dim 64", "mask kv_idx <= q_idx + off"), chip, "UTCHMMA")
    assert outcome.resources.frame == 0
    assert [loop["UTCHMMA"] for loop in outcome.loops] == [2 * (64 // 16 + 128 // 16)], "two parts, S = Q K^T and O += P V of each"
    assert not {"STL", "LDL"} & set(outcome.loops[0])
    assert outcome.size(0) <= 200


def role_loops(sass: str) -> dict[str, Counter]:
    """The loop of each role: the shortest run of code with a branch back to its beginning that holds the role's work on a key tile.

    (Retries of waits lie behind the code, and jump back into the middle of loops.)
    """
    marks = {
        "capped": lambda c: c["STTM"] == 4 and c["VOTE"] and c["FMUL2"] == 128,
        "distances": lambda c: c["STTM"] == 4 and c["LDS"] >= 32 and c["MUFU"] <= 130,
        "producer": lambda c: c["UTMALDG"] == 2, "issuer": lambda c: c["UTCHMMA"] == 24,
        "softmax": lambda c: c["STTM"] == 4 and c["LEA"], "correction": lambda c: c["FMUL2"] == 64 and not c["F2FP"],
    }  # fmt: skip
    found: dict[str, Counter] = {}
    for code, labels in cubin.functions(sass).values():
        back = [(labels[t], i.address) for i in code if i.name == "BRA" for t in re.findall(r"\.L_\w+", i.operands) if t in labels]
        for first, last in back:
            census = cubin.census([i for i in code if first <= i.address <= last])
            for role in [r for r, fits in marks.items() if first < last and fits(census)]:
                found[role] = min(found.get(role, census), census, key=Counter.total)
    return found


@pytest.fixture(scope="module")
def plain() -> dict[str, Counter]:
    return role_loops(compile_schedule(schedule("dim 64"), "sm_100a", "UTCHMMA").sass)


@pytest.mark.parametrize("role", BUDGETS)
def test_an_iteration_of_a_role_keeps_to_its_budget(plain, role):
    assert plain[role].total() <= BUDGETS[role], plain[role]
    assert not {"STL", "LDL"} & set(plain[role])


def test_softmax_works_on_pairs_and_polynomials_take_their_share(plain):
    (step,) = [s for s in operations(compute_role(schedule("dim 64")).body) if getattr(s, "polynomial", 0)]
    polynomials = 128 * step.polynomial // 16
    loop = plain["softmax"]
    assert polynomials > 0 and 128 - polynomials <= loop["MUFU"] <= 128 - polynomials + 1
    assert loop["LEA"] == polynomials, "2**n is added to the exponent by one instruction"
    assert loop["FFMA2"] == 64 + 4 * polynomials // 2 and loop["FADD2"] >= 60 + polynomials and loop["F2FP"] == 64
    assert loop["FFMA"] + loop["FADD"] + loop["FMUL"] <= 6, "sums, products and differences go by pairs"
    assert plain["correction"]["FMUL2"] == 2 * 64 // 2


def test_a_mask_of_pairs_is_a_loop_over_eight_columns_and_does_not_spill():
    """Written out for each column it takes 100 KB of code and spills."""
    text = "attention pairs { heads q = 2, kv = 1\n dim 64\n dtype bf16\n tensor seen: bool[batch, seq_q, seq_kv]\n mask seen[b, q_idx, kv_idx] }"
    made = attncc.compile(text, target=TARGET).stages().schedule
    outcome = compile_schedule(made, "sm_100a", "UTCHMMA")
    assert made.tile_n == 128 and outcome.resources.frame == 0
    assert outcome.resources.code < 70_000
def test_capped_scores_take_a_polynomial_for_their_tanh():
    """A warp in the polynomial's range executes 128 of the special function unit, a warp beyond it 256; nothing is corrected."""
    s = schedule("dim 64", "score softcap(30.0)")
    (step,) = [op for op in operations(compute_role(s).body) if getattr(op, "odd", 0)]
    assert (step.odd, step.polynomial) == (16, 0)
    outcome = compile_schedule(s, "sm_100a", "UTCHMMA")
    assert outcome.resources.frame == 0
    census = role_loops(outcome.sass)["capped"]
    near = {"FMUL2": 64, "FFMA2": 256, "MUFU": 128, "FADD2": 64}
    far = {"FMUL2": 64, "FFMA2": 64, "MUFU": 256, "FADD2": 64}
    assert all(census[name] in (near[name] + far[name], near[name] + far[name] - 1) for name in near), census
    assert census["F2FP"] == 64 and census["FMNMX3"] + census["FMNMX"] <= 66, "of three numbers at once, without signs"
    assert census.total() - sum(far.values()) <= 710
    assert "correction" not in role_loops(outcome.sass)


def test_distances_are_read_four_at_a_time_or_not_at_all():
    """Both ways of a tile's table of distances are in the loop: 32 reads of four numbers and 64 additions of two, or 64 additions."""
    s = schedule("dim 64", "tensor table: f32[heads_q, 257]\n bias relative_table(table, 128)")
    outcome = compile_schedule(s, "sm_100a", "UTCHMMA")
    assert outcome.resources.frame == 0 and s.tile_n == 128
    loop = role_loops(outcome.sass)["distances"]
    assert loop["LDS"] == 128 // 4 and loop["STS"] <= 2 * 4 + 1 and 3 * 64 - 1 <= loop["FFMA2"] <= 3 * 64 and loop["FFMA"] == 0
    assert loop.total() <= 690


def test_products_of_a_pair_are_one_instruction_for_both_blocks():
    """256/256: S = Q K^T and O += P V; the first block issues them, each copies half a tile of K and V, arrivals go to both."""
    made = schedule("dim 256")
    outcome = compile_schedule(made, "sm_100a", "UTCHMMA")
    assert made.cluster == 2 and outcome.resources.frame == 0
    assert [loop["UTCHMMA"] for loop in outcome.loops] == [256 // 16 + 128 // 16]
    assert not {"STL", "LDL"} & set(outcome.loops[0]) and outcome.size(0) <= 120
    assert not re.search(r"UTCHMMA(?!\.2CTA)|UTCBAR(?!\.2CTA\.MULTICAST)|UTMALDG\.\dD(?!\.2CTA)", outcome.sass)
    assert "cluster=(2, 1, 1)" in emit(made) and "pairs." not in emit(schedule("dim 256", "mask kv_idx <= q_idx + off"))


@pytest.mark.parametrize("dims", ("dim 64", "dim 128", "dim qk = 192, v = 128", "dim 192", "dim 256"))
def test_tensor_memory_is_a_power_of_two_of_columns(dims):
    view = view_of(schedule(dims))
    assert view.tensor_columns in (32, 64, 128, 256, 512)
    assert f"allocate_tensor_memory(holder, {view.tensor_columns})" in emit(schedule(dims))


def test_places_in_rings_go_on_from_tile_to_tile():
    """Positions and phases are set once, before the loop over work tiles of each role, and turned over within it."""
    bodies = emit(schedule("dim 128", "mask kv_idx <= q_idx + off")).split("# which tile\n")[1:]
    assert len(bodies) == 5 and all("# work tiles" in body for body in bodies)
    for body in bodies:
        before, within = body.split("# work tiles\n")
        assert re.search(r"ring_position|phases", before) and not re.search(r"ring_position|phases\(", within)
        moved = set(re.findall(r"(\w+)_at.advance", within))
        assert moved == set(re.findall(r"(\w+)_at = ", before))
        used = set(re.findall(r"turn\(phases, (\d)", within))
        assert used == {bits[0] for bits in re.findall(r"# bits? (.*) of phases", before)}


def test_a_score_and_a_mask_that_name_no_key_find_their_key_tile():
    text = (
        "attention nothing { heads q = 4, kv = 1\n dim 32\n dtype bf16\n mask all(37 < 9 for i in 0..3)\n"
        " score s * sigmoid(s)\n mask key_padding(27)\n reduction relu }"
    )
    outcome = compile_schedule(attncc.compile(text, target=TARGET).stages().schedule, "sm_100a", "UTCHMMA")
    assert outcome.resources.frame == 0
