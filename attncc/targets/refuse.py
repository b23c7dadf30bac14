"""What a target cannot do, as diagnostics: each with the place in the text, the reason and a way out."""

from __future__ import annotations

from attncc.diagnostics import Diagnostic
from attncc.ir.attention import Attention
from attncc.targets.target import Target
from attncc.targets.tiles import has_tile, no_tile


def refuse(attention: Attention, target: Target) -> list[Diagnostic]:
    """Every reason why `target` cannot run `attention`; empty when it can.

    E403 no tile fits, E404 head dim, E405 element type.
    """
    found = [*_dtype(attention, target), *_dims(attention, target)]
    if not found and not has_tile(attention, target):
        found.append(no_tile(attention, target))
    return found


def _dtype(a: Attention, target: Target):
    if a.dtype not in target.dtypes:
        yield Diagnostic(
            "E405",
            f"target {target.name} does not multiply {a.dtype}; it takes {', '.join(target.dtypes)}",
            a.span("dtype"),
            hint=f"write `dtype {target.dtypes[0]}`",
        )


def _dims(a: Attention, target: Target):
    for name, dim in dict.fromkeys((("dim_qk", a.dim_qk), ("dim_v", a.dim_v))):
        if dim % target.dim_step or not 0 < dim <= target.dim_max:
            better = min(target.dim_max, max(1, -(-dim // target.dim_step)) * target.dim_step)
            yield Diagnostic(
                "E404",
                f"target {target.name} takes head dims that are multiples of {target.dim_step} up to {target.dim_max}; "
                f"{name} is {dim}",
                a.span("dim"),
                hint=f"pad q, k (and v) with zeros to {better}, which changes no result" if dim < better else None,
            )
        if a.dim_qk == a.dim_v:
            return
