"""Writes spec/capabilities.md: what every target can do, and what is refused and why.

    python -m attncc.targets.report > spec/capabilities.md
"""

from __future__ import annotations

from attncc.diagnostics import Diagnostic
from attncc.ir.attention import REDUCTIONS, Attention, TargetHint
from attncc.ir.expr import FLOAT, TRUE, apply, const, mul, var
from attncc.targets import CAPABILITIES, TARGETS, Target
from attncc.targets.fit import shared_memory
from attncc.targets.model import resident_blocks
from attncc.targets.refuse import refuse
from attncc.targets.tiles import choose_tiles

DIMS = ((64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256))
CAUSAL = apply("le", var("kv_idx"), var("q_idx"))
HEADER = """# What the targets can do

Generated from `attncc/targets` by `python -m attncc.targets.report`; a test compares. Every pair of a feature and a target works, or is
refused with the code named here (see [errors.md](errors.md)).
"""


def report() -> str:
    """The text of spec/capabilities.md."""
    parts = [HEADER, _targets(), _features(), _refusals(), _capabilities(), _tiles(), _rates()]
    return "\n".join(parts)


def example(dim_qk: int = 128, dim_v: int = 128, dtype: str = "bf16", causal: bool = False, **hints) -> Attention:
    """A plain attention of that shape."""
    score = mul(var("qk", FLOAT), const(dim_qk**-0.5))
    mask = CAUSAL if causal else TRUE
    return Attention("example", 16, 16, dim_qk, dim_v, dtype, score, mask, target=TargetHint(**hints))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(row) + " |\n" for row in lines)


def _each(cell) -> list[str]:
    return [cell(t) for t in TARGETS.values()]


def _targets() -> str:
    rows = [
        ["GPUs", *_each(lambda t: t.title)],
        ["compiled for", *_each(lambda t: ", ".join(f"`{a}`" for a in t.archs))],
        ["head dims", *_each(lambda t: f"multiples of {t.dim_step} up to {t.dim_max}, padded to {t.dim_padding}")],
        ["element types", *_each(lambda t: ", ".join(t.dtypes))],
        ["shared memory of a block", *_each(lambda t: f"{t.shared_limit // 1024} KiB")],
        ["query tiles", *_each(lambda t: ", ".join(str(m) for m in sorted({g * r for g, r in t.splits})))],
        ["key tiles", *_each(lambda t: f"multiples of {t.tile_n_step} up to {t.tile_n_max}")],
    ]
    return "## Targets\n\n" + _table(["", *(f"`{name}`" for name in TARGETS)], rows)


def _features() -> str:
    """What the language can say; lowering is the same for all targets, so each works where the shape does."""
    rows = [
        ("MHA, GQA, MQA with any group size", "works"),
        ("`score`, `bias`, `mask`, user functions, `if`, integer and bit operations", "works"),
        ("tensors of any rank and type, gathers of gathers", "works"),
        *((f"reduction `{kind}`", "works") for kind in REDUCTIONS),
        ("softmax with a sink", "works"),
        ("run-time scalars, any lengths, seq_q != seq_kv", "works"),
        ("head dims that differ for qk and v", "works"),
        ("`target` with hints that fit", "works"),
        ("`target` with hints that do not fit", "refused, E403"),
        ("`sparsity`", "refused, E230: its lowering comes later; say it as a `mask`"),
        ("`quantize`", "refused, E231: its lowering comes later"),
    ]
    return "## Features\n\n" + _table(["feature", *(f"`{n}`" for n in TARGETS)], [[f, *([w] * len(TARGETS))] for f, w in rows])


def _refusals() -> str:
    cases = [
        ("head dim 100", example(100, 100)),
        ("head dim 512", example(512, 512)),
        ("element type f32", example(dtype="f32")),
        ("hint tile_m = 100", example(tile_m=100)),
        ("hint tile_n = 256 at head dim 256", example(256, 256, tile_n=256)),
        ("hint stages = 40 at head dim 256", example(256, 256, stages=40)),
    ]
    rows = [[what, *_each(lambda t, a=a: _shown(refuse(a, t)))] for what, a in cases]
    return "## Refusals by example\n\n" + _table(["", *(f"`{n}`" for n in TARGETS)], rows)


def _shown(found: list[Diagnostic]) -> str:
    return "; ".join(f"{d.code}: {d.message}" + (f" ({d.hint})" if d.hint else "") for d in found) or "works"


def _capabilities() -> str:
    rows = [[f"`{c}`", text, *_each(lambda t, c=c: "yes" if t.has(c) else "no")] for c, text in CAPABILITIES.items()]
    return "## What passes ask for\n\n" + _table(["capability", "meaning", *(f"`{n}`" for n in TARGETS)], rows)


def _tiles() -> str:
    rows = []
    for dim_qk, dim_v in DIMS:
        for causal in (False, True):
            a = example(dim_qk, dim_v, causal=causal)
            label = f"{dim_qk}" if dim_qk == dim_v else f"{dim_qk}/{dim_v}"
            rows.append([f"{label} {'causal' if causal else 'full'}", *_each(lambda t, a=a: _tile(a, t))])
    text = "Query rows x keys, computing groups x rows of each, stages of K and V, shared memory, blocks of an SM.\n\n"
    return "## Tiles that the resource model chooses\n\n" + text + _table(["head dim", *(f"`{n}`" for n in TARGETS)], rows)


def _tile(a: Attention, target: Target) -> str:
    t = choose_tiles(a, target)
    size = shared_memory(target, a.dim_qk, a.dim_v, a.dtype, t.tile_m, t.tile_n, t.stages, t.pair)
    resident = resident_blocks(a, target, t)
    return f"{t.tile_m}x{t.tile_n}, {t.groups}x{t.group_rows}, {t.stages}, {size // 1024} KiB, {resident}"


def _rates() -> str:
    rows = [
        ["SMs, clock", *_each(lambda t: f"{t.rates.sms}, {t.rates.clock_ghz} GHz")],
        ["tensor flops a clock and SM", *_each(lambda t: str(t.rates.tensor_flops))],
        ["special function results", *_each(lambda t: str(t.rates.mufu))],
        ["shared memory bytes", *_each(lambda t: str(t.rates.shared_bytes))],
        ["memory, GB/s", *_each(lambda t: f"{t.rates.dram_gbps:g}")],
        ["source", *_each(lambda t: t.rates.source)],
    ]
    return "## Rates of the resource model\n\n" + _table(["", *(f"`{n}`" for n in TARGETS)], rows)


if __name__ == "__main__":
    print(report(), end="")
