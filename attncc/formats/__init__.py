"""Storage formats: how an element lies in memory, and what other software calls it. One value for each format.

No torch or cutlass is imported here; their types are named by text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One element format. `torch_name` and `cutlass_name` are attributes of those modules.

    `mantissa` counts the explicit fraction bits (0 for integers); `largest` is the greatest finite value.
    """

    name: str
    bits: int
    kind: str
    mantissa: int
    largest: float
    torch_name: str
    cutlass_name: str

    def __post_init__(self):
        if self.kind not in ("float", "int", "bool"):
            raise ValueError(f"format {self.name}: kind is {self.kind!r}, expected float, int or bool")
        if self.bits % 8:
            raise ValueError(f"format {self.name}: {self.bits} bits is not a whole number of bytes")

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def epsilon(self) -> float:
        """Distance from 1.0 to the next value; 0 for integers."""
        return 2.0**-self.mantissa if self.kind == "float" else 0.0


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("bf16", 16, "float", 7, float.fromhex("0x1.fep127"), "bfloat16", "BFloat16"),
        Format("f16", 16, "float", 10, 65504.0, "float16", "Float16"),
        Format("f32", 32, "float", 23, float.fromhex("0x1.fffffep127"), "float32", "Float32"),
        Format("f64", 64, "float", 52, float.fromhex("0x1.fffffffffffffp1023"), "float64", "Float64"),
        Format("i8", 8, "int", 0, 2.0**7 - 1, "int8", "Int8"),
        Format("u8", 8, "int", 0, 2.0**8 - 1, "uint8", "Uint8"),
        Format("i16", 16, "int", 0, 2.0**15 - 1, "int16", "Int16"),
        Format("i32", 32, "int", 0, 2.0**31 - 1, "int32", "Int32"),
        Format("i64", 64, "int", 0, 2.0**63 - 1, "int64", "Int64"),
        Format("bool", 8, "bool", 0, 1.0, "bool", "Uint8"),
    )
}
"""Every format a tensor may have; a boolean is a byte."""


def bytes_of(name: str) -> int:
    """Bytes of one element of format `name`."""
    return FORMATS[name].bytes
