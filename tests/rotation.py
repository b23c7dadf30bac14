"""Parts of a long list of cases that take turns, one part a day, where all of them would take a run too long.

ATTNCC_TURN=all runs everything, ATTNCC_TURN=3 the part of that day. A failure names its case, which then runs alone by that name.
"""

from __future__ import annotations

import datetime
import os


def today() -> int:
    """The number of the day, or what ATTNCC_TURN says."""
    given = os.environ.get("ATTNCC_TURN", "")
    return int(given) if given.isdigit() else datetime.date.today().toordinal()


def turn(items: list, parts: int) -> list:
    """Every `parts`-th item, beginning with another one every day; all with ATTNCC_TURN=all."""
    if os.environ.get("ATTNCC_TURN") == "all":
        return list(items)
    return list(items)[today() % parts :: parts]
