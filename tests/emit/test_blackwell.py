"""Kernels for tensor memory, cross-compiled: who issues products, what the loops hold, registers, columns."""

import pytest

import attncc
from attncc.emit import emit
from attncc.emit.flatten import view_of
from attncc.targets import get_target
from tests.emit.compiling import compile_schedule

TARGET = "blackwell"
FRAME = 8
"""Bytes that the first, masked key tile may spill; loops spill nothing."""


def schedule(dims: str, mask: str = ""):
    text = f"attention plain {{ heads q = 2, kv = 1\n {dims}\n dtype bf16\n {mask} }}"
    return attncc.compile(text, target=TARGET).stages().schedule


@pytest.mark.parametrize("chip", get_target(TARGET).archs)
def test_products_are_in_the_loop_of_one_warp(chip):
    outcome = compile_schedule(schedule("dim 64", "mask kv_idx <= q_idx + off"), chip, "UTCHMMA")
    assert outcome.resources.frame <= FRAME
    assert [loop["UTCHMMA"] for loop in outcome.loops] == [2 * (64 // 16 + 128 // 16)], "two parts, S = Q K^T and O += P V of each"
    assert not {"STL", "LDL"} & set(outcome.loops[0])
    assert outcome.size(0) <= 200


def test_softmax_works_on_pairs_and_polls_nothing_else():
    outcome = compile_schedule(schedule("dim 64"), "sm_100a", "MUFU")
    loop = max((body for body in outcome.loops if body["MUFU"] >= 128), key=lambda body: -body.total())
    assert loop["FFMA2"] >= 64 and loop["FADD2"] >= 60 and loop["F2FP"] == 64
    assert not {"STL", "LDL"} & set(loop)
    assert loop.total() <= 620, "about five instructions an element"


@pytest.mark.parametrize("dims", ("dim 64", "dim 128", "dim qk = 192, v = 128", "dim 192", "dim 256"))
def test_tensor_memory_is_a_power_of_two_of_columns(dims):
    view = view_of(schedule(dims))
    assert view.tensor_columns in (32, 64, 128, 256, 512)
    assert f"allocate_tensor_memory(holder, {view.tensor_columns})" in emit(schedule(dims))
