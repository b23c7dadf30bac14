"""Which elements of a score tile a thread owns."""

import cutlass
import pytest
import torch
from cutlass import cute
from cutlass.cute.runtime import make_fake_compact_tensor

from attncc.device import softmax


def owned(thread: int, rows: int, cols: int):
    """The (row, column) pairs of a thread of a warp, by the formulas of the module."""
    first_row, first_column = (thread % 32) // 4, 2 * (thread % 4)
    return [
        (first_row + softmax.row_offset(r), first_column + softmax.column_offset(c))
        for r in range(rows // 8)
        for c in range(cols // 4)
    ]


@pytest.mark.parametrize("rows, cols", [(16, 8), (16, 128), (32, 64)])
def test_a_warp_owns_every_element_once(rows, cols):
    elements = [e for thread in range(32) for e in owned(thread, rows, cols)]
    assert sorted(elements) == [(r, c) for r in range(rows) for c in range(cols)]


def test_columns_below_a_bound_are_counted():
    @cute.jit
    def count(bounds: cute.Tensor, counts: cute.Tensor):
        for i in cutlass.range(cute.size(bounds), unroll=1):
            counts[i] = softmax.owned_below(bounds[i])

    bounds = torch.arange(-20, 300, dtype=torch.int32)
    counts = torch.zeros_like(bounds)
    fakes = [
        make_fake_compact_tensor(cutlass.Int32, (cute.sym_int(),), memspace=cutlass.AddressSpace.generic) for _ in range(2)
    ]
    cute.compile(count, *fakes, options="--enable-tvm-ffi")(bounds, counts)
    expected = [sum(softmax.column_offset(c) < b for c in range(200)) for b in bounds.tolist()]
    assert counts.tolist() == expected
