"""CuTe-DSL functions that generated files import. Nothing here decides anything: sizes and choices arrive as arguments.

softmax   the (rows, columns) view of an accumulator, the online softmax, epilogue arithmetic; every target
arith     scalar arithmetic of the expression language; every target
tables    prologue kernels that list key tiles; every target
hopper    TMA, mbarrier rings, WGMMA, the epilogue through shared memory
ampere    cp.async, ldmatrix, mma.sync
"""
