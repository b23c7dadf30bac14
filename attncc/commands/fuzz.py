"""attncc fuzz: random specs through every level beside the reference."""

from __future__ import annotations

import sys

import click

from attncc.commands.common import output_folder, seed_option


@click.command("fuzz")
@click.option("--seconds", type=click.FloatRange(min=0), default=60.0, show_default=True, help="how long to search")
@seed_option("the same seed draws the same cases")
@click.option("--target", metavar="NAME", multiple=True, help="run the schedules of this target only; may be repeated")
@click.option(
    "-o", "--output", metavar="DIR", default="fuzz-failures", show_default=True, help="where a failing case is written"
)
def command(seconds, seed, target, output):
    """Search for specs on which interpreters and reference disagree. Exit status 1 when one is found; it is shrunk and written."""
    import torch

    from attncc.fuzz.run import fuzz
    from attncc.targets import get_target

    torch.set_num_threads(1)  # many small tensors: threads would wait for each other
    names = tuple(get_target(t).name for t in target) or None
    with _progress(seconds) as progress:
        found = fuzz(seconds, seed, names, progress)
    click.echo(f"{found.cases} cases, {found.compared} results compared in {found.seconds:.0f} s")
    for (name, reason), count in sorted(found.refusals.items(), key=lambda item: -item[1]):
        click.echo(f"{name} refused {count}: {reason.splitlines()[0]}")
    if found.ok:
        return 0
    from attncc.fuzz.run import write

    click.echo(str(found.finding))
    click.echo(f"written to {write(found.finding, output_folder(output))}")
    return 1


class _progress:
    """A progress bar on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, seconds: float):
        self.seconds, self.last, self.bar = seconds, 0.0, None

    def __enter__(self):
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self.bar = Progress(console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task("fuzzing", total=self.seconds)
        return self.tick

    def tick(self, cases: int, elapsed: float) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=min(elapsed, self.seconds), description=f"{cases} cases")
        elif elapsed - self.last >= 10:
            self.last = elapsed
            print(f"{cases} cases in {elapsed:.0f} s ...", file=sys.stderr, flush=True)

    def __exit__(self, *details):
        if self.bar is not None:
            self.bar.stop()
