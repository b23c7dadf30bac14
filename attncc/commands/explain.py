"""attncc explain: IR texts and the report of what was done and what limits the kernel."""

from __future__ import annotations

import click

from attncc.commands.common import make_kernel, shape_option, spec_options, target_option


@click.command("explain")
@spec_options
@target_option
@click.option("--stage", metavar="L1|L2|L3|kernel", help="print the text of that level instead of the report")
@shape_option("1x4096x4096")
def command(file, parameters, attention, target, stage, shape):
    """Explain how the spec FILE is compiled: what each pass did, tile classes, bytes, flops, the limiting unit."""
    from attncc.explain import explain

    click.echo(explain(make_kernel(file, parameters, attention, target).stages(), stage, shape))
