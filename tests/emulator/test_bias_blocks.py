"""Biases with a number for every pair, in the emulator: every rank and type, layouts that copies can read and those they cannot."""

import pytest
import torch

import attncc
from attncc.accuracy import Yardstick, lse_distance
from attncc.runtime.emulated import emulate_calls
from attncc.runtime.launch import block_view
from attncc.runtime.storage import TORCH_DTYPES
from tests.rotation import turn

ROWS, KEYS = 72, 208
SPECS = {
    "bf16 [heads, q, kv]": ("bf16[heads_q, seq_q, seq_kv]", "pair[h, q_idx, kv_idx]"),
    "f32 [q, kv]": ("f32[seq_q, seq_kv]", "0.5 * pair[q_idx, kv_idx]"),
    "f16 [b, heads, q, kv]": ("f16[b, heads_q, seq_q, seq_kv]", "pair[b, h, q_idx, kv_idx] * s"),
    "bf16 open": ("bf16[?, ?, ?]", "pair[hkv, q_idx, kv_idx]"),
}


def kernel_of(shape: str, bias: str, mask: str = "causal", target: str = "hopper"):
    head = "heads q = 2, kv = 2\ndim 64\ndtype bf16"
    return attncc.compile(f"attention biased {{\n{head}\ntensor pair: {shape}\nscore s + {bias}\nmask {mask}\n}}", target=target)


def run(kernel, pair):
    """One call in the emulator beside the reference."""
    q, k, v = (torch.randn(1, n, 2, 64, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (ROWS, KEYS, KEYS))
    results = emulate_calls(kernel)
    out, lse = kernel(q, k, v, pair=pair, return_lse=True)
    assert all(r.ok for r in results), "\n".join(map(str, results))
    yardstick = Yardstick(kernel.attention, q, k, v, {"pair": pair})
    error, allowed = yardstick.worst(out)
    assert error <= allowed
    error, bad = lse_distance(lse, yardstick.lse)
    assert bad is None and error < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_blocks_of_every_type_and_rank(name):
    kernel = kernel_of(*SPECS[name])
    kind, _, extents = SPECS[name][0].partition("[")
    shape = {2: (ROWS, KEYS), 3: (2, ROWS, KEYS), 4: (1, 2, ROWS, KEYS)}[extents.count(",") + 1]
    run(kernel, torch.randn(shape).to(TORCH_DTYPES[kind]))
    assert "hopper.own_block" in kernel.source


@pytest.mark.slow
def test_layouts_that_copies_cannot_read_get_another_kernel():
    """Rows of an odd length, and a tensor of one head spread over two."""
    kernel = kernel_of(*SPECS["bf16 [heads, q, kv]"])
    run(kernel, torch.randn(2, ROWS, KEYS + 3).bfloat16()[..., :KEYS])
    run(kernel, torch.randn(1, ROWS, KEYS).bfloat16().expand(2, -1, -1))


LAYOUTS = {
    "aligned": lambda: torch.randn(2, ROWS, KEYS).bfloat16(),
    "rows at odd addresses": lambda: torch.randn(2, ROWS, KEYS + 3).bfloat16()[..., :KEYS],
    "keys far apart": lambda: torch.randn(2, KEYS, ROWS).bfloat16().transpose(1, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", turn(list(LAYOUTS), 3))
def test_a_thread_reads_eight_numbers_of_its_row_or_one(name):
    """Where threads own whole rows; the layout is looked at in the kernel (one a day)."""
    kernel = kernel_of(*SPECS["bf16 [heads, q, kv]"], mask="key_padding(180)", target="blackwell")
    run(kernel, LAYOUTS[name]())
    assert "blackwell.read_row" in kernel.source


def test_what_copies_can_read():
    x = torch.zeros(2, 3, 16, 32, dtype=torch.bfloat16)
    assert block_view(x, 8) is x
    assert block_view(x[:, :, :, :8], 8) is not None, "rows of another tensor"
    assert block_view(x.transpose(0, 1), 8) is not None
    spread = block_view(x[:1, :1].expand(2, 3, -1, -1), 8)
    assert spread.shape == (1, 1, 16, 32) and spread.stride()[-2:] == (32, 1)
    assert block_view(x.transpose(2, 3), 8) is None, "keys are not contiguous"
    assert block_view(x[..., 1:], 8) is None, "begins at two bytes"
    assert block_view(torch.zeros(2, 16, 30, dtype=torch.bfloat16), 8) is None, "rows of 60 bytes"
    assert block_view(torch.zeros(1, 1, 16).bfloat16().expand(1, 8, 16), 8) is None, "one row for all queries"
    assert block_view(torch.zeros(1, 1, 30).bfloat16(), 8).stride() == (8, 8, 1), "one row: its stride says nothing"
