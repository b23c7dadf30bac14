"""The run time on a GPU: streams, graphs, torch.compile, threads, layouts, host time. Run with `pytest -m gpu -n 0 tests/gpu`."""

import threading
import time

import pytest
import torch

import attncc
from attncc.diagnostics import AttnError
from attncc.explain import Shape
from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.measure import compare, measure
from tests.runtime.specs import PLAIN, RICH

pytestmark = pytest.mark.gpu

DOCUMENTS = """attention documents {
    heads q = 4, kv = 2
    dim 128
    dtype bf16
    tensor doc_q: i32[batch, seq_q] in 0..9 sorted
    tensor doc_kv: i32[batch, seq_kv] in 0..9 sorted
    mask causal and document(doc_q, doc_kv)
}
"""


@pytest.fixture(scope="module")
def plain():
    return attncc.compile(PLAIN)


def data(kernel, batch=2, seq_q=300, seq_kv=333, seed=0):
    return make_inputs(kernel.attention, batch, seq_q, seq_kv, seed, "cuda")


@pytest.mark.parametrize("text", [PLAIN, RICH, DOCUMENTS], ids=["plain", "rich", "documents"])
def test_results(text):
    kernel = attncc.compile(text)
    for shape in (Shape(2, 1, 129), Shape(1, 257, 257), Shape(3, 257, 129)):
        result = measure(kernel, shape, 1, "cuda")
        assert result.ok, result


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_steep_scores(dtype, dim):
    """Maxima that go out of date again and again, in every warp."""
    kernel = attncc.compile(f"attention steep {{\nheads q = 4, kv = 4\ndim {dim}\ndtype {dtype}\nmask kv_idx <= q_idx + off + 700\n}}")
    for seed, shape in enumerate((Shape(2, 1500, 3000), Shape(1, 333, 2049))):
        result = measure(kernel, shape, seed, "cuda", steep=True)
        assert result.ok, result


@pytest.mark.parametrize("dim", [64, 96, 128])
def test_blocks_of_several_tiles(dim):
    """Without a mask, more query tiles than the GPU takes at a time: several rounds, the last one short; longer rows have a block for each tile."""
    kernel = attncc.compile(f"attention full {{\nheads q = 16, kv = 8\ndim {dim}\ndtype bf16\n}}")
    for seed, (shape, steep) in enumerate(((Shape(9, 777, 333), False), (Shape(5, 1000, 700), True), (Shape(2, 900, 4097), True))):
        result = measure(kernel, shape, seed, "cuda", steep=steep)
        assert result.ok, result


def test_lengths_batch_strides_and_scalars_never_recompile(monkeypatch):
    from attncc.runtime import build

    kernel = attncc.compile(RICH)
    count = []
    kernel(*data(kernel)[:3], **data(kernel)[3])
    for owner, name in ((build, "compile_module"), (type(kernel), "_compiled")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, real=real: (count.append(real), real(*a))[1])
    generator = torch.Generator().manual_seed(0)
    for seed in range(50):
        batch, seq_q, seq_kv = (int(torch.randint(1, 300, (), generator=generator)) for _ in range(3))
        q, k, v, given = data(kernel, batch % 4 + 1, seq_q, seq_kv, seed)
        kernel(q.transpose(1, 2).contiguous().transpose(1, 2), k, v, **given)
    assert not count and len(kernel._launchers) == 1


def test_the_current_stream_is_followed(plain):
    q, k, v, _ = data(plain)
    wanted = plain(q, k, v)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = q.clone().mul_(2)
        out = plain(late, k, v)
    stream.synchronize()
    torch.testing.assert_close(out, plain(q * 2, k, v))
    assert not torch.equal(out, wanted)


def test_graph_capture_and_replay(plain):
    q, k, v, _ = data(plain)
    plain(q, k, v)
    out = torch.zeros_like(q)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plain(q, k, v, out=out)
    q.copy_(torch.randn_like(q))
    out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(out, plain(q, k, v))


def test_graph_capture_with_tile_lists():
    kernel = attncc.compile(DOCUMENTS)
    q, k, v, given = data(kernel, 2, 500, 500)
    kernel(q, k, v, **given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernel(q, k, v, **given)
    for name in ("doc_q", "doc_kv"):
        given[name].clamp_(max=3)  # other documents, so other lists, in the tensors that were captured
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(out, kernel(q, k, v, **given))


def test_torch_compile(plain):
    q, k, v, _ = data(plain)
    run = torch.compile(lambda q, k, v: plain(q, k, v) * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(q, k, v), plain(q, k, v) * 2)


def test_threads():
    kernel, results = attncc.compile(PLAIN), []
    q, k, v, _ = data(kernel)
    torch.cuda.synchronize()
    threads = [threading.Thread(target=lambda: results.append(kernel(q, k, v))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    torch.cuda.synchronize()
    assert len(results) == 8 and all(torch.equal(r, results[0]) for r in results)


def test_layouts(plain):
    """Memory of (batch, heads, seq, dim), parts of one tensor, a batch that is expanded, an odd stride of a dimension of one."""
    q, k, v, _ = data(plain, 2)
    wanted = plain(q, k, v)
    moved = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    torch.testing.assert_close(plain(*moved), wanted)
    both = torch.cat([k, v], dim=-1)
    torch.testing.assert_close(plain(q, both[..., :64], both[..., 64:]), wanted)
    one = [x[:1] for x in (k, v)]
    torch.testing.assert_close(
        plain(q, *(x.expand(2, -1, -1, -1) for x in one)), plain(q, *(x.repeat(2, 1, 1, 1) for x in one))
    )
    odd = [x[:1].as_strided(x[:1].shape, (12345, *x.stride()[1:])) for x in (q, k, v)]
    torch.testing.assert_close(plain(*odd), wanted[:1])


@pytest.mark.parametrize("bad", ["offset", "stride", "last"])
def test_layouts_that_are_refused(plain, bad):
    q, k, v, _ = data(plain)
    memory = torch.zeros(2 * k.numel() + 64, dtype=k.dtype, device="cuda")
    _, s, h, d = k.shape
    strides = {
        "offset": k.stride(),
        "stride": (s * h * d + 4, *k.stride()[1:]),
        "last": (2 * s * h * d, 2 * h * d, 2 * d, 2),
    }[bad]
    k = memory.as_strided(k.shape, strides, storage_offset=1 if bad == "offset" else 0)
    with pytest.raises(AttnError, match="`k`"):
        plain(q, k, v)


def test_cpu_and_gpu_tensors_do_not_mix(plain):
    q, k, v, _ = data(plain)
    with pytest.raises(AttnError, match="`v` is on cpu, but q is on cuda:0"):
        plain(q, k, v.cpu())


def test_empty_calls(plain):
    for sizes in ((0, 8, 8), (2, 0, 8), (2, 8, 0)):
        q, k, v, _ = data(plain, *sizes)
        out, lse = plain(q, k, v, return_lse=True)
        assert not out.any() and (lse == -torch.inf).all()


def test_more_than_two_to_the_31_elements():
    """Addresses are 64 bits wide: the last batch entry lies past 2**31 elements of k."""
    kernel = attncc.compile(PLAIN)
    q, k, v, _ = data(kernel, 2, 64, 128)
    apart = 2**31 + 8 * 1000
    far = [torch.zeros(apart + x[1].numel(), dtype=x.dtype, device="cuda") for x in (k, v)]
    views = [f.as_strided(x.shape, (apart, *x.stride()[1:])) for f, x in zip(far, (k, v))]
    for view, x in zip(views, (k, v)):
        view.copy_(x)
    torch.testing.assert_close(kernel(q, *views), kernel(q, k, v))


def test_both_generations(plain):
    from attncc.runtime.kernel import chip_for, device_arch
    from attncc.targets import TARGETS

    arch = device_arch(torch.device("cuda"))
    names = [n for n, t in TARGETS.items() if chip_for(t, arch)]
    assert names
    for name in names:
        kernel = attncc.compile(PLAIN, target=name)
        q, k, v, given = data(kernel)
        assert compare(kernel, q, k, v, given).ok, name


def test_host_time_of_a_call(plain, capsys):
    """At most 10 us is the aim; the printed number is what the documents quote, beside that of torch's own attention."""
    padded, (*packed, lengths) = data(plain, 1, 64, 64)[:3], make_inputs(plain.packed.attention, 2, 64, 64, 0, "cuda")
    cases = {
        "out": (padded, {}),
        "out and lse": (padded, {"return_lse": True}),
        "into out": (padded, {"out": torch.empty_like(padded[0])}),
        "packed": (packed, lengths),
        "packed, out and lse": (packed, {"return_lse": True, **lengths}),
    }
    found = {name: host_time(lambda: plain(*tensors, **options)) for name, (tensors, options) in cases.items()}
    q, k, v = (x.transpose(1, 2) for x in padded)
    options = {"is_causal": True, "enable_gqa": q.shape[1] != k.shape[1]}
    other = host_time(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, **options))
    with capsys.disabled():
        print("\nhost time of a call:", ", ".join(f"{n} {1e6 * t:.1f} us" for n, t in {**found, "torch's attention": other}.items()))
    assert max(found.values()) < 30e-6


def host_time(call) -> float:
    """Seconds until `call` returns, the best of twenty means of a hundred."""
    call()
    best = float("inf")
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(100):
            call()
        best = min(best, (time.perf_counter() - start) / 100)
    return best


def test_a_log_sum_exp_that_nobody_asked_for_changes_nothing(plain):
    """Without return_lse the log-sum-exp of all rows goes to one row's memory; a captured graph goes on writing there."""
    q, k, v, _ = data(plain)
    out, lse = plain(q, k, v, return_lse=True)
    assert torch.equal(plain(q, k, v), out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plain(q, k, v)
    again, other = plain(q, k, v, return_lse=True)
    long = data(plain, 1, 40000, 64)
    plain(*long[:3])
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(again, out) and torch.equal(other, lse)


def test_odd_arguments_after_good_ones_are_refused(plain):
    """The key of a call holds neither types nor strides nor devices: the compiled function refuses what does not fit."""
    q, k, v, _ = data(plain)
    plain(q, k, v)
    for bad, code in (
        ((q, k.half(), v), "E304"),
        ((q, k, v[:, 1:]), "E313"),
        ((q, k, v[..., :32]), "E313"),
        ((q.cpu(), k, v), "E314"),
        ((q, k, v.tolist()), "E303"),
        ((q, k, v.transpose(1, 3).contiguous().transpose(1, 3)), "E315"),
    ):
        with pytest.raises(AttnError, match=code):
            plain(*bad)
    for out, code in (
        (torch.empty_like(q, dtype=torch.float32), "E319"),
        (torch.empty_like(q)[:, 1:], "E319"),
        (torch.empty_like(q, device="cpu"), "E319"),
        (q, "E319"),
        (torch.empty(q.numel() + 8, dtype=q.dtype, device="cuda")[1 : q.numel() + 1].view(q.shape), "E316"),
    ):
        with pytest.raises(AttnError, match=code):
            plain(q, k, v, out=out)


def test_results_lie_in_memory_of_torch(plain):
    """They are counted and given back as any other, and nothing else is allocated."""
    q, k, v, _ = data(plain)
    out, lse = plain(q, k, v, return_lse=True)
    assert (out.device, lse.device) == (q.device, q.device) and out.is_contiguous() and lse.is_contiguous()
    before = torch.cuda.memory_allocated()
    again = plain(q, k, v, return_lse=True)
    grown = torch.cuda.memory_allocated() - before
    assert out.untyped_storage().nbytes() + lse.untyped_storage().nbytes() <= grown < 2**21
    assert torch.equal(again[0], out) and torch.equal(again[1], lse)
    del again
    assert torch.cuda.memory_allocated() == before
    with torch.inference_mode():
        assert plain(q, k, v).is_inference()


def test_a_warm_start(tmp_path, capsys):
    """From process start to the first result: at most 0.5 s beyond importing torch is the aim. The bound allows for a busy machine."""
    from tests.gpu.warm_start import CALL, OPERANDS, TORCH, median, seconds

    program, cache = TORCH + OPERANDS + CALL, str(tmp_path)
    cold = seconds(program, cache)[0]
    torch_alone, base, warm = (median(p, cache, 3)[0] for p in (TORCH, TORCH + OPERANDS, program))
    with capsys.disabled():
        print(f"\nbeyond importing torch: warm {warm - torch_alone:.2f} s (operands on the GPU {base - torch_alone:.2f} s of it), "
              f"cold {cold - torch_alone:.2f} s")  # fmt: skip
    assert warm - base < 1.0


PACKED_SINK = """attention sinks {
    heads q = 4, kv = 1
    dim 128
    dtype bf16
    tensor sink: f32[batch, 4]
    tensor slope: f32[4]
    bias slope[h] * (kv_idx - seq_kv + 1)
    mask causal and kv_idx % 3 != b
    reduction softmax(sink = sink[b, h])
}
"""


@pytest.mark.parametrize("text", [PLAIN, RICH, DOCUMENTS, PACKED_SINK], ids=["plain", "rich", "documents", "sink"])
@pytest.mark.parametrize("target", [None, "ampere"])
def test_packed_sequences(text, target):
    """Against the loop over sequences, with empty ones, more and fewer keys than queries, twice bit by bit."""
    kernel = attncc.compile(text, target=target)
    for seed, (batch, seq_q, seq_kv) in enumerate(((5, 300, 300), (9, 129, 700), (3, 700, 129))):
        result = compare(kernel.packed, *make_inputs(kernel.packed.attention, batch, seq_q, seq_kv, seed, "cuda"))
        assert result.ok, result


def test_packed_sequences_do_not_see_each_other(plain):
    """One sequence is NaN and infinity: its neighbours share its tiles, and tensor maps have to end between them."""
    given = {n: torch.tensor(x, dtype=torch.int32, device="cuda") for n, x in (
        ("cu_seqlens_q", [0, 37, 407, 407, 512]), ("cu_seqlens_kv", [0, 270, 645, 651, 651]))}  # fmt: skip
    given |= {"max_seqlen_q": 370, "max_seqlen_kv": 375}
    q, k, v = (torch.randn(n, h, 64, device="cuda", dtype=torch.bfloat16) for n, h in ((512, 4), (651, 2), (651, 2)))
    wanted, wanted_lse = plain(q, k, v, return_lse=True, **given)
    assert torch.isfinite(wanted).all()
    q[37:407], k[270:645], v[270:645] = torch.nan, torch.nan, torch.inf
    out, lse = plain(q, k, v, return_lse=True, **given)
    others = torch.ones(512, dtype=torch.bool, device="cuda")
    others[37:407] = False
    assert torch.equal(out[others], wanted[others]) and torch.equal(lse[:, others], wanted_lse[:, others])


def test_packed_calls_in_a_graph(plain):
    q, k, v, given = make_inputs(plain.packed.attention, 4, 300, 300, 0, "cuda")
    wanted = plain(q, k, v, **given)
    out = torch.zeros_like(wanted)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plain(q, k, v, out=out, **given)
    out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, wanted)


def test_tuning(tmp_path, monkeypatch, capfd):
    """The fastest of a few kernels is remembered, and later compilations take it."""
    from attncc import cli
    from attncc.runtime import tuned

    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "plain.attn"
    path.write_text(PLAIN)
    assert cli.run(["tune", str(path), "--shape", "2x2048x2048", "--shapes", "2", "--most", "4"]) == 0
    said = capfd.readouterr().out
    assert said.count("measured ") >= 2 and "fastest " in said, said
    kernel = attncc.compile(path)
    device = torch.cuda.get_device_name()
    choice = tuned.remembered(kernel.digest, kernel.target_for().name, device)
    if choice is not None:
        assert (kernel.schedule.tile_m, kernel.schedule.tile_n) == (choice.tile_m, choice.tile_n)
    q, k, v, given = data(kernel)
    assert compare(kernel, q, k, v, given).ok


def test_reference_on_the_gpu_is_the_reference(plain):
    q, k, v, _ = data(plain, 1, 40, 40)
    a = plain.attention
    torch.testing.assert_close(reference(a, q, k, v)[0].cpu(), reference(a, q.cpu(), k.cpu(), v.cpu())[0])


def test_the_commands_on_a_device(tmp_path, capfd):
    """run, bench and verify do what the README says on this GPU."""
    from attncc import cli

    (tmp_path / "plain.attn").write_text(PLAIN)
    assert cli.run(["run", str(tmp_path / "plain.attn"), "--shape", "2x300x300"]) == 0
    out = capfd.readouterr().out
    assert "TFLOP/s" in out and "against the float64 reference" in out
    assert cli.run(["explain", str(tmp_path / "plain.attn"), "--shape", "1x512x512"]) == 0
    assert "TFLOP/s on NVIDIA" in capfd.readouterr().out, "the measured time, beside the predicted one"
    assert (
        cli.run(["bench", str(tmp_path / "plain.attn"), "--shape", "1x512x512", "--json", str(tmp_path / "b.json")])
        == 0
    )
    assert "attncc" in capfd.readouterr().out and (tmp_path / "b.json").exists()
    assert cli.run(["verify", str(tmp_path), "--jobs", "2"]) == 0
    assert "0 wrong, 0 failed" in capfd.readouterr().out
