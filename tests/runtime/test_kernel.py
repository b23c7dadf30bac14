"""attncc.compile and the Kernel it gives, on the CPU."""

import copy
import pickle
import threading

import pytest
import torch

import attncc
from attncc.diagnostics import AttnError
from attncc.interp.reference import reference
from tests.runtime.specs import PLAIN, RICH, operands, rich_arguments

SINK = PLAIN.replace("mask causal", "mask causal\n tensor sink: f32[4]\n reduction softmax(sink = sink[h])")


def close(got, wanted, atol=2e-2):
    torch.testing.assert_close(got.double(), wanted.double(), atol=atol, rtol=0)


def test_cpu_tensors_run_the_tile_program():
    kernel = attncc.compile(PLAIN)
    q, k, v = operands(2, 33, 40)
    out, lse = kernel(q, k, v, return_lse=True)
    wanted, wanted_lse = reference(kernel.attention, q, k, v)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    close(out, wanted)
    close(lse, wanted_lse, 1e-4)
    assert torch.equal(kernel(q, k, v), out)
    into = torch.empty_like(q)
    assert kernel(q, k, v, out=into) is into and torch.equal(into, out)


def test_the_default_device_is_no_matter():
    q, k, v = operands(1, 5, 7)
    kernel = attncc.compile(PLAIN)
    wanted = kernel(q, k, v)
    with torch.device("meta"):
        assert torch.equal(kernel(q, k, v), wanted)


def test_tensors_and_scalars_are_passed():
    kernel = attncc.compile(RICH)
    q, k, v = operands(2, 8, 12, dim_v=32)
    given = rich_arguments(2, 8, 12)
    given["bonus"].normal_()
    close(kernel(q, k, v, **given), reference(kernel.attention, q, k, v, given)[0])


def test_parameters():
    text = PLAIN.replace("plain", "plain(window: int = 5)").replace(
        "mask causal", "mask causal and sliding_window(keys = window)"
    )
    assert attncc.compile(text).attention != attncc.compile(text, window=6).attention
    assert attncc.compile(text).attention == attncc.compile(text, window=5).attention
    with pytest.raises(AttnError, match="did you mean `window`"):
        attncc.compile(text, widow=6)


def test_a_path_and_its_text_are_the_same(tmp_path):
    (tmp_path / "x.attn").write_text(PLAIN)
    for spec in (tmp_path / "x.attn", str(tmp_path / "x.attn")):
        assert attncc.compile(spec).attention == attncc.compile(PLAIN).attention


@pytest.mark.parametrize("target", ["hopper", "ampere"])
def test_cpu_tensors_to_a_gpu_kernel_are_refused(target):
    kernel = attncc.compile(PLAIN, target=target)
    with pytest.raises(AttnError) as error:
        kernel(*operands())
    said = str(error.value)
    assert "error[E330]: `q` is on cpu, but the kernel was compiled for" in said
    assert "compile without target= to run the CPU interpreter" in said


def test_a_bad_target():
    with pytest.raises(AttnError, match="did you mean `hopper`"):
        attncc.compile(PLAIN, target="hoppper")


def test_a_target_that_cannot_do_it_says_so_with_the_line():
    with pytest.raises(AttnError) as error:
        attncc.compile(PLAIN.replace("64", "512"), target="hopper")
    assert "512" in str(error.value) and "dim 512" in str(error.value)


def test_no_lse_without_normalisation():
    kernel = attncc.compile(PLAIN.replace("mask causal", "mask causal\n reduction sigmoid"))
    kernel(*operands())
    with pytest.raises(AttnError, match="it has no log-sum-exp"):
        kernel(*operands(), return_lse=True)


def test_a_sink_is_all_there_is_without_keys():
    kernel = attncc.compile(SINK)
    q, k, v = operands(2, 3, 0)
    sink = torch.arange(4.0)
    out, lse = kernel(q, k, v, return_lse=True, sink=sink)
    assert not out.any() and torch.equal(lse, sink[None, :, None].expand(2, 4, 3))


def test_levels_are_there(tmp_path):
    kernel = attncc.compile(PLAIN, target="ampere")
    assert "def launch(" in kernel.source and kernel.path.read_text() == kernel.source
    assert kernel.schedule.target == "ampere" and kernel.program.attention.name == "plain"
    assert "passes" in kernel.explain() and "tile_m" in kernel.explain("L2")
    paths = kernel.dump(tmp_path / "all" / "of it")
    assert [p.name for p in paths] == sorted(p.name for p in paths)
    assert paths[0].read_text() == PLAIN and paths[-1].read_text() == kernel.source


def test_threads_share_a_kernel():
    kernel = attncc.compile(PLAIN)
    q, k, v = operands(1, 20, 20)
    wanted, results = kernel(q, k, v), []
    kernel = attncc.compile(PLAIN)
    threads = [threading.Thread(target=lambda: results.append(kernel(q, k, v))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 4 and all(torch.equal(r, wanted) for r in results)


def test_the_generated_file_is_the_same_in_every_process():
    import os
    import subprocess
    import sys

    program = f"import attncc; print(attncc.compile({PLAIN!r}, target='hopper').source)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            env={**environment, "PYTHONHASHSEED": seed},
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


PROMISES = PLAIN.replace("mask causal", "tensor ids: i32[batch, seq_kv] in 0..5 sorted\n mask ids[b, kv_idx] < 3")


def test_promises_are_checked_on_the_cpu_at_every_call():
    kernel = attncc.compile(PROMISES)
    q, k, v = operands(1, 4, 6)
    kernel(q, k, v, ids=torch.tensor([[0, 0, 1, 2, 3, 4]], dtype=torch.int32))
    for bad, said in (([0, 0, 1, 2, 3, 9], "`ids`[0, 5] is 9"), ([3, 2, 1, 0, 0, 0], "declared sorted")):
        with pytest.raises(AttnError, match="E320") as caught:
            kernel(q, k, v, ids=torch.tensor([bad], dtype=torch.int32))
        assert said in str(caught.value)


MISSING = {
    "mask t[kv_idx + 1] == 0": "error[E321]: tensor `t` is read out of range: index 7 in dimension 0, which has extent 7",
    "bias float(t[q_idx * 2])": "index 8 in dimension 0",
    "bias float(q_idx // t[kv_idx])": "error[E322]: integer division by zero",
    "bias float(q_idx << t[kv_idx] - 1)": "error[E323]: a shift count outside 0..31",
    "reduction softmax(sink = float(t[q_idx * 3]))": "index 9 in dimension 0",
    "reduction none(weight_scale = float(t[q_idx * 3]))": "index 9 in dimension 0",
}


@pytest.mark.parametrize("statement", MISSING)
def test_a_call_on_the_cpu_says_which_value_does_not_exist(statement):
    text = "attention x {\n heads q = 2, kv = 1\n dim 16\n dtype bf16\n tensor t: i32[seq_kv]\n" + statement + "\n}"
    q, k = torch.zeros(1, 5, 2, 16, dtype=torch.bfloat16), torch.zeros(1, 7, 1, 16, dtype=torch.bfloat16)
    with pytest.raises(attncc.AttnError) as error:
        attncc.compile(text)(q, k, k, t=torch.zeros(7, dtype=torch.int32))
    said = str(error.value)
    assert MISSING[statement] in said and "help: mask the position" in said
    assert "5 |  tensor t: i32[seq_kv]" in said or "E321" not in said


def test_a_value_that_is_not_used_need_not_exist():
    text = "attention x {\n heads q = 2, kv = 1\n dim 16\n dtype bf16\n tensor t: i32[seq_kv]\n mask kv_idx < 3\n bias float(t[kv_idx * 3])\n}"
    q, k = torch.zeros(1, 5, 2, 16, dtype=torch.bfloat16), torch.zeros(1, 7, 1, 16, dtype=torch.bfloat16)
    assert attncc.compile(text)(q, k, k, t=torch.zeros(7, dtype=torch.int32)).shape == q.shape


def test_arguments_of_another_kind_are_named(tmp_path):
    kernel = attncc.compile(PLAIN)
    for call, code, name in (
        (lambda: attncc.compile(PLAIN, target=5), "E401", "target"),
        (lambda: attncc.compile(PLAIN, target=""), "E401", None),
        (lambda: attncc.compile(None), "E003", None),
        (lambda: attncc.compile(""), "E003", None),
        (lambda: kernel(*(x.to("meta") for x in operands())), "E330", "q"),
        (lambda: kernel.stages(5), "E401", "target"),
        (lambda: kernel.dump(5), "E603", "folder"),
        (lambda: kernel.dump("/proc/nowhere"), "E603", "folder"),
        (lambda: attncc.compile(PLAIN, attention=5), "E007", None),
        (lambda: kernel.build("ampere", "sm_20"), "E402", None),
        (lambda: kernel.explain(5), "E601", None),
    ):
        with pytest.raises(attncc.AttnError) as error:
            call()
        (found,) = error.value.diagnostics
        assert found.code == code and found.argument == name


def test_a_spec_may_have_a_parameter_of_any_other_name():
    text = "attention a(spec: int = 3, path_or_text: int = 1) { heads q = 1, kv = 1; dim 8; dtype bf16; mask kv_idx < spec + path_or_text }"
    assert "kv_idx < 8" in attncc.compile(text, spec=5, path_or_text=3).explain("L1")


def test_models_that_hold_a_kernel_are_copied_and_saved():
    kernel = attncc.compile(PLAIN, target="ampere")
    assert copy.deepcopy(kernel) is kernel and copy.copy(kernel) is kernel
    restored = pickle.loads(pickle.dumps(kernel))
    assert (restored.attention, restored.target, restored.key) == (kernel.attention, kernel.target, kernel.key)
    q, k, v = operands()
    plain = attncc.compile(PLAIN)
    assert torch.equal(pickle.loads(pickle.dumps(plain))(q, k, v), plain(q, k, v))
