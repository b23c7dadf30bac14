"""A small Blackwell kernel with block-scaled operands: TMA, tcgen05.cp of scale factors, tcgen05.mma, one tile.

c = (a * sfa) (b * sfb)^T for `rows` x `columns`, K of four instructions. Operands and scale factors come as bytes: a and b row by
row (two 4-bit elements to a byte), scale factors in blocks of 128 rows x 4 (row r, block j at 16 (r % 32) + 4 (r // 32) + j).
"""

import cutlass
import cutlass.cute as cute
import cutlass.cute.nvgpu as nv
from cutlass import Float32, Int32, Int64
from cutlass.cute.nvgpu import OperandMajorMode as Major
from cutlass.cute.nvgpu import cpasync, tcgen05
from cutlass.utils import blockscaled_layout as scales
from cutlass.utils import sm100

TMEM_COLUMNS = 512


class Blockscaled:
    """element: type of a and b; scale, vector: type of the scale factors and elements to each; ctas: 1, or 2 for a pair."""

    def __init__(self, element, scale, vector: int, ctas: int = 1, columns: int = 128):
        self.element, self.scale, self.vector, self.ctas = element, scale, vector, ctas
        self.rows, self.columns = 128 * ctas, columns
        self.depth = 4 * 256 // element.width  # four instructions of 32 bytes

    def product(self, ctas: int):
        """The tiled MMA of one CTA or a pair."""
        group = tcgen05.CtaGroup.TWO if ctas == 2 else tcgen05.CtaGroup.ONE
        return sm100.make_blockscaled_trivial_tiled_mma(
            self.element, self.element, Major.K, Major.K, self.scale, self.vector, group, (128 * ctas, self.columns)
        )

    @cute.jit
    def __call__(self, a: cute.Tensor, b: cute.Tensor, sfa: cute.Tensor, sfb: cute.Tensor, c: cute.Tensor):
        m, n, k, vector = self.rows, self.columns, self.depth, self.vector
        tiler = (m, n, k)
        mma, mma_b = self.product(self.ctas), self.product(1)
        l_a = sm100.make_smem_layout_a(mma, tiler, self.element, 1)
        l_b = sm100.make_smem_layout_b(mma, tiler, self.element, 1)
        l_sfa = scales.make_smem_layout_sfa(mma, tiler, vector, 1)
        l_sfb = scales.make_smem_layout_sfb(mma, tiler, vector, 1)
        matrix = lambda t, r: cute.make_tensor(
            cute.recast_ptr(t.iterator, dtype=self.element), cute.make_layout((r, k, 1), stride=(k, 1, r * k))
        )
        table = lambda t, r: cute.make_tensor(
            cute.recast_ptr(t.iterator, dtype=self.scale), scales.tile_atom_to_shape_SF((r, k, 1), vector)
        )
        pair = cute.tiled_divide(cute.make_layout((self.ctas, 1, 1)), (mma.thr_id.shape,))
        single = cute.tiled_divide(cute.make_layout((self.ctas, 1, 1)), (mma_b.thr_id.shape,))
        load = cpasync.CopyBulkTensorTileG2SOp(tcgen05.CtaGroup.TWO if self.ctas == 2 else tcgen05.CtaGroup.ONE)
        tile = lambda layout: cute.select(layout, mode=[0, 1, 2])
        short = cutlass.Int16
        t_a, g_a = nv.make_tiled_tma_atom_A(load, matrix(a, m), tile(l_a), tiler, mma, pair.shape)
        t_b, g_b = nv.make_tiled_tma_atom_B(load, matrix(b, n), tile(l_b), tiler, mma, pair.shape)
        t_sfa, g_sfa = nv.make_tiled_tma_atom_A(
            load, table(sfa, m), tile(l_sfa), tiler, mma, pair.shape, internal_type=short
        )
        t_sfb, g_sfb = nv.make_tiled_tma_atom_B(
            load, table(sfb, n), tile(l_sfb), (128, n, k), mma_b, single.shape, internal_type=short
        )
        self.bytes = sum(
            cute.size_in_bytes(kind, tile(layout))
            for kind, layout in ((self.element, l_a), (self.element, l_b), (self.scale, l_sfa), (self.scale, l_sfb))
        )

        @cute.struct
        class Storage:
            full: Int64
            done: Int64
            tmem: Int32
            a: cute.struct.Align[cute.struct.MemRange[self.element, cute.cosize(l_a.outer)], 1024]
            b: cute.struct.Align[cute.struct.MemRange[self.element, cute.cosize(l_b.outer)], 1024]
            sfa: cute.struct.Align[cute.struct.MemRange[self.scale, cute.cosize(l_sfa)], 1024]
            sfb: cute.struct.Align[cute.struct.MemRange[self.scale, cute.cosize(l_sfb)], 1024]

        self.storage = Storage
        self.kernel(mma, mma_b, t_a, g_a, t_b, g_b, t_sfa, g_sfa, t_sfb, g_sfb, c, l_a, l_b, l_sfa, l_sfb).launch(
            grid=(self.ctas, 1, 1), block=(128, 1, 1), cluster=(self.ctas, 1, 1)
        )

    @cute.kernel
    def kernel(
        self,
        mma: cute.TiledMma,
        mma_b: cute.TiledMma,
        t_a: cute.CopyAtom,
        g_a: cute.Tensor,
        t_b: cute.CopyAtom,
        g_b: cute.Tensor,
        t_sfa: cute.CopyAtom,
        g_sfa: cute.Tensor,
        t_sfb: cute.CopyAtom,
        g_sfb: cute.Tensor,
        c: cute.Tensor,
        l_a: cute.ComposedLayout,
        l_b: cute.ComposedLayout,
        l_sfa: cute.Layout,
        l_sfb: cute.Layout,
    ):
        m, n = self.rows, self.columns
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        tid, _, _ = cute.arch.thread_idx()
        rank = cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster())
        storage = cutlass.memory.SmemAllocator().allocate(self.storage)
        s_a = storage.a.get_tensor(l_a.outer, swizzle=l_a.inner)
        s_b = storage.b.get_tensor(l_b.outer, swizzle=l_b.inner)
        s_sfa, s_sfb = storage.sfa.get_tensor(l_sfa), storage.sfb.get_tensor(l_sfb)
        full, done = storage.full.ptr, storage.done.ptr
        if warp == 0:
            with cute.arch.elect_one():
                cute.arch.mbarrier_init(full, 1)
                cute.arch.mbarrier_init(done, 1)
            cute.arch.mbarrier_init_fence()
            cute.arch.alloc_tmem(TMEM_COLUMNS, storage.tmem.ptr, is_two_cta=self.ctas == 2)
        cute.arch.sync_threads()
        if cutlass.const_expr(self.ctas == 2):
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()
        base = cute.arch.retrieve_tmem_ptr(Float32, alignment=16, ptr_to_buffer_holding_addr=storage.tmem.ptr)
        acc = cute.make_tensor(base, mma.make_fragment_C(mma.partition_shape_C((m, n))).layout)
        if warp == 0:
            self.load(
                mma, mma_b, (t_a, t_b, t_sfa, t_sfb), (g_a, g_b, g_sfa, g_sfb), (s_a, s_b, s_sfa, s_sfb), full, rank
            )
            if rank == 0:
                cute.arch.mbarrier_wait(full, 0)
                self.multiply(mma, acc, base, (s_a, s_b, s_sfa, s_sfb), (l_sfa, l_sfb), done)
        cute.arch.mbarrier_wait(done, 0)
        here = acc[(None, None), 0, 0]
        ld = tcgen05.make_tmem_copy(cute.make_copy_atom(tcgen05.Ld32x32bOp(tcgen05.Repetition.x32), Float32), here)
        thr = ld.get_slice(tid)
        target = thr.partition_D(cute.local_tile(c, (128, n), (rank, 0)))
        out = cute.make_rmem_tensor(target.shape, Float32)
        cute.copy(thr, thr.partition_S(here), out)
        cute.arch.fence_view_async_tmem_load()
        cute.autovec_copy(out, target)
        cute.arch.sync_threads()
        if cutlass.const_expr(self.ctas == 2):
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()
        if warp == 0:
            cute.arch.relinquish_tmem_alloc_permit(is_two_cta=self.ctas == 2)
            cute.arch.dealloc_tmem(base, TMEM_COLUMNS, is_two_cta=self.ctas == 2)

    @cute.jit
    def load(self, mma, mma_b, atoms, sources, targets, full, rank):
        """All four operands on one barrier, the even CTA's."""
        m, n, k = self.rows, self.columns, self.depth
        mine, whole = mma.get_slice(rank), mma_b.get_slice(0)
        tiles = (
            mine.partition_A(cute.local_tile(sources[0], (m, k), (0, 0, 0))),
            mine.partition_B(cute.local_tile(sources[1], (n, k), (0, 0, 0))),
            mine.partition_A(cute.local_tile(sources[2], (m, k), (0, 0, 0))),
            whole.partition_B(cute.local_tile(sources[3], (n, k), (0, 0, 0))),
        )
        if rank == 0:
            with cute.arch.elect_one():
                cute.arch.mbarrier_arrive_and_expect_tx(full, self.bytes * self.ctas)
        for i in cutlass.range_constexpr(4):
            smem, gmem = cpasync.tma_partition(
                atoms[i], 0, cute.make_layout(1), cute.group_modes(targets[i], 0, 3), cute.group_modes(tiles[i], 0, 3)
            )
            smem, gmem = cute.filter_zeros(smem), cute.filter_zeros(gmem)
            cute.copy(atoms[i], gmem, smem[None, 0], tma_bar_ptr=full)

    @cute.jit
    def multiply(self, mma, acc, base, operands, layouts, done):
        """Scale factors to tensor memory, the products, the commit."""
        s_a, s_b, s_sfa, s_sfb = operands
        pair = tcgen05.CtaGroup.TWO if self.ctas == 2 else tcgen05.CtaGroup.ONE
        first = tcgen05.find_tmem_tensor_col_offset(acc)
        t_sfa = self.scale_tensor(base + first, scales.make_tmem_layout_sfa, mma, layouts[0])
        second = first + tcgen05.find_tmem_tensor_col_offset(t_sfa)
        t_sfb = self.scale_tensor(base + second, scales.make_tmem_layout_sfb, mma, layouts[1])
        for smem, tmem in ((s_sfa, t_sfa), (s_sfb, t_sfb)):
            self.to_tensor_memory(smem, tmem, pair)
        f_a, f_b = mma.make_fragment_A(s_a), mma.make_fragment_B(s_b)
        mma.set(tcgen05.Field.ACCUMULATE, False)
        for kk in cutlass.range_constexpr(cute.size(f_a.shape[2])):
            mma.set(tcgen05.Field.SFA, t_sfa[None, None, kk].iterator)
            mma.set(tcgen05.Field.SFB, t_sfb[None, None, kk].iterator)
            cute.gemm(mma, acc, f_a[None, None, kk, 0], f_b[None, None, kk, 0], acc)
            mma.set(tcgen05.Field.ACCUMULATE, True)
        with cute.arch.elect_one():
            if cutlass.const_expr(self.ctas == 2):
                tcgen05.commit(done, 3, pair)
            else:
                tcgen05.commit(done)

    def scale_tensor(self, pointer, make, mma, layout):
        """Where scale factors lie in tensor memory."""
        one_stage = cute.slice_(layout, (None, None, None, 0))
        tiler = (self.rows, self.columns, self.depth)
        return cute.make_tensor(cute.recast_ptr(pointer, dtype=self.scale), make(mma, tiler, self.vector, one_stage))

    @cute.jit
    def to_tensor_memory(self, smem, tmem, group):
        """tcgen05.cp of one operand's scale factors."""
        smem, tmem = cute.filter_zeros(smem), cute.filter_zeros(tmem)
        atom = cute.make_copy_atom(tcgen05.Cp4x32x128bOp(group), self.scale)
        copy = tcgen05.make_s2t_copy(atom, tmem)
        thr = copy.get_slice(0)
        source = tcgen05.get_s2t_smem_desc_tensor(copy, thr.partition_S(smem))
        cute.copy(copy, source[None, None, None, None, 0], thr.partition_D(tmem))
