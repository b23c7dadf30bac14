"""What a file of measurements looks like: the README's table, and a plot of it.

    python benchmarks/report.py benchmarks/peers-h100.json --plot docs/peers-h100.svg        prints the table in Markdown

Needs matplotlib for the plot (pip install -e '.[plots]'). Numbers are those of the file, nothing is measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

PEERS = {"fa3": "FA3", "fa4": "FA4", "sdpa_cudnn": "cuDNN", "sdpa_flash": "FA2", "flex": "FlexAttention"}
OURS = "attncc"


def cases(path: Path) -> dict[str, dict[str, float]]:
    """Case -> implementation -> TFLOP/s, "attncc" for ours."""
    found: dict[str, dict[str, float]] = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        name = OURS if row["implementation"].startswith(OURS) else row["implementation"]
        if "tflops" in row:
            found.setdefault(row["case"], {})[name] = row["tflops"]
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """The Markdown table."""
    lines = ["| case (bf16, 16,384 tokens) | attncc | " + " | ".join(PEERS.values()) + " | to best peer |", "|---" * (len(PEERS) + 3) + "|"]
    for case, speeds in found.items():
        cells = [f"{speeds[name]:.0f}" if name in speeds else "" for name in (OURS, *PEERS)]
        best = max((speeds[p] for p in PEERS if p in speeds), default=None)
        lines.append(f"| {case} | {' | '.join(cells)} | {speeds[OURS] / best:.2f} |" if best else f"| {case} | {' | '.join(cells)} | - |")
    return "\n".join(lines)


def plot(found: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """One row for each case: our bar, and a mark for every peer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "attncc"  # the same numbers give the same file
    marks = dict(zip(PEERS, "osD^v"))
    figure, axes = plt.subplots(figsize=(9, 0.32 * len(found) + 1.2))
    names = list(found)
    axes.barh(range(len(names)), [found[n][OURS] for n in names], color="#9ecae1", label=OURS)
    for peer, mark in marks.items():
        at = [(found[n][peer], i) for i, n in enumerate(names) if peer in found[n]]
        axes.scatter([x for x, _ in at], [y for _, y in at], marker=mark, s=24, label=PEERS[peer], zorder=3)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("TFLOP/s over the pairs that the mask keeps")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.4, -0.14), ncols=6, frameon=False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    found = cases(options.file)
    about = json.loads(options.file.read_text(encoding="utf-8"))
    print(table(found))
    if options.plot:
        plot(found, f"{about['device']}, {about['date']}, PyTorch {about['torch']}", options.plot)


if __name__ == "__main__":
    main()
