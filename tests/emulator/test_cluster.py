"""Clusters: multicast loads, tensor reductions, barriers across CTAs."""

import cutlass
import cutlass.cute as cute
import pytest
import torch
from cutlass.cute.runtime import make_fake_compact_tensor

from attncc.emulator import emulate, keep_ptx
from tests.emulator.kernels.cluster import COLUMNS, ROWS, Multicast


@pytest.fixture(scope="module")
def kernel():
    def fake(*shape):
        order = tuple(reversed(range(len(shape))))
        return make_fake_compact_tensor(cutlass.Float32, shape, stride_order=order, assumed_align=16)

    with keep_ptx():
        return cute.compile(
            Multicast(),
            fake(ROWS, COLUMNS),
            fake(2, ROWS, COLUMNS),
            fake(ROWS, COLUMNS),
            options="--gpu-arch sm_90a --enable-tvm-ffi",
        )


def tensors():
    x = torch.arange(float(ROWS * COLUMNS)).reshape(ROWS, COLUMNS)
    return x, torch.full((2, ROWS, COLUMNS), torch.nan), torch.ones(ROWS, COLUMNS)


def test_multicast_and_reduction(kernel):
    x, out, total = tensors()
    result = emulate(kernel, x, out, total, seeds=8)
    assert result.ok, str(result)
    assert result.launches[0].cluster == (2, 1, 1)
    assert torch.equal(out[0], x) and torch.equal(out[1], x)
    assert torch.equal(total, 2 * x + 1)


def test_multicast_to_a_missing_cta_is_found(kernel):
    text = kernel.__ptx__
    at = text.index("cp.async.bulk.tensor")
    end = text.index(";", at)
    operands = text[at:end]
    mask = operands.split("],")[-1].split(",")[0].strip()
    changed = text[:at] + f"mov.b16 {mask}, 7;\n" + text[at:]
    result = emulate(kernel, *tensors(), seeds=8, ptx=changed)
    assert "out-of-bounds" in result.kinds, str(result)


def test_cluster_barrier_removed_is_found(kernel):
    text = kernel.__ptx__.replace("barrier.cluster.wait", "// barrier.cluster.wait", 1)
    result = emulate(kernel, *tensors(), seeds=8, ptx=text)
    assert result.kinds & {"mbarrier", "named-barrier"}, str(result)
