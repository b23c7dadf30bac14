"""The prelude against definitions written independently in Python, position by position."""

import itertools
import math
import random
from pathlib import Path

import pytest
import torch

from attncc.interp.evaluate import evaluate
from attncc.interp.reference import dense_mask
from attncc.lower import load
from attncc.lower.prelude import prelude
from attncc.syntax.resources import spec_path

LENGTHS = ((1, 1), (7, 7), (24, 24), (5, 12), (12, 5))


def dense(text: str, seq_q: int, seq_kv: int, inputs=None, declare: str = "", batch: int = 1) -> torch.Tensor:
    """The mask `text` as bool (batch, seq_q, seq_kv)."""
    a = load(f"attention x {{\nheads q = 1, kv = 1\ndim 8\ndtype bf16\n{declare}\nmask {text}\n}}")
    return dense_mask(a, batch, seq_q, seq_kv, inputs or {})[:, 0]


def brute(rule, seq_q: int, seq_kv: int) -> torch.Tensor:
    cells = [[bool(rule(q, k)) for k in range(seq_kv)] for q in range(seq_q)]
    return torch.tensor(cells, dtype=torch.bool).reshape(1, seq_q, seq_kv)


@pytest.mark.parametrize("seq_q, seq_kv", LENGTHS)
@pytest.mark.parametrize(
    "text, rule",
    [
        ("causal", lambda q, k, off: k <= q + off),
        ("causal_bottom_right", lambda q, k, off: k <= q + off),
        ("causal_top_left", lambda q, k, off: k <= q),
        ("causal and sliding_window(keys = 3)", lambda q, k, off: q + off - 2 <= k <= q + off),
        ("two_sided_window(2, right = 1)", lambda q, k, off: q + off - 2 <= k <= q + off + 1),
        ("causal and dilated_window(3, dilation = 2)", lambda q, k, off: q + off - k in (0, 2, 4)),
        ("prefix_lm(4)", lambda q, k, off: k <= q + off or k < 4),
        ("shared_prefix(2, causal and sliding_window(2))", lambda q, k, off: k < 2 or k in (q + off - 1, q + off)),
        ("key_padding(5)", lambda q, k, off: k < 5),
        ("global_tokens(2)", lambda q, k, off: k < 2 or q < 2),
        ("sink_tokens(2)", lambda q, k, off: k < 2),
        ("inside_blocks(4, causal)", lambda q, k, off: q // 4 == k // 4 and k % 4 <= q % 4),
        ("block_causal(4)", lambda q, k, off: k // 4 <= (q + off) // 4),
    ],
)
def test_masks(text, rule, seq_q, seq_kv):
    off = seq_kv - seq_q
    assert torch.equal(dense(text, seq_q, seq_kv), brute(lambda q, k: rule(q, k, off), seq_q, seq_kv))


def test_documents():
    ids_q, ids_kv = torch.tensor([[0, 0, 1, 2], [2, 1, 1, 0]]), torch.tensor([[0, 1, 1, 1, 2], [0, 0, 1, 2, 2]])
    declare = "tensor dq: i64[b, seq_q]\ntensor dk: i64[b, seq_kv]\ntensor sq: i64[b, ?]\ntensor sk: i64[b, 3]"
    starts_q, starts_kv = torch.tensor([[0, 2, 3], [3, 1, 0]]), torch.tensor([[0, 1, 4], [0, 2, 3]])
    inputs = {"dq": ids_q, "dk": ids_kv, "sq": starts_q, "sk": starts_kv}
    same = ids_q[:, :, None] == ids_kv[:, None, :]
    assert torch.equal(dense("document(dq, dk)", 4, 5, inputs, declare, 2), same)
    got = dense("document_of(causal, dq, dk, sq, sk)", 4, 5, inputs, declare, 2)
    for b, q, k in itertools.product(range(2), range(4), range(5)):
        d, e = int(ids_q[b, q]), int(ids_kv[b, k])
        assert bool(got[b, q, k]) == (d == e and k - int(starts_kv[b, e]) <= q - int(starts_q[b, d]))


def test_block_diffusion():
    """Figure 3 of the paper for two blocks of two: noised tokens 0-3, clean tokens 4-7."""
    expected = """
        11......
        11......
        ..1111..
        ..1111..
        ....11..
        ....11..
        ....1111
        ....1111"""
    rows = [[c == "1" for c in row.strip()] for row in expected.split()]
    assert torch.equal(dense("block_diffusion(2)", 8, 8)[0], torch.tensor(rows))
    assert torch.equal(dense("block_diffusion(block = 2, length = 4)", 8, 8)[0], torch.tensor(rows))


def test_tree_verification():
    """Two context tokens, then a root with two children, of which the second has a child."""
    parents = [None, 0, 0, 2]
    table = torch.zeros(1, 4, 4, dtype=torch.bool)
    for node in range(4):
        at = node
        while at is not None:
            table[0, node, at] = True
            at = parents[at]
    got = dense("tree_verification(t)", 4, 6, {"t": table}, "tensor t: bool[b, seq_q, seq_q]")
    assert torch.equal(got, torch.cat([torch.ones(1, 4, 2, dtype=torch.bool), table], dim=-1))


def natten_axis(q: int, k: int, length: int, kernel: int, stride: int, dilation: int, causal: bool) -> bool:
    """The keys of one query as a list, found the long way: NATTEN's definition in words (docs of `na1d`, reference kernel)."""
    if q % dilation != k % dilation:
        return False
    line = [p for p in range(length) if p % dilation == q % dilation]
    i, j = line.index(q), line.index(k)
    group = [p for p in range(len(line)) if p // stride == i // stride]
    if causal:
        leader = group[0] + stride - 1 if group[0] + stride - 1 < len(line) else len(line) - 1
        return leader - kernel < j <= i
    leader = min(group[0] + stride // 2, len(line) - 1)
    first = leader - kernel // 2
    while first < 0:
        first += 1
    while first + kernel > len(line) and first > 0:
        first -= 1
    return first <= j < first + kernel


def axis_cases(rng: random.Random, longest: int) -> tuple:
    length = rng.randint(1, longest)
    dilation = rng.randint(1, max(1, length // 2))
    kernel = rng.randint(1, length // dilation)
    return length, kernel, rng.randint(1, kernel), dilation, rng.random() < 0.4


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_neighborhoods_are_nattens(axes):
    rng = random.Random(axes)
    names = {1: [""], 2: ["_h", "_w"], 3: ["_d", "_h", "_w"]}[axes]
    extents = {1: ["length"], 2: ["height", "width"], 3: ["depth", "height", "width"]}[axes]
    for _ in range(25):
        cases = [axis_cases(rng, (30, 8, 5)[axes - 1]) for _ in range(axes)]
        arguments = []
        for name, extent, (length, kernel, stride, dilation, causal) in zip(names, extents, cases):
            flag = f"causal{name}" if axes > 1 else "is_causal"
            arguments += [f"{extent} = {length}", f"kernel{name} = {kernel}", f"stride{name} = {stride}"]
            arguments += [f"dilation{name} = {dilation}", f"{flag} = {'true' if causal else 'false'}"]
        lengths = [c[0] for c in cases]
        total = math.prod(lengths)
        cells = list(itertools.product(*map(range, lengths)))

        def rule(q: int, k: int, cells=cells, cases=cases) -> bool:
            return all(natten_axis(a, b, *c) for a, b, c in zip(cells[q], cells[k], cases))

        expected = brute(rule, total, total)
        assert torch.equal(dense(f"neighborhood_{axes}d({', '.join(arguments)})", total, total), expected), arguments


def test_neighborhoods_leave_out_keys_past_the_grid():
    got = dense("neighborhood_2d(3, 4, 3, 3)", 12, 20)
    assert not got[..., 12:].any() and (got.sum(-1) == 9).all()


def test_sliding_tiles():
    """Tiles of two tokens on a 3 x 4 x 2 grid, windows of 3 x 3 x 1 tiles."""
    shape, window = (3, 4, 2), (3, 3, 1)
    tiles = list(itertools.product(*map(range, shape)))

    def sees(q, k):
        center = [max(min(a, n - 1 - w // 2), w // 2) for a, n, w in zip(tiles[q // 2 % 24], shape, window)]
        return k // 2 < 24 and all(abs(c - b) <= w // 2 for c, b, w in zip(center, tiles[k // 2], window))

    got = dense("sliding_tile(3, 4, 2, tile = 2, window_d = 3, window_h = 3, window_w = 1)", 48, 53)
    assert torch.equal(got, brute(sees, 48, 53)) and (got.sum(-1) == 18).all()


def values(
    text: str, heads: int = 1, seq_q: int = 40, seq_kv: int = 40, inputs=None, declare: str = ""
) -> torch.Tensor:
    """A bias as (heads, seq_q, seq_kv)."""
    a = load(f"attention x {{\nheads q = {heads}, kv = {heads}\ndim 8\ndtype bf16\n{declare}\nbias {text}\n}}")
    env = {
        "b": 0,
        "q_idx": torch.arange(seq_q)[:, None],
        "kv_idx": torch.arange(seq_kv),
        "h": torch.arange(heads)[:, None, None],
    }
    env |= {"off": seq_kv - seq_q, "qk": torch.zeros(1), "seq_q": seq_q, "seq_kv": seq_kv, "batch": 1}
    return evaluate(a.score, env, inputs or {}).expand(heads, seq_q, seq_kv)


def slopes(n: int) -> list[float]:
    """ALiBi's slopes as its authors compute them: geometric for powers of two, else those plus every other of twice as many."""
    if math.log2(n).is_integer():
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]
    whole = 2 ** math.floor(math.log2(n))
    return slopes(whole) + slopes(2 * whole)[0::2][: n - whole]


@pytest.mark.parametrize("heads", [1, 2, 3, 7, 8, 12, 20, 112])
def test_alibi(heads):
    distance = torch.arange(6)[None, :] - (torch.arange(4)[:, None] + 2)
    slope = torch.tensor(slopes(heads), dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(values("alibi", heads, 4, 6), slope * distance)
    torch.testing.assert_close(values("alibi_symmetric", heads, 4, 6), -slope * distance.abs())


def t5_buckets(relative: torch.Tensor, bidirectional: bool, buckets: int, max_distance: int) -> torch.Tensor:
    """Raffel et al.'s formula in float32, as in the published models."""
    offset, n = 0, -relative
    if bidirectional:
        buckets //= 2
        offset, n = (relative > 0).long() * buckets, relative.abs()
    n = n.clamp(min=0)
    exact = buckets // 2
    far = (
        exact + (torch.log(n.float().clamp(min=1) / exact) / math.log(max_distance / exact) * (buckets - exact)).long()
    )
    return offset + torch.where(n < exact, n, far.clamp(max=buckets - 1))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (64, 256), (16, 100)])
def test_t5_buckets(buckets, max_distance, bidirectional):
    table = torch.arange(buckets * 2.0).reshape(buckets, 2)
    text = f"t5_bias(t, {buckets}, {max_distance}, bidirectional = {str(bidirectional).lower()})"
    got = values(text, 2, 300, 300, {"t": table}, f"tensor t: f32[{buckets}, h]")
    relative = torch.arange(300)[None, :] - torch.arange(300)[:, None]
    expected = table.double()[t5_buckets(relative, bidirectional, buckets, max_distance)].permute(2, 0, 1)
    assert torch.equal(got, expected)


def test_tables():
    table = torch.randn(2, 9, dtype=torch.float64)
    distance = torch.arange(12)[None, :] - torch.arange(10)[:, None] - 2
    got = values("relative_table(t, 4)", 2, 10, 12, {"t": table}, "tensor t: f64[h, 9]")
    assert torch.equal(got, table[:, distance.clamp(-4, 4) + 4])
    table = torch.randn(15, 2, dtype=torch.float64)  # (2 * 2 - 1) * (2 * 3 - 1), a window of 2 x 3
    y, x = torch.arange(6) // 3, torch.arange(6) % 3
    index = (y[:, None] - y[None] + 1) * 5 + x[:, None] - x[None] + 2
    got = values("relative_table_2d(t, 2, 3)", 2, 6, 6, {"t": table}, "tensor t: f64[15, h]")
    assert torch.equal(got, table[index].permute(2, 0, 1))


def test_sandwich_is_the_inner_product_of_sinusoids():
    width, positions = 16, torch.arange(40, dtype=torch.float64)[:, None]
    angles = positions / 10000 ** (2 * torch.arange(1, width // 2 + 1) / width)
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    torch.testing.assert_close(values(f"sandwich({width})")[0], embedding @ embedding.T)


def test_forgetting_gate():
    logs = -torch.rand(1, 2, 12, dtype=torch.float64)
    got = values("forgetting_gate(c)", 2, 5, 12, {"c": logs.cumsum(-1)}, "tensor c: f64[b, h, seq_kv]")
    for q, k in itertools.product(range(5), range(12)):
        if k <= q + 7:
            torch.testing.assert_close(got[:, q, k], logs[0, :, k + 1 : q + 8].sum(-1))


def test_softcap():
    a = load("attention x {\nheads q = 1, kv = 1\ndim 64\ndtype bf16\nscore softcap(30.0)\n}")
    raw = torch.linspace(-1e4, 1e4, 9)
    torch.testing.assert_close(evaluate(a.score, {"qk": raw}, {}), 30 * torch.tanh(raw.double() * 0.125 / 30))


def test_every_definition_has_a_comment_and_a_test():
    source = "".join(p.read_text() for p in spec_path("prelude").glob("*.attn"))
    own = Path(__file__).read_text()
    for name, definition in prelude().items():
        before = source[: source.index(f"{definition.kind} {name}")].rstrip("\n").splitlines()
        assert before[-1].startswith("#"), f"{name} has no comment"
        indirect = {
            "neighbors": "neighborhood_",
            "near_tiles": "sliding_tile",
            "alibi_slope": "alibi",
            "t5_bucket": "t5_bias",
        }
        assert indirect.get(name, name.rstrip("123d")) in own, f"{name} has no test here"
