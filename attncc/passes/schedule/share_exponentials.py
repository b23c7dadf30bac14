"""Some exponentials of softmax are made by a polynomial, where the special function unit would hold up the products.

    before  softmax_step scores=S, ..., guard=false, half=weights
    after   softmax_step scores=S, ..., guard=false, half=weights, polynomial=2

(FlashAttention-4's idea.) On the newest chips the products of a key tile take as long as its exponentials, one result each, in
the special function unit. 2**x by a polynomial of degree 3 takes about five instructions for an element where two go
together. How many of 16 pairs take it is what makes the resource model's iteration shortest. Tiles with a mask keep the
unit, whose 2**-inf is 0: a polynomial's is 2**-125, which a row without any key would show. Asks for: packed_arithmetic.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import compute_role, replace_role
from attncc.ir.tile import Mask
from attncc.targets import Target
from attncc.targets.fit import tiles_of
from attncc.targets.model import polynomials


def share_exponentials(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with a number of polynomials in the softmax steps of unmasked tiles; unchanged where the model finds no use for them."""
    role = compute_role(schedule)
    count = polynomials(schedule.attention, target, tiles_of(schedule))
    if not count:
        return schedule
    return replace_role(schedule, role, body=_body(role.body, count))


def _body(body: tuple, count: int) -> tuple:
    masked = any(isinstance(op, Mask) for op in body)

    def one(op):
        if hasattr(op, "body"):
            return dataclasses.replace(op, body=_body(op.body, count))
        fits = isinstance(op, l3.SoftmaxStep) and op.half != "maximum" and not op.guard and not masked
        return dataclasses.replace(op, polynomial=count) if fits else op

    return tuple(one(op) for op in body)


__all__ = ["share_exponentials"]
