"""What `attncc.compile` does. A text that was compiled before, by this or an earlier process, is neither parsed nor lowered again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attncc.ir.attention import Attention
from attncc.lower import load_text, read
from attncc.runtime import known
from attncc.runtime.kernel import Kernel
from attncc.targets import Target, get_target

if TYPE_CHECKING:
    from attncc.stages import Stages
    from attncc.targets.choice import Choice


def compile(spec, /, *, target: str | None = None, attention: str | None = None, **parameters) -> Kernel:
    """A kernel for an `.attn` text or the path of one, with the given compile-time parameters.

    target      the name of a target. Without it the kernel is compiled at its first call for the device of the tensors;
                tensors on the CPU are then given to the interpreter of the tile program. A kernel compiled for a named target
                refuses tensors of any other device.
    attention   the name of the attention to take, when the text has several

    AttnError for a bad spec, or for one that the named target cannot do, is raised here. Device code is compiled when it is
    needed.
    """
    text, name = read(spec)
    chosen = get_target(target) if target is not None else None
    asked = (text, name, attention, tuple(sorted(parameters.items())), target)
    identity = known.name("attention", *asked)
    found = known.fetch(identity)
    if found is not None:
        return Kernel(found[0], chosen, lower, identity, digest=found[1])
    kernel = Kernel(load_text(text, name, attention, parameters), chosen, lower, identity)
    if chosen:
        kernel.stages()
    known.keep(identity, (kernel.attention, kernel.digest))
    return kernel


def lower(attention: Attention, target: Target, choice: Choice | None = None) -> Stages:
    """attncc.driver.lower, imported when something has to be lowered."""
    from attncc import driver

    return driver.lower(attention, target, choice)
