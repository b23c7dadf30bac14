"""A CPU emulator for the PTX that CuTe DSL emits: executes, checks and explains (see docs/emulator.md)."""

from attncc.emulator.api import EmulationError, Result, emulate
from attncc.emulator.artifacts import keep_ptx
from attncc.emulator.findings import Finding

__all__ = ["EmulationError", "Finding", "Result", "emulate", "keep_ptx"]
