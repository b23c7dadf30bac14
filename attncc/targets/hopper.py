"""Hopper: TMA copies, asynchronous warp-group products, register reallocation between roles."""

from attncc.targets.target import NEVER, UNMASKED, Accuracy, Manner, Mma, Rates, RegisterPlan, Target

HOPPER = Target(
    name="hopper",
    title="Hopper (H100, H200)",
    templates="hopper",
    archs=("sm_90a",),
    capabilities=frozenset(
        {
            "cp_async", "tma", "tma_store", "mbarrier", "roles", "async_mma", "mma_shared_operands", "set_registers",
            "named_barriers", "score_blocks", "warp_products",
        }
    ),
    mma=Mma(m=64, warps=4, n_step=8, n_max=256, k=16),
    group_warps=4,
    splits=((1, 64), (2, 64), (3, 64)),
    shared_limit=227 * 1024,
    shared_sm=228 * 1024,
    registers_sm=65536,
    registers_thread=255,
    fragment_limit=((8, 216), (12, 128)),
    register_plans=(RegisterPlan(1, 56, 240), RegisterPlan(2, 24, 240), RegisterPlan(3, 32, 160)),
    max_threads=1024,
    dtypes=("bf16", "f16"),
    dim_step=8,
    dim_max=256,
    dim_padding=32,
    tile_n_step=16,
    tile_n_max=256,
    tile_n_usual=128,
    tile_n_least=64,
    stages=2,
    memory_spaces=("global", "shared", "register"),
    rates=Rates(
        sms=132,
        clock_ghz=1.7,
        tensor_flops=4096,
        mufu=16,
        issue=4,
        issue_share=(0.30, 0.47, 0.49, 0.50),
        shared_bytes=128,
        dram_gbps=3021.0,
        l2_bytes=50 * 2**20,
        tile_cycles=2200.0,
        step_cycles=150.0,
        copy_cycles=800.0,
        tensor_share=0.88,
        source="H100 SXM: unit rates, copy bandwidth and the issue share of attention kernels were measured on the device",
        trusting=(4.0, 55.0),  # 304 instructions for 64 elements of a thread, 223 for 40, counted without the branch that repairs
        fill_bytes=24.0,  # fitted: makes the order of tiles of 128 and 192 rows that was measured; copies alone can be faster (docs/performance-log.md)
    ),
    # H100 at its power limit, TFLOP/s without and with a causal mask (docs/performance-log.md): three groups share each copy of K and V,
    # which takes a third off what moves from the L2 cache, and that is power
    measured=((96, 96, 192, 96, 3), (128, 128, 192, 80, 3), (192, 128, 128, 128, 2), (256, 256, 128, 80, 2)),
    # window of 1024 and documents of 777 at 4096 keys: 509 and 328; 192 x 80 484 and 311, 128 x 128 457 and 290
    measured_windows=((128, 128, 192, 64, 3),),
    manners=(
        # H100, 8192 keys unless said, full and causal, with full tiles that keep their maxima
        Manner(64, 64, 3, turns=True, lazy=False, several=UNMASKED),  # 614 and 540; without turns 578 and 521; s1024 full 414, several 460
        Manner(96, 96, 3, turns=False, lazy=False, several=UNMASKED),  # 678 and 640; with turns 648 and 641; s1024 full 538, several 589
        Manner(128, 128, 2, turns=False, lazy=True, several=NEVER),  # s4096, before: 616 and 555; not lazy 610 and 547
        Manner(128, 128, 3, turns=False, lazy=True, several=UNMASKED),  # s16384: 756 and 718; with turns 751 and 710; s1024 full 620, several 672
        Manner(192, 128, 2, turns=True, lazy=False, several=NEVER),  # 734 and 692; without turns 735 and 683; several 727 and 685
        Manner(256, 256, 2, turns=False, lazy=True, several=NEVER),  # 733 and 685; with turns 732 and 684; several in another run 763 and 734 (762 and 724), causal s1024 301 (473)
    ),
    # docs/predictions.md: nearly all predicted times are too long
    accuracy=Accuracy("NVIDIA H100 80GB HBM3", 25, 0.21, 0.36, "d192/128 full s8192"),
)  # fmt: skip
