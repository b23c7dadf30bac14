"""What a result may be off by: twice the eager error, and for single elements what rounding makes at most."""

import pytest
import torch

from attncc.accuracy import SLACK, Yardstick, distance
from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.interp.run_attention import run_attention
from attncc.lower import load

TEXT = "attention plain {{\nheads q = 2, kv = 2\ndim 64\ndtype {dtype}\nmask causal\n{more}\n}}"


def yardstick(dtype: str = "bf16", more: str = "", spread: float = 1.0, rows: int = 40, signs: bool = False):
    a = load(TEXT.format(dtype=dtype, more=more))
    q, k, v, inputs = make_inputs(a, 1, rows, 60, 0)
    q, v = (q * spread).to(q.dtype), v.sign() if signs else v
    return a, (q, k, v, inputs), Yardstick(a, q, k, v, inputs)


def with_stale_maxima(a, q, k, v, seed: int) -> torch.Tensor:
    """What a kernel computes that scales each row's weights by a factor of its own before it rounds them."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) / a.dim_qk**0.5
    keys, rows = torch.arange(k.shape[1]), torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    weights = scores.masked_fill(keys > rows, -torch.inf).softmax(-1)
    weights = weights / weights.amax(-1, keepdim=True)
    weights = weights * torch.rand(weights.shape[:-1], generator=torch.Generator().manual_seed(seed)).mul(10).exp2().unsqueeze(-1)
    out = torch.einsum("bhqk,bkhd->bqhd", weights.to(v.dtype).float(), v.float())
    return (out / weights.sum(-1).transpose(1, 2).unsqueeze(-1)).to(v.dtype)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("spread", [1.0, 3.0, 8.0])
def test_one_rounding_of_each_weight_is_right(dtype, spread):
    for rows in (1, 2, 3, 5, 40):
        a, (q, k, v, _), found = yardstick(dtype, "", spread, rows)
        for seed in range(5):
            error, allowed = found.worst(with_stale_maxima(a, q, k, v, seed))
            assert error <= allowed


def test_the_eager_error_may_be_a_lucky_one():
    """A row with one key that weighs anything is that key's value in the eager computation; rounding the weight is not wrong for that."""
    a, (q, k, v, _), found = yardstick(spread=200.0, rows=1, signs=True)
    errors = [found.worst(with_stale_maxima(a, q, k, v, seed)) for seed in range(40)]
    assert all(error <= allowed for error, allowed in errors) and any(error > found.eager for error, _ in errors)


def test_what_no_rounding_makes_is_wrong():
    """A hundredth more than the bound where it is largest; a twentieth of a row's weight given to another key."""
    _, (_, _, v, _), found = yardstick(spread=200.0, signs=True)
    wrong, largest = found.out.clone(), found.allowed.max()
    wrong[found.allowed == largest] += largest * 1.01
    error, allowed = found.worst(wrong)
    assert error > allowed == float(largest) > found.eager
    error, allowed = found.worst(found.out + 0.05 * v[:, -40:].double())
    assert error > allowed


def test_it_is_not_much_more_than_the_eager_error_allows():
    """In the mean over elements, and nowhere more than a weight and a result rounded the worst way."""
    _, (_, _, v, _), found = yardstick(rows=60)
    assert found.allowed.mean() < 1.1 * found.eager
    assert found.allowed.max() <= 2**-8 * 2.01 * float(v.abs().max()) + SLACK


def test_other_weights_have_the_eager_bound_alone():
    a, arguments, found = yardstick(more="reduction sigmoid")
    assert a.reduction.kind == "sigmoid" and bool((found.allowed == found.eager).all())
    eager, _ = run_attention(a, *arguments)
    assert found.eager == 2 * distance(eager, reference(a, *arguments)[0]) + SLACK


def test_numbers_that_are_none_are_wrong_and_rows_are_chosen():
    _, _, found = yardstick()
    out = found.out.clone()
    out[0, 3] = torch.nan
    error, allowed = found.worst(out)
    assert not error <= allowed
    rows = torch.ones(out.shape[:-1], dtype=torch.bool)
    rows[0, 3] = False
    assert found.worst(out, rows) == (0.0, found.eager)
    assert found.worst(out, torch.zeros_like(rows)) == (0.0, found.eager)
