"""What a compilation leaves behind for people to read: PTX, cubin, resources."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from attncc.runtime import build, load
from attncc.runtime.cubin import cubins, resources
from attncc.runtime.kernel import Kernel


@dataclass(frozen=True)
class Artifacts:
    """The generated text, its PTX and cubin, and a report: chip, target, the resources of every kernel in the cubin."""

    source: str
    ptx: str
    cubin: bytes
    report: dict


def artifacts(kernel: Kernel, chip: str) -> Artifacts:
    """Compiles the kernel for `chip`, without the cache. Needs no GPU."""
    stages = kernel.stages()
    generated = load.module(load.store(stages.source, stages.attention.name))
    with tempfile.TemporaryDirectory(prefix="attncc-") as folder:
        compiled = build.compile_module(
            generated, stages.attention, f"{build.options(chip)} --keep-ptx --dump-dir {folder}"
        )
        ptx = "\n".join(p.read_text() for p in sorted(Path(folder).glob("**/*.ptx")))
    (cubin,) = cubins(compiled)
    used = {name: asdict(r) for name, r in resources(cubin).items()}
    report = {"attention": stages.attention.name, "target": stages.target.name, "chip": chip, "kernels": used}
    return Artifacts(stages.source, ptx, cubin, report)
