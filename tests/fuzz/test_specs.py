"""The generated specs are what they should be: well-typed, distinct, of every kind, and the same for the same seed."""

from collections import Counter

import pytest

from attncc.diagnostics import AttnError
from attncc.fuzz import prelude
from attncc.fuzz.cases import cases
from attncc.fuzz.compare import Report
from attncc.fuzz.run import fuzz
from attncc.fuzz.shapes import Shape
from attncc.ir.expr import walk
from attncc.lower import load
from attncc.lower.prelude import prelude as definitions


def drawn(count: int, seed: int = 0) -> list:
    """`count` cases, nothing done with them."""
    found = []
    fuzz(cases=count, seed=seed, run=lambda case: found.append(case) or Report(case, None), strategy=cases())
    return found


@pytest.fixture(scope="module")
def sample():
    return drawn(300)


def test_every_spec_is_well_typed(sample):
    for case in sample:
        load(case.text)


def test_the_same_seed_draws_the_same_cases():
    assert drawn(15, seed=4) == drawn(15, seed=4)


def test_cases_are_distinct(sample):
    assert len({case.text for case in sample}) == len(sample)


def test_every_definition_of_the_prelude_is_called():
    listed = {*prelude.MASKS, *prelude.SCORES, *prelude.BIASES, *prelude.HELPERS}
    assert set(definitions()) == listed, "list a new definition in attncc/fuzz/prelude.py, with arguments that make sense"


def test_every_feature_of_the_language_is_drawn(sample):
    """Groups of heads, reductions, sinks, operators, types, orders of statements, shapes."""
    seen: Counter = Counter()
    for case in sample:
        attention = load(case.text)
        seen[f"group {attention.group}"] += 1
        seen[attention.dtype] += 1
        seen[attention.reduction.kind] += 1
        seen["sink"] += attention.reduction.sink is not None
        seen["weight scale"] += attention.reduction.weight_scale is not None
        seen["dims differ"] += attention.dim_qk != attention.dim_v
        for root in (attention.score, attention.mask):
            seen.update({f"operator {n.op}" for n in walk(root)})
        seen.update({f"tensor {t.dtype}" for t in attention.tensors} | {f"rank {len(t.shape)}" for t in attention.tensors})
        seen.update({f"scalar {s.type}" for s in attention.scalars})
        shape = case.shape
        seen["longer keys"] += shape.seq_q < shape.seq_kv
        seen["longer queries"] += shape.seq_q > shape.seq_kv
        seen["as long"] += shape.seq_q == shape.seq_kv
    wanted = [f"group {n}" for n in (1, 2, 4, 7)] + ["bf16", "f16", "sink", "weight scale", "dims differ"]
    wanted += ["softmax", "sigmoid", "relu", "silu", "gelu", "none", "longer keys", "longer queries", "as long"]
    wanted += [f"tensor {d}" for d in ("f32", "f16", "bf16", "i8", "u8", "i16", "i32", "i64", "bool")]
    wanted += [f"rank {n}" for n in (1, 2, 3, 4, 5)] + ["scalar int", "scalar float", "scalar bool"]
    wanted += [f"operator {o}" for o in (
        "select", "or", "and", "not", "eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "div", "floordiv", "mod", "neg",
        "min", "max", "abs", "exp", "log", "sqrt", "tanh", "sigmoid", "erf", "sin", "cos", "to_float", "load",
    )]  # fmt: skip
    missing = [name for name in wanted if not seen[name]]
    assert not missing, f"never drawn in {len(sample)} cases: {missing}"


def test_a_gather_of_a_gather_is_drawn(sample):
    def nested(attention):
        loads = [n for root in (attention.score, attention.mask) for n in walk(root) if n.op == "load"]
        return any(inner.op == "load" for n in loads for a in n.args for inner in walk(a))

    assert sum(nested(load(case.text)) for case in sample) >= 5


@pytest.mark.parametrize("text", ["2x3x4", "1x1x0"])
def test_a_shape_prints_and_reads_back(text):
    assert str(Shape.parse(text)) == text


@pytest.mark.parametrize("text", ["2x3", "0x1x1", "1x0x5", "axbxc", "1x1x-1"])
def test_a_wrong_shape_is_refused(text):
    with pytest.raises(ValueError):
        Shape.parse(text)


def test_without_hypothesis_the_command_says_what_to_install(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *rest):
        if name == "hypothesis":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(AttnError, match="hypothesis, which is not installed"):
        fuzz(cases=1)


def test_time_ends_a_search():
    summary = fuzz(seconds=0.0, run=lambda case: Report(case, None))
    assert summary.cases == 0 and summary.ok
