"""The custom operator: torch.compile keeps a kernel in its graph, fake tensors go through it, results do not change."""

import pytest
import torch

import attncc
from attncc.diagnostics import AttnError
from attncc.runtime.torch_op import KERNELS
from tests.runtime.specs import PLAIN, RICH, operands, rich_arguments


class Graphs:
    """A torch.compile backend that keeps the graphs and runs them as they are."""

    def __init__(self):
        self.found = []

    def __call__(self, module, inputs):
        self.found.append(module)
        return module.forward

    def calls(self) -> int:
        return sum("attncc.attention" in str(n.target) for g in self.found for n in g.graph.nodes)


def compiled(function):
    torch._dynamo.reset()
    graphs = Graphs()
    return torch.compile(function, backend=graphs, fullgraph=True), graphs


def test_a_kernel_is_one_node_of_one_graph():
    kernel = attncc.compile(PLAIN)
    q, k, v = operands(1, 10, 12)
    run, graphs = compiled(lambda q, k, v: kernel(q * 2, k, v) + 1)
    torch.testing.assert_close(run(q, k, v), kernel(q * 2, k, v) + 1)
    assert len(graphs.found) == 1 and graphs.calls() == 1


def test_lse_tensors_and_scalars_go_through():
    kernel = attncc.compile(RICH)
    q, k, v = operands(1, 8, 8, dim_v=32)
    given = rich_arguments(1)
    run, graphs = compiled(lambda q, k, v, given: kernel(q, k, v, return_lse=True, **given))
    for got, wanted in zip(run(q, k, v, given), kernel(q, k, v, return_lse=True, **given)):
        torch.testing.assert_close(got, wanted)
    assert graphs.calls() == 1


def test_out_goes_through():
    kernel = attncc.compile(PLAIN)
    q, k, v = operands(1, 4, 4)
    run, _ = compiled(lambda q, k, v, out: kernel(q, k, v, out=out))
    out = torch.empty_like(q)
    run(q, k, v, out)
    torch.testing.assert_close(out, kernel(q, k, v))


def test_fake_tensors_have_the_right_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    kernel = attncc.compile(RICH)
    with FakeTensorMode():
        q, k, v = operands(3, 8, 8, dim_v=32)
        out, lse = torch.ops.attncc.attention(q, k, v, [], [], [], kernel.register())
    assert (out.shape, out.dtype) == ((3, 8, 4, 32), torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((3, 4, 8), torch.float32)


def test_export_keeps_the_operator():
    kernel = attncc.compile(PLAIN)

    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return kernel(q, k, v)

    q, k, v = operands(1, 5, 6)
    exported = torch.export.export(Model(), (q, k, v), strict=False)
    assert "attncc.attention" in str(exported.graph)
    torch.testing.assert_close(exported.module()(q, k, v), kernel(q, k, v))


def test_opcheck():
    kernel = attncc.compile(PLAIN)
    q, k, v = operands(1, 5, 6)
    torch.library.opcheck(torch.ops.attncc.attention.default, (q, k, v, [], [], [], kernel.register()))


def test_lengths_may_change_without_another_graph():
    kernel = attncc.compile(PLAIN)
    run, graphs = compiled(lambda q, k, v: kernel(q, k, v))
    for n in (5, 9, 12, 17, 30):
        q, k, v = operands(1, n, n)
        torch.testing.assert_close(run(q, k, v), kernel(q, k, v))
    assert len(graphs.found) <= 2, "one for the first length, one for all"


def test_a_wrong_name_is_found_while_tracing():
    kernel = attncc.compile(PLAIN)
    torch._dynamo.reset()
    with pytest.raises(AttnError, match="has no argument `mask`"):
        torch.compile(lambda q, k, v: kernel(q, k, v, mask=1), backend="eager")(*operands(1, 4, 4))


def test_kernels_that_no_graph_uses_are_not_kept():
    kernel = attncc.compile(PLAIN.replace("plain", "forgotten"))
    kernel(*operands(1, 4, 4))
    assert kernel.key not in KERNELS
    run, _ = compiled(lambda q, k, v: kernel(q, k, v))
    run(*operands(1, 4, 4))
    assert KERNELS[kernel.key] is kernel


NEEDS_CARE = {
    "E301": {"drop": "x"},
    "E302": {"more": 1},
    "E317": {"grad": True},
    "E318, `n`": {"n": 2.7},
    "E318, `x`": {"x": "3"},
    "E319": {"out": torch.empty(1, 8, 4, 32)},
}


@pytest.mark.parametrize("reason", NEEDS_CARE)
def test_what_the_operator_would_get_wrong_is_no_part_of_a_graph(reason):
    """Gradients would be lost, 2.7 would become 2, `out` would be cast: a graph has none of it, and where it breaks the call is refused."""
    text = "attention a { heads q = 4, kv = 2; dim qk = 64, v = 32; dtype bf16; scalar n: int; scalar x: float; bias x; mask kv_idx < n }"
    kernel = attncc.compile(text)
    q, k, v = operands(1, 8, 8, dim_v=32)
    given = {"n": 3, "x": 0.5} | NEEDS_CARE[reason]
    q.requires_grad_(given.pop("grad", False))
    given.pop(given.pop("drop", None), None)
    run, _ = compiled(lambda q, k, v: kernel(q, k, v, **given))
    with pytest.raises(torch._dynamo.exc.Unsupported, match=reason):
        run(q, k, v)
    if reason == "E317":
        torch._dynamo.reset()
        with pytest.raises(AttnError, match=reason):
            torch.compile(lambda q, k, v: kernel(q, k, v, **given), backend=Graphs())(q, k, v)


def test_gradients_that_nobody_asks_for_do_not_matter():
    kernel = attncc.compile(PLAIN)
    q, k, v = operands(1, 4, 5)
    run, graphs = compiled(lambda q, k, v: kernel(q, k, v))
    with torch.no_grad():
        torch.testing.assert_close(run(q.clone().requires_grad_(), k, v), kernel(q, k, v))
    assert graphs.calls() == 1


def test_a_log_sum_exp_that_does_not_exist_is_named():
    kernel = attncc.compile(PLAIN.replace("mask causal", "reduction relu"))
    run, _ = compiled(lambda q, k, v: kernel(q, k, v, return_lse=True))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="E324"):
        run(*operands(1, 4, 5))
