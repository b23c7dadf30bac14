"""The reference against PyTorch's own attention, its conventions for empty rows, and its gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from attncc.diagnostics import AttnError
from attncc.interp.data import make_inputs
from attncc.interp.inputs import check_inputs
from attncc.interp.reference import dense_mask, reference, reference_gradients
from attncc.interp.run_attention import run_attention
from attncc.lower import load


def attention(body: str = "", q: int = 4, kv: int = 2, dim: str = "dim 16", dtype: str = "bf16"):
    return load(f"attention x {{\nheads q = {q}, kv = {kv}\n{dim}\ndtype {dtype}\n{body}\n}}")


def operands(a, batch=2, seq_q=9, seq_kv=13, seed=0):
    return make_inputs(a, batch, seq_q, seq_kv, seed)


@pytest.mark.parametrize("seq_q, seq_kv", [(9, 13), (13, 9), (1, 1), (8, 8)])
@pytest.mark.parametrize("q, kv", [(4, 4), (4, 1), (14, 2)])
@pytest.mark.parametrize("body", ["", "mask causal_top_left", "scale 0.3\nmask causal_top_left"])
def test_softmax_is_pytorchs(body, q, kv, seq_q, seq_kv):
    a = attention(body, q, kv, "dim qk = 16, v = 24")
    x = operands(a, seq_q=seq_q, seq_kv=seq_kv)
    out, lse = reference(a, *x)
    heads = [t.double().transpose(1, 2) for t in x[:3]]
    scale = 0.3 if "scale" in body else None
    expected = F.scaled_dot_product_attention(*heads, is_causal="mask" in body, scale=scale, enable_gqa=True).transpose(
        1, 2
    )
    torch.testing.assert_close(out, expected)
    assert out.dtype == lse.dtype == torch.float64 and out.shape == (2, seq_q, q, 24) and lse.shape == (2, q, seq_q)


def test_scores_masks_and_heads_by_loops():
    """Every index in its place: a score of b, h, hkv, q_idx, kv_idx and two tensors, entry by entry."""
    a = attention("""tensor t: f32[h, ?]
tensor doc: i32[b, seq_kv] in 0..3
scalar tau: float
score s * tau + 0.1 * b - 0.2 * h + 0.05 * hkv + t[h, q_idx]
bias 0.01 * q_idx * kv_idx
mask doc[b, kv_idx] < 2 or kv_idx == 0""")
    q, k, v, inputs = operands(a)
    out, lse = reference(a, q, k, v, inputs)
    for b, h, i in ((0, 0, 0), (1, 3, 8), (0, 2, 4)):
        total, acc = 0.0, torch.zeros(16, dtype=torch.float64)
        for j in range(13):
            if inputs["doc"][b, j] < 2 or j == 0:
                s = float(q[b, i, h].double() @ k[b, j, h // 2].double()) / 4
                s = s * inputs["tau"] + 0.1 * b - 0.2 * h + 0.05 * (h // 2) + inputs["t"][h, i].item() + 0.01 * i * j
                total += math.exp(s)
                acc += math.exp(s) * v[b, j, h // 2].double()
        torch.testing.assert_close(out[b, i, h], acc / total)
        assert math.isclose(lse[b, h, i], math.log(total), rel_tol=1e-12)


def test_a_row_without_keys_is_zero():
    a = attention("tensor bias_: f32[h]\nbias bias_[h]\nmask kv_idx < q_idx - 2")
    q, k, v, inputs = operands(a)
    out, lse = reference(a, q, k, v, inputs)
    assert (out[:, :3] == 0).all() and torch.isneginf(lse[:, :, :3]).all() and torch.isfinite(lse[:, :, 3:]).all()
    grads = reference_gradients(a, q, k, v, inputs, torch.randn_like(out), torch.randn_like(lse))
    assert all(torch.isfinite(g).all() for g in grads.values()) and (grads["q"][:, :3] == 0).all()
    assert set(grads) == {"q", "k", "v", "bias_"}


@pytest.mark.parametrize(
    "body", ["", "reduction softmax(sink = 0.5)", "reduction sigmoid", "mask kv_idx > 3\nbias log(kv_idx - 3)"]
)
@pytest.mark.parametrize("seq_q, seq_kv", [(0, 5), (5, 0), (0, 0)])
def test_empty_sequences(body, seq_q, seq_kv):
    a = attention(body)
    q, k, v, inputs = operands(a, seq_q=seq_q, seq_kv=seq_kv)
    out, lse = reference(a, q, k, v, inputs)
    assert out.shape == (2, seq_q, 4, 16) and (out == 0).all()
    if lse is not None:
        assert (lse == (0.5 if "sink" in body else -math.inf)).all()
    assert run_attention(a, q, k, v, inputs)[0].shape == out.shape


def test_a_score_of_minus_infinity_is_masked():
    a, b = attention("bias -inf if kv_idx % 2 == 0 else 0.0"), attention("mask kv_idx % 2 == 1")
    x = operands(a)
    for reduction in ("", "\nreduction sigmoid", "\nreduction none"):
        one, other = (
            attention(body + reduction) for body in ("bias -inf if kv_idx % 2 == 0 else 0.0", "mask kv_idx % 2 == 1")
        )
        torch.testing.assert_close(reference(one, *x)[0], reference(other, *x)[0])
    torch.testing.assert_close(reference(a, *x)[1], reference(b, *x)[1])


def test_a_sink_takes_weight_and_enters_the_lse():
    a = attention("tensor sinks: f32[h]\nreduction softmax(sink = sinks[h] + 0.1 * q_idx)\nmask kv_idx < q_idx")
    q, k, v, inputs = operands(a)
    out, lse = reference(a, q, k, v, inputs)
    plain, plain_lse = reference(attention("mask kv_idx < q_idx"), q, k, v)
    sink = inputs["sinks"].double()[None, :, None] + 0.1 * torch.arange(9)
    torch.testing.assert_close(lse, torch.logaddexp(plain_lse, sink.expand_as(plain_lse)))
    torch.testing.assert_close(out, plain * torch.exp(plain_lse - lse).transpose(1, 2).unsqueeze(-1).nan_to_num(0.0))
    torch.testing.assert_close(lse[:, :, 0], sink[:, :, 0].expand(2, 4))


@pytest.mark.parametrize("kind, function", [
    ("sigmoid", torch.sigmoid), ("relu", torch.relu), ("silu", F.silu), ("gelu", F.gelu), ("none", lambda x: x)
])  # fmt: skip
def test_reductions_that_do_not_normalise(kind, function):
    a = attention(f"mask causal_top_left\nreduction {kind}(weight_scale = 2 / seq_kv)")
    q, k, v, _ = operands(a)
    out, lse = reference(a, q, k, v)
    qh, kh, vh = (t.double().transpose(1, 2) for t in (q, k, v))
    scores = qh @ kh.repeat_interleave(2, 1).transpose(2, 3) / 4
    weights = torch.where(torch.ones(9, 13).tril().bool(), function(scores), 0.0)
    torch.testing.assert_close(out, (weights @ vh.repeat_interleave(2, 1) * 2 / 13).transpose(1, 2))
    assert lse is None


BODIES = [
    "mask causal",
    "tensor t: f32[h, 9]\nbias relative_table(t, 4)\nscore softcap(2.0)\nmask causal and sliding_window(3)",
    "tensor t: f32[h, seq_q]\nscore s * sigmoid(t[h, q_idx]) + log(1.0 + abs(t[h, q_idx]))\nreduction silu(weight_scale = 0.1)",
    "tensor sinks: f32[h]\nmask kv_idx < q_idx - 2\nreduction softmax(sink = sinks[h] * 2.0)",
    "tensor t: f32[b]\nmask kv_idx > 3\nbias t[b] * sqrt(kv_idx - 4.0)",
]


@pytest.mark.parametrize("body", BODIES)
def test_gradients_are_differences(body):
    """Directional derivatives by central differences, in float64, for every real argument."""
    a = attention(body)
    q, k, v, inputs = operands(a, batch=2, seq_q=5, seq_kv=7)
    generator = torch.Generator().manual_seed(1)
    real = {n: x for n, x in {"q": q, "k": k, "v": v, **inputs}.items() if isinstance(x, torch.Tensor)}

    def call(shift):
        x = {n: t.double() + shift.get(n, 0.0) for n, t in real.items()}
        return reference(a, x.pop("q"), x.pop("k"), x.pop("v"), {**inputs, **x})

    out, lse = call({})
    grad_out = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    grad_lse = None if lse is None else torch.randn(lse.shape, generator=generator, dtype=torch.float64)

    def loss(shift):
        out, lse = call(shift)
        extra = 0.0 if lse is None else (torch.where(torch.isfinite(lse), lse, 0.0) * grad_lse).sum()
        return ((out * grad_out).sum() + extra).item()

    grads = reference_gradients(a, q, k, v, inputs, grad_out, grad_lse)
    for name, x in real.items():
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        slope = (loss({name: 1e-5 * direction}) - loss({name: -1e-5 * direction})) / 2e-5
        assert math.isclose((grads[name] * direction).sum().item(), slope, rel_tol=1e-5, abs_tol=1e-7), name


def test_gradients_also_flow_by_autograd_alone():
    a = attention("tensor t: f32[h]\nbias t[h] * kv_idx")
    q, k, v, inputs = operands(a)
    leaves = [x.float().requires_grad_() for x in (q, k, v, inputs["t"])]
    out, _ = reference(a, *leaves[:3], {"t": leaves[3]})
    out.sum().backward()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in leaves)


def test_dense_mask_is_expanded():
    a = attention("tensor doc: i32[b, seq_kv] in 0..3\nmask doc[b, kv_idx] == h % 2")
    _, _, _, inputs = operands(a)
    mask = dense_mask(a, 2, 9, 13, inputs)
    assert mask.shape == (2, 4, 9, 13) and mask.dtype == torch.bool
    assert torch.equal(mask[1, 3, 5], inputs["doc"][1] == 1)
    assert dense_mask(attention(), 1, 3, 4).all()


@pytest.mark.parametrize("dtype, bound", [("bf16", 0.02), ("fp16", 0.003)])
@pytest.mark.parametrize("body", BODIES)
def test_the_l1_interpreter_is_close_in_its_own_precision_and_equal_in_float64(body, dtype, bound):
    a = attention(body, dtype=dtype)
    q, k, v, inputs = operands(a)
    out, lse = reference(a, q, k, v, inputs)
    low, low_lse = run_attention(a, q, k, v, inputs)
    assert low.dtype == q.dtype and (low - out).abs().max() < bound * max(1.0, out.abs().max())
    high, high_lse = run_attention(a, q, k, v, inputs, dtype=torch.float64)
    torch.testing.assert_close(high, out)
    if lse is not None:
        torch.testing.assert_close(high_lse, lse)
        torch.testing.assert_close(low_lse.double(), lse, rtol=1e-5, atol=1e-5)


def damage(**changes):
    """Arguments of a small attention with some of them replaced (None: left out)."""
    a = attention(
        "tensor t: f32[h, seq_kv] in -9.0..9.0\ntensor doc: i32[b, seq_kv] in 0..3 sorted\nscalar n: int in 1..5\nbias t[h, kv_idx]\nmask doc[b, kv_idx] < n"
    )
    q, k, v, inputs = operands(a)
    x = {"q": q, "k": k, "v": v, **inputs}
    x |= {name: value(x[name]) if callable(value) else value for name, value in changes.items()}
    x = {name: value for name, value in x.items() if value is not None}
    return a, x.pop("q"), x.pop("k"), x.pop("v"), x


@pytest.mark.parametrize(
    "changes, code, words",
    [
        ({"t": None}, "E301", ["the tensor `t` is missing", "tensor t: f32[4, seq_kv]"]),
        ({"n": None}, "E301", ["the scalar `n` is missing"]),
        ({"tt": 1}, "E302", ["has no argument `tt`", "did you mean `t`?"]),
        ({"t": 3.0}, "E303", ["`t` must be a torch tensor, found float"]),
        ({"q": [1]}, "E303", ["`q` must be a torch tensor, found list"]),
        ({"doc": torch.Tensor.long}, "E304", ["`doc` has the element type int64; expected int32"]),
        ({"t": torch.Tensor.int}, "E304", ["`t` has the element type int32; expected float32"]),
        ({"t": torch.Tensor.double}, "E304", ["float64; expected float32"]),
        ({"q": torch.Tensor.int}, "E304", ["expected a real type"]),
        ({"t": lambda t: t[0]}, "E312", ["`t` has 1 dimension(s); expected 2"]),
        ({"q": lambda t: t[0]}, "E312", ["(batch, seq, heads, dim)"]),
        ({"t": lambda t: t[:, 1:]}, "E313", ["dimension 1 of `t` is 12; expected 13 (`seq_kv`)"]),
        ({"k": lambda t: t[:, :, :1]}, "E313", ["`k` has the shape (2, 13, 1, 16); expected (2, 13, 2, 16)"]),
        ({"n": 2.0}, "E318", ["`n` must be int, found float"]),
        ({"n": True}, "E318", ["found bool"]),
        ({"n": 5}, "E318", ["`n` is 5; the declared range is 1..5"]),
        ({"doc": lambda t: t - 1}, "E320", ["at least 0"]),
        ({"doc": lambda t: t + 3}, "E320", ["below 3"]),
        ({"doc": lambda t: t.flip(-1).contiguous()}, "E320", ["is declared sorted, but falls after"]),
        ({"t": lambda t: torch.full_like(t, math.nan)}, "E320", ["at least -9.0"]),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(changes, code, words):
    with pytest.raises(AttnError) as caught:
        check_inputs(*damage(**changes))
    assert f"error[{code}]" in str(caught.value) and "--> argument `" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_reals_of_any_kind_are_fine_for_the_interpreters():
    a, q, k, v, inputs = damage(t=torch.Tensor.double)
    reference(a, q, k, v, inputs)
    with pytest.raises(AttnError):
        check_inputs(a, q, k, v, inputs)


def test_out_of_range_reads_name_the_tensor():
    a = attention("tensor t: f32[?]\nbias t[kv_idx]\nmask kv_idx < 20")
    q, k, v, _ = operands(a)
    with pytest.raises(AttnError, match="tensor `t` is read out of range: index 5 in dimension 0, which has extent 5"):
        reference(a, q, k, v, {"t": torch.zeros(5)})
    masked = attention("tensor t: f32[?]\nbias t[kv_idx]\nmask kv_idx < 5")
    assert torch.isfinite(reference(masked, q, k, v, {"t": torch.zeros(5)})[0]).all()
