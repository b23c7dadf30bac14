"""A small Hopper forward kernel: TMA, mbarrier pipelines, wgmma, setmaxnreg, stmatrix, TMA store; one head.

Warps 0-3 are the producer warp group (warp 0 issues the copies), then `groups` consumer warp groups of 64 rows each.
"""

import cutlass
import cutlass.cute as cute
import cutlass.pipeline as pl
from cutlass import Float32, Int64
from cutlass.cute.nvgpu import OperandMajorMode as Major
from cutlass.cute.nvgpu import cpasync, warp, warpgroup
from cutlass.tensor_utils import LayoutEnum
from cutlass.utils import sm90

from tests.emulator.kernels.fragments import a_operand_of_wgmma, divide_by_sum, rows_and_columns_wgmma, softmax_row


def tma_parts(atom, smem, gmem):
    """tma_partition for a copy inside one CTA."""
    return cpasync.tma_partition(
        atom, 0, cute.make_layout(1), cute.group_modes(smem, 0, 2), cute.group_modes(gmem, 0, 2)
    )


class Fa3:
    """softmax(q k^T * scale) v on (S, 64) tensors; `scale` contains log2(e). `shared_tail` plants the double tail."""

    def __init__(self, dtype, groups=2, keys=64, dim=64, stages=2, shared_tail=False):
        self.dtype, self.groups, self.keys, self.dim, self.stages = dtype, groups, keys, dim, stages
        self.rows = 64 * groups
        self.shared_tail = shared_tail

    @cute.jit
    def __call__(self, q: cute.Tensor, k: cute.Tensor, v: cute.Tensor, o: cute.Tensor, scale: Float32):
        rows, keys, dim, dtype, stages = self.rows, self.keys, self.dim, self.dtype, self.stages
        mma_qk = sm90.make_trivial_tiled_mma(dtype, dtype, Major.K, Major.K, Float32, (self.groups, 1, 1), (64, keys))
        mma_pv = sm90.make_trivial_tiled_mma(
            dtype,
            dtype,
            Major.K,
            Major.MN,
            Float32,
            (self.groups, 1, 1),
            (64, dim),
            a_source=warpgroup.OperandSource.RMEM,
        )
        l_q = sm90.make_smem_layout_a(LayoutEnum.ROW_MAJOR, (rows, keys, dim), dtype, 1)
        l_k = sm90.make_smem_layout_b(LayoutEnum.ROW_MAJOR, (rows, keys, dim), dtype, stages)
        l_v = sm90.make_smem_layout_b(LayoutEnum.COL_MAJOR, (rows, dim, keys), dtype, stages)
        l_o = sm90.make_smem_layout_epi(dtype, LayoutEnum.ROW_MAJOR, (rows, dim), 1)
        v_t = cute.make_tensor(v.iterator, cute.select(v.layout, mode=[1, 0]))
        load, store = cpasync.CopyBulkTensorTileG2SOp(), cpasync.CopyBulkTensorTileS2GOp()
        t_q, g_q = cpasync.make_tiled_tma_atom(load, q, cute.slice_(l_q, (None, None, 0)), (rows, dim))
        t_k, g_k = cpasync.make_tiled_tma_atom(load, k, cute.slice_(l_k, (None, None, 0)), (keys, dim))
        t_v, g_v = cpasync.make_tiled_tma_atom(load, v_t, cute.slice_(l_v, (None, None, 0)), (dim, keys))
        t_o, g_o = cpasync.make_tiled_tma_atom(store, o, cute.slice_(l_o, (None, None, 0)), (rows, dim))

        @cute.struct
        class Storage:
            bar_q: cute.struct.MemRange[Int64, 1]
            bar_k: cute.struct.MemRange[Int64, 2 * stages]
            bar_v: cute.struct.MemRange[Int64, 2 * stages]
            q: cute.struct.Align[cute.struct.MemRange[dtype, cute.cosize(l_q)], 1024]
            k: cute.struct.Align[cute.struct.MemRange[dtype, cute.cosize(l_k)], 1024]
            v: cute.struct.Align[cute.struct.MemRange[dtype, cute.cosize(l_v)], 1024]

        self.storage = Storage
        self.kernel(t_q, g_q, t_k, g_k, t_v, g_v, t_o, g_o, l_q, l_k, l_v, l_o, mma_qk, mma_pv, scale).launch(
            grid=(cute.ceil_div(q.shape[0], rows), 1, 1), block=(128 * (self.groups + 1), 1, 1), min_blocks_per_mp=1
        )

    def pipeline(self, storage, defer):
        """A TMA pipeline: one producer thread, all consumer warps."""
        return pl.PipelineTmaAsync.create(
            barrier_storage=storage.data_ptr(),
            num_stages=self.stages,
            defer_sync=defer,
            producer_group=pl.CooperativeGroup(pl.Agent.Thread),
            consumer_group=pl.CooperativeGroup(pl.Agent.Thread, 4 * self.groups),
            tx_count=self.keys * self.dim * self.dtype.width // 8,
        )

    @cute.kernel
    def kernel(
        self,
        t_q: cute.CopyAtom,
        g_q: cute.Tensor,
        t_k: cute.CopyAtom,
        g_k: cute.Tensor,
        t_v: cute.CopyAtom,
        g_v: cute.Tensor,
        t_o: cute.CopyAtom,
        g_o: cute.Tensor,
        l_q: cute.ComposedLayout,
        l_k: cute.ComposedLayout,
        l_v: cute.ComposedLayout,
        l_o: cute.ComposedLayout,
        mma_qk: cute.TiledMma,
        mma_pv: cute.TiledMma,
        scale: Float32,
    ):
        rows, keys, dim, stages = self.rows, self.keys, self.dim, self.stages
        w = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        tid, _, _ = cute.arch.thread_idx()
        bid, _, _ = cute.arch.block_idx()
        storage = cutlass.memory.SmemAllocator().allocate(self.storage)
        s_q = storage.q.get_tensor(l_q.outer, swizzle=l_q.inner)
        s_k = storage.k.get_tensor(l_k.outer, swizzle=l_k.inner)
        s_v = storage.v.get_tensor(l_v.outer, swizzle=l_v.inner)
        s_o = cute.make_tensor(cute.recast_ptr(s_q.iterator, l_o.inner, self.dtype), l_o.outer)  # O reuses Q's buffer
        bar_q = storage.bar_q.data_ptr()
        if w == 0:
            for atom in (t_q, t_k, t_v, t_o):
                cpasync.prefetch_descriptor(atom)
            with cute.arch.elect_one():
                cute.arch.mbarrier_init(bar_q, 1)
        pipe_k = self.pipeline(storage.bar_k, True)
        pipe_v = self.pipeline(storage.bar_v, False)  # the last create() fences and synchronises
        q_s, q_g = tma_parts(t_q, s_q, cute.local_tile(g_q, (rows, dim), (bid, 0)))
        k_s, k_g = tma_parts(t_k, s_k, cute.local_tile(g_k, (keys, dim), (None, 0)))
        v_s, v_g = tma_parts(t_v, s_v, cute.local_tile(g_v, (dim, keys), (0, None)))
        o_s, o_g = tma_parts(t_o, s_o, cute.local_tile(g_o, (rows, dim), (bid, 0)))
        tiles = cute.ceil_div(g_k.shape[0], keys)
        if w < 4:
            cute.arch.setmaxregister_decrease(40)
            if w == 0:
                with cute.arch.elect_one():
                    cute.arch.mbarrier_arrive_and_expect_tx(bar_q, rows * dim * self.dtype.width // 8)
                cute.copy(t_q, q_g, q_s[None, 0], tma_bar_ptr=bar_q)
                state = pl.make_pipeline_state(pl.PipelineUserType.Producer, stages)
                for j in cutlass.range(tiles, unroll=1):
                    pipe_k.producer_acquire(state)
                    cute.copy(t_k, k_g[None, j], k_s[None, state.index], tma_bar_ptr=pipe_k.producer_get_barrier(state))
                    pipe_v.producer_acquire(state)
                    cute.copy(t_v, v_g[None, j], v_s[None, state.index], tma_bar_ptr=pipe_v.producer_get_barrier(state))
                    state.advance()
                pipe_k.producer_tail(state if cutlass.const_expr(self.shared_tail) else state.clone())
                pipe_v.producer_tail(state)
        else:
            cute.arch.setmaxregister_increase(232)
            thread = tid - 128
            thr_qk, thr_pv = mma_qk.get_slice(thread), mma_pv.get_slice(thread)
            r_q = mma_qk.make_fragment_A(thr_qk.partition_A(s_q))
            r_k = mma_qk.make_fragment_B(thr_qk.partition_B(s_k))
            r_v = mma_pv.make_fragment_B(thr_pv.partition_B(s_v))
            acc_o = cute.make_rmem_tensor(mma_pv.partition_shape_C((rows, dim)), Float32)
            acc_o.fill(0.0)
            acc_s = cute.make_rmem_tensor(mma_qk.partition_shape_C((rows, keys)), Float32)
            row_max = cute.make_rmem_tensor((2,), Float32)
            row_max.fill(-Float32.inf)
            row_sum = cute.make_rmem_tensor((2,), Float32)
            row_sum.fill(0.0)
            cute.arch.mbarrier_wait(bar_q, 0)
            state = pl.make_pipeline_state(pl.PipelineUserType.Consumer, stages)
            for j in cutlass.range(tiles, unroll=1):
                pipe_k.consumer_wait(state)
                warpgroup.fence()
                mma_qk.set(warpgroup.Field.ACCUMULATE, False)
                for kk in cutlass.range_constexpr(cute.size(r_q.shape[2])):
                    cute.gemm(mma_qk, acc_s, r_q[None, None, kk, 0], r_k[None, None, kk, state.index], acc_s)
                    mma_qk.set(warpgroup.Field.ACCUMULATE, True)
                warpgroup.commit_group()
                warpgroup.wait_group(0)
                pipe_k.consumer_release(state)
                scores, out = rows_and_columns_wgmma(acc_s), rows_and_columns_wgmma(acc_o)
                for row in cutlass.range_constexpr(2):
                    softmax_row(scores, row, scale, row_max, row_sum, out)
                r_p = cute.make_rmem_tensor_like(acc_s, self.dtype)
                r_p.store(acc_s.load().to(self.dtype))
                p = a_operand_of_wgmma(r_p)
                pipe_v.consumer_wait(state)
                warpgroup.fence()
                mma_pv.set(warpgroup.Field.ACCUMULATE, True)
                for kk in cutlass.range_constexpr(cute.size(r_v.shape[2])):
                    cute.gemm(mma_pv, acc_o, p[None, None, kk], r_v[None, None, kk, state.index], acc_o)
                warpgroup.commit_group()
                warpgroup.wait_group(0)
                pipe_v.consumer_release(state)
                state.advance()
            for row in cutlass.range_constexpr(2):
                divide_by_sum(rows_and_columns_wgmma(acc_o), row, row_sum)
            r_o = cute.make_rmem_tensor_like(acc_o, self.dtype)
            r_o.store(acc_o.load().to(self.dtype))
            store = cute.make_copy_atom(warp.StMatrix8x8x16bOp(transpose=False, num_matrices=4), self.dtype)
            thr_store = cute.make_tiled_copy_C(store, mma_pv).get_slice(thread)
            consumers = pl.NamedBarrier(barrier_id=1, num_threads=128 * self.groups)
            consumers.arrive_and_wait()  # everyone is done with Q's buffer
            cute.copy(store, thr_store.retile(r_o), thr_store.partition_D(s_o)[None, None, None, 0])
            cute.arch.fence_proxy("async.shared", space="cta")
            consumers.arrive_and_wait()
            if w == 4:
                cute.copy(t_o, o_s[None, 0], o_g)
                cute.arch.cp_async_bulk_commit_group()
                cute.arch.cp_async_bulk_wait_group(0, read=True)
