"""Statements of an attention other than score, bias and mask: heads, dim, tensors, reduction, target hints."""

from __future__ import annotations

import math
import re

from attncc.diagnostics import AttnError, Diagnostic, Span, did_you_mean, fail
from attncc.ir.attention import REDUCTIONS, SIZE_VARIABLES, STORAGE_TYPES, Reduction, ScalarDecl, TargetHint, TensorDecl
from attncc.ir.expr import BOOL, FLOAT, INT, TRUE, Expr, tensors, var, variables
from attncc.ir.schedule import BLOCK_VARIABLES, GROUP_VARIABLE, PAIR_VARIABLE
from attncc.ir.tile import TILE_COUNT, TILE_LIST, TILE_VARIABLES
from attncc.lower.expressions import constant, typed
from attncc.lower.fold import build
from attncc.lower.session import Session
from attncc.lower.values import INDICES, Scope
from attncc.syntax import tree
from attncc.targets import get_target

DTYPES = {"bf16": "bf16", "fp16": "f16", "f16": "f16"}
MAX_HEADS = 1024
MAX_DIM = 256
DIM_STEP = 8
MAX_RANK = 6
MAX_EXTENT = 2**31 - 1


def heads(statement: tree.Heads, scope: Scope, session: Session) -> tuple[int, int]:
    """(query heads, key/value heads)."""
    given = _keywords(statement.keywords, ("q", "kv"), "heads", statement.span)
    counts = []
    for name in ("q", "kv"):
        count = constant(given[name].value, INT, scope, session, f"the number of {name} heads")
        if not 1 <= count <= MAX_HEADS:
            message = f"the number of {name} heads is {count}; it must be in 1..{MAX_HEADS}"
            raise fail("E201", message, given[name].span)
        counts.append(count)
    q, kv = counts
    if q % kv:
        hint = f"every key head serves the same number of query heads: kv may be {_divisors(q)}"
        raise fail("E201", f"{q} query heads cannot share {kv} key/value heads evenly", statement.span, hint=hint)
    return q, kv


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)


def dim(statement: tree.Dim, scope: Scope, session: Session) -> tuple[int, int]:
    """(dim of q and k, dim of v)."""
    if statement.value is not None:
        size = _dim(statement.value, scope, session)
        return size, size
    given = _keywords(statement.keywords, ("qk", "v"), "dim", statement.span)
    return _dim(given["qk"].value, scope, session), _dim(given["v"].value, scope, session)


def _dim(node: tree.Expression, scope: Scope, session: Session) -> int:
    size = constant(node, INT, scope, session, "the head dimension")
    if size < 1 or size > MAX_DIM or size % DIM_STEP:
        near = min(MAX_DIM, max(DIM_STEP, math.ceil(size / DIM_STEP) * DIM_STEP))
        message = f"the head dimension is {size}; it must be a multiple of {DIM_STEP} in {DIM_STEP}..{MAX_DIM}"
        hint = f"pad q, k and v with zeros to {near}" if 0 < size < near else None
        raise fail("E202", message, node.span, hint=hint)
    return size


def dtype(statement: tree.Dtype) -> str:
    if statement.name not in DTYPES:
        hint = did_you_mean(statement.name, DTYPES) or "write bf16 or fp16"
        raise fail("E203", f"unknown dtype `{statement.name}` for q, k and v", statement.span, hint=hint)
    return DTYPES[statement.name]


def scale(statement: tree.Scale, scope: Scope, session: Session) -> float:
    found = constant(statement.value, FLOAT, scope, session, "the scale")
    if not math.isfinite(found):
        raise fail("E204", "the scale must be a finite number", statement.value.span)
    return found


def _keywords(keywords, names: tuple[str, ...], what: str, span: Span) -> dict[str, tree.Keyword]:
    """`keywords` by name: each of `names` exactly once, nothing else."""
    given = _options(keywords, names, what)
    for name in names:
        if name not in given:
            usage = ", ".join(f"{n} = ..." for n in names)
            raise fail("E107", f"`{what}` needs `{name}`", span, hint=f"write `{what} {usage}`")
    return given


def _options(keywords, names, what: str) -> dict[str, tree.Keyword]:
    given: dict[str, tree.Keyword] = {}
    for k in keywords:
        if k.name not in names:
            hint = did_you_mean(k.name, names) or (f"it takes {' and '.join(names)}" if names else "it takes none")
            raise fail("E108", f"`{what}` has no option `{k.name}`", k.span, hint=hint)
        if k.name in given:
            raise fail("E107", f"`{k.name}` is given twice", k.span)
        given[k.name] = k
    return given


# Tensors and scalars

CALL_ARGUMENTS = ("q", "k", "v", "out", "lse", "return_lse", "self")
COMPILER_NAMES = (*TILE_VARIABLES, *BLOCK_VARIABLES, GROUP_VARIABLE, PAIR_VARIABLE, TILE_COUNT, TILE_LIST)


def check_argument_name(statement: tree.Tensor | tree.Scalar) -> None:
    """A tensor or scalar is passed by name, and a scalar is a variable of every IR level: neither may collide there."""
    name, is_scalar = statement.name, isinstance(statement, tree.Scalar)
    if name in CALL_ARGUMENTS:
        message = f"`{name}` is an argument of every kernel and cannot be declared"
    elif name in (TILE_COUNT, TILE_LIST) or is_scalar and (name in COMPILER_NAMES or re.fullmatch(r"[a-z]+_\d+", name)):
        message = f"`{name}` is a name that the compiler uses itself"
    else:
        return
    raise fail("E006", message, statement.span, hint=f"rename it, for example `my_{name}`")


def shape_scope(scope: Scope, heads_q: object, heads_kv: object) -> Scope:
    """In a shape `b` is the batch size and `h`, `hkv` are the numbers of heads."""
    sizes = {"b": var("batch"), "h": heads_q, "hkv": heads_kv}
    implicit = {n: v for n, v in scope.implicit.items() if n not in INDICES}
    return Scope(scope.bound, {**implicit, **sizes}, "the shape or range of a tensor")


def tensor(statement: tree.Tensor, scope: Scope, session: Session) -> TensorDecl:
    """`scope` is that of `shape_scope`."""
    check_argument_name(statement)
    if statement.dtype not in STORAGE_TYPES:
        hint = did_you_mean(statement.dtype, STORAGE_TYPES) or f"known are {', '.join(STORAGE_TYPES)}"
        raise fail("E203", f"unknown element type `{statement.dtype}`", statement.span, hint=hint)
    if len(statement.shape) > MAX_RANK:
        message = f"`{statement.name}` has {len(statement.shape)} dimensions; the limit is {MAX_RANK}"
        raise fail("E206", message, statement.span, hint="join dimensions and compute the index: t[i * n + j]")
    shape = tuple(_extent(e, statement, scope, session) for e in statement.shape)
    kind = STORAGE_TYPES[statement.dtype]
    if kind == BOOL and (statement.range or statement.is_sorted):
        raise fail("E206", f"`{statement.name}` is bool and has no range or order", statement.span)
    if statement.is_sorted and not shape:
        raise fail("E206", f"`{statement.name}` has no dimension to be sorted along", statement.span)
    low, high = _range(statement.range, kind, scope, session)
    return TensorDecl(statement.name, statement.dtype, shape, low, high, statement.is_sorted, statement.span)


def _extent(node, statement: tree.Tensor, scope: Scope, session: Session) -> Expr | None:
    if isinstance(node, tree.AnySize):
        return None
    extent = _of_sizes(node, INT, scope, session, f"a dimension of `{statement.name}`")
    if extent.op == "const" and extent.value < 1:
        message = f"a dimension of `{statement.name}` is {extent.value}; it must be at least 1"
        raise fail("E206", message, node.span)
    return extent


def _of_sizes(node: tree.Expression, kind: str, scope: Scope, session: Session, what: str) -> Expr:
    """A value that is known when a call begins: nothing but constants and sizes."""
    found = typed(node, kind, scope, session, what)
    extra = sorted(variables(found) - set(SIZE_VARIABLES)) + sorted(tensors(found))
    if extra:
        raise fail("E206", f"{what} depends on `{extra[0]}`", node.span, hint="it may use constants and sizes only")
    return found


def _range(node: tree.Range | None, kind: str, scope: Scope, session: Session) -> tuple[Expr | None, Expr | None]:
    if node is None:
        return None, None
    low, high = (_of_sizes(n, kind, scope, session, "a bound of the range") for n in (node.low, node.high))
    if low.op == high.op == "const" and low.value >= high.value:
        raise fail(
            "E206", f"the range {low.value}..{high.value} is empty", node.span, hint="low..high means low <= x < high"
        )
    return low, high


def scalar(statement: tree.Scalar, scope: Scope, session: Session) -> ScalarDecl:
    check_argument_name(statement)
    if statement.type not in (INT, FLOAT, BOOL):
        hint = did_you_mean(statement.type, (INT, FLOAT, BOOL)) or "write int, float or bool"
        raise fail("E112", f"unknown type `{statement.type}` of a scalar", statement.span, hint=hint)
    if statement.range is not None and statement.type == BOOL:
        raise fail("E206", f"`{statement.name}` is bool and has no range", statement.span)
    low, high = _range(statement.range, statement.type, scope, session)
    return ScalarDecl(statement.name, statement.type, low, high, statement.span)


# Reduction


def reduction(statement: tree.Reduction, scope: Scope, session: Session) -> Reduction:
    """`scope` has the indices of a row: no kv_idx."""
    feature = statement.feature
    if feature.name not in REDUCTIONS:
        hint = did_you_mean(feature.name, REDUCTIONS) or f"known are {', '.join(REDUCTIONS)}"
        raise fail("E205", f"unknown reduction `{feature.name}`", feature.span, hint=hint)
    _no_positional(feature)
    options = ("sink",) if feature.name == "softmax" else ("weight_scale",)
    given = _options(feature.keywords, options, feature.name)
    values = {n: typed(k.value, FLOAT, scope, session, f"`{n}`") for n, k in given.items()}
    for name, found in values.items():
        if "kv_idx" in variables(found):
            message = f"`{name}` belongs to a whole row, but depends on kv_idx"
            raise fail("E205", message, given[name].value.span, hint="a value of each key belongs in `bias` or `score`")
    return Reduction(feature.name, values.get("sink"), values.get("weight_scale"))


def row_scope(scope: Scope) -> Scope:
    implicit = {n: v for n, v in scope.implicit.items() if n != "kv_idx"}
    return Scope(scope.bound, implicit, "an option of the reduction, which belongs to a whole row")


def _no_positional(feature: tree.Feature) -> None:
    if feature.arguments:
        message = f"the options of `{feature.name}` are given by name"
        raise fail("E107", message, feature.arguments[0].span, hint=f"write `{feature.name}(option = value)`")


# Target

HINTS = ("tile_m", "tile_n", "stages", "warp_groups")
HINT_LIMIT = {"tile_m": 1024, "tile_n": 1024, "stages": 16, "warp_groups": 8}


def target(statement: tree.Target, scope: Scope, session: Session) -> TargetHint:
    """The hints; whether the target can follow them is checked where tiles are chosen."""
    feature = statement.feature
    get_target(feature.name, feature.span)
    _no_positional(feature)
    given = _options(feature.keywords, HINTS, feature.name)
    values = {}
    for name, k in given.items():
        values[name] = constant(k.value, INT, scope, session, f"`{name}`")
        if not 1 <= values[name] <= HINT_LIMIT[name]:
            message = f"`{name}` is {values[name]}; it must be in 1..{HINT_LIMIT[name]}"
            raise fail("E207", message, k.span)
    return TargetHint(name=feature.name, **values, span=statement.span)


# Storage: in the grammar and checked, not lowered yet

SPARSITY = {"block_table": ("table", "block_q", "block_kv"), "top_k": ("blocks", "block_kv", "scores")}
OPERANDS = ("q", "k", "v", "kv", "p")
FORMATS = {
    name: ("per", "block")
    for name in ("fp8_e4m3", "fp8_e5m2", "int8", "int4", "mxfp8", "mxfp4", "nvfp4")
}  # fmt: skip


def sparsity(statement: tree.Sparsity) -> AttnError:
    """The diagnostic that refuses it; an error of its own when it is also wrong."""
    feature = statement.feature
    if feature.name not in SPARSITY:
        hint = did_you_mean(feature.name, SPARSITY) or f"known are {', '.join(SPARSITY)}"
        return fail("E208", f"unknown kind of sparsity `{feature.name}`", feature.span, hint=hint)
    try:
        _options(feature.keywords, SPARSITY[feature.name], feature.name)
    except AttnError as error:
        return error
    hint = "say it as a `mask`; tiles that the mask empties are never loaded"
    return fail("E230", "`sparsity` is not compiled yet: its lowering comes later", statement.span, hint=hint)


def quantize(statement: tree.Quantize) -> AttnError:
    """The diagnostics that refuse it, or say what is wrong with it."""
    found: list[Diagnostic] = []
    for s in statement.settings:
        try:
            _check_setting(s)
        except AttnError as error:
            found += error.diagnostics
    if found:
        return AttnError(*found)
    hint = "leave the statement out and pass bf16 or fp16 operands"
    return fail("E231", "`quantize` is not compiled yet: its lowering comes later", statement.span, hint=hint)


def _check_setting(s: tree.Setting) -> None:
    if s.name not in OPERANDS:
        hint = did_you_mean(s.name, OPERANDS) or f"known are {', '.join(OPERANDS)}"
        raise fail("E208", f"`quantize` has no operand `{s.name}`", s.span, hint=hint)
    if s.feature.name not in FORMATS:
        hint = did_you_mean(s.feature.name, FORMATS) or f"known are {', '.join(FORMATS)}"
        raise fail("E208", f"unknown storage format `{s.feature.name}`", s.feature.span, hint=hint)
    _no_positional(s.feature)
    _options(s.feature.keywords, FORMATS[s.feature.name], s.feature.name)


def rank_scale(dim_qk: int) -> float:
    """The scale where none is given: 1 / sqrt(dim_qk)."""
    return 1.0 / math.sqrt(dim_qk)


def conjoin(parts: list[tuple[Expr, Span]]) -> Expr:
    """All masks together; `true` when there is none."""
    out = TRUE
    for part, span in parts:
        out = build("and", (out, part), span)
    return out
