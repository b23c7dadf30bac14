"""Some exponentials of softmax, and tanh of capped scores, are made by polynomials, where the special function unit would hold up the products.

    before  softmax_step scores=S, ..., guard=false, half=weights
    after   softmax_step scores=S, ..., guard=false, half=weights, polynomial=2
    before  softmax_step scores=S, ..., maximum=-0.55, cap=0.0029
    after   softmax_step scores=S, ..., maximum=-0.55, cap=0.0029, odd=16

(FlashAttention-4's idea, for exponentials.) On the newest chips the products of a key tile take as long as its exponentials, one result each, in
the special function unit. 2**x by a polynomial of degree 3 takes about five instructions for an element where two go
together, tanh by an odd one of degree 7 two more than what scales the exponent anyway. How many of 16 pairs take them is what makes the
resource model's iteration shortest. Tiles with a mask keep the
unit, whose 2**-inf is 0: a polynomial's is 2**-125, which a row without any key would show. Asks for: packed_arithmetic.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import compute_role, operations, replace_role
from attncc.ir.tile import Mask
from attncc.targets import Target
from attncc.targets.cost import element_cost
from attncc.targets.fit import tiles_of
from attncc.targets.model import Shares, shares


def share_exponentials(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with numbers of polynomials in the softmax steps of unmasked tiles; unchanged where the model finds no use for them."""
    role = compute_role(schedule)
    steps = [op for op in operations(role.body) if isinstance(op, l3.SoftmaxStep)]
    extra = dataclasses.replace(
        element_cost(schedule.attention),
        bounded=any(op.maximum is not None for op in steps),
        capped=any(op.cap is not None for op in steps),
    )
    found = shares(schedule.attention, target, tiles_of(schedule), extra)
    return replace_role(schedule, role, body=_body(role.body, found)) if found.any else schedule


def _body(body: tuple, found: Shares) -> tuple:
    masked = any(isinstance(op, Mask) for op in body)

    def one(op):
        if hasattr(op, "body"):
            return dataclasses.replace(op, body=_body(op.body, found))
        fits = isinstance(op, l3.SoftmaxStep) and op.half != "maximum" and not op.guard and not masked
        if not fits:
            return op
        return dataclasses.replace(op, polynomial=found.polynomial, odd=found.odd if op.cap is not None else 0)

    return tuple(one(op) for op in body)


__all__ = ["share_exponentials"]
