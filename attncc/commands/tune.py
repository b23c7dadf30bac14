"""attncc tune: times the resource model's best kernels on this GPU and remembers the fastest."""

from __future__ import annotations

import click

from attncc.commands.common import make_kernel, shape_option, spec_options, step, target_option


@click.command("tune")
@spec_options
@target_option
@shape_option("4x4096x4096")
@click.option("--shapes", type=click.IntRange(1, 64), default=4, show_default=True, help="tiles to try, best first by the resource model")
@click.option("--most", type=click.IntRange(1, 256), default=12, show_default=True, help="kernels to try at most")
@click.option("--rounds", type=click.IntRange(3, 1000), default=15, show_default=True, help="rounds of timing; each kernel in turn in each")
@click.option("--forget", is_flag=True, help="forget what was remembered for FILE on this GPU, and do nothing else")
def command(file, parameters, attention, target, shape, shapes, most, rounds, forget):
    """Time several kernels for the spec FILE on this GPU and remember the fastest.

    Tiles, stages and warp groups are the resource model's best, each in every manner its target knows (groups in turns, lazy
    maxima). A kernel must agree with the float64 reference before it is timed. Later compilations for a GPU of the same
    name take the fastest; ATTNCC_TUNED=off turns that off. Without a GPU the model's ranking is printed and nothing is measured.
    """
    import torch

    from attncc import tune

    kernel = make_kernel(file, parameters, attention, target)
    on_gpu = torch.cuda.is_available()
    chosen = kernel.target_for()
    device = torch.cuda.get_device_name() if on_gpu else None
    if forget:
        return _forget(kernel, chosen, device)
    with step("lowering"):
        found = tune.candidates(kernel.attention, chosen, shape, shapes, most)
    a = kernel.attention
    click.echo(f"{a.name} {shape} (batch x queries x keys), {a.heads_q}/{a.heads_kv} heads, dim {a.dim_qk}/{a.dim_v}, for {chosen.title}")
    if not on_gpu:
        for line in table(found, found[0]):
            click.echo(line)
        click.echo("nothing was measured and nothing is remembered: there is no CUDA device here; times are the resource model's")
        return 0
    with progress(len(found) + rounds) as tick:
        for i, candidate in enumerate(found):
            found[i] = tune.checked(candidate)
            tick(f"compiled and checked {i + 1} of {len(found)}")
        counted = [0]

        def one() -> None:
            counted[0] += 1
            if counted[0] > 3 and counted[0] % 5 == 3:  # three warm-up calls, then five calls a round
                tick("timing")

        found = tune.timed(found, shape, rounds, one)
    winner = tune.best(found)
    for line in table(found, winner):
        click.echo(line)
    if winner is None:
        click.echo("error: no kernel is right", err=True)
        return 1
    kept = tune.remember(winner, found[0], device)
    what = "what is compiled without tuning" if winner is found[0] else str(winner.choice)
    click.echo(f"fastest    {what}; {'remembered' if kept else 'not remembered, there is no cache,'} for {device}")
    return 0


def table(found, winner) -> list[str]:
    """A line for each candidate: what was chosen, the predicted time, and the measured one or what failed."""
    width = max(len(str(c.choice)) for c in found)
    lines = []
    for c in found:
        predicted = f"predicted {1e6 * c.predicted.seconds:8.1f} us"
        measured = f"   {'measured ' + format(1e3 * c.ms, '8.1f') + ' us, spread ' + format(100 * c.spread, '.1f') + ' %' if c.ms else c.failed or ''}"
        lines.append(f"{'*' if c is winner else ' '} {c.choice!s:{width}}  {predicted}{measured}".rstrip())
    return lines


def _forget(kernel, target, device: str | None) -> int:
    from attncc.runtime import tuned

    if device is None:
        click.echo("nothing to forget: choices belong to a GPU, and there is none here")
        return 0
    tuned.remember(kernel.digest, target.name, device, None)
    click.echo(f"forgotten for {device}")
    return 0


class progress:
    """A bar on a terminal; elsewhere a line for each step."""

    def __init__(self, steps: int):
        self.steps, self.bar = steps, None

    def __enter__(self):
        import sys

        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self.bar = Progress(console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task("compiling", total=self.steps)
        return self.tick

    def tick(self, text: str) -> None:
        import sys

        if self.bar is not None:
            self.bar.update(self.task, advance=1, description=text)
        elif not text.startswith("timing"):
            print(f"{text} ...", file=sys.stderr, flush=True)

    def __exit__(self, *details):
        if self.bar is not None:
            self.bar.stop()
