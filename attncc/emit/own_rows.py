"""Scores where a thread owns a whole row: what it reads for neighbouring keys lies side by side. `flat` is the Flattener."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from attncc.emit.expressions import tensor_name, to_statements
from attncc.emit.view import Step
from attncc.ir.expr import FLOAT, TRUE, Expr, rebuild, var, variables, walk
from attncc.ir.tile import COLUMN_STEP, ELEMENT

OWN = "__own_"
ROW_TYPES = ("bf16", "f16")
VARYING = frozenset({ELEMENT, "kv_idx", COLUMN_STEP})


def score_by_distance(flat, op, expr: Expr, texts: list) -> tuple[str, dict]:
    """Where a thread owns a whole row: its distances follow each other. A tile where the terms are the same needs one of each."""
    flat.staged = max(flat.staged, len(texts))
    parts = tuple({"number": i, "lines": found, "text": value} for i, (found, (value,)) in enumerate(texts))
    same_lines, (same,) = to_statements((TRUE if op.same is None else op.same,), flat.names(f"e{flat.count}w"))
    fields = {"parts": parts, "barrier": flat.staging_barrier, "same_lines": same_lines, "same": same}
    lets = flat.element_lets
    for kind, text in (("staged", "near_{}[c]"), ("level", "level_{}")):
        flat.element_lets = {**lets, **{f"diagonal_{i}": text.format(i) for i in range(len(texts))}}
        fields[kind] = (flat.step(dataclasses.replace(op, expr=expr, same=None)),)
    flat.element_lets = lets
    if op.same is None:
        return "score_staged", fields
    return "score_level_or_staged", {**fields, "otherwise": (Step("score_staged", {**fields, "dst": op.dst}),)}


def score_by_rows(flat, op) -> tuple[str, dict] | None:
    """Where a thread owns a whole row and reads one of a tensor of 16-bit numbers: eight at once, if they lie side by side; None elsewhere."""
    tensors = {t.name: t.dtype for t in flat.schedule.attention.tensors if t.dtype in ROW_TYPES}
    varying = frozenset(n for n, text in flat.element_lets.items() if text.endswith(("[c]", ", c)", "[c] != 0)"))) | VARYING
    found = [n for n in walk(op.expr) if flat.owns_rows and n.op == "load" and n.value in tensors and reads_row(n, varying)]
    if not found:
        return None
    names = flat.names(f"e{flat.count}o", {**flat.variables(op), **{n: t.replace("[r]", "[0]") for n, t in flat.element_lets.items()}})
    rows = []
    for i, node in enumerate(found):
        lines, texts = to_statements(node.args[:-1], names)
        rows.append({"number": i, "tensor": tensor_name(node.value), "lines": lines, "index": "".join(f"{t}, " for t in texts)})
    expr = replace_nodes(op.expr, {n: var(f"{OWN}{i}", FLOAT) for i, n in enumerate(found)})
    single = flat.score_in_pairs(op) or ("score", {"blocks": ()})
    lets = flat.element_lets
    flat.element_lets = {**lets, **{f"{OWN}{i}": f"softmax.number_of_row(own_{i}, c)" for i in range(len(found))}}
    eight = flat.step(dataclasses.replace(op, expr=expr))
    flat.element_lets = lets
    plain = flat.step_of(op, *single)
    return "score_rows", {"rows": tuple(rows), "eight": (eight,), "single": (plain,)}


def reads_row(node: Expr, varying: frozenset[str]) -> bool:
    """Whether neighbouring keys read neighbouring elements of one row: `varying` differ between the elements of a row of scores."""
    return len(node.args) > 1 and node.args[-1] is var("kv_idx") and not any(variables(a) & varying for a in node.args[:-1])


def replace_nodes(expr: Expr, new: Mapping[Expr, Expr]) -> Expr:
    return new[expr] if expr in new else rebuild(expr, tuple(replace_nodes(a, new) for a in expr.args)) if expr.args else expr
