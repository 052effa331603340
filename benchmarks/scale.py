"""Ten thousand versions and fifty thousand files in one home: how long a person waits for an answer.

The home is made through the ledger's own tables in bulk; its records have the shape and size of real ones, its folders
hold a version.json and nothing to train on. Not a test: `tests/test_guard_scale.py` counts what an act touches.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from benchmarks.measure import Figure, compare
from guard.bitmap import pack_bitmap
from guard.clock import SYSTEM_CLOCK, utc_text
from guard.durable import json_bytes, sha256_bytes, write_text
from guard.home import Home
from guard.names import version_name
from guard.settings_read import load_settings
from guard.store.create import create_home
from guard.store.keeper import Keeper
from guard.store.ledger import Ledger
from guard.store.views import refresh

__all__ = ["answers_at_scale", "fill_home"]

VERSIONS, FILES = 10_000, 50_000
_EXAMPLES = 20


def _file_rows(files: int) -> list[tuple[Any, ...]]:
    rows = []
    for number in range(files):
        sha256, name = hashlib.sha256(b"%d" % number).hexdigest(), f"batch_{number:05d}.jsonl"
        record = {"sha256": sha256, "name": name, "kind": "pretrain", "size_bytes": 4096, "examples": _EXAMPLES,
                  "tokens_approx": 900, "stored_as": name, "rows": _EXAMPLES, "bad_rows": [], "unusable_rows": []}  # fmt: skip
        rows.append((sha256, name, "pretrain", 4096, _EXAMPLES, 900, "", utc_text(number), orjson.dumps(record).decode()))
    return rows


def _version(number: int, parent: str | None, data: list[dict[str, Any]]) -> dict[str, Any]:
    """A version.json of the usual size: some kilobytes of metrics, gate and machine."""
    evaluation = [{"name": f"set {item}", "role": "ancestry", "split": "val", "stage": "pretrain", "dataset": "d" * 32,
                   "parent_loss": 3.1, "child_loss": 3.0, "tokens": 16384, "loss_tokens": 16384, "examples": 40}
                  for item in range(10)]  # fmt: skip
    return {
        "schema": 1, "name": version_name(number, "scale"), "id": number, "parent": parent, "inputs": [], "line": "policy",
        "role": "policy" if parent else "base", "created": utc_text(number), "stage": "pretrain", "objective": "pretrain",
        "data": data, "skipped": {}, "replay": {"tokens": 0, "datasets": []}, "dataset": {"id": f"{number:032x}"},
        "recipe": {"name": "pretrain/small", "stage": "pretrain", "training": {"learning_rate": 1e-3}}, "seed": 1337,
        "metrics": {"final_loss": 2.5, "steps": 100, "tokens": 4500, "tokens_per_second": 9000.0, "evaluation": evaluation},
        "generation": [{"prompt": "a " * 40, "text": "b " * 100, "tokens": 64, "distinct_ratio": 0.8}] * 4,
        "gate": {"verdict": "passed", "mode": "enforce", "reason": "", "checks": [{"name": "x", "ok": True, "detail": "y" * 60}]},
        "tokenization": "char", "tokenizer_hash": "t" * 64, "template_hash": "e" * 64, "size": "small", "block_size": 64,
        "files": {"model.safetensors": "f" * 64}, "hardware": {"cpu": "c" * 40}, "library_versions": {"torch": "2"},
    }  # fmt: skip


def fill_home(root: Path, versions: int = VERSIONS, files: int = FILES) -> Keeper:
    """A home with so many versions in one line and so many files; every version learnt from `files / versions` of them."""
    create_home(Home(root), clock=SYSTEM_CLOCK, recipes=Path(__file__).parent.parent / "configs")
    home = Home(root)
    ledger = Ledger(home.ledger, clock=SYSTEM_CLOCK, actor="benchmark")
    keeper = Keeper(home, ledger, load_settings(root, {}), SYSTEM_CLOCK)
    rows, share = _file_rows(files), files // versions
    bitmap = pack_bitmap(range(_EXAMPLES), _EXAMPLES)
    with ledger.transaction():
        ledger.run_many("INSERT INTO files (sha256, name, kind, size_bytes, examples, tokens_approx, description, first_seen,"
                        " record) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)  # fmt: skip
        for number in range(1, versions + 1):
            mine = rows[(number - 1) * share : number * share] if number > 1 else []
            data = [{"file": row[1], "sha256": row[0], "kind": "pretrain", "examples": _EXAMPLES, "tokens": 900,
                     "bitmap": bitmap} for row in mine]  # fmt: skip
            record = _version(number, version_name(number - 1, "scale") if number > 1 else None, data)
            sums = _folder(home.models / record["name"], record)
            ledger.run("INSERT INTO versions (id, name, parent_id, line, state, created, tokens, size_bytes, sums_sha256, "
                       "record) VALUES (?, ?, ?, 'policy', 'sealed', ?, 4500, 6000, ?, ?)",
                       (number, record["name"], number - 1 or None, record["created"], sums,
                        orjson.dumps(record, option=orjson.OPT_SORT_KEYS).decode()))  # fmt: skip
            ledger.run_many("INSERT INTO learnt VALUES (?, ?, 'pretrain', ?, ?)",
                            [(number, row[0], _EXAMPLES, bitmap) for row in mine])  # fmt: skip
            job = ledger.run("INSERT INTO jobs (kind, state, position, stage, line, slug, output_id, created, updated) "
                             "VALUES ('train', 'done', 0, 'pretrain', 'policy', 'scale', ?, '', '')", (number,))  # fmt: skip
            ledger.run_many("INSERT INTO job_files VALUES (?, ?, ?)", [(job, place, row[0]) for place, row in enumerate(mine)])
            ledger.event("version.sealed", record["name"], parent=record["parent"], line="policy", sums=sums, gate="passed")
        ledger.run("INSERT INTO lines VALUES ('policy', ?, ?)", (versions, utc_text(0)))
        ledger.set_meta("version_high_water", str(versions))
    write_text(home.high_water_file, f"{versions}\n")
    return keeper


def _folder(folder: Path, record: dict[str, Any]) -> str:
    folder.mkdir()
    data = json_bytes(record)
    (folder / "version.json").write_bytes(data)
    sums = f"{sha256_bytes(data)}  version.json\n".encode()
    (folder / "SHA256SUMS").write_bytes(sums)
    for path in (folder / "version.json", folder / "SHA256SUMS"):
        os.chmod(path, 0o444)
    os.chmod(folder, 0o555)
    return sha256_bytes(sums)


def answers_at_scale(runs: int) -> list[Figure]:
    """Answers per second of four commands in a home of 10,000 versions and 50,000 files, against `python -c pass`."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "home"
        begun = time.perf_counter()
        keeper = fill_home(root)
        print(f"   a home of {VERSIONS:,} versions and {FILES:,} files was made in {time.perf_counter() - begun:.1f} s")
        begun = time.perf_counter()
        refresh(keeper)
        print(f"   its views took {time.perf_counter() - begun:.2f} s")
        keeper.ledger.close()
        environment = {**os.environ, "HEIRLOOM_DISK__RESERVE_GB": "0", "HEIRLOOM_BACKUP__AUTO": "0"}
        for words in (["status"], ["lineage"], ["show", f"v{VERSIONS // 2}"], ["rollback", f"v{VERSIONS - 5}", "--dry-run"]):
            command = [sys.executable, "-m", "daemon.cli.main", "--home", str(root), *words]

            def ask(command: list[str] = command) -> None:
                answer = subprocess.run(command, check=True, capture_output=True, env=environment)
                assert answer.stdout, f"{' '.join(command)} said nothing"

            def python() -> None:
                subprocess.run([sys.executable, "-c", "pass"], check=True)

            figures.append(compare(f"{words[0]}, {VERSIONS:,} versions", "answers/s", 1, ask, "python -c pass", python, runs))
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    return figures
