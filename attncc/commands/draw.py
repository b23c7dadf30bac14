"""attncc draw: the mask, its tile classes and the schedule as a picture."""

from __future__ import annotations

import click

from attncc.commands.common import make_kernel, output_file, shape_option, spec_options, step, target_option, write


@click.command("draw")
@spec_options
@target_option
@click.option("-o", "--output", metavar="FILE.svg", default="mask.svg", show_default=True)
@shape_option()
@click.option("--batch", default=0, show_default=True, help="which batch entry")
@click.option("--head", default=0, show_default=True, help="which query head")
def command(file, parameters, attention, target, output, shape, batch, head):
    """Draw the spec FILE: what its mask keeps, which key tiles are skipped, full or partial, and the roles over time."""
    path = output_file(output, ".svg", (file,))
    stages = make_kernel(file, parameters, attention, target).stages()
    with step(f"drawing {stages.attention.name}"):
        from attncc.draw import draw

        picture = draw(stages, shape, batch, head)
    write(path, picture)
    click.echo(path)
