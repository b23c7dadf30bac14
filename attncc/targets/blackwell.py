"""Data-centre Blackwell: products into tensor memory, issued by one warp for all; TMA copies; register reallocation."""

from attncc.targets.target import Mma, Rates, RegisterPlan, Target

BLACKWELL = Target(
    name="blackwell",
    title="Blackwell (B200, GB200, B300)",
    templates="blackwell",
    archs=("sm_100a", "sm_103a"),
    capabilities=frozenset(
        {
            "cp_async", "tma", "tma_store", "mbarrier", "roles", "async_mma", "mma_shared_operands", "set_registers",
            "named_barriers", "tensor_memory", "packed_arithmetic", "mma_pairs",
        }
    ),
    mma=Mma(m=128, warps=4, n_step=16, n_max=256, k=16),
    group_warps=4,
    splits=((1, 128), (2, 128)),
    shared_limit=226 * 1024,  # of 227 KiB; barriers take a piece of the first, and buffers begin at multiples of one
    shared_sm=228 * 1024,
    registers_sm=65536,
    registers_thread=255,
    fragment_limit=((4, 216), (8, 192)),
    register_plans=(
        RegisterPlan(1, 48, 240, 160), RegisterPlan(2, 48, 192, 80),
        RegisterPlan(1, 48, 248, 128, corrects=False), RegisterPlan(2, 48, 208, 48, corrects=False),
    ),
    max_threads=1024,
    dtypes=("bf16", "f16"),
    dim_step=8,
    dim_max=256,
    dim_padding=32,
    tile_n_step=32,
    tile_n_max=128,
    tile_n_usual=128,
    tile_n_least=64,
    stages=3,
    memory_spaces=("global", "shared", "register", "tensor"),
    tensor_columns=512,
    rates=Rates(
        sms=148,
        clock_ghz=1.85,
        tensor_flops=8192,
        mufu=16,
        issue=4,
        issue_share=(0.45, 0.60, 0.65, 0.70),
        shared_bytes=128,
        dram_gbps=7700.0,
        l2_bytes=126 * 2**20,
        tile_cycles=2500.0,
        step_cycles=100.0,
        copy_cycles=900.0,
        tensor_share=0.90,
        several_share=0.8 / 1.8,  # iterations that a query tile costs beside its own, one tile and several to a block
        element_instructions=3.0,
        loop_instructions=60.0,
        source="B200 data sheet and NVIDIA's CUDA programming guide; shares are estimates: nothing was measured on the device; "
        "several tiles a block leave 0.8 of 1.8 iterations, figures for kernels of this kind on the chip before",
    ),
    published=(
        ("FlashAttention-4 on B200, d128 bf16, the best of its paper", 1605.0),
        ("FlashAttention-4 on B200 divided by its 1.3 over cuDNN 9.13", 1235.0),
    ),
)  # fmt: skip
