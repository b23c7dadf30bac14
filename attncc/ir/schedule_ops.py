"""Walking and rewriting the operations of a schedule: what the L3 passes, the checker and the interpreter share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from attncc.ir import schedule as l3
from attncc.ir.expr import OPS, Expr, variables, walk
from attncc.ir.tile import BLOCK, COLUMN_FIRST, COLUMN_STEP, LSE, TENSOR, ColLet, Let, Mask, RowLet, Score

PLACE = frozenset({"q_tile", "b", "h", "hkv"})
"""What names a query tile."""
STATISTICS = ("row_max", "row_sum")
"""Buffers that Finalize reads besides its accumulator (softmax only); it writes LSE."""


def operations(body: tuple) -> Iterator:
    """Every operation of `body` in reading order, those of nested bodies after the one that holds them."""
    for op in body:
        yield op
        yield from operations(getattr(op, "body", ()))


def without_repairs(body: tuple) -> tuple:
    """`body` without what only rows whose maximum is out of date do."""
    return rewrite(body, lambda op: () if isinstance(op, l3.Repair) else (op,))


def rewrite(body: tuple, rule: Callable) -> tuple:
    """`body` with each operation replaced by what `rule(op)` gives (a tuple of operations), innermost bodies first."""
    out: list = []
    for op in body:
        if hasattr(op, "body"):
            op = dataclasses.replace(op, body=rewrite(op.body, rule))
        out.extend(rule(op))
    return tuple(out)


def expressions(op) -> tuple[Expr, ...]:
    """The expressions that stand in an operation's own fields."""
    values = [getattr(op, f.name) for f in dataclasses.fields(op)]
    single = tuple(v for v in values if isinstance(v, Expr))
    return single + tuple(e for v in values if isinstance(v, tuple) for e in v if isinstance(e, Expr))


def blocks_read(op) -> tuple[str, ...]:
    """The buffers of biases whose numbers a Score reads."""
    return tuple(sorted(n for n in variables(op.expr) if n.startswith(BLOCK))) if isinstance(op, l3.Score) else ()


def element_names(body: tuple) -> frozenset[str]:
    """Lets that differ between the elements of a tile."""
    return frozenset(op.name for op in operations(body) if isinstance(op, (RowLet, ColLet)))


def names_read(op) -> frozenset[str]:
    """Variables that an operation's own expressions read; whoever reads an element index reads the tile index it is made of.

    A score or mask works on the elements of a tile, and reads the tile's index even where its expression does not.
    """
    names = frozenset().union(*(variables(e) for e in expressions(op))).difference(blocks_read(op))
    if isinstance(op, l3.Place):
        return names | PLACE
    if isinstance(op, l3.ColFetch):  # of another key tile than the one at hand
        return names - {"kv_idx", COLUMN_FIRST, COLUMN_STEP}
    if isinstance(op, l3.Copy) and op.at is not None:
        names |= {"q_tile"}
    if isinstance(op, (Score, Mask)):
        names |= {"kv_tile"}
    implied = {"kv_idx": "kv_tile", COLUMN_FIRST: "kv_tile", "q_idx": "q_tile"}
    return names | {implied[n] for n in names if n in implied}


def fetched_names(body: tuple) -> frozenset[str]:
    """What the role that runs `body` fetches ahead."""
    return frozenset(op.name for op in operations(body) if isinstance(op, l3.ColFetch))


def drop_unused_lets(body: tuple) -> tuple:
    """`body` without lets that nothing reads, and without loops and conditionals that do nothing."""
    used = frozenset().union(*(names_read(op) for op in operations(body)))

    def keep(op):
        dead = isinstance(op, (Let, RowLet, ColLet)) and op.name not in used
        empty = isinstance(op, (l3.If, l3.For, l3.ForParts)) and not op.body
        return () if dead or empty else (op,)

    smaller = rewrite(body, keep)
    return body if smaller == body else drop_unused_lets(smaller)


def least_maximum(multiplier: float) -> float:
    """Where a step keeps the maxima as they are (`keeps`) and guards, a maximum below this counts as this: a row that had no key gets weights 0
    for scores that stand for -inf (softmax.no_key), and from any score of a key a weight that its Repair finds."""
    return -(2.0**28) / multiplier


def buffers_read(op) -> tuple[str, ...]:
    """Buffers whose contents `op` reads."""
    if isinstance(op, l3.Mma):
        return (op.a, op.b, op.dst) if op.accumulate else (op.a, op.b)
    if isinstance(op, l3.SoftmaxStep) and op.keeps:
        return (op.scores, op.row_max)
    if isinstance(op, l3.Repair):
        return (op.sums,)
    if isinstance(op, l3.Add):
        return (op.dst, op.src)
    if isinstance(op, l3.SoftmaxStep) and op.maximum is not None:
        gap = (op.correction,) if op.sets and not op.first else ()
        return (op.scores,) if op.first else (op.scores, op.row_max, op.row_sum, *gap)
    if isinstance(op, l3.SoftmaxStep):
        if op.half == "maximum":
            return (op.scores,) if op.first else (op.scores, op.row_max)
        if op.half == "weights":
            return (op.scores, op.row_max) if op.first else (op.scores, op.row_max, op.row_sum, op.correction)
        return (op.scores,) if op.first else (op.scores, op.row_max, op.row_sum)
    if isinstance(op, (l3.Score, l3.Mask)):
        return (op.dst, *blocks_read(op))
    if isinstance(op, l3.Weights):
        return (op.scores,)
    if isinstance(op, l3.Rescale):
        return (op.dst, op.factor)
    if isinstance(op, l3.Finalize):
        return (op.accumulator, *(STATISTICS if op.kind == "softmax" else ()), *((op.gap,) if op.gap else ()))
    if isinstance(op, l3.Convert):
        return (op.src,) if op.factor is None else (op.src, op.factor)
    if isinstance(op, l3.Store):
        return (op.src,)
    return ()


def buffers_written(op) -> tuple[str, ...]:
    """Buffers that `op` writes (a Copy writes its channel's buffer, which is not named here)."""
    if isinstance(op, l3.SoftmaxStep) and op.keeps:
        return (op.scores, op.sums)
    if isinstance(op, l3.SoftmaxStep) and op.maximum is not None:
        return (op.scores, op.row_max, op.row_sum, *((op.correction,) if op.first or op.sets else ()))
    if isinstance(op, l3.SoftmaxStep) and op.half != "both":
        if op.half == "weights":
            return (op.scores, op.row_sum)
        return (op.row_max,) if op.first else (op.row_max, op.correction)
    if isinstance(op, l3.SoftmaxStep):
        written = () if op.first else (op.correction,)
        return (op.scores, op.row_max, op.row_sum, *written, *((op.sums,) if op.sums else ()))
    if isinstance(op, l3.Weights):
        return (op.weights,)
    if isinstance(op, l3.Finalize):
        return op.accumulator, LSE
    if isinstance(op, (l3.Mma, l3.Score, l3.Mask, l3.Rescale, l3.Convert, l3.Fill, l3.Add)):
        return (op.dst,)
    return ()


def role_named(schedule: l3.Schedule, name: str) -> l3.Role:
    return next(r for r in schedule.roles if r.name == name)


def replace_role(schedule: l3.Schedule, role: l3.Role, **changes) -> l3.Schedule:
    """`schedule` with fields of `role` changed."""
    new = dataclasses.replace(role, **changes)
    return dataclasses.replace(schedule, roles=tuple(new if r is role else r for r in schedule.roles))


def compute_role(schedule: l3.Schedule) -> l3.Role:
    """The role that owns the score tile (it has the SoftmaxStep or Weights)."""
    kinds = (l3.SoftmaxStep, l3.Weights)
    return next(r for r in schedule.roles if any(isinstance(op, kinds) for op in operations(r.body)))


def parts(schedule: l3.Schedule) -> int:
    """Parts of a query tile: the rows of each computing group are one."""
    return compute_role(schedule).groups


def tensor_places(schedule: l3.Schedule) -> dict[tuple[str, int], tuple[int, int]]:
    """(buffer, part) -> (first column, column after the last) for everything in tensor memory. Elements of 16 bits go by twos."""
    out = {}
    for b in schedule.buffers:
        if b.space == TENSOR:
            width = b.cols if b.dtype == "f32" else b.cols // 2
            for part in range(parts(schedule)):
                begin = b.column + part * b.pitch
                out[b.name, part] = (begin, begin + width)
    return out


def shared_columns(places: dict[tuple[str, int], tuple[int, int]]) -> tuple[tuple, ...]:
    """Pairs of places that have columns in common, each pair once."""
    items = list(places.items())
    return tuple(
        (a, b) for i, (a, (x, y)) in enumerate(items) for b, (u, v) in items[i + 1 :] if x < v and u < y
    )


def remark(schedule: l3.Schedule, by: str, text: str) -> l3.Schedule:
    """`schedule` with one more remark for `explain`."""
    return dataclasses.replace(schedule, remarks=(*schedule.remarks, l3.Remark(by, text)))


def shared_bytes(schedule: l3.Schedule, bytes_of: Callable[[str], int]) -> int:
    """Bytes of shared memory of all buffers, those that share memory counted once at the largest."""
    sizes: dict[str, int] = {}
    for b in schedule.buffers:
        if b.space == "shared":
            owner = b.alias or b.name
            sizes[owner] = max(sizes.get(owner, 0), b.rows * b.cols * bytes_of(b.dtype) * b.stages)
    return sum(sizes.values())


def number(e: Expr, env: dict[str, object], element: Callable | None = None):
    """The value of `e` with the variables of `env` and `element(tensor, indices)` for tensors; KeyError when it needs another."""
    done: dict[Expr, object] = {}
    for node in walk(e):
        if node.op == "const":
            done[node] = node.value
        elif node.op == "var":
            done[node] = env[node.value]
        elif node.op == "load" and element is not None:
            done[node] = element(node.value, tuple(done[a] for a in node.args))
        elif node.op == "load":
            raise KeyError(node.value)
        elif node.op == "to_float":
            done[node] = float(done[node.args[0]])
        else:
            done[node] = OPS[node.op].evaluate(*(done[a] for a in node.args))
    return done[e]
