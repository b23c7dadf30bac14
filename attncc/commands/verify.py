"""attncc verify: kernels against the float64 reference on this machine's GPU."""

from __future__ import annotations

import json
import os
import sys

import click

from attncc.commands.common import output_file, write
from attncc.diagnostics import fail


@click.command("verify")
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "--target", "targets", metavar="NAMES", help="targets, separated by commas (default: all that run on the GPU)"
)
@click.option("--json", "output", metavar="FILE.json", help="write every case here")
@click.option("--markdown", "page", metavar="FILE.md", help="write the table here")
@click.option(
    "--jobs",
    "count",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default=True,
    help="processes that compile",
)
@click.option("--runners", type=click.IntRange(1), default=2, show_default=True, help="processes that run kernels")
@click.option("--timeout", type=click.FloatRange(1), default=120.0, show_default=True, help="seconds for one kernel")
@click.option("--quick", is_flag=True, help="one head group for each spec")
@click.option("--compile-only", is_flag=True, help="stop after compiling; needs no GPU")
def command(paths, targets, output, page, count, runners, timeout, quick, compile_only):
    """Compile the specs at PATHS (files or directories) for every target, run them on the GPU with poisoned outputs, ragged
    lengths and groups of 1, 4 and 7 heads, and compare with the float64 reference.

    A result may be off by twice the error of the eager computation in the same type, plus 1e-5, and single elements by what one
    rounding of each weight and of the result makes. Every kernel is compiled and run in a process of its own pool: one that crashes
    or hangs is reported and the rest goes on. Exit status 1 when one is not right.
    """
    from attncc.verify.jobs import jobs, spec_files
    from attncc.verify.table import counts, lines, markdown, outcome
    from attncc.verify.workers import run_all

    path = output_file(output, ".json") if output else None
    page = output_file(page, ".md") if page else None
    files, device = spec_files(paths), device_text(compile_only)
    names = [t.strip() for t in targets.split(",") if t.strip()] if targets else usable(compile_only)
    work = jobs(files, names, quick, chips(names, compile_only))
    click.echo(f"{len(work)} kernels on {device}")
    compiled = run_all(work, "compile", count, timeout, _ticker("compiled", len(work)))
    ready = [j for j, a in zip(work, compiled) if a.get("ok")]
    ran = {} if compile_only else dict(zip(ready, run_all(ready, "run", runners, timeout, _ticker("ran", len(ready)))))
    rows = [outcome(job, ran.get(job, answer)) for job, answer in zip(work, compiled)]
    for line in lines(rows):
        click.echo(line)
    found = counts(rows)
    click.echo(", ".join(f"{n} {kind}" for kind, n in found.items()) + f" of {len(rows)} kernels")
    if page:
        write(page, markdown(rows, {"device": device, **versions()}))
    if path:
        write(path, json.dumps({"device": device, **versions(), "rows": rows}, indent=1) + "\n")
    return 0 if not found["wrong"] and not found["failed"] else 1


def device_text(compile_only: bool) -> str:
    """The GPU's name; E606 without one."""
    import torch

    if compile_only:
        return "no device (compiled only)"
    if not torch.cuda.is_available():
        raise fail("E606", "there is no CUDA device", hint="--compile-only compiles every kernel without one")
    return torch.cuda.get_device_name()


def usable(compile_only: bool) -> list[str]:
    """The targets that run on the GPU that is there; all of them when nothing is run."""
    import torch

    from attncc.runtime.kernel import chip_for, device_arch
    from attncc.targets import TARGETS

    arch = None if compile_only else device_arch(torch.device("cuda"))
    return [name for name, target in TARGETS.items() if arch is None or chip_for(target, arch)]


def chips(names: list[str], compile_only: bool) -> dict[str, str]:
    """For each target, what to compile for: the chip of the GPU that is there, or the target's usual one. E331."""
    import torch

    from attncc.runtime.kernel import chip_for, device_arch
    from attncc.targets import get_target

    found = {}
    for name in names:
        target = get_target(name)
        found[name] = target.archs[0] if compile_only else chip_for(target, device_arch(torch.device("cuda")))
        if found[name] is None:
            raise fail("E331", f"target `{name}` does not run on {torch.cuda.get_device_name()}")
    return found


def versions() -> dict[str, str]:
    """Date and versions, for the record."""
    import datetime

    from attncc.commands.bundle import PACKAGES, version

    return {"date": datetime.date.today().isoformat(), **{p: version(p) for p in PACKAGES}}


def _ticker(what: str, total: int):
    """Progress on stderr: every job on a terminal, every tenth elsewhere; failures always."""
    state = {"n": 0}

    def tick(job, answer) -> None:
        state["n"] += 1
        if not answer.get("ok") and "refused" not in answer:
            print(f"{job.title}: {answer.get('error')}", file=sys.stderr, flush=True)
        if sys.stderr.isatty() or state["n"] % 10 == 0 or state["n"] == total:
            print(f"{what} {state['n']} of {total}: {job.title}", file=sys.stderr, flush=True)

    return tick
