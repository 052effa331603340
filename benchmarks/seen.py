"""`heirloom seen` among ten million examples, by the process time of the whole command; and making signatures.

The home is made in bulk: its files hold nothing but fingerprints and signatures of random numbers, with one real example
among them that is asked for. Not a test: `tests/test_daemon_seen.py` and `tests/test_daemon_near.py` look at the answers.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import orjson

from benchmarks.measure import Figure, compare
from guard.bitmap import pack_bitmap
from guard.clock import SYSTEM_CLOCK
from guard.columns import write_columns_steps
from guard.durable import write_json
from guard.fingerprint import example_fingerprint
from guard.home import Home
from guard.key_columns import KEY_LAYOUT, split_keys
from guard.minhash import BINS, signatures
from guard.near_file import write_signatures
from guard.near_join import SKETCH
from guard.near_task import SKETCH_COLUMNS
from guard.settings_read import load_settings
from guard.steps import drain
from guard.store.create import create_home
from guard.store.keeper import Keeper
from guard.store.ledger import Ledger
from guard.store.near import near_request, signature_folder
from guard.store.near_keep import LAYOUT

__all__ = ["fill_known", "seen_among_ten_million", "signatures_against_sha256"]

FILES, EACH = 2000, 5000
ASKED = ("The keeper of the old orchard counts the eggs of every hen before the sun has dried the grass, and writes them down; "
         "then she walks to the well, draws four buckets of water, and waters the youngest of the pear trees one by one.")
RESEMBLES = ASKED.replace("counts", "knows")


def fill_known(root: Path, files: int = FILES, each: int = EACH) -> Keeper:
    """A home of so many files with so many examples each, all of them in both indexes; one file holds ASKED."""
    home = Home(root)
    create_home(home, clock=SYSTEM_CLOCK, recipes=Path(__file__).parent.parent / "configs")
    keeper = Keeper(home, Ledger(home.ledger, clock=SYSTEM_CLOCK, actor="benchmark"), load_settings(root, {}), SYSTEM_CLOCK)
    dice = np.random.default_rng(1)
    names = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(files)]
    keys = dice.integers(0, 256, (files * each, 16), dtype=np.uint8)
    keys[7] = np.frombuffer(example_fingerprint({"text": ASKED}), dtype=np.uint8)
    signature_folder(home).mkdir(parents=True)

    def near_chunks() -> Iterator[dict[str, Any]]:
        for number, name in enumerate(names):
            rows = dice.integers(0, 256, (each, BINS), dtype=np.uint8)
            if number == 0:
                rows[7] = signatures([ASKED])[0]
            write_signatures(signature_folder(home) / f"{name}.mh", name, rows)
            yield {**{column: rows[:, place] for place, column in enumerate(SKETCH_COLUMNS)},
                   "file": np.full(each, number), "ordinal": np.arange(each)}  # fmt: skip

    assert len(SKETCH_COLUMNS) == SKETCH
    drain(write_columns_steps(home.data / "near" / "00000001", LAYOUT, files * each, near_chunks(), names))
    write_json(home.data / "near" / "index.json", {"schema": 1, "version": 1, "folders": ["00000001"]})
    high, low = split_keys(keys.tobytes())
    order = np.argsort(high, kind="stable")
    rows = {"high": high[order], "low": low[order], "file": order // each, "ordinal": order % each}
    (home.data / "known").mkdir()
    drain(write_columns_steps(home.data / "known" / "00000001", KEY_LAYOUT, files * each, [rows], names))
    write_json(home.data / "known" / "index.json", {"schema": 1, "folders": ["00000001"]})
    _rows(keeper, names, keys.reshape(files, each * 16), each)
    return keeper


def _rows(keeper: Keeper, names: list[str], keys: np.ndarray[Any, Any], each: int) -> None:
    ledger, bitmap = keeper.ledger, pack_bitmap(range(each), each)
    record = {"name": "v001_base", "id": 1, "parent": None, "line": "policy", "data": []}
    with ledger.transaction():
        ledger.run("INSERT INTO versions (id, name, line, state, created, sums_sha256, record) VALUES "
                   "(1, 'v001_base', 'policy', 'sealed', '', '', ?)", (orjson.dumps(record).decode(),))  # fmt: skip
        ledger.run("INSERT INTO lines VALUES ('policy', 1, '')")
        for number, name in enumerate(names):
            folder = keeper.home.files / name
            folder.mkdir()
            if number == 0:
                (folder / "examples.fp").write_bytes(keys[number].tobytes())
            told = {"sha256": name, "stored_as": "x.jsonl", "near": {"version": 1}}
            ledger.run("INSERT INTO files (sha256, name, kind, size_bytes, examples, tokens_approx, first_seen, record) "
                       "VALUES (?, ?, 'pretrain', 1, ?, 1, '', ?)",
                       (name, f"batch_{number:05d}.jsonl", each, orjson.dumps(told).decode()))  # fmt: skip
            ledger.run("INSERT INTO learnt VALUES (1, ?, 'pretrain', ?, ?)", (name, each, bitmap))


def _process_seconds(command: list[str]) -> float:
    # As an installed program runs: compiled once. Compiling some fifty files costs a tenth of a second.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, env={**environment, "HEIRLOOM_DISK__RESERVE_GB": "0"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr.decode()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seen_among_ten_million(runs: int) -> list[Figure]:
    """Answers per second of process time, exact and near, against `python -c pass`; and joining one new file with all."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        keeper = fill_known(Path(folder) / "home")
        command = [sys.executable, "-m", "daemon.cli.main", "--home", str(keeper.home.root), "seen"]
        for name, words in (("exact", [ASKED]), ("near", [RESEMBLES, "--near"])):
            pairs = [(_process_seconds([*command, *words]), _process_seconds([sys.executable, "-c", "pass"]))
                     for _ in range(runs + 1)][1:]  # fmt: skip
            ours, other = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
            print(f"   seen, {name}: {ours:.3f} s of process time among {FILES * EACH:,} examples")
            figures.append(Figure(f"seen {name}, {FILES * EACH:,} examples", "answers/s", 1 / ours, 1 / other,
                                  "python -c pass", runs))  # fmt: skip
        _join(keeper, Path(folder))
        keeper.ledger.close()
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    return figures


def _join(keeper: Keeper, folder: Path) -> None:
    """How long the child takes to hold a new file of 10,000 rows against all of them."""
    from guard.near_task import run_near

    dice, words = random.Random(3), _text().split()
    path = folder / "new.jsonl"
    path.write_bytes(b"".join(orjson.dumps({"text": " ".join(dice.choices(words, k=100))}) + b"\n" for _ in range(10_000)))
    request, _size = near_request(keeper, [])
    begun = time.process_time()
    report = run_near({**request, "files": [{"sha256": "ab" * 32, "path": str(path), "kind": "pretrain"}]})
    print(f"   {report['near'][0]['examples']:,} new examples against all: {time.process_time() - begun:.1f} s of process time")


def _text() -> str:
    return "\n\n".join(topics[name] for name in sorted(topics))


def signatures_against_sha256(runs: int) -> Figure:
    """MB/s of text of 700 bytes a piece into signatures on one core, against SHA-256 of the same bytes."""
    text = _text()
    pieces = [text[start : start + 700] for start in range(0, len(text), 700)] * 4
    data = [piece.encode() for piece in pieces]

    def bare() -> None:
        for piece in data:
            hashlib.sha256(piece).digest()

    return compare("signatures", "MB/s", sum(map(len, data)) / 1e6, lambda: signatures(pieces), "sha256", bare, runs)


BENCHMARKS = {
    "signatures of texts, against SHA-256": signatures_against_sha256,
    "seen: among 10 million examples": seen_among_ten_million,
}
