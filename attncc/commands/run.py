"""attncc run: compiles a spec and runs it on generated data."""

from __future__ import annotations

import click

from attncc.commands.common import make_kernel, output_file, seed_option, shape_option, spec_options, step, target_option
from attncc.diagnostics import fail

MAX_SCORES = 2**28
"""Scores of a call that the CPU takes on: the dense reference needs about 40 bytes for each, the interpreter about 0.2 us."""
BLOCKS = 4
"""Thread blocks that --emulate runs where no shape is asked for: seconds each, and an attention may have many heads."""


@click.command("run")
@spec_options
@target_option
@shape_option()
@seed_option()
@click.option("--emulate", is_flag=True, help="run the compiled device code in the PTX emulator, without a GPU")
@click.option("--blocks", metavar="N", type=click.IntRange(0), help="with --emulate: run so many thread blocks only, drawn by the seed; 0 runs all (default: 4, and all with --shape)")
@click.option("--trace", metavar="FILE.json", help="with --emulate: write a Perfetto trace to this file")
def command(file, parameters, attention, target, shape, seed, emulate, blocks, trace):
    """Compile the spec FILE for the GPU that is there and run it on generated data.

    Without a GPU the CPU interpreter of the same tile program runs, and the kernel of the best target is emitted and
    cross-compiled. Exit status 1 when the result is further from the float64 reference than it may be.
    """
    import torch

    from attncc.explain import Shape
    from attncc.measure import CheckResult, measure

    if emulate:
        trace = trace and str(output_file(trace, ".json", (file,)))
        blocks = (0 if shape else BLOCKS) if blocks is None else blocks
        return _emulate(make_kernel(file, parameters, attention, target), shape or Shape(1, 128, 128), seed, blocks or None, trace)
    if trace or blocks is not None:
        raise click.UsageError(f"{'--trace' if trace else '--blocks'} needs --emulate")
    on_gpu = torch.cuda.is_available()
    kernel = make_kernel(file, parameters, attention, target)
    a = kernel.attention
    click.echo(
        f"{a.name}: {a.heads_q} query heads, {a.heads_kv} key/value heads, dim {a.dim_qk}/{a.dim_v}, {a.dtype}, {a.reduction.kind}"
    )
    if on_gpu:
        small, timed = shape or Shape(2, 333, 333), shape or Shape(4, 4096, 4096)
        where = torch.cuda.get_device_name()
    else:
        small, timed = shape or Shape(1, 160, 160), None
        where = "the CPU interpreter of the tile program"
        _affordable(kernel.attention, small)
        _interpret(kernel)
    with step(f"running on {where}"):
        result: CheckResult = measure(kernel, small, seed, "cuda" if on_gpu else "cpu")
    click.echo(f"ran on     {where}, target {kernel.stages().target.name}")
    click.echo(f"shapes     q {result.shapes[0]}, k {result.shapes[1]}, v {result.shapes[2]}")
    click.echo(f"time       {_time(result, on_gpu)}")
    click.echo(f"error      {result.error:.2e} against the float64 reference, allowed {result.allowed:.2e}")
    if timed and timed != small:
        _timing(kernel, timed, seed)
    if on_gpu:
        click.echo(f"kernel     {kernel.path}")
    else:
        _cross_compile(kernel)
    if not result.ok:
        click.echo("error: the result is not what the reference says", err=True)
        return 1
    return 0


def _emulate(kernel, shape, seed: int, blocks: int | None, trace: str | None) -> int:
    """Runs the device code in the emulator, `blocks` thread blocks of it: its findings, and the error of the rows that were written.
    Exit status 1 for either."""
    from attncc.accuracy import LSE_ALLOWED
    from attncc.emulator.findings import summary
    from attncc.measure import measure_written
    from attncc.runtime.emulated import emulate_calls

    _affordable(kernel.attention, shape)
    if 0 in (shape.batch, shape.seq_q, shape.seq_kv):
        click.echo(f"emulated   nothing: a call of {shape} launches no kernel")
        return 0
    with step("compiling"):
        results = emulate_calls(kernel, trace=trace, clusters=blocks, seeds=(seed,))
    with step("emulating"):
        result, rows = measure_written(kernel, shape, seed, whole=blocks is None)
    findings = results[0].findings
    click.echo(
        f"emulated   target {kernel.stages().target.name}, {results[0].steps} warp instructions, {results[0].seconds:.1f} s"
    )
    click.echo(f"shapes     q {result.shapes[0]}, k {result.shapes[1]}, v {result.shapes[2]}")
    if blocks is not None:
        click.echo(f"blocks     at most {blocks} thread blocks, which wrote {rows} rows (--blocks 0 runs all)")
    click.echo(f"error      {result.error:.2e} against the float64 reference, allowed {result.allowed:.2e}")
    if kernel.has_lse:
        click.echo(f"lse        {result.lse_error:.2e} of 1 + |lse|, allowed {LSE_ALLOWED:.2e}")
    click.echo(f"findings   {len(results[0].errors)} errors, {len(findings) - len(results[0].errors)} warnings")
    if findings:
        click.echo(summary(findings))
    if not result.ok or not results[0].ok:
        wrong = "the result is not what the reference says" if results[0].ok else "the emulator does not accept the kernel"
        click.echo(f"error: {result.bad or wrong}", err=True)
        return 1
    return 0


def _time(result, on_gpu: bool) -> str:
    if not on_gpu:
        return f"{result.seconds:.2f} s (an interpreter: this says nothing about a GPU)"
    return f"{1e6 * result.seconds:.1f} us, {result.flops / result.seconds / 1e12:.1f} TFLOP/s"


def _timing(kernel, shape, seed: int) -> None:
    """A second run at a size where a GPU has enough to do."""
    from attncc.measure import time_kernel

    with step("timing"):
        result = time_kernel(kernel, shape, seed)
    click.echo(f"shapes     q {result.shapes[0]}, k {result.shapes[1]}, v {result.shapes[2]}")
    click.echo(f"time       {_time(result, True)}")


def _affordable(attention, shape) -> None:
    """E604 where the dense reference would not fit in memory, or the interpreter would not come to an end."""
    scores = shape.batch * attention.heads_q * shape.seq_q * shape.seq_kv
    if scores > MAX_SCORES:
        message = f"{shape} with {attention.heads_q} heads has {scores} scores; at most {MAX_SCORES} are computed on the CPU"
        raise fail("E604", message, hint="give a smaller --shape")


def _interpret(kernel) -> None:
    """From now on the interpreter runs the tile program of the kernel's target, though that was named."""
    from attncc.runtime.call import Caller
    from attncc.runtime.launch import cpu_launcher

    launcher = cpu_launcher(kernel.stages().tile)
    kernel.caller = Caller(kernel.attention, lambda device: launcher)


def _cross_compile(kernel) -> None:
    """Emits and compiles the device kernel though no device is here."""
    from attncc.runtime.artifacts import artifacts

    chosen = kernel.stages().target
    chip = chosen.archs[0]
    with step(f"cross-compiling for {chosen.title}, {chip}"):
        made = artifacts(kernel, chip)
    for used in made.report["kernels"].values():
        spills = f"a stack frame of {used['frame']} bytes" if used["frame"] else "no spills"
        click.echo(
            f"compiled   for {chosen.title}, {chip}: {used['registers']} registers, {spills}, {used['code']} bytes of code"
        )
    click.echo(f"kernel     {kernel.path}")
