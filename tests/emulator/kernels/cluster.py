"""Kernels for a cluster of two CTAs: a multicast load, a tensor reduction, a read of the neighbour's shared memory."""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int64
from cutlass.cute.nvgpu import cpasync

ROWS, COLUMNS = 64, 32


class Multicast:
    """Each CTA loads half of a (64, 32) f32 tile for both; out[cta] = tile, and total += tile through a tensor reduction."""

    @cute.jit
    def __call__(self, x: cute.Tensor, out: cute.Tensor, total: cute.Tensor):
        layout = cute.make_layout((ROWS, COLUMNS), stride=(COLUMNS, 1))
        load = cpasync.CopyBulkTensorTileG2SMulticastOp()
        t_x, g_x = cpasync.make_tiled_tma_atom(load, x, layout, (ROWS, COLUMNS), num_multicast=2)
        add = cpasync.CopyReduceBulkTensorTileS2GOp()
        t_t, g_t = cpasync.make_tiled_tma_atom(add, total, layout, (ROWS, COLUMNS))
        self.kernel(t_x, g_x, t_t, g_t, out, layout).launch(grid=(2, 1, 1), block=(64, 1, 1), cluster=(2, 1, 1))

    @cute.kernel
    def kernel(
        self,
        t_x: cute.CopyAtom,
        g_x: cute.Tensor,
        t_t: cute.CopyAtom,
        g_t: cute.Tensor,
        out: cute.Tensor,
        layout: cute.Layout,
    ):
        thread, _, _ = cute.arch.thread_idx()
        rank = cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster())
        w = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        allocator = cutlass.memory.SmemAllocator()
        bar = allocator.allocate_array(Int64, 1)
        smem = allocator.allocate_tensor(Float32, layout, byte_alignment=128)
        if w == 0:
            with cute.arch.elect_one():
                cute.arch.mbarrier_init(bar, 1)
        cute.arch.mbarrier_init_fence()
        cute.arch.cluster_arrive_relaxed()
        cute.arch.cluster_wait()
        x_s, x_g = cpasync.tma_partition(
            t_x,
            rank,
            cute.make_layout(2),
            cute.group_modes(smem, 0, 2),
            cute.group_modes(cute.local_tile(g_x, (ROWS, COLUMNS), (0, 0)), 0, 2),
        )
        t_s, t_g = cpasync.tma_partition(
            t_t,
            0,
            cute.make_layout(1),
            cute.group_modes(smem, 0, 2),
            cute.group_modes(cute.local_tile(g_t, (ROWS, COLUMNS), (0, 0)), 0, 2),
        )
        if w == 0:
            with cute.arch.elect_one():
                cute.arch.mbarrier_arrive_and_expect_tx(bar, ROWS * COLUMNS * 4)
            cute.copy(t_x, x_g, x_s, tma_bar_ptr=bar, mcast_mask=cutlass.Int16(3))
        cute.arch.mbarrier_wait(bar, 0)
        for c in cutlass.range_constexpr(COLUMNS):
            out[rank, thread, c] = smem[thread, c]
        if w == 0:
            with cute.arch.elect_one():
                cute.copy(t_t, t_s, t_g)
                cute.arch.cp_async_bulk_commit_group()
                cute.arch.cp_async_bulk_wait_group(0, read=True)
        cute.arch.cluster_arrive()
        cute.arch.cluster_wait()
