"""A tensor without dimensions is one number: in the interpreter, and in a compiled kernel run by the emulator."""

import pytest

import attncc
from attncc.explain import Shape
from attncc.measure import measure
from attncc.runtime.emulated import emulate_calls

TEXT = """attention single {
    heads q = 1, kv = 1
    dim 32
    dtype bf16
    tensor d: f32[] in 0.0..1.0
    tensor on: bool[]
    bias d[] * 2.0 if on[] and kv_idx < 20 else 0.0
}
"""


def test_interpreter():
    assert measure(attncc.compile(TEXT), Shape(1, 30, 40), 1, "cpu").ok


@pytest.mark.parametrize(("target", "chip"), [("hopper", "sm_90a"), ("ampere", "sm_80")])
def test_kernel(target, chip):
    from attncc.interp.data import make_inputs
    from attncc.interp.reference import reference

    kernel = attncc.compile(TEXT, target=target)
    q, k, v, given = make_inputs(kernel.attention, 1, 30, 40, 1)
    results = emulate_calls(kernel, chip=chip, seeds=1)
    out = kernel(q, k, v, **given)
    results[0].check()
    wanted, _ = reference(kernel.attention, q, k, v, given)
    assert (out.double() - wanted).abs().max() < 2e-2
