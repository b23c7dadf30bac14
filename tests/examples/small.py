"""Every example with parameters so small that short sequences have empty, full and partial tiles."""

from __future__ import annotations

from pathlib import Path

from attncc.lower.tree_to_attention import select
from attncc.syntax import parse

FOLDER = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.attn"))
NAMES = [path.stem for path in EXAMPLES]
HEADS = {1: (2, 2), 4: (4, 1), 7: (7, 1)}
"""Group size -> (query heads, key/value heads)."""

SMALL: dict[str, dict[str, object]] = {
    "alibi_window_softcap": {"window": 70},
    "bigbird": {"block": 24, "random": 2},
    "block_causal_video": {"frame": 48},
    "document_windows": {"documents": 5, "window": 20},
    "duo_attention": {"recent": 40, "count": 5},
    "flamingo": {"latents": 40},
    "gemma2_local": {"window": 70},
    "gpt_oss": {"window": 64},
    "graphormer": {"distances": 6},
    "hstu": {"reach": 30, "buckets": 16},
    "llama4_chunked": {"chunk": 96},
    "longformer": {"reach": 33, "count": 3},
    "longformer_dilated": {"keys": 30, "step": 3},
    "mistral_7b": {"window": 70},
    "natten_1d": {"kernel": 20, "stride": 3},
    "natten_2d": {"height": 12, "width": 20, "kernel": 5},
    "natten_3d": {"depth": 4, "height": 6, "width": 10, "kernel": 3},
    "packed_documents": {"documents": 5},
    "relative_positions": {"reach": 20},
    "s2_attention": {"window": 30, "block": 16, "stride": 3},
    "sandwich": {"width": 8},
    "shared_prefix": {"requests": 3},
    "sliding_tile_video": {"tiles_d": 3, "tiles_h": 2, "tiles_w": 3, "tile": 14},
    "streaming_llm": {"window": 60, "count": 4},
    "swin": {"window": 15, "windows": 2},
    "t5_decoder": {"buckets": 8},
    "t5_encoder": {"buckets": 8, "max_distance": 40},
}
"""Values of the parameters that are lengths; heads come from the group size."""


def parameters(path: Path, group: int) -> dict[str, object]:
    """The small values of an example's parameters, with that many query heads to a key/value head."""
    declared = [p.name for p in select(parse(path.read_text(encoding="utf-8"), path.name), None).parameters]
    q, kv = HEADS[group]
    heads = {"q_heads": q, "kv_heads": kv}
    return {**{n: v for n, v in heads.items() if n in declared}, **SMALL.get(path.stem, {})}
