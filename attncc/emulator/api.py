"""`emulate(compiled, *args)`: run a compiled CuTe DSL function on the CPU and say what is wrong with it."""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from attncc.emulator.artifacts import ptx_of
from attncc.emulator.decode import Program, decode
from attncc.emulator.findings import Finding, FindingLog, summary
from attncc.emulator.launch_capture import HostFunction, allocations, tensors_in
from attncc.emulator.machine import Launch, Limits, Machine
from attncc.emulator.memory import GlobalMemory, Region, TensorInfo
from attncc.emulator.ptx_parse import Module, parse
from attncc.emulator.races import Shadow


class EmulationError(AssertionError):
    """Raised by `Result.check()` when a run had findings of severity error."""


@dataclass
class Result:
    """What happened: findings of all seeds, launches, instruction counts, seconds.

    After `emulate` the tensors hold the results of the last seed. `deterministic` is False if two seeds left
    different bytes in any tensor.
    """

    findings: list[Finding] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    seeds: tuple[int, ...] = ()
    deterministic: bool = True

    @property
    def errors(self) -> list[Finding]:
        """Findings of severity error."""
        return [f for f in self.findings if f.severity == "error"]

    @property
    def ok(self) -> bool:
        """No finding of severity error in any seed."""
        return not self.errors

    @property
    def kinds(self) -> set[str]:
        """Kinds of the errors found."""
        return {f.kind for f in self.errors}

    def check(self) -> Result:
        """Raise EmulationError unless `ok`."""
        if not self.ok:
            raise EmulationError(str(self))
        return self

    def __str__(self) -> str:
        head = (
            f"{len(self.errors)} errors, {len(self.findings) - len(self.errors)} warnings in {len(self.seeds)} seeds, "
            f"{self.steps} warp instructions, {self.seconds:.2f} s"
        )
        return head + ("\n" + summary(self.findings) if self.findings else "")


_hosts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class _Prepared:
    """Parsed PTX and linked host code of one compiled function."""

    def __init__(self, compiled, text: str):
        self.module = parse(text)
        self.host = HostFunction(compiled, self._param_sizes)
        self.programs: dict[str, Program] = {}

    def _param_sizes(self, kernel: str) -> list[tuple[int, int]]:
        return [(p.offset, p.size) for p in self.module.kernels[kernel].params]

    def program(self, kernel: str) -> Program:
        """The decoded kernel."""
        if kernel not in self.programs:
            self.programs[kernel] = decode(self.module, self.module.kernels[kernel])
        return self.programs[kernel]


def _prepare(compiled, ptx: str | None) -> _Prepared:
    if ptx is not None:
        return _Prepared(compiled, ptx)
    try:
        if compiled not in _hosts:
            _hosts[compiled] = _Prepared(compiled, ptx_of(compiled))
        return _hosts[compiled]
    except TypeError:
        return _Prepared(compiled, ptx_of(compiled))


def emulate(
    compiled,
    *args,
    seeds: int | Iterable[int] = 1,
    trace: str | None = None,
    ptx: str | None = None,
    stop_at_first: bool = True,
    clusters: int | None = None,
    limits: Limits | None = None,
) -> Result:
    """Execute a compiled function on CPU tensors, once per seed, and report what is wrong with it.

    compiled: what `cute.compile` returned, compiled with --enable-tvm-ffi and its PTX kept (see `keep_ptx`).
    args: its call arguments; tensors are torch CPU tensors or numpy arrays and are written in place.
    seeds: a count or the seeds themselves; each is one interleaving and one timing of the asynchronous operations.
    trace: path of a Perfetto JSON file to write (first seed).
    ptx: PTX text to run in place of the compiled one (same kernels and parameters), to try a change.
    stop_at_first: stop after the first seed with an error.
    clusters: run only so many clusters (CTAs) of the last launch, picked by the first seed: the rest of the output is not
        written.
    Raises PtxError for PTX it does not know.
    """
    start = time.perf_counter()
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    limits = dataclasses.replace(limits or Limits(), clusters=clusters, pick=chosen[0])
    prepared = _prepare(compiled, ptx)
    tensors = tensors_in(args, prepared.host.names)
    memory = allocations(tensors)
    before = [r.data.copy() for r in memory.regions]
    launches = prepared.host(*args)
    result = Result(launches=launches, seeds=chosen)
    outcome = None
    for number, seed in enumerate(chosen):
        for region, saved in zip(memory.regions, before):
            region.data[:] = saved
        log = FindingLog(seed)
        result.steps += _run_launches(prepared, launches, memory, log, limits, trace if number == 0 else None)
        result.findings.extend(f for f in log.items if not _known(result.findings, f))
        after = [r.data.copy() for r in memory.regions]
        if outcome is not None and not all(np.array_equal(a, b) for a, b in zip(outcome, after)):
            result.deterministic = False
        outcome = after
        if stop_at_first and log.errors():
            break
    result.seconds = time.perf_counter() - start
    return result


def _known(findings: list[Finding], new: Finding) -> bool:
    place = lambda f: f.source if f.severity == "warning" and f.source else f.ptx_line
    return any((f.kind, f.severity, place(f)) == (new.kind, new.severity, place(new)) for f in findings)


def _run_launches(prepared, launches, memory: GlobalMemory, log: FindingLog, limits: Limits, trace_path) -> int:
    """All launches of one call, in order; returns the warp instructions executed."""
    from attncc.emulator.trace import Trace

    trace, steps = (Trace() if trace_path else None), 0
    _add_module_symbols(prepared.module, memory)
    for number, launch in enumerate(launches):
        program = prepared.program(launch.kernel)
        own = limits if number == len(launches) - 1 else dataclasses.replace(limits, clusters=None)
        machine = Machine(program, launch, memory, log, own, trace)
        for region in memory.regions:
            region.shadow = Shadow(machine, region.name, len(region.data), _granule(region), initialised=True)
        if trace:
            trace.begin(number, len(launches))
        with np.errstate(all="ignore"):
            machine.run()
        if trace:
            trace.end(machine.steps, len(machine.ops))
        steps += machine.steps
        if log.errors():
            break
    if trace:
        trace.write(trace_path)
    return steps


def _granule(region: Region) -> int:
    return min([t.itemsize for t in region.tensors] + [4])


def _add_module_symbols(module: Module, memory: GlobalMemory) -> None:
    """Module-level .global and .const variables get an allocation of their own, fresh for every seed."""
    if not hasattr(memory, "symbols"):
        memory.symbols = {}
    for symbol in module.symbols.values():
        if symbol.space not in ("global", "const"):
            continue
        data = np.zeros(max(symbol.size, len(symbol.init)), np.uint8)
        data[: len(symbol.init)] = np.frombuffer(symbol.init, np.uint8)
        if symbol.name in memory.symbols:
            memory.find(memory.symbols[symbol.name]).data[:] = data
            continue
        address = (1 << 50) + (len(memory.symbols) << 32)
        region = Region(symbol.name, address, data)
        region.tensors = [TensorInfo(symbol.name, address, (len(data),), (1,), 1)]
        memory.add(region)
        memory.symbols[symbol.name] = address
