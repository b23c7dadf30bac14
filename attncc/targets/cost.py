"""Work of a score program per element, as the resource model counts it. No torch, no IR passes: only the expression."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from attncc.formats import bytes_of
from attncc.ir.attention import Attention
from attncc.ir.diagonals import DISTANCE, split_diagonals
from attncc.ir.expr import ONE, Expr, sub, var, variables, walk
from attncc.ir.instructions import CHEAP_COLUMN, cost
from attncc.ir.tile import extent_name

SPECIAL = {"exp": 1, "exp2": 1, "log": 1, "log2": 1, "tanh": 1, "sqrt": 1, "div": 1, "sigmoid": 2, "sin": 1, "cos": 1, "pow": 2}
"""Results of the special function unit that an operator takes."""
SLOW = {"erf": 12, "floordiv": 4, "mod": 5, "pow": 3, "sigmoid": 2, "div": 1}
"""Instructions that an operator takes beyond the one that most take."""
LOAD_INSTRUCTIONS = 3
BLOCK_TYPES = ("bf16", "f16", "f32")
SHORT_MASK = 10
"""Operators, names and numbers of a mask that stays in registers beside 32 rows a warp: longer ones were seen to spill."""
SCORE, ROW, KEY = "qk", "q_idx", "kv_idx"
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


@dataclass(frozen=True)
class ElementCost:
    """Work for one score element beyond the plain softmax, and what must be kept in registers for it.

    instructions, special    instructions and special function results
    columns, mask_columns    values of a key that the score needs, and those that only the mask needs
    cheap_columns            those of the score that each thread works out for itself
    gathers                  tensors whose elements are read one by one
    diagonals, staged        terms of the distance between query and key, which threads share, and tensors that only those read
    blocks, block_bytes      those of them that are a whole block for a tile (`is_block`), and the bytes of an element of all together
    mask_loads               numbers that the mask reads from a tensor for each key
    mask_size                operators, names and numbers of the mask
    weights                  whether scores become weights without softmax, by a function of its own
    shared_bytes             bytes of shared memory read for an element (known after the passes)
    bounded, capped          whether no running maximum is kept, and whether the softmax step makes the tanh of the score (known after the passes)
    """

    instructions: float = 0.0
    special: float = 0.0
    columns: int = 0
    mask_columns: int = 0
    cheap_columns: int = 0
    gathers: int = 0
    diagonals: int = 0
    staged: int = 0
    blocks: int = 0
    block_bytes: int = 0
    mask_loads: int = 0
    mask_size: int = 0
    weights: bool = False
    shared_bytes: float = 0.0
    bounded: bool = False
    capped: bool = False

    @property
    def is_banded(self) -> bool:
        """Whether the mask has several conditions, or reads tensors: such masks (documents, neighbourhoods) keep few keys of a row."""
        return bool(self.mask_columns or self.mask_loads or self.mask_size > SHORT_MASK)

    @property
    def is_simple(self) -> bool:
        """Whether score and mask need next to no registers: a scaled score, and a short mask of bounds on the key's position."""
        return not (self.instructions or self.columns or self.gathers or self.weights or self.is_banded)


@lru_cache(maxsize=256)
def element_cost(attention: Attention) -> ElementCost:
    """What score and mask add per element; a multiplication by a constant is part of softmax and free."""
    needs = dependences(attention.score)
    instructions = special = 0.0
    gathers = 0
    for node, names in needs.items():
        per_element = SCORE in names or names >= {ROW, KEY}
        if not per_element or node.op in ("var", "const") or _is_scaling(node):
            continue
        gathers += node.op == "load"
        instructions += LOAD_INSTRUCTIONS if node.op == "load" else 1 + SLOW.get(node.op, 0)
        special += SPECIAL.get(node.op, 0)
    columns = column_values(attention.score)
    _, diagonals = split_diagonals(attention.score, frozenset())
    blocks = [node for node in needs if is_block(node, attention)]
    return ElementCost(
        instructions,
        special,
        columns=len(columns),
        mask_columns=len(column_values(attention.mask) - columns),
        cheap_columns=sum(cost(value) <= CHEAP_COLUMN for value in columns),
        gathers=gathers,
        diagonals=len(diagonals),
        staged=sum(n.op == "load" and DISTANCE in variables(n) for n in {n for term in diagonals for n in walk(term)}),
        blocks=len(blocks),
        block_bytes=sum(bytes_of(attention.tensor(node.value).dtype) for node in blocks),
        mask_loads=sum(n.op == "load" and KEY in names for n, names in dependences(attention.mask).items()),
        mask_size=sum(1 for _ in walk(attention.mask)),
        weights=attention.reduction.kind not in ("softmax", "none"),
    )


def dependences(root: Expr) -> dict[Expr, frozenset[str]]:
    """For every node of `root`: which of the score, the row and the key it depends on."""
    needs: dict[Expr, frozenset[str]] = {}
    for node in walk(root):
        own = frozenset({node.value} & {SCORE, ROW, KEY}) if node.op == "var" else frozenset()
        needs[node] = own.union(*(needs[a] for a in node.args))
    return needs


def is_block(node: Expr, attention: Attention) -> bool:
    """Whether `node` reads a float tensor of two to four dimensions at the query and the key themselves (guarded or not), the other
    indices being the same for the whole tile: a tile of scores reads a block of it."""
    if node.op != "load" or not 2 <= len(node.args) <= 4:
        return False
    declared = next((t for t in attention.tensors if t.name == node.value), None)
    if declared is None or declared.dtype not in BLOCK_TYPES:
        return False
    others = frozenset().union(*(variables(a) for a in node.args[:-2]))
    rank = len(node.args)
    own = all(_is_position(node, axis, name) for axis, name in ((rank - 2, ROW), (rank - 1, KEY)))
    return own and not others & {SCORE, ROW, KEY, "kv_tile", "t"}


def _is_position(node: Expr, axis: int, name: str) -> bool:
    """Whether index `axis` of a load is the variable `name`, possibly cut at the tensor's end."""
    index, extent = node.args[axis], var(extent_name(node.value, axis))
    if index.op != "min":
        return index is var(name)
    length = {ROW: var("seq_q"), KEY: var("seq_kv")}[name]
    return index.args[0] is var(name) and index.args[1] in (sub(length, ONE), sub(extent, ONE))


def column_values(root: Expr) -> frozenset[Expr]:
    """The largest parts of `root` that depend on the key index alone and are worth a register for each column.

    A sum of kv_idx and constants is not: it is one register and an immediate for each column.
    """
    needs = dependences(root)
    alone = {n for n, names in needs.items() if names == {KEY}}
    largest = {a for n in needs if n not in alone for a in n.args if a in alone} | ({root} & alone)
    return frozenset(n for n in largest if not _is_affine(n, needs) and not _compares_affine(n, needs))


def _is_affine(n: Expr, needs: dict[Expr, frozenset[str]]) -> bool:
    """kv_idx times a constant plus what does not depend on it."""
    if KEY not in needs[n] or n.op == "var":
        return True
    scaled = n.op == "mul" and any(a.op == "const" for a in n.args)
    return (scaled or n.op in ("add", "sub", "neg", "to_float")) and all(_is_affine(a, needs) for a in n.args)


def _compares_affine(n: Expr, needs: dict[Expr, frozenset[str]]) -> bool:
    """A condition that is settled by comparing such sums."""
    if KEY not in needs[n]:
        return True
    if n.op in ("and", "or", "not"):
        return all(_compares_affine(a, needs) for a in n.args)
    return n.op in COMPARISONS and all(_is_affine(a, needs) for a in n.args)


def _is_scaling(node: Expr) -> bool:
    """qk times a constant, which folds into the exponent's multiplier."""
    return node.op == "mul" and any(a.op == "const" for a in node.args) and any(a.op == "var" for a in node.args)
