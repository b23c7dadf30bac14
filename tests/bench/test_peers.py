"""Which peer can express what, and that FlexAttention's functions made from L1 mean the same."""

import pytest
import torch

from attncc.bench import peers
from attncc.bench.features import Features, features
from attncc.bench.flex import score_and_mask
from attncc.bench.run import packed_call
from attncc.diagnostics import AttnError
from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.lower import load


def spec(statements: str, heads: str = "q = 4, kv = 2", dim: str = "64"):
    return load(f"attention a {{\n heads {heads}\n dim {dim}\n dtype bf16\n {statements}\n}}\n")


@pytest.mark.parametrize(
    "statements, expected",
    [
        ("", Features("full", 0, 0.0, 0.125)),
        ("mask causal", Features("causal", 0, 0.0, 0.125)),
        ("mask kv_idx <= q_idx + off", Features("causal", 0, 0.0, 0.125)),
        ("mask causal_top_left", Features("causal_top_left", 0, 0.0, 0.125)),
        ("mask causal and sliding_window(keys = 100)", Features("window", 100, 0.0, 0.125)),
        ("mask causal\n mask sliding_window(keys = 7)", Features("window", 7, 0.0, 0.125)),
        ("scale 0.5\n score softcap(30.0)\n mask causal", Features("causal", 0, 30.0, 0.5)),
        ("scale 0.3", Features("full", 0, 0.0, 0.3)),
        ("mask kv_idx < q_idx + off", None),
        ("mask causal and h < 2", None),
        ("bias 1.0 * kv_idx", None),
        ("reduction sigmoid", None),
    ],
)
def test_flags_are_recognised_by_meaning(statements, expected):
    assert features(spec(statements)) == expected


def call(a, batch=2, seq_q=20, seq_kv=20):
    return peers.call_for(a, *make_inputs(a, batch, seq_q, seq_kv, 1))


@pytest.mark.parametrize(
    "peer, statements, reason",
    [
        ("sdpa_cudnn", "score softcap(3.0)", "has no full, softcap 3"),
        ("sdpa_flash", "mask causal and sliding_window(keys = 3)", "has no causal, window 3"),
        ("sdpa_flash", "mask causal and h < 1", "its flags cannot say this attention"),
        ("flex", "reduction sigmoid", "it has no reduction sigmoid"),
    ],
)
def test_peers_say_why_not(peer, statements, reason):
    with pytest.raises(peers.Cannot, match=reason):
        peers.PEERS[peer](call(spec(statements)))


@pytest.mark.parametrize(("peer", "reason"), (("sdpa_cudnn", "takes no packed"), ("flex", "only as a mask of documents")))
def test_peers_without_packed_sequences_say_so(peer, reason):
    packed, _ = packed_call(spec("mask causal"), (5, 9), 0, "cpu")
    with pytest.raises(peers.Cannot, match=reason):
        peers.PEERS[peer](packed)


def test_a_packed_call_has_the_pairs_of_its_sequences():
    packed, flops = packed_call(spec("mask causal"), (5, 9, 5), 0, "cpu")
    assert packed.q.shape == (19, 4, 64) and packed.k.shape == (19, 2, 64)
    assert packed.packed.arguments["cu_seqlens_kv"].tolist() == [0, 5, 14, 19] and packed.packed.longest == 9
    assert flops == 2 * 4 * (15 + 45 + 15) * 128
    with pytest.raises(AttnError, match="E610"):
        packed_call(spec("mask causal and b > 0"), (5, 9), 0, "cpu")


def test_sdpa_refuses_another_alignment():
    with pytest.raises(peers.Cannot, match="aligned at the first query"):
        peers.PEERS["sdpa_flash"](call(spec("mask causal"), seq_kv=30))


@pytest.mark.parametrize(
    "statements",
    [
        "mask causal and sliding_window(keys = 5)\n score softcap(3.0)",
        "tensor doc: i32[batch, seq_kv] in 0..3\n tensor t: f32[4, 8]\n scalar x: float\n bias t[h, (q_idx - kv_idx) % 8] * x\n mask doc[b, kv_idx] == q_idx % 3 or kv_idx == 0",
        "score s + abs(q_idx // 3 - kv_idx) * 0.1 + exp(-1.0 * kv_idx) if hkv == 1 else min(0.5, sigmoid(s))",
    ],
)
def test_flex_functions_mean_the_same(statements):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    a = spec(statements)
    q, k, v, inputs = make_inputs(a, 2, 20, 33, 1)
    score_mod, mask_mod = score_and_mask(a, inputs, {"batch": 2, "seq_q": 20, "seq_kv": 33, "off": 13}, "cpu")
    block_mask = create_block_mask(mask_mod, 2, 4, 20, 33, device="cpu")
    q32, k32, v32 = (x.float().transpose(1, 2) for x in (q, k, v))
    out = flex_attention(q32, k32, v32, score_mod=score_mod, block_mask=block_mask, scale=1.0, enable_gqa=True)
    torch.testing.assert_close(out.transpose(1, 2).double(), reference(a, q, k, v, inputs)[0], atol=1e-4, rtol=1e-4)
