"""Device helpers shared by the small attention kernels of these tests."""

import cutlass.cute as cute
from cutlass import Float32


def rows_and_columns(t: cute.Tensor) -> cute.Tensor:
    """An mma.sync accumulator ((2, 2), MM, NN) seen as (rows, columns)."""
    shape, stride = t.layout.shape, t.layout.stride
    layout = cute.make_layout(
        ((shape[0][1], shape[1]), (shape[0][0], shape[2])),
        stride=((stride[0][1], stride[1]), (stride[0][0], stride[2])),
    )
    return cute.make_tensor(t.iterator, layout)


def rows_and_columns_wgmma(t: cute.Tensor) -> cute.Tensor:
    """A wgmma accumulator ((2, 2, NB), MM, NN) seen as (rows, columns)."""
    shape, stride = t.layout.shape, t.layout.stride
    layout = cute.make_layout(
        ((shape[0][1], shape[1]), (shape[0][0], shape[0][2], shape[2])),
        stride=((stride[0][1], stride[1]), (stride[0][0], stride[0][2], stride[2])),
    )
    return cute.make_tensor(t.iterator, layout)


def softmax_row(scores, row, scale, row_max, row_sum, out):
    """One online-softmax update of accumulator row `row`; `scores` and `out` are (rows, columns) tensors."""
    s = scores[row, None].load() * scale
    m = cute.arch.warp_reduction_max(s.reduce(cute.ReductionOp.MAX, row_max[row], 0), threads_in_group=4)
    correction = cute.math.exp2(row_max[row] - m, fastmath=True)
    p = cute.math.exp2(s - m, fastmath=True)
    row_sum[row] = row_sum[row] * correction + p.reduce(cute.ReductionOp.ADD, Float32.zero, 0)
    row_max[row] = m
    scores[row, None] = p
    out[row, None] = out[row, None].load() * correction


def divide_by_sum(out, row, row_sum):
    """O / l for one row of a thread."""
    total = cute.arch.warp_reduction(row_sum[row], lambda a, b: a + b, threads_in_group=4)
    out[row, None] = out[row, None].load() * cute.arch.rcp_approx(total)


def a_operand_of(p: cute.Tensor) -> cute.Tensor:
    """mma.sync: the registers of a C fragment seen as an A fragment."""
    part = cute.logical_divide(p.layout, (None, None, 2))
    layout = cute.make_layout(
        ((part.shape[0], part.shape[2][0]), part.shape[1], part.shape[2][1]),
        stride=((part.stride[0], part.stride[2][0]), part.stride[1], part.stride[2][1]),
    )
    return cute.make_tensor(p.iterator, layout)


def a_operand_of_wgmma(p: cute.Tensor) -> cute.Tensor:
    """wgmma: the registers of a C fragment seen as an A fragment."""
    part = cute.logical_divide(p.layout, ((None, None, 2), None, None))
    shape, stride = part.shape, part.stride
    layout = cute.make_layout(
        ((shape[0][0], shape[0][1], shape[0][2][0]), shape[1], (shape[0][2][1], shape[2])),
        stride=((stride[0][0], stride[0][1], stride[0][2][0]), stride[1], (stride[0][2][1], stride[2])),
    )
    return cute.make_tensor(p.iterator, layout)
