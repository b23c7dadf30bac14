"""attncc check: reads a spec and says what is wrong with it."""

from __future__ import annotations

import click

from attncc.commands.common import load_spec, spec_options, target_option


@click.command("check")
@spec_options
@target_option
def command(file, parameters, attention, target):
    """Report what is wrong in the spec FILE. With --target, or a target in the text, also whether that target can do it.

    Exit status 0 when nothing is wrong, 1 otherwise.
    """
    made = load_spec(file, parameters, attention)
    target = target or made.target.name
    if target:
        from attncc.driver import lower
        from attncc.targets import get_target

        lower(made, get_target(target, made.target.span))
    dims = made.dim_qk if made.dim_qk == made.dim_v else f"{made.dim_qk}/{made.dim_v}"
    click.echo(
        f"{file}: ok: {made.name}, {made.heads_q}/{made.heads_kv} heads, dim {dims}, {made.dtype}, {made.reduction.kind}"
    )
