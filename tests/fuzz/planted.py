"""Mistakes that a compiler could make, as passes. Each is wrong in a way that some library has been, or could be, in silence."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir import schedule as l3
from attncc.ir.expr import TRUE, ZERO, apply, const, rebuild, substitute, transform, var
from attncc.ir.schedule_ops import rewrite
from attncc.ir.tile import FULL, PARTIAL, Finalize, Mask, Softmax

# L1: passes on an attention


def drop_cap_beside_bias(attention):
    """FlashInfer ran Gemma 2 uncapped: tanh disappears where the score also adds something."""
    adds = attention.score.op == "add"
    return replace(attention, score=transform(attention.score, lambda n: n.args[0] if adds and n.op == "tanh" else n))


def scale_twice(attention):
    """FlashInfer's ALiBi with a cap: the scale applied once more where there is a cap."""
    capped = attention.score.op == "mul" and any(a.op == "tanh" for a in attention.score.args)
    return replace(attention, score=substitute(attention.score, {"qk": apply("mul", var("qk", "float"), 0.5)})) if capped else attention


def window_off_by_one(attention):
    """A window of W keys that becomes W + 1: a strict comparison of an int with a constant is taken for a weak one."""

    def weaken(n):
        return apply("le", *n.args) if n.op == "lt" and n.args[0].type == "int" and n.args[1].op == "const" else n

    return replace(attention, mask=transform(attention.mask, weaken))


def truncate_negative(attention):
    """Division that rounds toward zero, as C does."""

    def truncate(n):
        if n.op != "floordiv":
            return n
        a, b = n.args
        up = apply("neg", apply("floordiv", apply("neg", a), b))
        return apply("select", apply("lt", a, ZERO), up, n)

    return replace(attention, mask=transform(attention.mask, truncate))


def remainder_of_dividend(attention):
    """A remainder with the sign of the dividend, as C has it."""

    def wrong(n):
        if n.op != "mod":
            return n
        a, b = n.args
        return apply("select", apply("lt", a, ZERO), apply("neg", apply("mod", apply("neg", a), b)), n)

    return replace(attention, mask=transform(attention.mask, wrong))


def causal_top_left(attention):
    """Alignment mixed up: `off` taken for 0."""
    return replace(attention, mask=substitute(attention.mask, {"off": ZERO}))


def forget_batch(attention):
    """Every batch entry reads the first one's tensor elements."""

    def first(n):
        return rebuild(n, tuple(ZERO if a is var("b") else a for a in n.args)) if n.op == "load" else n

    return replace(attention, mask=transform(attention.mask, first), score=transform(attention.score, first))


def wrong_head_of_group(attention):
    """The key/value head computed for interleaved groups."""
    wrong = apply("mod", var("h"), const(attention.heads_kv))
    return replace(attention, score=substitute(attention.score, {"hkv": wrong}), mask=substitute(attention.mask, {"hkv": wrong}))


def forget_sink(attention):
    """A sink left out of the denominator."""
    return replace(attention, reduction=replace(attention.reduction, sink=None))


# L2: passes on a tile program


def mask_only_last_tile(program):
    """FlashInfer's LogitsMask: evaluated on boundary tiles only."""
    on_boundary = apply("eq", var("kv_tile"), apply("sub", var("kv_tiles"), 1))

    def loosen(op):
        return replace(op, expr=apply("or", op.expr, apply("not", on_boundary))) if isinstance(op, Mask) else op

    return replace(program, segments=tuple(replace(s, body=tuple(map(loosen, s.body))) for s in program.segments))


def drop_last_tile(program):
    """A loop that ends one key tile early."""
    less = tuple(replace(s, count=apply("max", apply("sub", s.count, 1), 0)) for s in program.segments)
    return replace(program, segments=less)


def call_partial_full(program):
    """Tiles on the border of the mask are taken for full ones."""
    return replace(
        program,
        segments=tuple(
            replace(s, kind=FULL, body=tuple(op for op in s.body if not isinstance(op, Mask))) if s.kind == PARTIAL else s
            for s in program.segments
        ),
    )


def mask_before_score(program):
    """The mask applied first, so that a cap or a maximum brings masked keys back."""

    def swap(body):
        masks = [op for op in body if isinstance(op, Mask)]
        rest = [op for op in body if not isinstance(op, Mask)]
        at = next(i for i, op in enumerate(rest) if type(op).__name__ in ("Score", "Softmax", "Weights"))
        return tuple(rest[:at] + masks + rest[at:])

    return replace(program, segments=tuple(replace(s, body=swap(s.body)) for s in program.segments))


def forget_multiplier(program):
    """A weight computed in base e where the scores are in base 2."""

    def wrong(op):
        return replace(op, multiplier=op.multiplier * 1.4426950408889634) if isinstance(op, Softmax) else op

    return replace(program, segments=tuple(replace(s, body=tuple(map(wrong, s.body))) for s in program.segments))


def lse_without_scale(program):
    """The LSE in base 2."""
    return replace(
        program,
        epilogue=tuple(replace(op, multiplier=1.0) if isinstance(op, Finalize) else op for op in program.epilogue),
    )


# L3: passes on a schedule


def everywhere(schedule, rule):
    """`schedule` with `rule` (operation -> operations) applied in every role."""
    return replace(schedule, roles=tuple(replace(r, body=rewrite(r.body, rule)) for r in schedule.roles))


def forget_rescale(schedule):
    """The accumulator is not corrected when the running maximum grows."""
    return everywhere(schedule, lambda op: () if isinstance(op, l3.Rescale) else (op,))


def forget_guard(schedule):
    """Rows without a kept key are not thought of: NaN."""
    return everywhere(schedule, lambda op: (replace(op, guard=False),) if isinstance(op, l3.SoftmaxStep) else (op,))


def forget_wait(schedule):
    """A tile is used before it has arrived."""
    return everywhere(schedule, lambda op: () if isinstance(op, l3.Wait) and op.channel == "V" else (op,))


def release_early(schedule):
    """A stage is given back while a product still reads it."""

    def early(op):
        return () if isinstance(op, l3.MmaWait) else (op,)

    return everywhere(schedule, early)


def wrong_kv_head(schedule):
    """Grouped heads read their neighbour's keys."""
    def swap(op):
        wrong = op.name == "hkv"
        return replace(op, expr=apply("mod", var("h"), const(schedule.attention.heads_kv))) if wrong else op

    return replace(schedule, prelude=tuple(map(swap, schedule.prelude)))


def mask_everything_true(schedule):
    """The mask is forgotten altogether."""
    return everywhere(schedule, lambda op: (replace(op, expr=TRUE),) if isinstance(op, Mask) else (op,))


L1 = (
    drop_cap_beside_bias, scale_twice, window_off_by_one, truncate_negative, remainder_of_dividend, causal_top_left,
    forget_batch, wrong_head_of_group, forget_sink,
)  # fmt: skip
L2 = (mask_only_last_tile, drop_last_tile, call_partial_full, mask_before_score, forget_multiplier, lse_without_scale)
L3 = (forget_rescale, forget_guard, forget_wait, release_early, wrong_kv_head, mask_everything_true)
