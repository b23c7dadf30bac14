"""`python -m attncc.fuzz FILE --shape BxQxK`: runs one case again, as a reproduction file says."""

from __future__ import annotations

import argparse
import sys

from attncc.diagnostics import AttnError
from attncc.fuzz.compare import Case, emitted_targets, examine
from attncc.fuzz.shapes import Shape
from attncc.lower import read


def main(arguments: list[str]) -> int:
    """0 when every level agrees, 1 when one does not."""
    parser = argparse.ArgumentParser(prog="python -m attncc.fuzz", description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--shape", type=Shape.parse, default=Shape(2, 33, 47), help="batch x seq_q x seq_kv")
    parser.add_argument("--tiles", type=_tiles, default=(16, 16), help="tile_m x tile_n of the tile interpreter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packed", action="store_true", help="sequences of up to those lengths, packed one after another")
    options = parser.parse_args(arguments)
    try:
        text = read(options.file)[0]
    except AttnError as error:
        print(error, file=sys.stderr)
        return 1
    report = examine(Case(text, options.shape, options.seed, options.tiles, packed=options.packed), emitted_targets())
    for target, message in report.refusals:
        print(f"{target} refuses it: {message}")
    print(report.finding or f"{report.compared} results agree")
    return 0 if report.finding is None else 1


def _tiles(text: str) -> tuple[int, int]:
    tile_m, tile_n = (int(part) for part in text.split("x"))
    return tile_m, tile_n


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
