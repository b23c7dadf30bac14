"""attncc compile: the generated kernel and what the compiler makes of it, as files. Needs no GPU."""

from __future__ import annotations

import json

import click

from attncc.commands.common import make_kernel, output_folder, spec_options, step, write


@click.command("compile")
@spec_options
@click.option("--target", metavar="NAME", help="the target (default: the spec's, the GPU's, or the best one)")
@click.option("--chip", metavar="NAME", help="the architecture to compile for (default: the target's usual one)")
@click.option("-o", "--output", metavar="DIR", default=".", show_default=True, help="where the files go")
@click.option("--dump", is_flag=True, help="also write every level and the program after every pass")
def command(file, parameters, attention, target, chip, output, dump):
    """Compile the spec FILE: writes NAME.py, NAME.ptx, NAME.cubin and NAME.json (resources) to DIR."""
    from attncc.runtime.artifacts import artifacts
    from attncc.targets import check_chip

    kernel = make_kernel(file, parameters, attention, target)
    folder = output_folder(output)
    chosen = kernel.stages().target
    chip = check_chip(chosen, chip)
    with step(f"compiling {kernel.attention.name} for {chosen.title}, {chip}"):
        made = artifacts(kernel, chip)
    stem = f"{kernel.attention.name}_{chosen.name}"
    contents = {
        f"{stem}.py": made.source,
        f"{stem}.ptx": made.ptx,
        f"{stem}.cubin": made.cubin,
        f"{stem}.json": json.dumps(made.report, indent=2) + "\n",
    }
    for name, data in contents.items():
        write(folder / name, data)
        click.echo(folder / name)
    if dump:
        for path in kernel.dump(folder / f"{stem}_dump"):
            click.echo(path)
    for number, used in enumerate(made.report["kernels"].values(), 1):
        spilled = f", stack frame of {used['frame']} bytes (spills)" if used["frame"] else ", no spills"
        click.echo(f"kernel {number}: {used['registers']} registers{spilled}, {used['code']} bytes of code")
