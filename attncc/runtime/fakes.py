"""Stand-ins for the arguments of a generated `launch`, from which CuTe DSL compiles it.

Every size that may differ between calls is symbolic, so one compiled kernel serves all of them: batch, both lengths, every
stride, every extent of a user's tensor. Of packed sequences the total lengths take the place of batch and lengths. Strides are 64 bits wide. Heads and head dims are constants.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from attncc.ir.attention import Attention
from attncc.runtime.storage import ALIGNMENT, CUTE_DTYPES


def fake_arguments(arguments: Sequence[tuple], attention: Attention, launch) -> list:
    """One stand-in for each entry (name, kind, dtype, rank, ...) of ARGUMENTS, in order, and the stream where `launch` has it.

    The stream is the environment's: the kernel goes to torch's current stream of the tensors' device.
    """
    from cutlass.cute.runtime import make_fake_stream

    sizes = _Sizes()
    fakes = {name: _fake(entry, attention, sizes) for entry in arguments for name in entry[:1]}
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    names = [n for n in inspect.signature(launch).parameters if n != "self"]
    ordered = [stream if n == "stream" else fakes.pop(n) for n in names]
    if fakes:
        raise ValueError(f"`launch` lacks the arguments {', '.join(fakes)} that ARGUMENTS lists")
    return ordered


class _Sizes:
    """The sizes that several arguments share: a symbol is one variable of the compiled function."""

    def __init__(self):
        import cutlass.cute as cute

        self.batch, self.seq_q, self.seq_kv = (cute.sym_int(32, symbol=n) for n in ("batch", "seq_q", "seq_kv"))


def _fake(entry: tuple, attention: Attention, sizes: _Sizes):
    name, kind, dtype, rank = entry[:4]
    if kind == "scalar":
        return _scalar(dtype)
    if kind == "operand":
        return _operand(name, dtype, rank, attention, sizes)
    if kind == "lse":
        return _strided(dtype, (sizes.batch, attention.heads_q, sizes.seq_q)[3 - rank :], last=1)
    return _block(dtype, rank) if kind == "block" else _user_tensor(dtype, rank)


def _element(dtype: str):
    import cutlass

    return getattr(cutlass, CUTE_DTYPES[dtype])


def _scalar(kind: str):
    import cutlass

    return cutlass.Float32(1.0) if kind == "float" else cutlass.Int32(1)


def _operand(name: str, dtype: str, rank: int, a: Attention, sizes: _Sizes):
    """(batch, seq, heads, dim), or (total, heads, dim) of packed sequences, with a contiguous last dimension and rows that start at
    multiples of 16 bytes."""
    import cutlass.cute as cute
    from cutlass.cute.runtime import make_fake_tensor

    seq = sizes.seq_q if name in ("q", "o") else sizes.seq_kv
    heads = a.heads_q if name in ("q", "o") else a.heads_kv
    dim = a.dim_qk if name in ("q", "k") else a.dim_v
    element = _element(dtype)
    step = ALIGNMENT * 8 // element.width
    strides = tuple(cute.sym_int64(divisibility=step) for _ in range(rank - 1))
    shape = (sizes.batch, seq, heads, dim)[4 - rank :]
    return make_fake_tensor(element, shape, (*strides, 1), assumed_align=ALIGNMENT)


def _strided(dtype: str, shape: tuple, last):
    import cutlass.cute as cute
    from cutlass.cute.runtime import make_fake_tensor

    strides = tuple(cute.sym_int64() for _ in shape[:-1])
    return make_fake_tensor(_element(dtype), shape, (*strides, last))


def _block(dtype: str, rank: int):
    """A stand-in of any sizes, contiguous along its last dimension, whose rows begin at multiples of 16 bytes."""
    import cutlass.cute as cute
    from cutlass.cute.runtime import make_fake_tensor

    element = _element(dtype)
    step = ALIGNMENT * 8 // element.width
    shape = tuple(cute.sym_int(32) for _ in range(rank))
    strides = tuple(cute.sym_int64(divisibility=step) for _ in range(rank - 1))
    return make_fake_tensor(element, shape, (*strides, 1), assumed_align=ALIGNMENT)


def _user_tensor(dtype: str, rank: int):
    """A stand-in of any sizes and strides; a tensor without dimensions comes as one of a single element."""
    import cutlass.cute as cute

    rank = max(rank, 1)
    return _strided(dtype, tuple(cute.sym_int(32) for _ in range(rank)), last=cute.sym_int64())
