"""Intake: how fast chat rows are read, proven and held against ten million known examples, on one core.

All of it is what the reader child does with a dropped file: hash, parse, validate, fingerprint, and ask the index what the
line's tip has learnt. Processor time, so that other work on the machine does not count. Not here: bursts of small files.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import orjson

from benchmarks.measure import Figure
from benchmarks.seen import fill_known
from guard.checks.identify import identify
from guard.steps import drain
from guard.store.keeper import Keeper
from guard.store.known import sidecar_bytes
from guard.store.learnt import novelty_steps

__all__ = ["intake_against_parsing"]

FILE_BYTES = 30_000_000
SHAPES = {"0.7 KB a row": (30, 80, {}), "0.7 KB a row, with an id and a source": (30, 75, {"source": "letters"}),
          "2.5 KB a row": (120, 300, {})}  # fmt: skip


def _chat_file(path: Path, asked: int, told: int, more: dict[str, str]) -> Path:
    """About FILE_BYTES of conversations of one question and one answer of so many words."""
    words, dice, size, number = "\n\n".join(topics[name] for name in sorted(topics)).split(), random.Random(2), 0, 0
    with path.open("w", encoding="utf-8") as handle:
        while size < FILE_BYTES:
            turns = [{"role": "user", "content": " ".join(dice.choices(words, k=asked))},
                     {"role": "assistant", "content": " ".join(dice.choices(words, k=told))}]  # fmt: skip
            row = {"id": f"row-{number}", **more, "messages": turns} if more else {"messages": turns}
            size, number = size + handle.write(json.dumps(row) + "\n"), number + 1
    return path


def _seconds(act: Callable[[], object]) -> float:
    begun = time.process_time()
    act()
    return time.process_time() - begun


def intake_against_parsing(runs: int) -> list[Figure]:
    """MB/s of processor time of everything, against SHA-256 and orjson alone over the same bytes."""
    figures = []
    with tempfile.TemporaryDirectory() as name:
        keeper = fill_known(Path(name) / "home")
        for shape, (asked, told, more) in SHAPES.items():
            path = _chat_file(Path(name) / "chat.jsonl", asked, told, more)
            figures.append(_measure(keeper, path, f"intake, {shape}", runs))
        keeper.memory.clear()
        keeper.ledger.close()
        subprocess.run(["chmod", "-R", "u+w", name], check=True)
    return figures


def _measure(keeper: Keeper, path: Path, name: str, runs: int) -> Figure:
    out = path.parent / "out"
    out.mkdir(exist_ok=True)

    def ours() -> None:
        assert identify(path, "chat.jsonl", out_folder=out).verdict == "ok"
        assert drain(novelty_steps(keeper, sidecar_bytes(out), 1, "pretrain")).known == 0

    def bare() -> None:
        data = path.read_bytes()
        hashlib.sha256(data).hexdigest()
        for line in data.splitlines():
            orjson.loads(line)

    ours(), bare()
    pairs = [(_seconds(ours), _seconds(bare)) for _ in range(runs)]
    megabytes = path.stat().st_size / 1e6
    return Figure(name, "MB/s of processor time", megabytes / statistics.median(pair[0] for pair in pairs),
                  megabytes / statistics.median(pair[1] for pair in pairs), "sha256 + orjson", runs)  # fmt: skip


BENCHMARKS = {"intake of chat rows, against hashing and parsing": intake_against_parsing}
