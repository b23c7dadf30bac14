"""The mma.sync family: cp.async copies and synchronous products by each warp. One code path, several sets of limits."""

from dataclasses import replace

from attncc.targets.target import Mma, Rates, Target

AMPERE = Target(
    name="ampere",
    title="Ampere (A100); its code also runs on Hopper",
    templates="ampere",
    archs=("sm_80", "sm_87", "sm_90", "sm_90a"),
    capabilities=frozenset({"cp_async", "named_barriers"}),
    mma=Mma(m=16, warps=1, n_step=8, n_max=256, k=16),
    group_warps=1,
    splits=((4, 32), (4, 16), (8, 16)),
    shared_limit=163 * 1024,
    shared_sm=164 * 1024,
    registers_sm=65536,
    registers_thread=255,
    fragment_limit=((4, 232), (8, 232)),
    register_plans=(),
    max_threads=1024,
    dtypes=("bf16", "f16"),
    dim_step=8,
    dim_max=256,
    dim_padding=32,
    tile_n_step=16,
    tile_n_max=128,
    tile_n_usual=128,
    tile_n_least=32,
    stages=1,
    memory_spaces=("global", "shared", "register"),
    rates=Rates(
        sms=108,
        clock_ghz=1.41,
        tensor_flops=2048,
        mufu=16,
        issue=4,
        issue_share=(0.45, 0.60, 0.65, 0.70),
        shared_bytes=128,
        dram_gbps=1940.0,
        l2_bytes=40 * 2**20,
        tile_cycles=2000.0,
        step_cycles=300.0,
        copy_cycles=700.0,
        tensor_share=0.75,
        source="A100 SXM data sheet and NVIDIA's CUDA programming guide; shares are estimates, not measured",
    ),
    # on an H200, where two such blocks share an SM: 347 TFLOP/s, 343 with 128 rows and 8 warps, 333 with 96 keys
    # head dims 192 and 128: not measured, but 32 rows for a warp spill, and two such blocks share an SM of an A100
    measured=((256, 256, 64, 64, 4), (192, 128, 64, 64, 4)),
)

ADA = replace(
    AMPERE,
    name="ada",
    title="small shared memory: GeForce and workstation Ampere, Ada, consumer Blackwell",
    archs=("sm_89", "sm_86", "sm_120a", "sm_120", "sm_121a"),
    shared_limit=99 * 1024,
    shared_sm=100 * 1024,
    rates=replace(
        AMPERE.rates,
        sms=142,
        clock_ghz=2.3,
        tensor_flops=1024,
        dram_gbps=864.0,
        l2_bytes=96 * 2**20,
        source="L40S data sheet and NVIDIA's CUDA programming guide; shares are estimates, not measured",
    ),
)
