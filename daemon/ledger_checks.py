"""The doctor's questions to a home's ledger: is it sound, and is what it speaks of there; and the room for more of it.

Only what takes a moment is looked at, all in the caller's one snapshot. Not here: machine and folders (`doctor.py`).
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from daemon.costs import past_jobs
from guard.checks.verdict import Check
from guard.errors import HeirloomError
from guard.lock import is_locked
from guard.store.event_export import SEGMENT_EVENTS
from guard.store.keeper import Keeper

__all__ = ["Question", "judge_chain", "judge_disk", "judge_estimates", "judge_vault", "ledger_questions"]

Question = tuple[str, Callable[[], Check]]


def ledger_questions(keeper: Keeper) -> list[Question]:
    """Name and question, in the order in which they are told; each may raise."""
    home, settings = keeper.home, keeper.settings
    return [
        ("Ledger is sound", lambda: _ledger(keeper)),
        ("Audit trail is unbroken", lambda: judge_chain(keeper.ledger.broken_events(), keeper.ledger.sequence())),
        ("Event export is whole", lambda: _export(keeper)),
        ("Numbers are kept", lambda: _numbers(keeper)),
        ("Versions are present", lambda: _versions(keeper)),
        ("Views are current", lambda: _views(keeper)),
        ("Indexes of examples", lambda: _derived(keeper)),
        ("Disk space", lambda: judge_disk(home.free_bytes(), settings.disk.reserve_gb)),
        ("Estimates", lambda: judge_estimates(past_jobs(keeper))),
        ("Vault", lambda: judge_vault(_device_of(home.vault(settings.backup.path)), _device_of(home.models))),
        ("Tokenizer vocabulary", lambda: _vocabulary(keeper)),
    ]


def _ledger(keeper: Keeper) -> Check:
    verdicts = [row[0] for row in keeper.ledger.rows("PRAGMA integrity_check(5)")]
    verdicts += [f"row {row[1]} of {row[0]} points nowhere" for row in keeper.ledger.rows("PRAGMA foreign_key_check")[:5]]
    verdicts += [f"rows of {table} are not what was written" for table in keeper.ledger.changed_tables()]
    verdicts += filter(None, [keeper.ledger.mark_problem()])
    if verdicts != ["ok"]:
        problems = [text for text in verdicts if text != "ok"]
        return Check("Ledger is sound", False, "; ".join(problems), "heirloom doctor --rebuild makes it again")
    return Check("Ledger is sound", True, str(keeper.ledger.path))


def judge_chain(problems: Sequence[str], events: int) -> Check:
    """Every event carries the hash of the one before it."""
    name = "Audit trail is unbroken"
    if problems:
        return Check(name, False, "; ".join(list(problems)[:5]), "heirloom doctor --rebuild makes the ledger again")
    return Check(name, True, f"{events:,} events")


def _export(keeper: Keeper) -> Check:
    """The audit trail outside the ledger: what a lost ledger is made again from. Its end may lag behind while somebody works."""
    name, remedy = "Event export is whole", "heirloom doctor --rebuild makes it again from the ledger"
    newest = keeper.ledger.sequence()
    if not newest:
        return Check(name, True, "no events yet")
    if not keeper.home.events.is_dir():
        return Check(name, False, "data/events is missing", remedy)
    seq, digest = keeper.ledger.export.head()
    wanted = {f"{number + 1:05d}.jsonl" for number in range((max(seq, 1) - 1) // SEGMENT_EVENTS + 1)}
    if missing := sorted(wanted - set(os.listdir(keeper.home.events))):
        return Check(name, False, f"missing in data/events: {', '.join(missing[:5])}", remedy)
    if seq and digest != keeper.ledger.value("SELECT hash FROM events WHERE seq = ?", (seq,)):
        return Check(name, False, f"data/events tells another story of event {seq} than the ledger", remedy)
    if seq < newest and not is_locked(keeper.home):
        return Check(name, False, f"it ends with event {seq} and the ledger with {newest}", remedy)
    return Check(name, True, f"{seq:,} events; heirloom verify reads them")


def _numbers(keeper: Keeper) -> Check:
    """The high-water files: without them a number might be given twice after the ledger is lost."""
    name, wrong = "Numbers are kept", []
    for what, table, path in (("version", "versions", keeper.home.high_water_file),
                              ("index", "indexes", keeper.home.index_high_water_file)):  # fmt: skip
        highest = keeper.ledger.value(f"SELECT coalesce(max(id), 0) FROM {table}")
        key = {"version": "version_high_water", "index": "index_high_water"}[what]
        if what == "index" and keeper.ledger.meta(key) is None:
            continue  # a home of an earlier release: its next start takes the mark
        shown = path.relative_to(keeper.home.root)
        try:
            mark = int(path.read_text("ascii"))
        except (OSError, ValueError):
            wrong.append(f"{shown} is missing or cannot be read")
            continue
        wrong += [f"{shown} says {mark}, {what} {highest} exists"] if mark < highest else []
    if wrong:
        return Check(name, False, "; ".join(wrong), "heirloom doctor --rebuild writes them again")
    return Check(name, True, "no number is given twice")


def _versions(keeper: Keeper) -> Check:
    name = "Versions are present"
    rows = keeper.ledger.rows("SELECT name FROM versions WHERE state IN ('sealed', 'quarantined') ORDER BY id")
    missing = [row[0] for row in rows if not (keeper.home.models / row[0] / "SHA256SUMS").is_file()]
    if missing:
        return Check(name, False, f"missing in models/: {', '.join(missing[:5])}", f"heirloom restore {missing[0]}")
    return Check(name, True, f"{len(rows):,} in models/; heirloom verify --all reads them")


def _views(keeper: Keeper) -> Check:
    from guard.store.views import stale

    problems = stale(keeper)
    if problems:
        return Check("Views are current", False, "; ".join(problems), "heirloom run --once makes them again")
    return Check("Views are current", True, "registry, manifest and models/README.md show what the ledger says")


def _derived(keeper: Keeper) -> Check:
    from guard.store.derived import misplaced
    from guard.store.known import open_index
    from guard.store.near import open_near, unsigned

    near = keeper.settings.near.policy != "off"
    wrong = [f"{name} is no folder" for name in misplaced(keeper.home) if near or name == "data/known"]
    wrong += [f"data/known/{name}: {why}" for name, why in open_index(keeper).damaged.items() if not name.startswith("data/")]
    waiting = 0
    if near:
        wrong += [f"data/near/{name}: {why}" for name, why in open_near(keeper).damaged.items()]
        made = list(unsigned(keeper).values())
        plural = "s" if sum(made) > 1 else ""
        wrong += [f"the signatures of {sum(made):,} file{plural} are missing in data/near"] if any(made) else []
        waiting = len(made) - sum(made)
    if wrong:
        remedy = "heirloom run makes them again (or run --once); no data is lost"
        return Check("Indexes of examples", False, "; ".join(wrong), remedy)
    more = f"; {waiting:,} files are not looked at for near-duplicates yet" if waiting else ""
    return Check("Indexes of examples", True, f"data/known and data/near are sound{more}")


def judge_disk(free_bytes: int, reserve_gb: float) -> Check:
    """Free space above the reserve, or nothing will be trained."""
    text = f"{free_bytes / 1e9:,.1f} GB free, {reserve_gb:g} GB stay reserved"
    if free_bytes < reserve_gb * 1e9:
        return Check("Disk space", False, text, "free some space, or lower disk.reserve_gb", environment=True)
    return Check("Disk space", True, text)


def judge_estimates(past: Sequence[Mapping[str, Any]]) -> Check:
    """How wrong the estimates of finished jobs were: never a fault, and worth knowing before trusting the next one.

    Told as the mean factor (geometric) between estimate and what it took, whichever was larger.
    """
    name = "Estimates"
    words = []
    for key, what in (("seconds", "time"), ("memory_bytes", "memory")):
        pairs = [(job["estimate"].get(key), job["actual"].get(key)) for job in past]
        factors = [abs(math.log(found / told)) for told, found in pairs if told and found]
        if factors:
            words.append(f"{what} right within a factor of {math.exp(statistics.fmean(factors)):.2f}")
    if not words:
        return Check(name, None, "no finished job has an estimate yet")
    return Check(name, True, f"{', '.join(words)}, on average over the last {len(past)} jobs")


def _device_of(path: Path) -> int | None:
    try:
        return os.stat(path).st_dev
    except FileNotFoundError:
        return None


def judge_vault(vault_device: int | None, models_device: int | None) -> Check:
    """A vault on the same disk is no fault, but it does not protect against losing that disk."""
    if vault_device is None:
        return Check("Vault", True, "not made yet: heirloom backup run", warning=True)
    if vault_device == models_device:
        return Check("Vault", True, "on the same disk as the models: set backup.path to another one", warning=True)
    return Check("Vault", True, "on another device")


def _vocabulary(keeper: Keeper) -> Check:
    from guard.store.versions import all_versions

    name = "Tokenizer vocabulary"
    used = {str(version.record.get("tokenization")) for version in all_versions(keeper.ledger)}
    if "gpt2" not in used:
        return Check(name, None, "no version here uses GPT-2's")
    from trainer.vocabulary import gpt2_ranks

    try:
        return Check(name, True, f"GPT-2, {len(gpt2_ranks()):,} tokens")
    except HeirloomError as error:
        return Check(name, False, error.message, error.hint)
