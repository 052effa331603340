"""A version's birth (DESIGN 6): from a finished child's folder to a sealed, recorded, active version.

    intent in the ledger -> version.json, README.md, SHA256SUMS last -> fsync bottom-up -> re-read and hash
    -> rename into models/ (never over anything) -> one ledger transaction -> views -> seal

The intent holds the whole record, so that a crash anywhere is rolled forward to the very same bytes by calling
`finish_birth` again. Not here: whether the child deserves it (`guard/checks/proof.py`, `gate.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.durable import (
    clear_temporaries,
    fsync_tree,
    make_dir,
    remove_tree,
    rename_new,
    sha256_file,
    write_json,
    write_text,
)
from guard.errors import Damage
from guard.failpoints import point
from guard.folders import sync_parents
from guard.seal import open_shelf, seal_folder
from guard.steps import Steps, drain
from guard.store.jobs import Job, find_job, set_job
from guard.store.keeper import Keeper
from guard.store.matrix import record_losses
from guard.store.proven import note_proven
from guard.store.sums import hash_steps, sums_text
from guard.store.trash import move_sealed
from guard.store.versions import line_tip
from guard.store.views import refresh
from guard.weights import adapter_base

__all__ = ["announce", "finish_birth", "hash_folder", "hash_folder_steps", "set_birth_aside", "sums_text", "version_readme"]

_OURS = ("version.json", "README.md", "SHA256SUMS")


def hash_folder(folder: Path, skip: tuple[str, ...] = ("SHA256SUMS",)) -> dict[str, str]:
    """SHA-256 of every file below a folder by its relative name, read from disk now. Symbolic links are refused."""
    return drain(hash_folder_steps(folder, skip))


def hash_folder_steps(folder: Path, skip: tuple[str, ...] = ("SHA256SUMS",)) -> Steps[dict[str, str]]:
    """`hash_folder` in slices."""
    found = {}
    for place, _names, files in os.walk(folder):
        for name in files:
            path = Path(place) / name
            relative = str(path.relative_to(folder))
            if path.is_symlink():
                raise Damage(f"{relative} in {folder} is a symbolic link", subject=str(path),
                             hint="a version holds only plain files")  # fmt: skip
            if relative not in skip:
                found[relative] = yield from hash_steps(path)
    return found


def version_readme(record: Mapping[str, Any]) -> str:
    """A word to whoever finds this folder in ten years."""
    learnt = "\n".join(f"- {item['file']} (sha256 {item['sha256'][:16]}..., {item['examples']} examples)"
                       for item in record["data"]) or "- nothing yet: this is a base"  # fmt: skip
    under = adapter_base(record.get("inputs") or ())
    loads = (
        "It loads as it is with\n`transformers.AutoModelForCausalLM.from_pretrained(...)`.\n" if under is None else
        f"It is an adapter (LoRA) and holds no full weights:\nit is nothing without {under['name']} (weights sha256 "
        f"{under['sha256'][:16]}...) beside it. In the home's folder\n"
        f"`transformers.AutoModelForCausalLM.from_pretrained(\"models/{record['name']}\")`\n"
        "loads both where `peft` is installed.\n")  # fmt: skip
    steps = int(record["metrics"].get("steps_skipped") or 0)
    skipped = (f"{steps} of its steps were skipped, because their loss or gradient was no sound figure; what only they held\n"
               "is not learnt (version.json, `anomalies`).\n\n") if steps else ""  # fmt: skip
    return (
        f"# {record['name']}\n\nOne sealed version of a language model kept by Heirloom; it must never be changed.\n\n"
        f"Parent: {record['parent'] or 'none (a base)'}\nLine of birth: {record['line']}\nCreated: {record['created']}\n\n"
        f"What it learnt on top of its parent:\n\n{learnt}\n\n{skipped}"
        "Other versions may have been trained from this one. Ask before you touch it:\n\n"
        f"    heirloom lineage {record['name']}\n    heirloom verify {record['name']}\n\n"
        f"`sha256sum -c SHA256SUMS` in this folder checks it without Heirloom. {loads}"
    )


def announce(keeper: Keeper, job: Job, record: Mapping[str, Any], *, becomes_tip: bool, learnt: list[dict[str, Any]]) -> None:
    """Write the intent: from here on the birth is finished, whatever happens."""
    plan = {**job.plan, "birth": {"record": dict(record), "becomes_tip": becomes_tip, "learnt": learnt}}
    with keeper.ledger.transaction():
        set_job(keeper.ledger, job.id, "committing", plan=plan)
    point("birth.intended")


def finish_birth(keeper: Keeper, number: int) -> str:
    """Bring an announced birth to its end from wherever it stands; returns the version's name.

    Raises Damage when neither a whole folder in staging nor one in models/ is left.
    """
    job = find_job(keeper.ledger, number)
    birth = job.plan["birth"]
    record = birth["record"]
    target = keeper.home.models / record["name"]
    staged = keeper.home.staging_of(job.id) / "out"
    if not target.exists():
        sums = _describe(staged, record)
        point("birth.checked")
        # A read-only folder cannot be moved by an ordinary user, so sealing comes after the move.
        with open_shelf(keeper.home.models):
            rename_new(staged, target)
        point("birth.moved")
    else:  # moved in an earlier life: what came between nobody saw
        sync_parents(target, staged)
        sums = _check_sums(target)
    point("birth.renamed")
    _record(keeper, job, birth, sums, _size(target))
    point("birth.recorded")
    refresh(keeper)
    point("birth.viewed")
    seal_folder(target, keeper.settings.storage.seal)
    note_proven(keeper, target, sums)
    point("birth.sealed")
    remove_tree(keeper.home.staging_of(job.id))
    point("birth.cleaned")
    return record["name"]


def set_birth_aside(keeper: Keeper, number: int) -> None:
    """A birth that cannot be finished: a folder that already stands in models/ without a row goes to the trash.

    Left there it would be an unknown version, and preflight would refuse every later job because of it.
    """
    record = find_job(keeper.ledger, number).plan.get("birth", {}).get("record")
    if not record or keeper.ledger.row("SELECT 1 FROM versions WHERE id = ?", (record["id"],)):
        return
    target = keeper.home.models / record["name"]
    if target.is_dir():
        aside, count = keeper.home.trash / f"{record['name']}~unfinished", 1
        while os.path.lexists(aside):
            count += 1
            aside = keeper.home.trash / f"{record['name']}~unfinished~{count}"
        move_sealed(keeper, target, aside)
        point("birth.aside")
        with keeper.ledger.transaction():
            keeper.ledger.event("birth.abandoned", record["name"], moved_to=aside.name)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _describe(staged: Path, record: Mapping[str, Any]) -> str:
    """Write our three files, SHA256SUMS last; sync all; re-read everything once and compare. Returns the list's own hash.

    The list holds what the child promised, so one reading tells both that the promise was kept and that the disk has it.
    """
    if not staged.is_dir():
        raise Damage(f"the finished folder of {record['name']} has vanished from staging", subject=str(staged),
                     hint="the job will be trained again: heirloom queue retry ID")  # fmt: skip
    clear_temporaries(staged)  # a death in the middle of our own writing must not be sealed with the version
    write_json(staged / "version.json", dict(record))
    write_text(staged / "README.md", version_readme(record))
    point("birth.described")
    hashes = {**record["files"], **hash_folder(staged, skip=("SHA256SUMS", *record["files"]))}
    write_text(staged / "SHA256SUMS", sums_text(hashes))
    point("birth.summed")
    fsync_tree(staged)
    point("birth.synced")
    found = hash_folder(staged)
    wrong = sorted(name for name in hashes.keys() | found.keys() if hashes.get(name) != found.get(name))
    if wrong:
        raise Damage(f"{', '.join(wrong)} of {record['name']} changed on disk before sealing", subject=str(staged),
                     hint="check the disk; the job can be retried")  # fmt: skip
    return _check_list(staged, found)


def _check_sums(folder: Path) -> str:
    """Compare the folder with its SHA256SUMS by reading everything; returns the hash of SHA256SUMS itself."""
    return _check_list(folder, hash_folder(folder))


def _check_list(folder: Path, found: Mapping[str, str]) -> str:
    """Compare what was read with SHA256SUMS as it stands on the disk."""
    if sums_text(found) != (folder / "SHA256SUMS").read_text("utf-8"):
        raise Damage(f"{folder.name} does not match its SHA256SUMS", subject=str(folder), hint="check the disk")
    return sha256_file(folder / "SHA256SUMS")


def _record(keeper: Keeper, job: Job, birth: Mapping[str, Any], sums: str, size: int) -> None:
    """The one transaction: version, learnt examples, inputs, tip, job and events. Does nothing when it was done."""
    record, ledger = birth["record"], keeper.ledger
    gated = birth["becomes_tip"]
    if ledger.row("SELECT 1 FROM versions WHERE id = ?", (record["id"],)):
        if job.state == "committing":
            with ledger.transaction():
                set_job(ledger, job.id, "done" if gated else "quarantined", "" if gated else record["gate"]["reason"])
        return
    parent = ledger.value("SELECT id FROM versions WHERE name = ?", (record["parent"],)) if record["parent"] else None
    with ledger.transaction():
        ledger.run(
            "INSERT INTO versions (id, name, parent_id, line, state, job_id, created, tokens, size_bytes, sums_sha256, record) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (record["id"], record["name"], parent, record["line"], "sealed" if gated else "quarantined", job.id,
             record["created"], record["metrics"].get("tokens", 0), size, sums, _json(record)))  # fmt: skip
        ledger.run_many("INSERT INTO learnt VALUES (?, ?, ?, ?, ?)",
                        [(record["id"], item["sha256"], record["objective"], item["count"], item["bitmap"])
                         for item in birth["learnt"]])  # fmt: skip
        record_losses(ledger, record)
        _record_inputs(keeper, record)
        ledger.event("version.sealed", record["name"], parent=record["parent"], line=record["line"], sums=sums,
                     gate=record["gate"]["verdict"], job=job.id)  # fmt: skip
        if record.get("anomalies"):
            ledger.event("training.skipped", record["name"], job=job.id, anomalies=record["anomalies"])
        if gated:
            _move_tip(keeper, record)
        set_job(ledger, job.id, "done" if gated else "quarantined", "" if gated else record["gate"]["reason"])


def _record_inputs(keeper: Keeper, record: Mapping[str, Any]) -> None:
    """Every version that went into this one besides its parent: each locks deletion as a parent does.

    An index is derived and no version; it stands in version.json only. Raises Damage for an input nobody knows.
    """
    for item in record.get("inputs", []):
        if item["role"] == "index":
            continue
        number = keeper.ledger.value("SELECT id FROM versions WHERE name = ?", (item["name"],))
        if number is None:
            raise Damage(f"{record['name']} names {item['name']} as its {item['role']}, and no such version is known",
                         subject=record["name"], hint="heirloom lineage lists the versions")  # fmt: skip
        keeper.ledger.run("INSERT INTO version_inputs VALUES (?, ?, ?)", (record["id"], number, item["role"]))


def _move_tip(keeper: Keeper, record: Mapping[str, Any]) -> None:
    ledger = keeper.ledger
    before = line_tip(ledger, record["line"])
    ledger.run("INSERT INTO lines VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET tip_id = excluded.tip_id",
               (record["line"], record["id"], record["created"]))  # fmt: skip
    ledger.event("line.moved", record["line"], before=before.name if before else None, after=record["name"], why="birth")


def _json(record: Mapping[str, Any]) -> str:
    import orjson

    return orjson.dumps(dict(record), option=orjson.OPT_SORT_KEYS).decode()


def stage_folder(keeper: Keeper, job: int) -> Path:
    """The staging folder of a job, made when missing; the only place its child may write."""
    folder = keeper.home.staging_of(job)
    make_dir(folder)
    return folder
