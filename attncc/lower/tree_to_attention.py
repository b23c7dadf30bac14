"""L0 to L1: names, types and shapes are resolved, definitions inlined, constants computed. Language errors end here."""

from __future__ import annotations

from attncc.diagnostics import AttnError, Diagnostic, Span, did_you_mean, fail
from attncc.ir.attention import RAW_SCORE, Attention, Reduction, TargetHint
from attncc.ir.expr import BOOL, FLOAT, Expr, as_float, const, substitute, var, walk
from attncc.lower import check, statements
from attncc.lower.expressions import expr, force
from attncc.lower.fold import build
from attncc.lower.parameters import bind
from attncc.lower.prelude import prelude
from attncc.lower.session import Session
from attncc.lower.values import INDICES, SCORE, SIZES, AlreadyReported, Broken, Lazy, Scope, TensorValue, Value
from attncc.syntax import tree

MAX_NODES = 20_000
MAX_DEPTH = 300
MAX_WRITTEN = 500_000
ONCE = (tree.Heads, tree.Dim, tree.Dtype, tree.Scale, tree.Reduction, tree.Target, tree.Sparsity, tree.Quantize)


def lower(file: tree.File, parameters: dict[str, object] | None = None, name: str | None = None) -> Attention:
    """The attention of `file` (the one called `name` when there are several) with `parameters` filled in.

    Raises AttnError with every independent mistake.
    """
    session = Session(prelude(), dict(prelude()))
    check.definitions(file, session)
    try:
        node = select(file, name)
    except AttnError as error:
        session.report(error)
        raise AttnError(*session.problems) from None
    attention = _Attention(node, session).lower(dict(parameters or {}))
    check.unused_definitions(file, session)
    if session.problems:
        raise AttnError(*sorted(session.problems, key=_order))
    return attention


def _order(d: Diagnostic) -> tuple:
    return (d.span is None, d.span.line if d.span else 0, d.span.column if d.span else 0)


def select(file: tree.File, name: str | None) -> tree.Attention:
    """The attention called `name`, or the only one."""
    names = [a.name for a in file.attentions]
    if not names:
        hint = "write `attention name { heads q = 8, kv = 8; dim 64; dtype bf16 }`, one statement per line"
        raise fail("E007", f"{file.source.name} holds no attention", hint=hint)
    if name is None and len(names) == 1:
        return file.attentions[0]
    if name is None:
        message = f"{file.source.name} holds {len(names)} attentions: {', '.join(names)}"
        raise fail("E007", message, file.attentions[1].span, hint=f"choose one by name, for example {names[0]}")
    if name not in names:
        hint = did_you_mean(name, names) or f"it holds {', '.join(names)}"
        raise fail("E007", f"{file.source.name} holds no attention `{name}`", hint=hint)
    return file.attentions[names.index(name)]


class _Attention:
    """The lowering of one attention: statement by statement, each guarded so that one mistake does not hide the next."""

    def __init__(self, node: tree.Attention, session: Session):
        self.node, self.session = node, session
        self.spans: dict[str, Span] = {"attention": node.span}
        self.once: dict[type, tree.Statement] = {}

    def lower(self, given: dict[str, object]) -> Attention | None:
        """None when something was reported."""
        self.sort_statements()
        parameters = bind(self.node, given, self.session)
        fixed = Scope(parameters, {}, "a compile-time value")
        heads = self.required(tree.Heads, statements.heads, "`heads q = 8, kv = 8`", fixed, self.session)
        dims = self.required(tree.Dim, statements.dim, "`dim 128`", fixed, self.session)
        dtype = self.required(tree.Dtype, statements.dtype, "`dtype bf16`")
        scope = self.scope(parameters, heads, dims)
        tensors, scalars = self.declare(scope, heads)
        scale = self.optional(tree.Scale, None, statements.scale, fixed, self.session)
        score = self.score(scope, scale, dims)
        mask = self.mask(scope)
        row = statements.row_scope(scope)
        reduction = self.optional(tree.Reduction, Reduction(), statements.reduction, row, self.session)
        target = self.optional(tree.Target, TargetHint(), statements.target, fixed, self.session)
        self.refuse_storage()
        if self.session.problems:
            return None
        return Attention(
            self.node.name, *heads, *dims, dtype, score, mask, reduction, tensors, scalars, target,
            tuple(self.spans.items()),
        )  # fmt: skip

    def sort_statements(self) -> None:
        """Remember where each kind of statement stands; report the second of a kind that may stand once."""
        for statement in self.node.statements:
            kind = type(statement)
            what = kind.__name__.lower()
            if kind in ONCE and kind in self.once:
                first = self.once[kind].span.line
                hint = f"the first one is in line {first}; keep one of them"
                self.report("E106", f"`{what}` stands twice", statement.span, hint)
                continue
            self.once.setdefault(kind, statement)
            self.spans.setdefault(what, statement.span)

    def report(self, code: str, message: str, span: Span | None, hint: str | None = None) -> None:
        self.session.report(fail(code, message, span, hint=hint))

    def guard(self, function, *args):
        """`function(*args)`, or `Broken` when it fails; the failure is kept."""
        try:
            return function(*args)
        except AlreadyReported:
            pass
        except AttnError as error:
            self.session.report(error)
        return Broken()

    def required(self, kind: type, function, example: str, *args):
        if kind in self.once:
            return self.guard(function, self.once[kind], *args)
        what = kind.__name__.lower()
        self.report(
            "E209", f"the attention `{self.node.name}` has no `{what}`", self.node.span, f"add a line {example}"
        )
        return Broken()

    def optional(self, kind: type, default, function, *args):
        return self.guard(function, self.once[kind], *args) if kind in self.once else default

    def scope(self, parameters: dict[str, Value], heads, dims) -> Scope:
        """The scope of run-time expressions, before tensors, scalars and lets are added."""
        constants: dict[str, Value] = {}
        for names, values in ((("heads_q", "heads_kv"), heads), (("dim_qk", "dim_v"), dims)):
            broken = isinstance(values, Broken)
            constants.update((n, values if broken else const(values[i])) for i, n in enumerate(names))
        constants["group"] = heads if isinstance(heads, Broken) else const(heads[0] // heads[1])
        return Scope(dict(parameters), {**INDICES, **SIZES, **constants}, "a run-time expression")

    def declare(self, scope: Scope, heads) -> tuple[tuple, tuple]:
        """Add tensors, scalars and lets to `scope`; a let may use any of them, in any order."""
        tensors, scalars, bound = [], [], scope.bound
        q, kv = (heads, heads) if isinstance(heads, Broken) else map(const, heads)
        shape = statements.shape_scope(Scope(dict(bound), scope.implicit, scope.place), q, kv)
        lets = [s for s in self.node.statements if isinstance(s, tree.Let)]
        bound_shapes = shape.bound
        for let in lets:
            bound_shapes.setdefault(let.name, Lazy(let, shape))
        for statement in self.node.statements:
            if not isinstance(statement, (tree.Tensor, tree.Scalar, tree.Let)):
                continue
            if statement.name in bound:
                hint = "every parameter, tensor, scalar and let has its own name"
                self.report("E106", f"`{statement.name}` is declared twice", statement.span, hint)
                continue
            if isinstance(statement, tree.Let):
                bound[statement.name] = Lazy(statement, scope)
                continue
            function = statements.tensor if isinstance(statement, tree.Tensor) else statements.scalar
            found = self.guard(function, statement, shape, self.session)
            self.spans.setdefault(statement.name, statement.span)
            if isinstance(found, Broken):
                bound[statement.name] = found
            elif isinstance(statement, tree.Tensor):
                tensors.append(found)
                bound[statement.name] = TensorValue(found)
            else:
                scalars.append(found)
                bound[statement.name] = var(found.name, found.type)
        for let in lets:
            self.guard(force, bound[let.name], self.session)
        return tuple(tensors), tuple(scalars)

    def score(self, scope: Scope, scale: float | None, dims) -> Expr:
        """The scaled dot product, rewritten by every `score` and `bias` in textual order."""
        if scale is None:
            scale = 1.0 if isinstance(dims, Broken) else statements.rank_scale(dims[0])
        current = (
            as_float(0.0)
            if isinstance(scale, Broken)
            else build("mul", (var(RAW_SCORE, FLOAT), const(scale)), self.node.span)
        )
        for statement in self.node.statements:
            if isinstance(statement, (tree.Score, tree.Bias)):
                found = self.guard(self.rewrite, statement, scope)
                if not isinstance(found, Broken):
                    current = substitute(found, {SCORE.value: current})
        return self.guard(bounded, current, "score", self.spans.get("score") or self.spans.get("bias"))

    def rewrite(self, statement: tree.Score | tree.Bias, scope: Scope) -> Expr:
        """The new score in terms of the old one, `s`."""
        is_score = isinstance(statement, tree.Score)
        place = "a score" if is_score else "a bias"
        inner = Scope(scope.bound, scope.implicit, place, allows_score=is_score)
        found = expr(statement.value, inner, self.session)
        if found.type == BOOL:
            hint = "to leave keys out, write `mask`; `a if condition else b` makes a number of a condition"
            raise fail("E104", f"{place} must be a number, found bool", statement.value.span, hint=hint)
        return as_float(found) if is_score else build("add", (SCORE, found), statement.span)

    def mask(self, scope: Scope) -> Expr:
        """All `mask` statements together."""
        parts = []
        inner = Scope(scope.bound, scope.implicit, "a mask")
        for statement in self.node.statements:
            if isinstance(statement, tree.Mask):
                found = self.guard(self.one_mask, statement, inner)
                if not isinstance(found, Broken):
                    parts.append((found, statement.span))
        return self.guard(bounded, statements.conjoin(parts), "mask", self.spans.get("mask"))

    def one_mask(self, statement: tree.Mask, scope: Scope) -> Expr:
        found = expr(statement.value, scope, self.session)
        if found.type != BOOL:
            hint = "compare it, for example `x != 0`; to change scores, write `bias` or `score`"
            raise fail("E103", f"a mask must be bool, found {found.type}", statement.value.span, hint=hint)
        return found

    def refuse_storage(self) -> None:
        for kind, function in ((tree.Sparsity, statements.sparsity), (tree.Quantize, statements.quantize)):
            if kind in self.once:
                self.session.report(function(self.once[kind]))


def bounded(root: Expr, what: str, span: Span | None) -> Expr:
    """`root`, refused when it is so large or deep that later passes, or its text, would be out of bounds."""
    depth: dict[Expr, int] = {}
    written: dict[Expr, int] = {}
    for node in walk(root):
        depth[node] = 1 + max((depth[a] for a in node.args), default=0)
        written[node] = 1 + sum(written[a] for a in node.args)
    if len(depth) > MAX_NODES or depth[root] > MAX_DEPTH or written[root] > MAX_WRITTEN:
        message = f"the {what} unfolds into {len(depth)} operations, {depth[root]} levels deep, {written[root]} when written out"
        hint = f"the limits are {MAX_NODES}, {MAX_DEPTH} and {MAX_WRITTEN}; shorten ranges, or pass a tensor of precomputed values"
        raise fail("E118", message, span, hint=hint)
    return root
