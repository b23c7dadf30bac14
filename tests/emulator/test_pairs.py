"""Pairs of blocks in the emulator: several interleavings, odd numbers of query tiles, rows and keys that end anywhere; planted faults."""

import re

import pytest
import torch

from attncc.accuracy import LSE_ALLOWED, SLACK, distance, lse_distance
from attncc.entry import lower
from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.interp.run_attention import run_attention
from attncc.lower import load
from attncc.runtime.emulated import compile_to_emulate, emulate_calls
from attncc.runtime.kernel import Kernel
from attncc.targets import get_target
from tests.rotation import turn
from tests.schedules import smaller

TABLE = "dim 128\n tensor table: f32[heads_q, 9]\n bias relative_table(table, 4)"
CASES = (("dim 128", 2, 140, 130, 2), ("dim 256", 2, 140, 200, 8), (TABLE, 1, 300, 400, 2))
"""Head dims (and a score), query heads, queries, keys, interleavings. On two multiprocessors: at d128 a pair works on the tiles of two heads, one after the other,
of each of which the second block has no rows; with the table both have rows, and tiles near the diagonal and far from it. (192/128 is among the kernels of test_tensor_memory_kernels. All with eight interleavings, and other
lengths: docs/testing.md.)"""
TURNS = 2
"""Of the planted faults one part runs a day, and one of the cases."""


pytestmark = pytest.mark.usefixtures("one_thread")


def kernel_for(dims: str, heads: int) -> Kernel:
    text = f"attention case {{ heads q = {heads}, kv = 1\n {dims}\n dtype bf16 }}"
    return Kernel(load(text), smaller(get_target("blackwell"), sms=2), lower)


@pytest.mark.slow
@pytest.mark.parametrize("case", turn(list(CASES), len(CASES)), ids=str)
def test_right_in_several_interleavings(case):
    dims, heads, seq_q, seq_kv, seeds = case
    kernel = kernel_for(dims, heads)
    results = emulate_calls(kernel, seeds=seeds)
    a = kernel.attention
    q, k, v, inputs = make_inputs(a, 1, seq_q, seq_kv, 0, "cpu")
    out = torch.full((*q.shape[:3], v.shape[-1]), torch.nan, dtype=q.dtype)
    out, lse = kernel(q, k, v, out=out, return_lse=True, **inputs)
    assert results[-1].ok and results[-1].deterministic, str(results[-1])
    assert {launch.cluster for launch in results[-1].launches} == {(2, 1, 1)}
    wanted, wanted_lse = reference(a, q, k, v, inputs)
    eager, _ = run_attention(a, q, k, v, inputs)
    assert distance(out, wanted) <= 2 * distance(eager, wanted) + SLACK
    off, bad = lse_distance(lse, wanted_lse)
    assert bad is None and off <= LSE_ALLOWED


def one_block(ptx: str) -> str:
    """The first commit goes to the pair's first block only."""
    mask = re.search(r"multicast::cluster\.b64 \t?\[[^\]]*\], (%rs\d+)", ptx).group(1)
    changed, count = re.subn(rf"(mov\.b16 \t?{mask}, )3;", r"\g<1>1;", ptx)
    assert count == 1
    return changed


def own_weights(ptx: str) -> str:
    """The barrier of the weights is full when one block's warps have arrived, not both's."""
    counts = re.findall(r"mbarrier\.init\.shared\.b64 \t?\[[^\]]*\], (%r\d+);", ptx)
    both = next(r for r in counts if re.search(rf"mov\.b32 \t?{r}, 8;", ptx))
    own = next(r for r in counts if re.search(rf"mov\.b32 \t?{r}, 4;", ptx))
    inits = list(re.finditer(rf"(mbarrier\.init\.shared\.b64 \t?\[[^\]]*\], ){both};", ptx))
    weights = inits[1]  # scores are emptied, weights filled, sums filled by both blocks
    late = ptx[: weights.start()] + ptx[weights.end() :]
    last = list(re.finditer(rf"mbarrier\.init\.shared\.b64 \t?\[[^\]]*\], {own};\n", late))[-1].end()
    return late[:last] + f"{weights.group(1)}{own};\n" + late[last:]


def own_keys(ptx: str) -> str:
    """The barriers of K and V expect the bytes of one block's halves."""
    loads = re.findall(r"mbarrier\.arrive\.expect_tx\.shared\.b64 \t?%rd\d+, \[[^\]]*\], (%r\d+);", ptx)
    for register in loads[1:]:
        ptx = re.sub(rf"(mov\.b32 \t?{register}, )(\d+);", lambda m: f"{m.group(1)}{int(m.group(2)) // 2};", ptx)
    return ptx


def freed_early(ptx: str) -> str:
    """Blocks do not meet before tensor memory is freed."""
    at = ptx.rindex("barrier.cluster.arrive")
    return ptx[:at] + ptx[at:].replace("barrier.cluster.arrive;", "").replace("barrier.cluster.wait;", "")


FAULTS = {
    "a commit reaches one block": (one_block, {"deadlock"}),
    "the partner's weights are not waited for": (own_weights, {"tcgen05-order", "stale-read", "mbarrier", "overwrite"}),
    "the partner's half of K is not waited for": (own_keys, {"stale-read", "uninitialised-memory", "mbarrier", "overwrite", "deadlock"}),
    "tensor memory is freed while the partner multiplies": (freed_early, {"tmem", "tcgen05-order", "deadlock"}),
}


@pytest.fixture(scope="module")
def made():
    kernel = kernel_for("dim 256", 1)
    return kernel, compile_to_emulate(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("fault", turn(list(FAULTS), TURNS))
def test_planted_faults_are_found(fault, made):
    kernel, compiled = made
    plant, kinds = FAULTS[fault]
    results = emulate_calls(kernel, made=compiled, seeds=2, ptx=plant(compiled.compiled.__ptx__))
    q, k, v, _ = make_inputs(kernel.attention, 1, 40, 130, 0, "cpu")
    kernel(q, k, v)
    assert results[-1].kinds & kinds, str(results[-1])
