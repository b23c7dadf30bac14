"""attncc explain: IR texts and the report of what was done and what limits the kernel."""

from __future__ import annotations

import click

from attncc.commands.common import make_kernel, shape_option, spec_options, step, target_option


@click.command("explain")
@spec_options
@target_option
@click.option("--stage", metavar="L1|L2|L3|kernel", help="print the text of that level instead of the report")
@shape_option("1x4096x4096")
def command(file, parameters, attention, target, stage, shape):
    """Explain how the spec FILE is compiled: what each pass did, tile classes, bytes, flops, the limiting unit. On a GPU of the target the
    kernel's time is measured, beside the predicted one."""
    from attncc.explain import explain

    kernel = make_kernel(file, parameters, attention, target)
    measured = None if stage else _measured(kernel, shape)
    click.echo(explain(kernel.stages(), stage, shape, measured))


def _measured(kernel, shape):
    """The kernel's time for calls of `shape` where the GPU that is here is one of its target's; None elsewhere, or where memory is too small."""
    import torch

    from attncc.explain import Measured
    from attncc.measure import time_kernel
    from attncc.runtime.kernel import device_arch
    from attncc.targets import target_for_arch

    if not torch.cuda.is_available() or target_for_arch(device_arch(torch.device("cuda"))) != kernel.stages().target:
        return None
    try:
        with step("timing"):
            result = time_kernel(kernel, shape)
    except torch.cuda.OutOfMemoryError:
        click.echo(f"note: {torch.cuda.get_device_name()} has too little memory for {shape}: not measured", err=True)
        return None
    return Measured(result.seconds, torch.cuda.get_device_name())
