"""A small Ampere forward kernel: cp.async, ldmatrix, mma.sync; one head, 64 x 64 tiles, (S, 64) row-major tensors."""

import cutlass
import cutlass.cute as cute
from cutlass import Float32
from cutlass.cute.nvgpu import cpasync, warp

from tests.emulator.kernels.fragments import a_operand_of, divide_by_sum, rows_and_columns, softmax_row

TILE = 64


class Fa2:
    """softmax(q k^T * scale) v; `scale` already contains log2(e)."""

    def __init__(self, dtype):
        self.dtype = dtype

    @cute.jit
    def __call__(self, q: cute.Tensor, k: cute.Tensor, v: cute.Tensor, o: cute.Tensor, scale: Float32):
        atom = cute.make_composed_layout(cute.make_swizzle(3, 3, 3), 0, cute.make_layout((8, 64), stride=(64, 1)))
        smem = cute.tile_to_shape(atom, (TILE, 64), (0, 1))
        load = cute.make_copy_atom(
            cpasync.CopyG2SOp(cache_mode=cpasync.LoadCacheMode.GLOBAL), self.dtype, num_bits_per_copy=128
        )
        copy = cute.make_tiled_copy_tv(load, cute.make_layout((16, 8), stride=(8, 1)), cute.make_layout((1, 8)))
        mma = cute.make_tiled_mma(
            warp.MmaF16BF16Op(self.dtype, Float32, (16, 8, 16)), (4, 1, 1), permutation_mnk=(64, 16, 16)
        )
        self.kernel(q, k, v, o, scale, smem, copy, mma).launch(
            grid=(cute.ceil_div(q.shape[0], TILE), 1, 1), block=(128, 1, 1)
        )

    @cute.kernel
    def kernel(
        self,
        q: cute.Tensor,
        k: cute.Tensor,
        v: cute.Tensor,
        o: cute.Tensor,
        scale: Float32,
        smem: cute.ComposedLayout,
        copy: cute.TiledCopy,
        mma: cute.TiledMma,
    ):
        tid, _, _ = cute.arch.thread_idx()
        bid, _, _ = cute.arch.block_idx()
        allocator = cutlass.memory.SmemAllocator()
        s_q = allocator.allocate_tensor(self.dtype, smem, byte_alignment=1024)
        s_k = allocator.allocate_tensor(self.dtype, smem, byte_alignment=1024)
        s_v = allocator.allocate_tensor(self.dtype, smem, byte_alignment=1024)
        g_q = cute.local_tile(q, (TILE, 64), (bid, 0))
        g_k = cute.local_tile(k, (TILE, 64), (None, 0))
        g_v = cute.local_tile(v, (TILE, 64), (None, 0))
        thr_copy, thr_mma = copy.get_slice(tid), mma.get_slice(tid)
        cute.copy(copy, thr_copy.partition_S(g_q), thr_copy.partition_D(s_q))
        cute.arch.cp_async_commit_group()
        s_vt = cute.composition(s_v, cute.make_layout((64, TILE), stride=(TILE, 1)))
        r_q = mma.make_fragment_A(thr_mma.partition_A(s_q))
        r_k = mma.make_fragment_B(thr_mma.partition_B(s_k))
        r_v = mma.make_fragment_B(thr_mma.partition_B(s_vt))
        plain = cute.make_copy_atom(warp.LdMatrix8x8x16bOp(transpose=False, num_matrices=4), self.dtype)
        trans = cute.make_copy_atom(warp.LdMatrix8x8x16bOp(transpose=True, num_matrices=4), self.dtype)
        copy_q, copy_k = cute.make_tiled_copy_A(plain, mma), cute.make_tiled_copy_B(plain, mma)
        copy_v = cute.make_tiled_copy_B(trans, mma)
        from_q, to_q = copy_q.get_slice(tid).partition_S(s_q), copy_q.get_slice(tid).retile(r_q)
        from_k, to_k = copy_k.get_slice(tid).partition_S(s_k), copy_k.get_slice(tid).retile(r_k)
        from_v, to_v = copy_v.get_slice(tid).partition_S(s_vt), copy_v.get_slice(tid).retile(r_v)
        acc_o = cute.make_rmem_tensor(mma.partition_shape_C((TILE, 64)), Float32)
        acc_o.fill(0.0)
        row_max = cute.make_rmem_tensor((2,), Float32)
        row_max.fill(-Float32.inf)
        row_sum = cute.make_rmem_tensor((2,), Float32)
        row_sum.fill(0.0)
        for j in cutlass.range(cute.size(g_k.shape[2]), unroll=1):
            cute.copy(copy, thr_copy.partition_S(g_k[None, None, j]), thr_copy.partition_D(s_k))
            cute.arch.cp_async_commit_group()
            cute.copy(copy, thr_copy.partition_S(g_v[None, None, j]), thr_copy.partition_D(s_v))
            cute.arch.cp_async_commit_group()
            cute.arch.cp_async_wait_group(1)
            cute.arch.sync_threads()
            acc_s = cute.make_rmem_tensor(mma.partition_shape_C((TILE, TILE)), Float32)
            acc_s.fill(0.0)
            for kk in cutlass.range_constexpr(cute.size(r_q.shape[2])):
                cute.copy(copy_q, from_q[None, None, kk], to_q[None, None, kk])
                cute.copy(copy_k, from_k[None, None, kk], to_k[None, None, kk])
                cute.gemm(mma, acc_s, r_q[None, None, kk], r_k[None, None, kk], acc_s)
            scores, out = rows_and_columns(acc_s), rows_and_columns(acc_o)
            for row in cutlass.range_constexpr(2):
                softmax_row(scores, row, scale, row_max, row_sum, out)
            r_p = cute.make_rmem_tensor_like(acc_s, self.dtype)
            r_p.store(acc_s.load().to(self.dtype))
            p = a_operand_of(r_p)
            cute.arch.cp_async_wait_group(0)
            cute.arch.sync_threads()
            for kk in cutlass.range_constexpr(cute.size(r_v.shape[2])):
                cute.copy(copy_v, from_v[None, None, kk], to_v[None, None, kk])
                cute.gemm(mma, acc_o, p[None, None, kk], r_v[None, None, kk], acc_o)
            cute.arch.sync_threads()
        for row in cutlass.range_constexpr(2):
            divide_by_sum(rows_and_columns(acc_o), row, row_sum)
        r_o = cute.make_rmem_tensor_like(acc_o, self.dtype)
        r_o.store(acc_o.load().to(self.dtype))
        cute.autovec_copy(r_o, thr_mma.partition_C(cute.local_tile(o, (TILE, 64), (bid, 0))))
