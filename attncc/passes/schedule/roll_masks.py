"""Long masks are worked out in a loop over the columns, as words of bits, where a thread owns whole rows.

    before  mask dst=S, expr=...
    after   mask dst=S, expr=..., rolled=true

With products into tensor memory a thread holds all columns of its row: a mask that is written out for each of 128 columns has as many
copies of its instructions, whose loads and intermediate results the assembler lets overlap until registers run out. In a loop eight
columns are worked on at a time; a word of bits for 32 of them is what is kept, and each score is then chosen by its bit. A column
takes about two instructions more (its bit, its part of the loop) and a quarter of the code. Short masks, those that read the
score, and those that are worked out as words of bits anyway (ir.key_words) stay as they are. Asks for: tensor_memory. Without this pass such masks spill.
"""

from __future__ import annotations

import dataclasses

from attncc.ir import schedule as l3
from attncc.ir.expr import BOOL, Expr, conjuncts, variables, walk
from attncc.ir.instructions import cost
from attncc.ir.key_words import in_words
from attncc.ir.schedule_ops import compute_role, operations, replace_role, rewrite
from attncc.ir.tile import ELEMENT, ColLet, Mask
from attncc.targets import Target

LONG = 8
"""Instructions for a key from which on a mask is long. Two comparisons and their conjunction are 3."""
NUMBER = 2
"""Instructions that a number of the key counts for: it is read from shared memory, for 128 keys at a time if it may."""
BOUNDS = ("lt", "le", "gt", "ge")
"""What compares a key with a number of its row becomes one word of bits for 32 keys anyway."""


def roll_masks(schedule: l3.Schedule, target: Target) -> l3.Schedule:
    """`schedule` with `rolled` masks where a condition is long or reads a tensor; unchanged without tensor memory."""
    if not target.has("tensor_memory"):
        return schedule

    role = compute_role(schedule)
    lets = [op for op in operations(role.body) if isinstance(op, ColLet)]
    columns, conditions = frozenset(op.name for op in lets), frozenset(op.name for op in lets if op.expr.type == BOOL)

    def is_rolled(mask: Expr) -> bool:
        in_bits = all(in_words(c, columns, conditions, schedule.tile_n) is not None for c in conjuncts(mask))
        return not in_bits and _is_long(mask, columns)

    def one(op) -> tuple:
        fits = isinstance(op, Mask) and ELEMENT not in variables(op.expr) and is_rolled(op.expr)
        return (dataclasses.replace(op, rolled=True),) if fits else (op,)

    return replace_role(schedule, role, body=rewrite(role.body, one))


def _is_long(mask: Expr, columns: frozenset[str]) -> bool:
    """Whether what is left of `mask` beside bounds on the key is long, or reads a tensor."""
    rest = [c for c in conjuncts(mask) if not (c.op in BOUNDS and any(a.op == "var" and a.value == "kv_idx" for a in c.args))]
    nodes = [node for c in rest for node in walk(c)]
    numbers = len({node for node in nodes if node.op == "var" and node.value in columns})
    return sum(map(cost, rest)) + len(rest) - 1 + NUMBER * numbers >= LONG or any(node.op == "load" for node in nodes)


__all__ = ["roll_masks"]
