"""Every example at L1: it loads, its interpreter agrees with the reference, and any lengths and groups are fine."""

from pathlib import Path

import pytest
import torch

from attncc.interp.data import make_inputs
from attncc.interp.inputs import check_inputs
from attncc.interp.reference import reference, reference_gradients
from attncc.interp.run_attention import run_attention
from attncc.ir.text import format_program, parse_program
from attncc.lower import load

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.attn"))
SHAPES = {1: ((129, 127), (1, 65)), 4: ((63, 65),), 7: ((65, 1), (1, 1))}
"""Lengths (seq_q, seq_kv) for each group size."""
by_name = pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)


def test_there_are_enough():
    assert len(EXAMPLES) >= 25


@by_name
def test_it_is_documented_and_loads_as_it_stands(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and len(lines) <= 25
    a = load(path)
    assert a.name == path.stem and a.span("heads") is not None
    assert parse_program(format_program(a)) == a


@by_name
@pytest.mark.parametrize("group", SHAPES)
def test_the_interpreter_is_the_reference(path, group):
    """Equal in float64; in its own precision, as close as two roundings of the weights and the output allow."""
    a = load(path, q_heads=2 * group if group == 1 else group, kv_heads=2 if group == 1 else 1)
    for seq_q, seq_kv in SHAPES[group]:
        q, k, v, inputs = make_inputs(a, 2, seq_q, seq_kv, seed=group)
        check_inputs(a, q, k, v, inputs)
        out, lse = reference(a, q, k, v, inputs)
        assert torch.isfinite(out).all() and (lse is None or not (lse.isnan() | lse.isposinf()).any())
        exact, exact_lse = run_attention(a, q, k, v, inputs, dtype=torch.float64)
        torch.testing.assert_close(exact, out)
        low, _ = run_attention(a, q, k, v, inputs)
        assert (low - out).abs().max() <= 0.02 * max(1.0, out.abs().max())
        if lse is not None:
            torch.testing.assert_close(exact_lse, lse)


@by_name
def test_batch_entries_see_their_own_tensors(path):
    """Entry 1 of a batch is what it would be with its tensors in the place of entry 0's."""
    a = load(path, q_heads=4, kv_heads=2)
    q, k, v, inputs = make_inputs(a, 2, 40, 50)
    out, _ = reference(a, q, k, v, inputs)
    per_batch = {t.name for t in a.tensors if t.shape and t.shape[0] is not None and "batch" in repr(t.shape[0])}
    swapped = {n: x.flip(0) if n in per_batch else x for n, x in inputs.items()}
    if path.stem != "swin":  # its region table goes by b % windows
        torch.testing.assert_close(reference(a, q.flip(0), k.flip(0), v.flip(0), swapped)[0].flip(0), out)


@by_name
def test_gradients_are_finite(path):
    a = load(path, q_heads=2, kv_heads=1)
    q, k, v, inputs = make_inputs(a, 2, 33, 40)
    out, lse = reference(a, q, k, v, inputs)
    grads = reference_gradients(a, q, k, v, inputs, torch.ones_like(out), None if lse is None else torch.ones_like(lse))
    assert all(torch.isfinite(g).all() for g in grads.values())
    real = {t.name for t in a.tensors if inputs[t.name].dtype.is_floating_point}
    assert set(grads) == {"q", "k", "v"} | real
