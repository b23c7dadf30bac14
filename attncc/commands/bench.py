"""attncc bench: the kernel's time beside the peers that are installed and can express it."""

from __future__ import annotations

import json

import click

from attncc.commands.common import make_kernel, output_file, parse_parameters, seed_option, shape_option, spec_choices, step, write
from attncc.diagnostics import did_you_mean, fail


@click.command("bench")
@click.argument("file", type=str, required=False)
@spec_choices
@click.option("--suite", metavar="NAME", help="time the cases that benchmarks/NAME.json (or the file NAME.json) lists, instead of FILE")
@click.option("--target", "targets", metavar="NAMES", help="targets to time, separated by commas (default: the GPU's)")
@click.option("--peers", "names", metavar="NAMES", help="peers, separated by commas (default: all)")
@shape_option("4x4096x4096")
@click.option("--lengths", metavar="LENGTHS", help="packed sequences in place of --shape, for example 777x21,67: 21 of 777 and one of 67")
@seed_option()
@click.option("--json", "output", metavar="FILE.json", help="write the rows here too")
def command(file, parameters, attention, suite, targets, names, shape, lengths, seed, output):
    """Time the spec FILE on this GPU, interleaved with FA3, FA4, cuDNN, FlashAttention-2 and FlexAttention where they can do it."""
    path = output_file(output, ".json") if output else None
    if (file is None) == (suite is None):
        raise fail("E609", "give either a spec FILE or --suite NAME", hint="for example `attncc bench --suite peers`")
    peers = _peers(names)
    packed = _lengths(lengths)
    if suite is not None:
        _run_suite(suite, targets, peers, seed, path)
        return
    parse_parameters(parameters)
    kernels = {}
    for target in targets.split(",") if targets else [None]:
        kernel = make_kernel(file, parameters, attention, target)
        kernels[f"attncc {target or kernel.stages().target.name}"] = kernel
    device = _device()
    from attncc.bench.run import as_json, bench, table
    from attncc.commands.verify import versions

    case = f"{kernel.attention.name} {lengths if packed else shape}"
    with step(f"timing {case} on {device}"):
        rows = bench(case, kernels, shape, peers, seed, lengths=packed)
    a = kernel.attention
    click.echo(
        f"{case} ({'packed' if packed else 'batch x queries x keys'}), {a.heads_q}/{a.heads_kv} heads, dim {a.dim_qk}/{a.dim_v}, {a.dtype}, on {device}"
    )
    for line in table(rows):
        click.echo(line)
    if path:
        write(path, json.dumps({"device": device, **versions(), "rows": as_json(rows)}, indent=1) + "\n")


def _run_suite(name: str, targets: str | None, peers: tuple[str, ...], seed: int, path) -> None:
    """Times every case of a suite; the file is written after each, so that nothing measured is lost."""
    from attncc import entry
    from attncc.bench import suite

    cases = suite.read(name)
    device = _device()
    from attncc.bench.run import as_json, bench
    from attncc.commands.verify import versions

    rows: list[dict] = []
    for number, case in enumerate(cases, 1):
        kernels = {}
        for target in targets.split(",") if targets else case.targets or (None,):
            kernel = entry.compile(case.file, target=target, **case.parameters)
            kernels[f"attncc {target or kernel.stages().target.name}"] = kernel
        with step(f"{number} of {len(cases)}: {case.name}"):
            rows += as_json(bench(case.name, kernels, case.shape, [p for p in case.peers or peers if p in peers], seed, lengths=case.lengths))
        if path:
            write(path, json.dumps({"device": device, **versions(), "rows": rows}, indent=1) + "\n")
    for line in suite.lines(rows):
        click.echo(line)


def _lengths(text: str | None) -> tuple[int, ...]:
    from attncc.bench.suite import parse_lengths

    try:
        return parse_lengths(text) if text is not None else ()
    except ValueError:
        hint = "lengths separated by commas, each with x and how many there are of it, for example 777x21,67"
        raise fail("E610", f"{text!r} is no list of lengths", argument="--lengths", hint=hint) from None


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
