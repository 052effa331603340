"""The data side of a verification: stored originals with their sidecars, prepared datasets, retrieval indexes.

Reads only. Originals are known by their own hash; datasets and indexes are derived and carry their hashes with them.
Not here: versions and the ledger (`verify.py`), the vault (`verify_vault.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from guard.durable import sha256_file
from guard.names import index_name, parse_version_number
from guard.store.datasets import HEADS, recorded_heads
from guard.store.evaluation import evaluation_problem
from guard.store.files import SIDECARS, StoredFile, get_file, original_hashes
from guard.store.findings import Findings
from guard.store.keeper import Keeper
from guard.store.lineage import descendants
from guard.store.sums import listed_problem_steps, sums_text

__all__ = ["check_datasets", "check_evaluation", "check_indexes", "check_originals", "dataset_hashes", "read_metadata"]

_SIDECARS = frozenset(SIDECARS)
_FINGERPRINT_BYTES = 16
# What identifies a stored original; the ledger's record holds more, such as the decision taken on it.
_IDENTITY = ("sha256", "kind", "size_bytes", "examples", "reading", "splits")


def check_originals(keeper: Keeper, findings: Findings) -> None:
    """Every admitted file against its hash, its sidecars against the record, and no folder that nobody admitted."""
    known = [row[0] for row in keeper.ledger.rows("SELECT sha256 FROM files ORDER BY first_seen, sha256")]
    for sha256 in known:
        file = get_file(keeper.ledger, sha256)
        assert file is not None
        _check_original(keeper, findings, file)
    for name in sorted(set(os.listdir(keeper.home.files)) - set(known)):
        if not name.startswith(".") and get_file(keeper.ledger, name) is None:
            findings.add("original", name, "", "lies in data/files/ and the ledger knows no such file")


def _check_original(keeper: Keeper, findings: Findings, file: StoredFile) -> None:
    folder = keeper.home.files / file.sha256
    findings.count_files(folder)
    steps = listed_problem_steps(folder, original_hashes(file), _SIDECARS, findings.picker(file.sha256))
    problems = findings.run(steps)
    problems += _sidecar_problems(folder, file)
    for name, problem in problems:
        findings.add("original", file.name, name, f"{problem} (sha256 {file.sha256[:12]})",
                     _grown_from(keeper, file.sha256))  # fmt: skip


def _grown_from(keeper: Keeper, sha256: str) -> list[str]:
    """Every version that learnt from a file, itself or through an ancestor, ascending by id."""
    ids = [row[0] for row in keeper.ledger.rows("SELECT DISTINCT version_id FROM learnt WHERE sha256 = ? AND count > 0 "
                                                "ORDER BY version_id", (sha256,))]  # fmt: skip
    names = {number: keeper.ledger.value("SELECT name FROM versions WHERE id = ?", (number,)) for number in ids}
    below = {name for number in ids for name in descendants(keeper.ledger, number)} | set(names.values())
    return sorted(below, key=lambda name: parse_version_number(name) or 0)


def _sidecar_problems(folder: Path, file: StoredFile) -> list[tuple[str, str]]:
    problems = []
    recorded = file.record.get("sidecars") or {}
    for name, digest in recorded.items():
        if not (folder / name).is_file():
            problems.append((name, "is missing"))
        elif sha256_file(folder / name) != digest:
            problems.append((name, "its content changed"))
    if problems:
        return problems
    record = _read_json(folder / "record.json")
    if record is None:
        problems.append(("record.json", "is missing or cannot be read"))
    elif any(key in record and record[key] != file.record.get(key) for key in _IDENTITY):
        problems.append(("record.json", "differs from the ledger's record"))
    try:
        size = os.lstat(folder / "examples.fp").st_size
    except FileNotFoundError:
        # Documents have no examples and may come without the sidecar.
        return problems if file.kind == "docs" else [*problems, ("examples.fp", "is missing")]
    if file.kind != "docs" and size != file.examples * _FINGERPRINT_BYTES:
        expected = file.examples * _FINGERPRINT_BYTES
        problems.append(("examples.fp", f"holds {size} bytes, not {expected} for {file.examples} examples"))
    return problems


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """A dataset's metadata; None when it is missing or no JSON object."""
    return _read_json(folder / "dataset_metadata.json")


def check_datasets(keeper: Keeper, findings: Findings) -> None:
    """Prepared shards against the hashes in their `dataset_metadata.json`. Derived: a damaged one can be made again."""
    folders = (path for path in keeper.home.shards.iterdir() if path.is_dir() and not path.name.startswith("."))
    for folder in sorted(folders):
        metadata = _read_json(folder / "dataset_metadata.json")
        if metadata is None:
            findings.add("dataset", folder.name, "dataset_metadata.json", "is missing or cannot be read",
                         _trained_on(keeper, folder.name))  # fmt: skip
            continue
        wanted = dataset_hashes(metadata)
        findings.count_files(folder)
        present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
        steps = listed_problem_steps(folder, wanted, present - wanted.keys(), findings.picker(folder.name))
        problems = findings.run(steps)
        problems += _head_problems(folder, recorded_heads(keeper, folder.name), wanted)
        trained = _trained_on(keeper, folder.name) if problems else []
        for name, problem in problems:
            findings.add("dataset", folder.name, name, problem, trained)


def _head_problems(folder: Path, heads: Mapping[str, str], listed: Mapping[str, str]) -> list[tuple[str, str]]:
    """The two files that hold the hashes of all others, and what neither they nor we wrote."""
    problems = [(name, "its content changed" if (folder / name).is_file() else "is missing") for name, digest in heads.items()
                if not (folder / name).is_file() or sha256_file(folder / name) != digest]  # fmt: skip
    if not heads:
        return problems
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return problems + [(name, "does not belong there") for name in sorted(present - listed.keys() - set(HEADS))]


def _trained_on(keeper: Keeper, dataset: str) -> list[str]:
    """Versions whose training read a dataset: their weights are what they are, their rebuilding needs it sound."""
    return [row[0] for row in keeper.ledger.rows(
        "SELECT name FROM versions WHERE json_extract(record, '$.dataset.id') = ? ORDER BY id", (dataset,))]  # fmt: skip


def dataset_hashes(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The hashes that a dataset's metadata carries, by file name; foreign datasets may carry none."""
    wanted: dict[str, str] = {}
    splits = metadata.get("splits")
    for split, record in splits.items() if isinstance(splits, dict) else ():
        wanted[f"{split}/examples.npy"] = record.get("examples_sha256", "")
        wanted[f"{split}/examples.fp"] = record.get("fingerprints_sha256", "")
        for number, shard in enumerate(record.get("shards", [])):
            wanted[f"{split}/shard_{number:05d}.bin"] = shard.get("sha256", "")
            wanted[f"{split}/shard_{number:05d}_mask.bin"] = shard.get("mask_sha256", "")
    return {name: digest for name, digest in wanted.items() if digest}


def check_evaluation(keeper: Keeper, findings: Findings) -> None:
    """Whether every evaluation set that was registered can be read whole."""
    problem = evaluation_problem(keeper)
    if problem:
        findings.add("evaluation", "evaluation sets", "data/ledger.db", problem)


def check_indexes(keeper: Keeper, findings: Findings) -> None:
    """Every index of the ledger against its recorded hashes, and where `latest` points."""
    rows = keeper.ledger.rows("SELECT * FROM indexes WHERE state IN ('active', 'kept') ORDER BY id")
    for row in rows:
        name = index_name(row["id"])
        folder = keeper.home.indexes / name
        if not folder.is_dir():
            findings.add("index", name, "", "its folder is missing")
            continue
        findings.count_files(folder)
        wanted = orjson.loads(row["record"]).get("files", {})
        problems = findings.run(listed_problem_steps(folder, wanted, {"SHA256SUMS"}, findings.picker(name)))
        if (folder / "SHA256SUMS").is_file() and (folder / "SHA256SUMS").read_bytes() != sums_text(wanted).encode():
            problems.append(("SHA256SUMS", "is not the one that was sealed"))
        for file, problem in problems:
            findings.add("index", name, file, problem)
    known = {index_name(row["id"]) for row in keeper.ledger.rows("SELECT id FROM indexes")} | {"latest"}
    for path in sorted(keeper.home.indexes.iterdir()):
        if path.name not in known and not path.name.startswith("."):
            findings.add("folder", f"index/{path.name}", "", "lies in data/index/ and the ledger knows no such index")
    active = [index_name(row["id"]) for row in rows if row["state"] == "active"]
    latest = keeper.home.indexes / "latest"
    target = os.readlink(latest) if latest.is_symlink() else None
    if target != (active[-1] if active else None):
        findings.add("link", "latest", str(latest.name), f"points at {target}, the active index is {active or 'none'}")
