"""Calls with packed sequences: the argument checks, the interpreter behind them, the custom operator."""

import pytest
import torch

import attncc
from attncc.diagnostics import AttnError
from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.runtime.torch_op import KERNELS
from tests.runtime.specs import PLAIN, RICH
from tests.runtime.test_torch_op import compiled


@pytest.fixture(scope="module")
def rich():
    return attncc.compile(RICH)


def data(kernel, seed=0):
    return make_inputs(kernel.packed.attention, 4, 20, 30, seed)


@pytest.mark.parametrize("text", [PLAIN, RICH], ids=["plain", "rich"])
def test_a_packed_call_is_the_reference(text):
    kernel = attncc.compile(text)
    for seed in range(2):
        q, k, v, given = data(kernel, seed)
        out, lse = kernel(q, k, v, return_lse=True, **given)
        wanted, wanted_lse = reference(kernel.packed.attention, q, k, v, given)
        assert out.shape == (*q.shape[:2], v.shape[2]) and lse.shape == (q.shape[1], q.shape[0])
        assert out.dtype == q.dtype and lse.dtype == torch.float32
        torch.testing.assert_close(out.double(), wanted, atol=2e-2, rtol=0)
        torch.testing.assert_close(lse.double(), wanted_lse, atol=1e-4, rtol=0)
        into = torch.full_like(out, torch.nan)
        assert kernel(q, k, v, out=into, **given) is into and torch.equal(into, out)


def test_a_kernel_takes_both_layouts(rich):
    q, k, v, given = data(rich)
    padded = make_inputs(rich.attention, 2, 20, 30)
    first, second = rich(q, k, v, **given), rich(*padded[:3], **padded[3])
    assert torch.equal(rich(q, k, v, **given), first) and torch.equal(rich(*padded[:3], **padded[3]), second)
    assert rich.packed is rich.packed and rich.packed.key != rich.key


def test_calls_without_rows():
    kernel = attncc.compile(PLAIN)
    starts = torch.zeros(3, dtype=torch.int32)
    some = torch.tensor([0, 2, 5], dtype=torch.int32)
    given = {"cu_seqlens_q": starts, "cu_seqlens_kv": some, "max_seqlen_q": 0, "max_seqlen_kv": 3}
    rows = torch.randn(5, 4, 64).bfloat16()
    assert kernel(rows[:0], rows[:, :2], rows[:, :2], **given).shape == (0, 4, 64)
    given = {"cu_seqlens_q": some, "cu_seqlens_kv": starts, "max_seqlen_q": 3, "max_seqlen_kv": 0}
    out, lse = kernel(rows, rows[:0, :2], rows[:0, :2], return_lse=True, **given)
    assert not out.any() and (lse == -torch.inf).all() and lse.shape == (4, 5)


WRONG = {
    "one side": ({"cu_seqlens_kv": None}, "E301", "the call lacks the argument `cu_seqlens_kv`"),
    "no longest length": ({"max_seqlen_q": None}, "E301", "the call lacks the argument `max_seqlen_q`"),
    "int64": ({"cu_seqlens_q": lambda x: x.long()}, "E304", "`cu_seqlens_q` has element type i64"),
    "a list": ({"cu_seqlens_kv": lambda x: x.tolist()}, "E303", "`cu_seqlens_kv` must be a torch tensor"),
    "two dimensions": ({"cu_seqlens_q": lambda x: x[None]}, "E312", "`cu_seqlens_q` has 2 dimension(s)"),
    "empty": ({"cu_seqlens_q": lambda x: x[:0]}, "E313", "`cu_seqlens_q` is empty"),
    "fewer sequences": ({"cu_seqlens_kv": lambda x: x[:-1]}, "E313", "`cu_seqlens_kv` has shape (4,), expected (5,)"),
    "a tensor": ({"max_seqlen_q": torch.tensor}, "E318", "`max_seqlen_q` is a run-time int, but a tensor was passed"),
    "negative": ({"max_seqlen_q": lambda x: -1}, "E318", "`max_seqlen_q` is -1"),
    "falls": ({"cu_seqlens_q": lambda x: x.flip(0)}, "E340", "`cu_seqlens_q` starts with"),
    "too short": ({"max_seqlen_q": lambda x: x - 1, "bonus": lambda x: x[:, :-1]}, "E340", "`max_seqlen_q` is 19"),
    "total": ({"k": lambda x: x[1:], "v": lambda x: x[1:]}, "E340", "`cu_seqlens_kv` ends with"),
    "v is shorter": ({"v": lambda x: x[1:]}, "E313", "`v` has total"),
    "heads first": ({"q": lambda x: x.transpose(0, 1)}, "E313", "call q.transpose(0, 1) for (heads, total, dim) tensors"),
    "a batch": ({"q": lambda x: x[None]}, "E312", "expected 3: (total, heads, dim)"),
    "shape of a tensor": ({"doc": lambda x: x[:, :-1]}, "E313", "come from cu_seqlens_q, max_seqlen_q, max_seqlen_kv"),
    "unknown": ({"cu_seqlen_q": lambda x: 1}, "E302", "did you mean"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(rich, case):
    changes, code, message = WRONG[case]
    q, k, v, given = data(rich)
    everything = {"q": q, "k": k, "v": v, **given}
    rich(**everything)
    for name, change in changes.items():
        if change is None:
            del everything[name]
        else:
            everything[name] = change(everything.get(name))
    with pytest.raises(AttnError) as error:
        rich(**everything)
    assert code in str(error.value) and message in str(error.value)


def test_three_dimensions_without_lengths_say_what_is_missing(rich):
    q, k, v, given = data(rich)
    own = {n: x for n, x in given.items() if n in ("doc", "bonus", "seen", "window", "tau")}
    with pytest.raises(AttnError, match="for sequences packed into .total, heads, dim. pass cu_seqlens_q"):
        rich(q, k, v, **own)


def test_a_spec_that_has_such_names_itself():
    text = PLAIN.replace("mask causal", "tensor cu_seqlens_q: i32[batch + 1]\n mask kv_idx < cu_seqlens_q[b]")
    kernel = attncc.compile(text)
    q, k, v, given = make_inputs(kernel.attention, 2, 4, 6)
    assert kernel(q, k, v, **given).shape == q.shape, "the name means what the spec says"
    with pytest.raises(AttnError, match="E341"):
        kernel(q[0], k[0], v[0], cu_seqlens_kv=given["cu_seqlens_q"], **given)


def test_a_packed_call_is_one_node_of_one_graph(rich):
    q, k, v, given = data(rich)
    run, graphs = compiled(lambda q, k, v, given: rich(q, k, v, return_lse=True, **given))
    for got, wanted in zip(run(q, k, v, given), rich(q, k, v, return_lse=True, **given)):
        torch.testing.assert_close(got, wanted)
    assert graphs.calls() == 1 and rich.packed.key in KERNELS


def test_fake_tensors_have_the_right_shapes(rich):
    from torch._subclasses.fake_tensor import FakeTensorMode

    q, k, v, given = data(rich)
    rich.packed  # noqa: B018 - made outside of the mode, as a compiled program does
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in (q, k, v)]
        given = {n: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for n, x in given.items()}
        out, lse = rich(*fake, return_lse=True, **given)
    assert out.shape == (*q.shape[:2], 32) and lse.shape == (4, q.shape[0]) and lse.dtype == torch.float32
