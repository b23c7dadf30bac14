"""One text form for every IR level, and the way back.

A node is a line `name field=value, field=value`; its parts that are nodes themselves stand in braces:

    for counter=i, begin=first_0, end=count_0, label="full tiles" {
      wait channel=K
      mma dst=S, a=Q, b=K, transposed=true, accumulate=false, asynchronous=true
    }

A node with several such parts names each: `prologue { ... }`. Where a node declares tensors or summaries, its own
expressions follow the declarations, a line each. Fields at their default and source spans are left out.
Expressions are infix, with the symbols and precedences of `ir.expr.OPS`; a tensor element is `name[i, j]`. The text of a
program parses back to an equal program: `parse(format(node)) == node`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from typing import Any

from attncc.diagnostics import AttnError, Diagnostic, Source, Span
from attncc.ir import attention, schedule, tile
from attncc.ir.attention import INDEX_VARIABLES, RAW_SCORE, SIZE_VARIABLES, STORAGE_TYPES
from attncc.ir.expr import FALSE, FLOAT, INT, OPS, TRUE, Expr, ExprTypeError, apply, const, load, var, walk
from attncc.ir.schedule import BLOCK_VARIABLES, GROUP_VARIABLE, PAIR_VARIABLE
from attncc.ir.tile import TILE_COUNT, TILE_LIST, TILE_VARIABLES

# ---------------------------------------------------------------- expressions -> text

_CALL = 100
_COMPARE = OPS["eq"].precedence


def format_expr(root: Expr) -> str:
    """The infix text of an expression; `parse_expr` reads it back to the same node."""
    done: dict[Expr, tuple[str, int]] = {}
    for node in walk(root):
        done[node] = _format_node(node, [done[a] for a in node.args])
    return done[root][0]


def _format_node(node: Expr, args: list[tuple[str, int]]) -> tuple[str, int]:
    if node.op == "const":
        return _format_const(node.value), _CALL
    if node.op == "var":
        return node.value, _CALL
    texts = ", ".join(text for text, _ in args)
    if node.op == "load":
        return f"{node.value}[{texts}]", _CALL
    op = OPS[node.op]
    if op.symbol is None:
        return f"{node.op}({texts})", _CALL
    p = op.precedence
    if op.arity == 1:
        # `-3` is a literal, so the negation of the literal 3 is written `-(3)`
        bare = args[0][1] >= p and node.args[0].op != "const"
        text = args[0][0] if bare else f"({args[0][0]})"
        return f"{op.symbol} {text}" if op.symbol.isalpha() else f"{op.symbol}{text}", p
    left = _wrap(args[0], p + 1 if p == _COMPARE else p)
    return f"{left} {op.symbol} {_wrap(args[1], p + 1)}", p


def _wrap(item: tuple[str, int], least: int) -> str:
    return item[0] if item[1] >= least else f"({item[0]})"


def _format_const(value) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


# ---------------------------------------------------------------- nodes -> text


def _node_classes() -> dict[str, type]:
    found = {}
    for module in (attention, tile, schedule):
        for item in vars(module).values():
            if dataclasses.is_dataclass(item) and isinstance(item, type) and item.__module__ == module.__name__:
                found[_snake(item.__name__)] = item
    return found


@functools.cache
def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


NODES = _node_classes()
"""Text name -> class, for every node of the three levels."""


def format_node(node, indent: int = 0) -> str:
    """The text of any IR node, ending in a newline."""
    pad = "  " * indent
    plain, blocks, late = [], [], []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if not field.compare or _is_default(field, value):
            continue
        if value == () and field.name in _block_fields(type(node)):
            continue  # the parser puts () back
        if _is_block(value):
            blocks.append((field.name, value if isinstance(value, tuple) else (value,)))
        elif isinstance(value, Expr) and _has_declarations(type(node)):
            late.append(f"{pad}  {field.name} = {format_expr(value)}\n")
        else:
            plain.append(f"{field.name}={_format_value(value)}")
    head = f"{pad}{_snake(type(node).__name__)}" + (" " + ", ".join(plain) if plain else "")
    if not blocks and not late:
        return head + "\n"
    if _is_bare_body(type(node)):
        inner = "".join(format_node(child, indent + 1) for child in blocks[0][1])
    else:
        blocks.sort(key=lambda block: block[0] not in _DECLARATIONS)
        inner = "".join(_format_block(name, children, indent + 1) for name, children in blocks)
    return f"{head} {{\n{inner}{''.join(late)}{pad}}}\n"


_DECLARATIONS = ("tensors", "scalars", "summaries")


def _has_declarations(cls: type) -> bool:
    """Whether expressions of this node may name what the node itself declares; they are written after the declarations."""
    return any(name in _DECLARATIONS for name in _block_fields(cls))


def _is_bare_body(cls: type) -> bool:
    """Whether the node's children stand in its braces directly, without the field's name."""
    return len(_block_fields(cls)) == 1 and not _has_declarations(cls)


def _format_block(name: str, children: tuple, indent: int) -> str:
    pad = "  " * indent
    return f"{pad}{name} {{\n" + "".join(format_node(c, indent + 1) for c in children) + f"{pad}}}\n"


def _is_default(field: dataclasses.Field, value) -> bool:
    if field.default is not dataclasses.MISSING:
        return value is field.default or (type(value) is type(field.default) and value == field.default)
    return False


def _is_node(value) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_block(value) -> bool:
    return _is_node(value) or (isinstance(value, tuple) and bool(value) and all(_is_node(v) for v in value))


def _format_value(value) -> str:
    if isinstance(value, Expr):
        return format_expr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_format_value(v) for v in value) + "]"
    if value is None:
        return "?"
    if isinstance(value, str):
        return value if re.fullmatch(r"[A-Za-z_]\w*", value) and value not in ("true", "false") else json.dumps(value)
    return _format_const(value)


# ---------------------------------------------------------------- text -> nodes

_TOKEN = re.compile(
    r"""[ \t\r]* (?:\#[^\n]*)? (?: (?P<newline>\n)
      | (?P<number>\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<name>[A-Za-z_]\w*)
      | (?P<symbol><<|>>|<=|>=|==|!=|//|[-+*/%<>=~&|^(){}\[\],?])
      | (?P<end>\Z) )""",
    re.VERBOSE,
)


class _Token(typing.NamedTuple):
    kind: str
    text: str
    start: int


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _block_fields(cls: type) -> tuple[str, ...]:
    """Fields whose values are nodes or tuples of nodes."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.compare and _holds_nodes(_hints(cls)[f.name]))


def _holds_nodes(hint) -> bool:
    if isinstance(hint, type):
        return dataclasses.is_dataclass(hint)
    return any(_holds_nodes(a) for a in typing.get_args(hint) if a is not Ellipsis)


def _builtin_types() -> dict[str, str]:
    names = (*INDEX_VARIABLES, *SIZE_VARIABLES, *TILE_VARIABLES, *BLOCK_VARIABLES, GROUP_VARIABLE, PAIR_VARIABLE)
    return {**{name: INT for name in names}, RAW_SCORE: FLOAT}


class _Parser:
    """Recursive descent over nodes, precedence climbing over expressions; `types` grows as declarations and lets are read."""

    def __init__(self, text: str, types_: dict[str, str] | None = None):
        self.source = Source("<ir>", text)
        self.types = {**_builtin_types(), **(types_ or {})}
        self.tensors = {TILE_COUNT: INT, TILE_LIST: INT, **(types_ or {})}
        self.tokens = self._scan(text)
        self.at = 0

    def _scan(self, text: str) -> list[_Token]:
        tokens, at = [], 0
        for found in _TOKEN.finditer(text):
            if found.start() != at:  # finditer steps over what is no token
                break
            kind, at = found.lastgroup, found.end()
            tokens.append(_Token(kind, found[kind], found.start(kind)))
            if kind == "end":
                return tokens
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r"))
        raise self.error("unexpected character", at)

    def error(self, message: str, start: int | None = None) -> AttnError:
        start = self.tokens[self.at].start if start is None else start
        before = self.source.text[:start]
        line, column = before.count("\n") + 1, start - (before.rfind("\n") + 1) + 1
        return AttnError(Diagnostic("E900", f"IR text: {message}", Span(self.source, line, column, line, column + 1)))

    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def take(self, text: str) -> bool:
        token = self.tokens[self.at]
        if token.text == text and token.kind in ("symbol", "name"):
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise self.error(f"expected `{text}`, found `{self.token.text}`")

    def name(self) -> str:
        if self.token.kind != "name":
            raise self.error(f"expected a name, found `{self.token.text}`")
        self.at += 1
        return self.tokens[self.at - 1].text

    def lines(self) -> None:
        while self.token.kind == "newline":
            self.at += 1

    # nodes

    def node(self):
        self.lines()
        name = self.name()
        if name not in NODES:
            raise self.error(f"unknown operation `{name}`")
        cls = NODES[name]
        fields: dict[str, Any] = {}
        while self.token.kind == "name":
            field = self.name()
            self.expect("=")
            if field not in _hints(cls):
                raise self.error(f"`{name}` has no field `{field}`")
            fields[field] = self.value(_hints(cls)[field])
            self.bind_counter(cls, fields)
            if not self.take(","):
                break
        if self.take("{"):
            self.blocks(cls, fields)
        return self.build(cls, fields)

    def bind_counter(self, cls: type, fields: dict[str, Any]) -> None:
        if cls is schedule.For and "counter" in fields:
            self.types[fields["counter"]] = INT

    def blocks(self, cls: type, fields: dict[str, Any]) -> None:
        names = _block_fields(cls)
        if _is_bare_body(cls):
            fields[names[0]] = self.shape(cls, names[0], self.children())
            return
        self.lines()
        while not self.take("}"):
            name = self.name()
            if self.take("="):
                fields[name] = self.value(_hints(cls)[name])
                self.lines()
                continue
            self.expect("{")
            if name not in names:
                raise self.error(f"no part `{name}` here")
            fields[name] = self.shape(cls, name, self.children())
            self.lines()

    def children(self) -> list:
        out = []
        self.lines()
        while not self.take("}"):
            out.append(self.node())
            self.lines()
        return out

    def shape(self, cls: type, name: str, children: list):
        """A tuple for a field of many nodes, the node itself for a field of one."""
        hint = _hints(cls)[name]
        options = typing.get_args(hint) if _is_union(hint) else (hint,)
        if any(typing.get_origin(o) is tuple for o in options):
            return tuple(children)
        if len(children) != 1:
            raise self.error(f"`{name}` holds one node, found {len(children)}")
        return children[0]

    def build(self, cls: type, fields: dict[str, Any]):
        for field in dataclasses.fields(cls):
            missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if field.name not in fields and missing:
                if field.name not in _block_fields(cls):
                    raise self.error(f"`{_snake(cls.__name__)}` needs `{field.name}`")
                fields[field.name] = ()
        node = cls(**fields)
        self.bind(node)
        return node

    def bind(self, node) -> None:
        """What later expressions may name."""
        if isinstance(node, attention.TensorDecl):
            self.tensors[node.name] = STORAGE_TYPES[node.dtype]  # a tensor may be called as a variable is: `t`
            self.types |= {tile.extent_name(node.name, axis): INT for axis in range(len(node.shape))}
        elif isinstance(node, attention.ScalarDecl):
            self.types[node.name] = node.type
        elif isinstance(node, (tile.Let, tile.RowLet, tile.ColLet, schedule.ColFetch)):
            self.types[node.name] = node.expr.type
        elif isinstance(node, schedule.Buffer) and node.name.startswith(tile.BLOCK):
            self.types[node.name] = FLOAT
        elif isinstance(node, tile.TileSummary):
            self.types[f"{node.name}_lo"] = self.types[f"{node.name}_hi"] = node.expr.type

    # field values

    def value(self, hint):
        options = typing.get_args(hint) if _is_union(hint) else (hint,)
        if self.token.text == "?" and self.token.kind == "symbol":
            self.at += 1
            return None
        kind = next(o for o in options if o is not type(None))
        if typing.get_origin(kind) is tuple:
            return self.tuple_value(typing.get_args(kind))
        if kind is Expr:
            return self.expr()
        if kind is str:
            return self.string()
        return self.literal(kind)

    def tuple_value(self, items) -> tuple:
        self.expect("[")
        out: list = []
        while not self.take("]"):
            out.append(self.value(items[0] if items[-1] is Ellipsis else items[len(out)]))
            if not self.take(","):
                self.expect("]")
                break
        return tuple(out)

    def string(self) -> str:
        if self.token.kind == "string":
            self.at += 1
            return json.loads(self.tokens[self.at - 1].text)
        return self.name()

    def literal(self, kind: type):
        node = self.expr()
        if node.op != "const":
            raise self.error(f"expected a {kind.__name__}")
        return float(node.value) if kind is float else node.value

    # expressions

    def expr(self, least: int = 0) -> Expr:
        left = self.prefix()
        while True:
            op = _BINARY.get(self.token.text) if self.token.kind in ("symbol", "name") else None
            if op is None or op.precedence < max(least, 1):
                return left
            self.at += 1
            left = self.make(op.name, left, self.expr(op.precedence + 1))

    def make(self, name: str, *args: Expr) -> Expr:
        try:
            node = apply(name, *args)
        except ExprTypeError as error:
            raise self.error(str(error)) from None
        if node.args != args:
            raise self.error(f"`{name}` mixes int and float")
        return node

    def prefix(self) -> Expr:
        token = self.token
        self.at += 1
        if token.kind == "number":
            return const(int(token.text) if token.text.isdigit() else float(token.text))
        if token.kind == "symbol" and token.text == "(":
            inner = self.expr()
            self.expect(")")
            return inner
        if token.kind == "symbol" and token.text == "-":
            if self.token.kind == "number" or self.token.text == "inf":
                return const(-self.prefix().value)
            return self.make("neg", self.expr(OPS["neg"].precedence))
        if token.kind == "symbol" and token.text == "~":
            return self.make("bitnot", self.expr(OPS["bitnot"].precedence))
        if token.kind == "name":
            return self.named(token.text)
        self.at -= 1
        raise self.error(f"expected an expression, found `{token.text}`")

    def named(self, name: str) -> Expr:
        if name == "not":
            return self.make("not", self.expr(OPS["not"].precedence))
        if name in ("true", "false"):
            return TRUE if name == "true" else FALSE
        if name in ("inf", "nan"):
            return const(float(name))
        if self.take("("):
            if name not in OPS:
                raise self.error(f"unknown function `{name}`")
            return self.make(name, *self.arguments(")"))
        is_tensor = self.take("[")
        known = self.tensors if is_tensor else self.types
        if name not in known:
            raise self.error(f"unknown name `{name}`")
        return load(name, tuple(self.arguments("]")), known[name]) if is_tensor else var(name, known[name])

    def arguments(self, close: str) -> list[Expr]:
        out: list[Expr] = []
        while not self.take(close):
            out.append(self.expr())
            if not self.take(","):
                self.expect(close)
                break
        return out


_BINARY = {op.symbol: op for op in OPS.values() if op.symbol and op.arity == 2}


def _is_union(hint) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def format_program(node) -> str:
    """The text of an L1 attention, L2 tile program or L3 schedule (any node, in fact)."""
    return format_node(node)


def parse_program(text: str, types: dict[str, str] | None = None):
    """The node that `text` describes. `types` gives the types of names that the text uses but does not declare."""
    parser = _Parser(text, types)
    node = parser.node()
    parser.lines()
    if parser.token.kind != "end":
        raise parser.error(f"unexpected `{parser.token.text}` after the program")
    return node


def parse_expr(text: str, types: dict[str, str] | None = None) -> Expr:
    """The expression that `text` describes; `types` adds names to the indices and sizes that are always known."""
    parser = _Parser(text, types)
    node = parser.expr()
    if parser.token.kind != "end":
        raise parser.error(f"unexpected `{parser.token.text}`")
    return node


__all__ = ["format_expr", "format_node", "format_program", "parse_expr", "parse_program"]
