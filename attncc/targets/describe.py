"""The text of spec/capabilities.md, made from the targets: `python -m attncc.targets.describe > spec/capabilities.md`."""

from __future__ import annotations

from attncc.targets import CAPABILITIES, TARGETS, Target

ALWAYS = (
    "every mask, score, bias and user function of the language, in every combination",
    "every reduction: softmax with or without sink, sigmoid, relu, silu, gelu, none",
    "multi-head, grouped-query and multi-query heads of any group size",
    "tensors of any rank and of every element type, indexed by any expression",
    "any batch and any lengths, also of zero; fewer, as many or more queries than keys",
    "the log-sum-exp of every row (softmax)",
)
NEVER = (
    ("gradients", "E317, when a call asks for one"),
    ("`sparsity`", "E230, at its line"),
    ("`quantize`", "E231, at its line"),
)


def capabilities() -> str:
    """The whole file."""
    targets = list(TARGETS.values())
    lines = [
        "# What each target can do",
        "",
        "Made from `attncc/targets` by `python -m attncc.targets.describe`; a test compares them.",
        "",
        "On every target:",
        "",
        *(f"- {item}" for item in ALWAYS),
        "",
        "On no target yet, each refused with a diagnostic:",
        "",
        *(f"- {what}: {how}" for what, how in NEVER),
        "",
        *_table(["", *(f"`{t.name}`" for t in targets)], [[title, *map(text, targets)] for title, text in ROWS]),
        "",
        "## What the hardware is asked for",
        "",
        *_table(
            ["capability", *(f"`{t.name}`" for t in targets), "meaning"],
            [[f"`{c}`", *("yes" if t.has(c) else "" for t in targets), meaning] for c, meaning in CAPABILITIES.items()],
        ),
    ]
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *rows)]


def _dims(t: Target) -> str:
    return f"multiples of {t.dim_step} up to {t.dim_max}; q, k and v may differ"


ROWS = (
    ("hardware", lambda t: t.title),
    ("compiled for", lambda t: " ".join(t.archs)),
    ("operands", lambda t: ", ".join(t.dtypes)),
    ("head dims", _dims),
    ("shared memory of a block", lambda t: f"{t.shared_limit // 1024} KiB"),
)


if __name__ == "__main__":
    print(capabilities(), end="")
