"""Generated specs as device code: compiled for a target without a GPU, run by the PTX emulator, compared with the reference."""

from __future__ import annotations

from attncc.diagnostics import AttnError
from attncc.entry import compile
from attncc.fuzz.compare import Case, Finding, Report, place_of
from attncc.interp.data import make_inputs
from attncc.measure import compare
from attncc.runtime.emulated import emulate_calls


def examine_kernel(case: Case, target: str) -> Report:
    """Compiles the case's spec for `target` and runs the device code on the case's data, in poisoned output.

    A finding is a result further from the reference than a kernel's may be, or anything that the emulator objects to:
    races, reads of memory that was never written, addresses out of range. A spec that the target refuses is a refusal.
    """
    stage, s = f"{target}: compiling", case.shape
    try:
        kernel = compile(case.text, target=target, **dict(case.parameters))
        kernel = kernel.packed if case.packed else kernel
        emulated = emulate_calls(kernel)
        stage = f"{target}: the kernel in the emulator"
        result = compare(kernel, *make_inputs(kernel.attention, s.batch, s.seq_q, s.seq_kv, case.seed, steep=case.seed % 2 == 1))
    except AttnError as error:
        return Report(case, None, ((target, error.diagnostics[0].message),))
    except Exception as error:  # noqa: BLE001 - whatever a level raises is what is looked for
        return Report(case, Finding(stage, f"{type(error).__name__}: {error}\n{place_of(error)}", case))
    objections = [str(e) for run in emulated for e in run.errors]
    if not result.ok:
        said = f"error {result.error:.3g} of {result.allowed:.3g}, of the LSE {result.lse_error:.3g}; {result.bad or ''}"
        objections.append(said.strip())
    finding = Finding(stage, "\n".join(objections), case) if objections else None
    return Report(case, finding, (), 1)
