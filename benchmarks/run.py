"""`make bench`: every benchmark, a table on the screen and JSON in a file. `--only WORD` picks some.

    python -m benchmarks.run [--only training] [--json FILE] [--runs 5]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import burst, data, forgetting, forks, intake, packing, scale, seen, shards, snapshots, startup, training, vault
from benchmarks.measure import Figure
from trainer.hardware import hardware_facts, library_versions

BENCHMARKS: dict[str, Callable[[int], Figure | list[Figure]]] = {
    "training micro, against transformers Qwen3": training.micro_against_transformers,
    "training head, against naive logits": training.head_against_naive,
    **snapshots.BENCHMARKS,
    **packing.BENCHMARKS,
    **shards.BENCHMARKS,
    **intake.BENCHMARKS,
    **burst.BENCHMARKS,
    **forgetting.BENCHMARKS,
    "embedding chunks, against bare scikit-learn": data.embedding_against_sklearn,
    "status, against an empty Python": startup.status_against_python,
    **forks.BENCHMARKS,
    **vault.BENCHMARKS,
    **seen.BENCHMARKS,
    "scale: 10,000 versions and 50,000 files": scale.answers_at_scale,
}


def main() -> int:
    """Run the benchmarks that were asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run only benchmarks whose name holds this word")
    parser.add_argument("--json", default="", help="write the figures here too")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each side")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    figures = []
    print(f"{'benchmark':<52} {'ours':>12} {'other':>12} {'ratio':>7}  unit")
    for name, bench in BENCHMARKS.items():
        if asked.only in name:
            found = bench(asked.runs)
            several = isinstance(found, list)
            for figure in found if isinstance(found, list) else [found]:
                figures.append(figure)
                shown = figure.name if several else name
                print(f"{shown:<52} {figure.ours:>12,.1f} {figure.other:>12,.1f} {figure.ratio:>6.2f}x  {figure.unit}",
                      flush=True)  # fmt: skip
    if asked.json:
        report = {"schema": 1, "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                  "machine": hardware_facts(), "libraries": library_versions(),
                  "figures": [figure.as_dict() for figure in figures]}  # fmt: skip
        Path(asked.json).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
