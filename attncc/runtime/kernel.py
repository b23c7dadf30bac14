"""The object that `attncc.compile` gives: one attention, compiled for each kind of device it is called on."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import compiler
from torch._subclasses.fake_tensor import FakeTensor
from torch.compiler import is_dynamo_compiling

from attncc.diagnostics import AttnError, Diagnostic, fail
from attncc.ir import packing
from attncc.ir.attention import Attention
from attncc.ir.packing import CU_KV, CU_Q
from attncc.runtime import cache, known, load, torch_op, tuned
from attncc.runtime.build import Built, build, options
from attncc.runtime.call import Caller
from attncc.runtime.launch import Blocks, Launcher, Work, blocks_of, cpu_launcher, gpu_launcher, work_of
from attncc.targets import TARGETS, Target, check_chip, get_target, target_for_arch

if TYPE_CHECKING:
    from attncc.ir.schedule import Schedule
    from attncc.ir.tile import TileProgram
    from attncc.stages import Stages
    from attncc.targets.choice import Choice


BLOCKS = "score_blocks"
"""The capability that asks for biases laid out in a certain way; calls with others get a kernel that does not use it."""


class _Asked:
    """Stands for torch.compiler where it keeps its state in another way."""

    _is_compiling_flag = property(lambda self: compiler.is_compiling())


_TORCH = compiler if hasattr(compiler, "_is_compiling_flag") else _Asked()
"""Where to read whether a graph is being traced. Calling torch.compiler.is_compiling takes longer."""


@dataclass(frozen=True)
class Ready:
    """All that launching a kernel takes, once it has been compiled."""

    entry: cache.Entry
    work: Work | None
    blocks: Blocks = ()


class Kernel:
    """A compiled attention. Call it with torch tensors; any number of threads may.

    attention      L1, with its parameters filled in
    target         the target it was compiled for, or None: the one that fits the tensors of each call
    identity       names the attention in records of attncc.runtime.known; None when nothing is to be kept
    digest         of the attention's text without its target, None to have it made
    choice         what is compiled in place of what is remembered or the resource model says
    """

    def __init__(
        self,
        attention: Attention,
        target: Target | None,
        lower: Callable[[Attention, Target, Choice | None], Stages],
        identity: str | None = None,
        *,
        digest: str | None = None,
        choice: Choice | None = None,
    ):
        self.identity = identity
        self.choice = choice
        if digest is not None:
            self.digest = digest
        self.attention = attention
        self.target = target
        self.has_lse = attention.reduction.kind == "softmax"
        declared = packing.taken(attention)
        self._of_packed = tuple(n for n in (CU_Q, CU_KV) if n not in declared)
        self.caller = Caller(attention, self._launcher)
        self.register, self.register_packed = torch_op.registrar(self)
        self._lower = lower
        self._lock = threading.RLock()
        self._stages: dict[tuple, Stages] = {}
        self._built: dict[tuple, Built] = {}
        self._launchers: dict[str, Launcher] = {}

    @cached_property
    def digest(self) -> str:
        """Stands for the attention."""
        from attncc.ir.text import format_program

        return load.digest(format_program(self.attention))

    @cached_property
    def key(self) -> str:
        """Names this kernel in graphs: equal for equal attentions, layouts and targets."""
        layout = "packed" if self.attention.packed else "padded"
        return load.digest(self.digest, layout, self.target.name if self.target else "", repr(self.choice))

    @cached_property
    def packed(self) -> Kernel:
        """The kernel for packed sequences; see attncc.ir.packing. E341 when the spec uses a name of such calls itself."""
        taken = packing.taken(self.attention)
        if taken:
            raise _no_packing(self.attention, taken)
        identity = load.digest(self.identity, "packed") if self.identity else None
        return Kernel(
            packing.pack(self.attention), self.target, self._lower, identity, digest=self.digest, choice=self.choice
        )

    def __call__(self, q, k, v, return_lse: bool = False, out=None, **arguments):
        """Attention of q with k and v.

        q            (batch, seq_q, heads_q, dim_qk), any strides with a contiguous last dimension
        k, v         (batch, seq_kv, heads_kv, dim_qk or dim_v)
        out          where the result goes; allocated when None
        arguments    the spec's tensors and run-time scalars, by name
        Returns (batch, seq_q, heads_q, dim_v) in the operands' type; with `return_lse` also the natural log-sum-exp of every
        row, (batch, heads_q, seq_q) in float32. Raises AttnError naming the argument that does not fit.

        With cu_seqlens_q, cu_seqlens_kv (int32, one more than sequences), max_seqlen_q and max_seqlen_kv (numbers) among the arguments
        sequences are packed: q and the result are (total_q, heads_q, dim), k and v (total_kv, heads_kv, dim), the log-sum-exp is
        (heads_q, total_q).
        """
        if return_lse and not self.has_lse:
            if is_dynamo_compiling():  # tracers cannot make the error; behind the break nothing is traced
                torch._dynamo.graph_break(msg="E324, this reduction has no log-sum-exp: leave return_lse away")
            raise _no_lse(self.attention)
        packed = arguments and self.is_packed(arguments)
        if is_dynamo_compiling() or _TORCH._is_compiling_flag or type(q) is FakeTensor:
            result = torch_op.traced(self, q, k, v, out, arguments, packed)
            return result if return_lse else result[0]
        caller = self.packed.caller if packed else self.caller
        return caller.run(q, k, v, out, arguments, return_lse)

    def is_packed(self, arguments) -> bool:
        """Whether a call with these arguments is one with packed sequences. A name that the spec declares itself says nothing."""
        for name in self._of_packed:
            if name in arguments:
                return True
        return False

    def __copy__(self) -> Kernel:
        return self

    def __deepcopy__(self, memo) -> Kernel:
        """The kernel itself: it does not change, and models that hold one are copied."""
        return self

    def __reduce__(self):
        """Kernels travel to other processes and into files as what they were made of."""
        return _restored, (self.attention, self.target, self._lower, self.identity, self.digest, self.choice)

    def __repr__(self) -> str:
        a, target = self.attention, self.target.name if self.target else "the device of the tensors"
        return f"<attncc.Kernel {a.name}: {a.heads_q}/{a.heads_kv} heads, dim {a.dim_qk}/{a.dim_v}, {a.dtype}, for {target}>"

    def stages(self, target: str | Target | None = None) -> Stages:
        """Every level of this attention for `target` (default: this kernel's, the GPU's, or the best one there is)."""
        chosen = self.target_for(target)
        key = chosen.name, chosen.capabilities
        with self._lock:
            if key not in self._stages:
                self._stages[key] = self._lower(self.attention, chosen, self._choice(chosen))
            return self._stages[key]

    @property
    def source(self) -> str:
        """The text of the generated file."""
        return self.stages().source

    @property
    def path(self) -> Path:
        """Where the generated file lies."""
        return load.store(self.source, self.attention.name)

    @property
    def schedule(self) -> Schedule:
        """L3."""
        return self.stages().schedule

    @property
    def program(self) -> TileProgram:
        """L2."""
        return self.stages().tile

    def explain(self, stage: str | None = None) -> str:
        """A report: what each pass did, bytes, flops, tile classes; or the text of one level, "L1", "L2" or "L3"."""
        from attncc.explain import explain

        return explain(self.stages(), stage)

    def dump(self, folder) -> list[Path]:
        """Writes every level and the program after every pass to `folder`, in names that sort in pipeline order; the paths. E603."""
        from attncc.runtime.dump import dump

        if not isinstance(folder, (str, os.PathLike)):
            raise fail("E603", f"`folder` must be a path, found {type(folder).__name__}", argument="folder", hint='kernel.dump("out/")')
        return dump(self.stages(), Path(folder))

    def build(self, target: str | Target | None = None, chip: str | None = None) -> Built:
        """Compiles for `chip` (default: the target's usual one); from the cache when it was compiled before. Needs no GPU."""
        chosen = self.target_for(target)
        chip = check_chip(chosen, chip)
        with self._lock:
            key = (chosen.name, chosen.capabilities, chip)
            if key not in self._built:
                stages = self.stages(chosen)
                self._built[key] = build(stages.source, stages.attention, chip)
            return self._built[key]

    def _choice(self, target: Target) -> Choice | None:
        """What is compiled for `target` where tuning has found something for this GPU."""
        if self.choice is not None or not tuned.anything() or not torch.cuda.is_available():
            return self.choice
        return tuned.remembered(self.digest, target.name, torch.cuda.get_device_name())

    def target_for(self, target: str | Target | None = None) -> Target:
        """The target called `target`; without a name this kernel's, the GPU's, or the best there is."""
        if target is not None and not isinstance(target, Target):
            return get_target(target)
        hint = self.attention.target
        if target or self.target:
            return target or self.target
        if hint.name:
            return get_target(hint.name, hint.span)
        here = target_for_arch(device_arch(torch.device("cuda"))) if torch.cuda.is_available() else None
        return here or next(iter(TARGETS.values()))

    def _launcher(self, device: torch.device) -> Launcher:
        """What runs on `device`; compiled once for each architecture."""
        arch = device_arch(device) if device.type == "cuda" else device.type
        launcher = self._launchers.get(arch)
        if launcher is None:
            with self._lock:
                launcher = self._launchers.get(arch) or self._make(device, arch)
                self._launchers[arch] = launcher
        return launcher

    def _make(self, device: torch.device, arch: str) -> Launcher:
        if device.type == "cuda":
            return self._compiled(*self._choose(device, arch))
        if self.target is not None or device.type != "cpu":
            raise _wrong_device(self.target, device)
        return cpu_launcher(self.stages().tile)

    def _compiled(self, target: Target, chip: str) -> Launcher:
        """What runs on `chip`: as an earlier process left it, or compiled now and left to later ones."""
        asked = (self.identity, target.name, target.has(BLOCKS), options(chip), repr(self._choice(target)))
        record = known.name("ready", *asked) if self.identity else None
        ready = known.fetch(record)
        function = cache.load_entry(ready.entry) if ready else None
        if function is None:
            built = self.build(target, chip)
            work = work_of(self.stages(target).schedule, built.arguments)
            function, ready = built.function, Ready(built.entry, work, blocks_of(built.arguments))
            if built.entry is not None:
                known.keep(record, ready)
        other = functools.cache(lambda: self._compiled(target.without(BLOCKS), chip))
        return gpu_launcher(function, self.attention, ready.work, ready.blocks, other)

    def _choose(self, device: torch.device, arch: str) -> tuple[Target, str]:
        """The target and chip for a GPU; E331 when the wanted target does not run there."""
        hint = self.attention.target
        wanted = self.target or (get_target(hint.name, hint.span) if hint.name else target_for_arch(arch))
        chip = chip_for(wanted, arch) if wanted else None
        if chip is None:
            name = torch.cuda.get_device_name(device)
            what = (
                f"target `{wanted.name}` does not run on {name} ({arch})"
                if wanted
                else f"no target runs on {name} ({arch})"
            )
            known = ", ".join(f"{t.name}: {' '.join(t.archs)}" for t in TARGETS.values())
            raise AttnError(Diagnostic("E331", what, hint.span, argument="q", notes=(f"the targets are {known}",)))
        return wanted, chip


def _restored(attention, target, lower, identity, digest, choice) -> Kernel:
    return Kernel(attention, target, lower, identity, digest=digest, choice=choice)


def device_arch(device: torch.device) -> str:
    """The architecture of a CUDA device as compilers write it, without suffix."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def chip_for(target: Target, arch: str) -> str | None:
    """The chip to compile for so that `target`'s kernels run on a GPU of architecture `arch`; None when they do not."""
    return next((c for c in (f"{arch}a", arch) if c in target.archs), None)


def _wrong_device(target: Target | None, device: torch.device) -> AttnError:
    if target is None:
        message, hint = f"`q` is on {device}; kernels run on CUDA devices, and on the CPU in the interpreter", "move q, k and v to a CUDA device or the CPU"
    else:
        message = f"`q` is on {device}, but the kernel was compiled for {target.title}"
        hint = "move q, k and v to the GPU, or compile without target= to run the CPU interpreter"
    return AttnError(Diagnostic("E330", message, argument="q", hint=hint))


def _no_packing(attention: Attention, taken: tuple[str, ...]) -> AttnError:
    names = ", ".join(f"`{n}`" for n in taken)
    message = f"`{attention.name}` declares {names}, which packed calls need for the sequences"
    span = next(d.span for d in (*attention.tensors, *attention.scalars) if d.name == taken[0])
    return AttnError(Diagnostic("E341", message, span, argument=taken[0], hint="rename it in the spec"))


def _no_lse(attention: Attention) -> AttnError:
    message = f"the reduction `{attention.reduction.kind}` is not normalised: it has no log-sum-exp"
    return AttnError(
        Diagnostic("E324", message, attention.span("reduction"), argument="return_lse", hint="leave return_lse away")
    )
