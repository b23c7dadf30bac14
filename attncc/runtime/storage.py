"""Element formats as torch and CuTe DSL name them."""

from __future__ import annotations

import torch

TORCH_DTYPES: dict[str, torch.dtype] = {
    "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64,
    "i8": torch.int8, "u8": torch.uint8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64, "bool": torch.bool,
}  # fmt: skip

CUTE_DTYPES: dict[str, str] = {
    "f16": "Float16", "bf16": "BFloat16", "f32": "Float32", "f64": "Float64",
    "i8": "Int8", "u8": "Uint8", "i16": "Int16", "i32": "Int32", "i64": "Int64", "bool": "Uint8",
    "int": "Int32", "float": "Float32",
    "Int32": "Int32", "Float32": "Float32", "Boolean": "Int32",
}  # fmt: skip
"""A bool tensor is passed as bytes; a bool scalar or summary as a 32-bit integer."""

ALIGNMENT = 16
"""Bytes to which q, k, v, o and their rows are aligned: what one vector copy moves."""


def spell(dtype: torch.dtype) -> str:
    """`bf16 (torch.bfloat16)`, or the torch name alone for a type that attncc does not know."""
    short = next((s for s, d in TORCH_DTYPES.items() if d == dtype), None)
    return f"{short} ({dtype})" if short else str(dtype)
