"""Importing this module registers every instruction handler."""

from attncc.emulator import (  # noqa: F401
    ops_bulk,
    ops_control,
    ops_convert,
    ops_cpasync,
    ops_float,
    ops_half,
    ops_int,
    ops_mem,
    ops_mma,
    ops_sync,
    ops_tcgen05,
    ops_tcgen05_mma,
    ops_tcgen05_scale,
    ops_warp,
    ops_wgmma,
)
