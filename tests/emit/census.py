"""What the compiler makes of every example and of generated specs, without a GPU: registers, stack, shared and tensor memory, code.

    python -m tests.emit.census --chips sm_100a,sm_103a --fuzz 300 --jobs 2 --json benchmarks/machine-code-blackwell.json

Every row is one kernel for one chip, compiled the way users' kernels are. Exit status 1 when one does not compile, spills, or takes more than a
block may have. `--fuzz 0` leaves generated specs away, `--no-examples` the examples.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys

from attncc.diagnostics import AttnError
from attncc.targets import get_target, target_for_arch
from tests.examples.small import EXAMPLES

SEED = 5
"""Generated specs number i are those of hypothesis seed SEED + i."""
COMPILES_OF_A_WORKER = 40
"""The compiler keeps some memory of each compilation."""


def generated(number: int) -> str:
    """The text of generated spec `number`, the same in every run with one version of the generator and of hypothesis."""
    import hypothesis

    from attncc.fuzz.specs import specs

    found: list[str] = []
    settings = hypothesis.settings(
        max_examples=2, database=None, deadline=None, phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    # the first example of a run is the simplest one, always the same
    hypothesis.seed(SEED + number)(settings(hypothesis.given(specs())(lambda text: found.append(text))))()
    return found[-1]


def row(name: str, source: str, chip: str) -> dict:
    """One compilation: its resources, `refused` with the reason, or `failed` with the error."""
    from attncc.driver import lower
    from attncc.ir.check_schedule import ELEMENT_BYTES
    from attncc.ir.schedule_ops import shared_bytes
    from attncc.lower import load as load_spec

    target = target_for_arch(chip) or get_target("blackwell")
    base = {"name": name, "chip": chip, "target": target.name}
    try:
        schedule = lower(load_spec(source), target).schedule
    except AttnError as error:
        return {**base, "refused": error.diagnostics[0].message}
    try:
        used = compiled(schedule, chip)
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises is what is looked for
        return {**base, "failed": f"{type(error).__name__}: {str(error)[:300]}", "source": source}
    places = [b.column + b.pitch * r.groups for r in schedule.roles if r.rows_per_group for b in schedule.buffers if b.space == "tensor"]
    shared = shared_bytes(schedule, ELEMENT_BYTES.__getitem__)
    over = {"over": f"{shared} bytes of shared memory"} if shared > target.shared_limit else {}
    tile = f"{schedule.tile_m}x{schedule.tile_n}"
    return {**base, "tile": tile, **used, "shared": shared, "tensor_columns": max(places, default=0), **over}


def compiled(schedule, chip: str) -> dict:
    """Resources of the main kernel, and the number of tensor instructions in its code."""
    from attncc.emit import emit
    from attncc.runtime import cubin, load
    from attncc.runtime.build import compile_module, options

    module = load.module(load.store(emit(schedule), "census"))
    (image,) = cubin.cubins(compile_module(module, schedule.attention, options(chip)))
    all_of_them = cubin.resources(image).values()
    main = max(all_of_them, key=lambda r: r.code)
    return {"registers": main.registers, "frame": max(r.frame for r in all_of_them), "code": main.code}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default="sm_100a,sm_103a")
    parser.add_argument("--fuzz", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first generated spec")
    parser.add_argument("--no-examples", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json")
    parser.add_argument("names", nargs="*", help="examples (default: all)")
    given = parser.parse_args(arguments)
    sources = [] if given.no_examples else [(p.stem, str(p)) for p in EXAMPLES if not given.names or p.stem in given.names]
    sources += [(f"generated {i}", generated(i)) for i in range(given.first, given.first + given.fuzz)]
    work = [(name, source, chip) for name, source in sources for chip in given.chips.split(",")]
    rows = list(_rows(work, given.jobs))
    print(summary(rows))
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            file.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    return int(any(is_bad(r) for r in rows))


def _row(task: tuple[str, str, str]) -> dict:
    return row(*task)


def _rows(work: list[tuple[str, str, str]], jobs: int):
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=COMPILES_OF_A_WORKER) as pool:
        for made in pool.imap(_row, work):
            print(line(made), flush=True)
            yield made


def is_bad(r: dict) -> bool:
    return "failed" in r or "over" in r or bool(r.get("frame"))


def line(r: dict) -> str:
    said = r.get("refused") or r.get("failed") or (
        f"{r['tile']} {r['registers']} registers, frame {r['frame']}, shared {r['shared']}, columns {r['tensor_columns']}, code {r['code']}"
    )  # fmt: skip
    return f"{r['name']:24} {r['chip']:8} {said}"


def summary(rows: list[dict]) -> str:
    """The worst of everything, by chip."""
    lines = []
    for chip in dict.fromkeys(r["chip"] for r in rows):
        own = [r for r in rows if r["chip"] == chip]
        done = [r for r in own if "frame" in r]
        most = {key: max((r[key] for r in done), default=0) for key in ("registers", "frame", "shared", "tensor_columns", "code")}
        counts = {kind: sum(kind in r for r in own) for kind in ("refused", "failed", "over")}
        lines.append(f"{chip}: {len(own)} specs, {len(done)} compiled, {counts}; most: {most}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
