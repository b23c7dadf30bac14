"""The prologue kernels of a TileTable: their lists are those of the interpreter's definition, on the PTX emulator."""

import dataclasses

import torch

from attncc.emit import emit
from attncc.ir.attention import TensorDecl
from attncc.ir.expr import INT, all_of, apply, load, var
from attncc.ir.tile import TileSummary, TileTable
from attncc.runtime import load as loading
from attncc.runtime.build import compile_module, options
from tests.emit.ampere_schedules import ampere_dense

BATCH, SEQ_Q, SEQ_KV, TILE_M, TILE_N = 2, 100, 700, 64, 16


def documents_schedule():
    """A small kernel with a table for `doc_q[b, q_idx] == doc_kv[b, kv_idx]`; its main kernel ignores the table."""
    schedule = ampere_dense(dim_qk=16, tile_m=TILE_M, tile_n=TILE_N, heads=(1, 1))
    shapes = {"doc_q": (var("batch"), var("seq_q")), "doc_kv": (var("batch"), None)}
    tensors = (TensorDecl("doc_q", "i32", shapes["doc_q"]), TensorDecl("doc_kv", "i64", shapes["doc_kv"]))
    q_low, q_high, k_low, k_high = (var(n) for n in ("q_lo", "q_hi", "k_lo", "k_hi"))
    inside = apply("le", apply("mul", apply("add", var("kv_tile"), 1), TILE_N), var("seq_kv"))
    table = TileTable(
        all_of(apply("le", q_low, k_high), apply("le", k_low, q_high)),
        all_of(apply("eq", q_low, q_high), apply("eq", k_low, k_high), apply("eq", q_low, k_low), inside),
        True,
        False,
        (
            TileSummary("q", "q", load("doc_q", (var("b"), var("q_idx")), INT)),
            TileSummary("k", "kv", load("doc_kv", (var("b"), var("kv_idx")), INT)),
        ),
    )
    return dataclasses.replace(schedule, attention=dataclasses.replace(schedule.attention, tensors=tensors), table=table)


def expected_lists(doc_q, doc_kv):
    """[b][q_tile][kind] -> key tiles, from the documents of every cell."""
    out = []
    for q, k in zip(doc_q, doc_kv):
        rows = []
        for i in range(0, SEQ_Q, TILE_M):
            kinds = ([], [])
            for j, first in enumerate(range(0, SEQ_KV, TILE_N)):
                cells = q[i : i + TILE_M, None] == k[None, first : first + TILE_N]
                full = bool(cells.all()) and first + TILE_N <= SEQ_KV
                if cells.any():
                    kinds[full].append(j)
            rows.append(kinds)
        out.append(rows)
    return out


def test_lists_of_sorted_documents_are_exact():
    from attncc.emulator import emulate, keep_ptx

    schedule = documents_schedule()
    module = loading.module(loading.store(emit(schedule), "test"))
    with keep_ptx():
        compiled = compile_module(module, schedule.attention, options("sm_80"))
    q, k = torch.zeros(BATCH, SEQ_Q, 1, 16).bfloat16(), torch.zeros(BATCH, SEQ_KV, 1, 16).bfloat16()
    doc_q = torch.tensor([[3] * 64 + [4] * 36, [0] * 30 + [5] * 70], dtype=torch.int32)
    doc_kv = (torch.arange(SEQ_KV) // 100).expand(BATCH, SEQ_KV).contiguous()
    q_tiles, kv_tiles = -(-SEQ_Q // TILE_M), -(-SEQ_KV // TILE_N)
    count = torch.full((BATCH, 1, q_tiles, 2), -7, dtype=torch.int32)
    lists = torch.full((BATCH, 1, q_tiles, 2, kv_tiles), -7, dtype=torch.int32)
    bounds = [torch.full((BATCH, 1, n, 2), -7, dtype=torch.int32) for n in (q_tiles, kv_tiles)]
    out, lse = torch.zeros_like(q), torch.zeros(BATCH, 1, SEQ_Q)
    emulate(compiled, q, k, k.clone(), out, lse, doc_q, doc_kv, count, lists, *bounds, seeds=1).check()
    found = [
        [[lists[b, 0, i, kind, : count[b, 0, i, kind]].tolist() for kind in range(2)] for i in range(q_tiles)]
        for b in range(BATCH)
    ]
    wanted = [[list(kinds) for kinds in rows] for rows in expected_lists(doc_q, doc_kv)]
    assert found[0] == wanted[0]
    assert found[1][1] == wanted[1][1]
    assert set(wanted[1][0][0]) <= set(found[1][0][0]), "a tile of several documents may list more, never fewer"
