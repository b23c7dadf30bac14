"""Packed sequences: every level equals the loop over the sequences, written out here once more."""

import pytest
import torch

from attncc import driver
from attncc.diagnostics import AttnError
from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.interp.run_attention import run_attention
from attncc.interp.run_schedule import run_schedule
from attncc.interp.run_tile import run_tile
from attncc.ir.packing import ARGUMENTS, has_tile, pack, unpack
from attncc.ir.schedule import If, SetRegisters
from attncc.ir.text import format_program, parse_program
from attncc.lower import load
from attncc.passes.schedule.skip_missing_tiles import skip_missing_tiles
from attncc.targets import TARGETS
from tests.runtime.specs import PLAIN, RICH

SINK = """attention sinks {
    heads q = 4, kv = 1
    dim 64
    dtype bf16
    tensor sink: f32[batch, 4]
    tensor slope: f32[4]
    bias slope[h] * (kv_idx - seq_kv + 1)
    mask causal and kv_idx % 3 != b
    reduction softmax(sink = sink[b, h])
}
"""


def lengths(inputs):
    q, kv = inputs["cu_seqlens_q"].tolist(), inputs["cu_seqlens_kv"].tolist()
    return [(slice(q[b], q[b + 1]), slice(kv[b], kv[b + 1])) for b in range(len(q) - 1)]


def loop(attention, q, k, v, inputs):
    """Each sequence as a batch of one; tensors of the spec cut to what the sequence sees. For specs that read b as a row number alone."""
    outs, logs = [], []
    for b, (rows, keys) in enumerate(lengths(inputs)):
        m, n = rows.stop - rows.start, keys.stop - keys.start
        own = {name: x for name, x in inputs.items() if name not in ARGUMENTS}
        for decl in attention.tensors:
            if decl.name in own:
                shape = [e.value if e is not None and e.op == "var" else None for e in decl.shape]
                cut = {"seq_q": slice(m), "seq_kv": slice(n), "batch": slice(b, b + 1)}
                own[decl.name] = own[decl.name][tuple(cut.get(s, slice(None)) for s in shape)]
        if "bonus" in own:
            own["bonus"] = own["bonus"][:, : m + 1]
        out, lse = reference(unpack(attention), q[None, rows], k[None, keys], v[None, keys], own)
        outs.append(out[0])
        logs.append(lse[0])
    return torch.cat(outs), torch.cat(logs, dim=-1)


def same(got, wanted):
    for x, y in zip(got, wanted):
        assert x.shape == y.shape
        torch.testing.assert_close(x.double(), y.double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("text", [PLAIN, RICH], ids=["plain", "rich"])
def test_the_reference_is_the_loop(text, seed):
    a = pack(load(text))
    data = make_inputs(a, 5, 37, 51 - 20 * seed, seed)
    assert any(x.start == x.stop for x, _ in lengths(data[3])), "an empty sequence is among them"
    same(reference(a, *data), loop(a, *data))
    same(run_attention(a, *data, dtype=torch.float64), loop(a, *data))


SPECS = {"plain": PLAIN, "rich": RICH, "sink": SINK}


@pytest.mark.parametrize("spec, target", [("plain", "hopper"), ("rich", "hopper"), ("rich", "ampere"), ("sink", "ada"), ("sink", "blackwell")])
def test_levels(spec, target):
    """Tile program and schedule, in several interleavings; lengths that are no multiples of tiles, more and fewer keys than queries."""
    stages = driver.lower(pack(load(SPECS[spec])), TARGETS[target])
    for seed in range(2):
        data = make_inputs(stages.attention, 4, 150, 200 - 100 * seed, seed)
        wanted = reference(stages.attention, *data)
        same(run_tile(stages.tile, *data, strict=True), wanted)
        same(run_schedule(stages.schedule, *data, seed=seed, strict=True), wanted)


@pytest.mark.parametrize("target", ["hopper", "ampere"])
def test_blocks_without_a_tile_do_nothing(target):
    """The pass puts every role under one condition after its registers are set, and changes no result."""
    stages = driver.lower(pack(load(PLAIN)), TARGETS[target])
    before, after = stages.level("L3")[-2].program, stages.schedule
    assert stages.level("L3")[-1].name == "skip_missing_tiles" and skip_missing_tiles(after) == after
    for old, new in zip(before.roles, after.roles):
        kept = tuple(op for op in old.body if isinstance(op, SetRegisters))
        assert new.body == (*kept, If(has_tile(), old.body[len(kept) :]))
    data = make_inputs(stages.attention, 3, 150, 90, 2)
    for schedule in (before, after):
        same(run_schedule(schedule, *data, seed=1), reference(stages.attention, *data))
    padded = driver.lower(load(PLAIN), TARGETS[target])
    assert not padded.level("L3")[-1].changed, "there all blocks have a tile"


def test_a_packed_program_has_a_text():
    a = pack(load(RICH))
    assert "packed=true" in format_program(a) and parse_program(format_program(a)) == a
    assert unpack(a) == load(RICH)


def test_promises_about_lengths_do_not_hold_for_every_sequence():
    text = PLAIN.replace("mask causal", "tensor ids: i32[batch, seq_q] in 0..seq_kv\n tensor kinds: i32[4] in 0..3\n scalar w: int in 1..seq_kv\n"
                         "mask kv_idx <= ids[b, q_idx] and kinds[h] < w")  # fmt: skip
    packed = pack(load(text))
    assert packed.tensor("ids").high is None and packed.tensor("kinds").high is not None
    assert packed.scalars[0].high is None


def test_indices_are_kept_inside_the_memory_where_extents_do_not_grow_with_lengths():
    """The memory has the extent of the longest lengths; that of a short sequence may be more than that."""
    text = PLAIN.replace("mask causal", "tensor t: f32[100 - seq_q]\n bias t[kv_idx % (100 - seq_q)]")
    stages = driver.lower(pack(load(text)), TARGETS["ampere"])
    assert "t_t.shape[0]" in stages.source
    assert "t_t.shape[0]" not in driver.lower(load(text), TARGETS["ampere"]).source


@pytest.mark.parametrize(
    "change, said",
    [
        ({"cu_seqlens_q": [1, 20, 37]}, "`cu_seqlens_q` starts with 1, expected 0"),
        ({"cu_seqlens_q": [0, 38, 37]}, "`cu_seqlens_q` falls from 38 to 37 at sequence 1"),
        ({"cu_seqlens_kv": [0, 20, 36]}, "`cu_seqlens_kv` ends with 36, but k and v has 37 rows"),
        ({"max_seqlen_kv": 5}, "`max_seqlen_kv` is 5, but `cu_seqlens_kv` has a sequence of 20"),
    ],
)
def test_lengths_that_contradict_each_other(change, said):
    a = pack(load(PLAIN))
    q, k, v = torch.randn(37, 4, 64), torch.randn(37, 2, 64), torch.randn(37, 2, 64)
    starts = torch.tensor([0, 20, 37], dtype=torch.int32)
    inputs = {"cu_seqlens_q": starts, "cu_seqlens_kv": starts, "max_seqlen_q": 20, "max_seqlen_kv": 20}
    reference(a, q, k, v, inputs)
    inputs |= {n: torch.tensor(x, dtype=torch.int32) if isinstance(x, list) else x for n, x in change.items()}
    with pytest.raises(AttnError, match="E340") as error:
        reference(a, q, k, v, inputs)
    assert said in str(error.value)
