"""Compilation targets as values, and how they are found."""

from __future__ import annotations

from attncc.diagnostics import Span, did_you_mean, fail
from attncc.targets.ampere import ADA, AMPERE
from attncc.targets.blackwell import BLACKWELL
from attncc.targets.hopper import HOPPER
from attncc.targets.target import CAPABILITIES, Accuracy, Mma, Rates, RegisterPlan, Target

TARGETS: dict[str, Target] = {t.name: t for t in (HOPPER, BLACKWELL, AMPERE, ADA)}
"""Every target, best first."""


def model_accuracy(target: Target) -> tuple[Target, Accuracy] | None:
    """The target on which the resource model was compared with measurements (this one, or the first that was), and the outcome."""
    known = [t for t in (target, *TARGETS.values()) if t.accuracy is not None]
    return (known[0], known[0].accuracy) if known else None


def get_target(name: str, span: Span | None = None) -> Target:
    """The target called `name`; AttnError E401 with the known names otherwise."""
    if not isinstance(name, str):
        message = f"`target` must be the name of a target, found {type(name).__name__}"
        raise fail("E401", message, span, argument="target", notes=(f"the targets are {', '.join(TARGETS)}",))
    if name in TARGETS:
        return TARGETS[name]
    raise fail(
        "E401",
        f"unknown target `{name}`",
        span,
        notes=(f"the targets are {', '.join(TARGETS)}",),
        hint=did_you_mean(name, TARGETS),
    )


def check_chip(target: Target, chip: str | None) -> str:
    """`chip`, or the target's usual one; E402 when the target is not for that chip."""
    if chip is None:
        return target.archs[0]
    if chip not in target.archs:
        known = f"it can be compiled for {', '.join(target.archs)}"
        others = [t.name for t in TARGETS.values() if chip in t.archs]
        hint = f"target `{others[0]}` is" if others else did_you_mean(chip, target.archs)
        raise fail("E402", f"target `{target.name}` is not for `{chip}`", notes=(known,), hint=hint)
    return chip


def target_for_arch(arch: str) -> Target | None:
    """The best target whose kernels run on a GPU of architecture `arch`, such as `sm_90`; None when there is none."""
    names = (arch, f"{arch}a")
    for target in TARGETS.values():
        if any(n in target.archs for n in names):
            return target
    return None


__all__ = ["CAPABILITIES", "TARGETS", "Accuracy", "Mma", "Rates", "RegisterPlan", "Target", "check_chip", "get_target", "model_accuracy", "target_for_arch"]
