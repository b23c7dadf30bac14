"""Small calls of generated kernels that are compared with a GPU's results: specs, and inputs that a seed determines.

An exact case has small integers for q, k, v and for every tensor, and a scale that is a power of two: scores are exact in
float32 and in the storage type, sums are exact in float32 in any order, and each rounding is of an exact number, so its bits are
determined. An inexact case comes with a bound (`bound`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
import torch

import attncc
from attncc.accuracy import distance
from attncc.interp.inputs import TORCH_TYPES
from attncc.interp.reference import reference

TARGETS = ("hopper", "ampere")
CHIPS = {"hopper": "sm_90a", "ampere": "sm_90a"}
"""Both run on an H100; a GPU of that architecture is what the recording is made on."""


@dataclass(frozen=True)
class Case:
    """A spec in the language, the shape (batch, seq_q, seq_kv), tensor arguments as (torch type, shape, low, high), `sorted` ones.

    spread      q, k, v are integers in -spread..spread (exact), or sums of four integers / 64 (inexact)
    tanh        scores go through the hardware's tanh, for `bound`
    zero_q      all scores are 0
    """

    name: str
    body: str
    shape: tuple[int, int, int] = (1, 128, 256)
    tensors: dict = field(default_factory=dict)
    heads: tuple[int, int] = (1, 1)
    dims: str = "dim 64"
    dtype: str = "bf16"
    exact: bool = True
    spread: int = 2
    tanh: bool = False
    zero_q: bool = False
    strided: bool = False

    @property
    def storage(self) -> torch.dtype:
        """Of q, k, v and the output."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}[self.dtype]

    @property
    def text(self) -> str:
        """The `.attn` text."""
        q, kv = self.heads
        declared = ""
        for name, (kind, shape, low, high, *rest) in self.tensors.items():
            promise = "" if kind == "bool" else f" in {low}..{high}{' sorted' if rest else ''}"
            declared += f"    tensor {name}: {kind}[{', '.join('?' for _ in shape)}]{promise}\n"
        body = "".join(f"    {line.strip()}\n" for line in self.body.splitlines() if line.strip())
        return (
            f"attention case_{self.name} {{\n    heads q = {q}, kv = {kv}\n    {self.dims}\n    dtype {self.dtype}\n"
            f"{declared}{body}}}\n"
        )


RELU = "scale 0.25\nreduction relu"
NONE = "scale 0.5\nreduction none"
CASES = {
    case.name: case
    for case in (
        Case("none_full", NONE, (1, 100, 256)),
        Case("relu_causal_ragged", f"{RELU}\nmask causal", (2, 60, 300)),
        Case("grouped_heads", f"{RELU}\nmask causal", (1, 24, 140), heads=(4, 1)),
        Case("seven_to_one", NONE, (1, 9, 130), heads=(7, 1)),
        Case("d128_window", f"{RELU}\nmask causal and sliding_window(keys = 77)", (1, 130, 260), dims="dim 128"),
        Case("d256", NONE, (1, 33, 128), dims="dim 256"),
        Case("d40_clipped", NONE, (1, 70, 190), dims="dim 40"),
        Case(
            "d96_fp16", "scale 0.25\nreduction relu(weight_scale = 0.125)", (1, 129, 257), dims="dim 96", dtype="fp16"
        ),
        Case("d192_and_128", f"{RELU}\nmask causal", (1, 65, 129), dims="dim qk = 192, v = 128"),
        Case("one_query", f"{RELU}\nmask causal", (2, 1, 257), heads=(2, 1)),
        Case("more_queries_than_keys", f"{NONE}\nmask causal", (1, 200, 72)),
        Case("strided_operands", f"{RELU}\nmask causal", (2, 40, 150), heads=(2, 2), strided=True),
        Case("rounded_weights", "scale 1.0\nreduction none", (1, 90, 256), spread=9),
        Case(
            "documents",
            f"{NONE}\nmask causal and document(doc_q, doc_kv)",
            (2, 72, 192),
            {"doc_q": ("i32", (2, 72), 0, 5, "sorted"), "doc_kv": ("i32", (2, 192), 0, 5, "sorted")},
        ),
        Case("lengths", f"{NONE}\nmask key_padding(n[b])", (3, 33, 200), {"n": ("i32", (3,), 0, 201)}),
        Case("dense_mask", f"{NONE}\nmask keep[q_idx, kv_idx]", (1, 100, 200), {"keep": ("bool", (100, 200), 0, 2)}),
        Case(
            "dense_bias",
            f"bias t[h, q_idx, kv_idx]\n{RELU}",
            (1, 48, 200),
            {"t": ("f32", (2, 48, 200), -4, 5)},
            heads=(2, 2),
        ),
        Case(
            "staged_distances",
            f"bias relative_table(t, reach = 40)\nmask causal\n{RELU}",
            (1, 72, 256),
            {"t": ("f32", (2, 81), -4, 5)},
            heads=(2, 1),
        ),
        Case(
            "gather_of_a_gather",
            f"bias t[ids[b, kv_idx], h]\n{RELU}",
            (2, 40, 200),
            {"t": ("f32", (9, 1), -4, 5), "ids": ("i32", (2, 200), 0, 9)},
        ),
        Case(
            "integers",
            f"bias float((q_idx * 7 + kv_idx * 3) % 5 - (kv_idx >> 4) // 3)\n"
            f"mask ((q_idx ^ kv_idx) & 3) != 2 and (kv_idx - q_idx) % 7 < 4\n{NONE}",
            (1, 100, 256),
        ),
        Case("uniform_softmax", "mask kv_idx // 64 == q_idx // 64", (1, 128, 128), zero_q=True),
        Case("softmax", "mask causal", (1, 40, 192), exact=False),
        Case("softmax_d128", "", (1, 24, 200), heads=(1, 1), dims="dim 128", exact=False),
        Case("softcap", "score softcap(20.0)\nmask causal", (1, 40, 192), exact=False, tanh=True),
        Case("alibi_fp16", "bias alibi\nmask causal", (1, 40, 192), dtype="fp16", exact=False),
        Case(
            "sink",
            "reduction softmax(sink = z[h])\nmask causal",
            (1, 40, 192),
            {"z": ("f32", (1,), -2, 3)},
            exact=False,
        ),
        Case("sigmoid", "bias -4.0\nmask causal\nreduction sigmoid", (1, 40, 192), exact=False),
    )
}


@dataclass(frozen=True)
class Inputs:
    """q, k, v, the tensors, and a digest of all their bytes."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    tensors: dict
    digest: str


def inputs(case: Case) -> Inputs:
    """The inputs of a case: numpy's legacy generator, whose stream is frozen, and integers only."""
    random = np.random.RandomState(int.from_bytes(hashlib.sha256(case.name.encode()).digest()[:4], "little"))
    a = attncc.compile(case.text).attention
    batch, seq_q, seq_kv = case.shape

    def operand(seq: int, heads: int, dim: int) -> torch.Tensor:
        shape = (batch, seq, heads, dim)
        if case.exact:
            values = random.randint(-case.spread, case.spread + 1, shape).astype(np.float32)
        else:
            values = random.randint(-55, 56, (4, *shape)).sum(0).astype(np.float32) / 64
        return torch.from_numpy(values).to(case.storage)

    q = operand(seq_q, a.heads_q, a.dim_qk)
    k, v = operand(seq_kv, a.heads_kv, a.dim_qk), operand(seq_kv, a.heads_kv, a.dim_v)
    q = torch.zeros_like(q) if case.zero_q else q
    tensors = {}
    for name, (kind, shape, low, high, *rest) in case.tensors.items():
        values = random.randint(low, high, shape)
        tensors[name] = torch.from_numpy(np.sort(values, -1) if rest else values).to(TORCH_TYPES[kind])
    state = hashlib.sha256()
    for t in (q, k, v, *tensors.values()):
        state.update(t.contiguous().view(torch.uint8).numpy().tobytes())
    if case.strided:
        both = torch.cat([k, v], dim=-1)
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
        k, v = both[..., : k.shape[-1]], both[..., k.shape[-1] :]
    return Inputs(q, k, v, tensors, state.hexdigest()[:16])


def call(kernel, case: Case, device: str = "cpu") -> tuple[np.ndarray, np.ndarray | None]:
    """The kernel's output as raw 16-bit words, and its log-sum-exp in float32 where it has one. Memory nobody wrote is NaN."""
    given = inputs(case)
    # .to(device) keeps the strides of q; k and v are parts of one tensor, and stay so
    q = given.q.to(device)
    k, v = given.k.to(device), given.v.to(device)
    if case.strided:
        both = torch.cat([k, v], dim=-1)
        k, v = both[..., : k.shape[-1]], both[..., k.shape[-1] :]
    out = torch.full((*q.shape[:3], v.shape[-1]), math.nan, dtype=q.dtype, device=device)
    tensors = {name: t.to(device) for name, t in given.tensors.items()}
    found = kernel(q, k, v, out=out, return_lse=kernel.has_lse, **tensors)
    lse = found[1].cpu().numpy().astype(np.float32) if kernel.has_lse else None
    return out.cpu().contiguous().view(torch.int16).numpy().view(np.uint16), lse


def values(words: np.ndarray, case: Case) -> torch.Tensor:
    """Raw words as numbers, float64."""
    return torch.from_numpy(words.view(np.int16)).view(case.storage).double()


def bound(case: Case) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What two right implementations of an inexact case may differ by: per element of the output, and of the log-sum-exp.

    With u half a unit in the last place of the storage type (relative): both round the weights (2 u) and the output (2 u). A score
    is off by at most e: sums of dim_qk products in float32, where an accumulation step of a tensor core is good to 2^-22 of the
    magnitudes, in both; and 2^-11 of a score that went through the hardware's tanh, on the GPU. That changes a weight by e
    relative. Weights and sums are float32 (exp2, reciprocal: 2^-21).
    """
    a = attncc.compile(case.text).attention
    given = inputs(case)
    u = 2.0**-9 if case.dtype == "bf16" else 2.0**-12
    product = lambda q, k: float(torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()).abs().max()) / a.dim_qk**0.5
    e = 2 * a.dim_qk * 2.0**-22 * product(given.q.abs(), given.k.abs())
    e += (2.0**-11 if case.tanh else 2.0**-21) * product(given.q, given.k)
    weighted, _ = reference(a, given.q, given.k, given.v.abs(), given.tensors)
    out, lse = reference(a, given.q, given.k, given.v, given.tensors)
    normal = 2 if a.reduction.kind == "softmax" else 1  # the sum below the line has its error too
    allowed = weighted.double() * (2 * u + normal * e + 2.0**-21) + 2 * u * out.double().abs()
    return allowed, None if lse is None else e + 2.0**-20 * (1 + lse.double().abs())


def difference(case: Case, one: tuple, other: tuple) -> str | None:
    """What tells two results of a case apart in more than they may differ, in words; None when nothing does."""
    (out, lse), (wanted, wanted_lse) = one, other
    if case.exact:
        wrong = int((out != wanted).sum())
        if wrong:
            return f"{wrong} of {out.size} outputs differ in their bits"
        allowed_lse = None if lse is None else torch.full(lse.shape, 2.0**-20 * (1 + float(np.abs(wanted_lse).max())))
    else:
        allowed, allowed_lse = bound(case)
        off = (values(out, case) - values(wanted, case)).abs()
        if not bool((off <= allowed).all()):
            return (
                f"the output differs by up to {float((off / allowed).nan_to_num(math.inf).max()):.2f} times the bound"
            )
    if lse is None:
        return None
    gap = torch.from_numpy(np.where(lse == wanted_lse, 0.0, lse.astype(np.float64) - wanted_lse)).abs()
    if not bool((gap <= allowed_lse).all()):
        return f"the log-sum-exp differs by up to {float(gap.max()):.2e}"
    return None


def against_reference(case: Case, found: tuple) -> str | None:
    """What is wrong beside the float64 reference: bits for an exact case whose weights the storage type holds."""
    a, given = attncc.compile(case.text).attention, inputs(case)
    out, _ = reference(a, given.q, given.k, given.v, given.tensors)
    words = out.to(case.storage).contiguous().view(torch.int16).numpy().view(np.uint16)
    if case.exact and case.name != "rounded_weights":
        # zeros have no determined sign, and the reference's softmax weights are not exact: a sum that cancels leaves 1e-17
        zero = (out.abs() < 1e-12) & (values(found[0], case) == 0)
        wrong = int((torch.from_numpy(words != found[0]) & ~zero).sum())
        return f"{wrong} of {words.size} outputs are not the rounded exact result" if wrong else None
    gap = distance(values(found[0], case), out)
    return f"{gap:.2e} from the reference" if not gap <= 2e-2 * (1 + float(out.abs().max())) else None
