"""attncc bench: the kernel's time beside the peers that are installed and can express it."""

from __future__ import annotations

import json

import click

from attncc.commands.common import make_kernel, output_file, parse_parameters, shape_option, spec_options, step, write
from attncc.diagnostics import did_you_mean, fail


@click.command("bench")
@spec_options
@click.option("--target", "targets", metavar="NAMES", help="targets to time, separated by commas (default: the GPU's)")
@click.option("--peers", "names", metavar="NAMES", help="peers, separated by commas (default: all)")
@shape_option("4x4096x4096")
@click.option("--seed", default=0, show_default=True, help="of the generated data")
@click.option("--json", "output", metavar="FILE.json", help="write the rows here too")
def command(file, parameters, attention, targets, names, shape, seed, output):
    """Time the spec FILE on this GPU, interleaved with FA4, cuDNN, FlashAttention-2 and FlexAttention where they can do it."""
    path = output_file(output, ".json") if output else None
    parse_parameters(parameters)
    peers = _peers(names)
    kernels = {}
    for target in targets.split(",") if targets else [None]:
        kernel = make_kernel(file, parameters, attention, target)
        kernels[f"attncc {target or kernel.stages().target.name}"] = kernel
    device = _device()
    from attncc.bench.run import as_json, bench, table
    from attncc.commands.verify import versions

    case = f"{kernel.attention.name} {shape}"
    with step(f"timing {case} on {device}"):
        rows = bench(case, kernels, shape, peers, seed)
    a = kernel.attention
    click.echo(
        f"{case} (batch x queries x keys), {a.heads_q}/{a.heads_kv} heads, dim {a.dim_qk}/{a.dim_v}, {a.dtype}, on {device}"
    )
    for line in table(rows):
        click.echo(line)
    if path:
        write(path, json.dumps({"device": device, **versions(), "rows": as_json(rows)}, indent=1) + "\n")


def _peers(names: str | None) -> tuple[str, ...]:
    from attncc.bench.peers import PEERS

    chosen = tuple(n.strip() for n in names.split(",") if n.strip()) if names is not None else tuple(PEERS)
    for name in chosen:
        if name not in PEERS:
            raise fail(
                "E607",
                f"there is no peer `{name}`",
                hint=did_you_mean(name, PEERS) or f"the peers are {', '.join(PEERS)}",
            )
    return chosen


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        raise fail("E606", "there is no CUDA device to time on", hint="`attncc explain` estimates without one")
    return torch.cuda.get_device_name()
