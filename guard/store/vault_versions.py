"""Versions on their way into the vault: small files as they are, weights as frames, each against its parent's.

A frame stands on the parent's only when the parent's copy was read back in this very vault, the chain down to its key
frame is shorter than `backup.key_frame_every`, and the difference is the smaller thing. Nothing is ever taken out of
the vault, so no frame loses what it stands on; a damaged one is made again with the same content.
Not here: how a folder is brought (`vault_bring.py`), reading frames (`vault_frames.py`).
"""

from __future__ import annotations

import os
from pathlib import Path

from guard.durable import sha256_file
from guard.errors import Damage, HeirloomError
from guard.folders import sync_parents
from guard.frames import FrameHeader, read_header
from guard.store.copying import Incoming, seal_quietly
from guard.store.intents import clear_intent
from guard.store.sums import SUMS, read_sums
from guard.store.trash import trash_folder
from guard.store.vault_bring import bring
from guard.store.vault_frames import frame_name, is_framed, stored_bytes, stored_problem_steps
from guard.store.vault_run import BackupRun, Steps, named
from guard.store.versions import Version, find_version, version_by_id

__all__ = ["KEPT_STATES", "version_steps"]

KEPT_STATES = ("sealed", "quarantined")


def version_steps(run: BackupRun, version: Version) -> Steps:
    """Bring one version into the vault, or read back the copy that lies there. Raises Damage for a source not sound."""
    target = run.vault / "versions" / version.name
    # Renamed, then killed before the row was written; or changed since. Only reading tells.
    reading = stored_problem_steps(target, version.sums_sha256)
    if os.path.lexists(target) and not (yield from named(version.name, reading)):
        sync_parents(target)
        seal_quietly(target)
        run.record("version", version.name, version.sums_sha256, stored_bytes(target))
        return
    source = _source(run, version)
    try:
        if not (source / SUMS).is_file() or sha256_file(source / SUMS) != version.sums_sha256:
            raise Damage(f"its {SUMS} is not the one that was sealed", subject=version.name)
        sums = read_sums(source)
        frames = tuple(_header(run, version, source, name, digest) for name, digest in sums.items() if frame_name(name))
        wanted = {name: digest for name, digest in sums.items() if not frame_name(name)} | {SUMS: version.sums_sha256}
        yield from bring(run, "version", version.name, Incoming(source, target, wanted), version.sums_sha256, frames)
    except Damage:
        if find_version(run.keeper.ledger, version.name).state in (*KEPT_STATES, version.state):
            raise
        # A person moved it to the trash between two steps: there is nothing to back up any more.
        with run.keeper.ledger.transaction():
            clear_intent(run.keeper.ledger, "backup", f"version:{version.name}")


def _source(run: BackupRun, version: Version) -> Path:
    """Where the version itself lies: models/, or the trash."""
    folder = trash_folder(run.keeper, version.name) if version.state == "trashed" else None
    return run.keeper.home.trash / folder if folder else run.keeper.home.models / version.name


def _header(run: BackupRun, version: Version, source: Path, name: str, digest: str) -> FrameHeader:
    """What the frame of one file shall be: against the parent's where that is allowed, else a key frame."""
    try:
        size = os.lstat(source / name).st_size
    except OSError as error:
        raise Damage(f"{source / name} is missing or cannot be read", subject=version.name, cause=error) from error
    alone = FrameHeader(name, size, digest)
    if version.parent_id is None:
        return alone
    parent = version_by_id(run.keeper.ledger, version.parent_id)
    row = run.recorded("version", parent.name)
    if row is None or row["sums_sha256"] != parent.sums_sha256:
        return alone
    try:
        there = run.vault / "versions" / parent.name
        behind = read_sums(there).get(name, "")
        depth = read_header(there / str(frame_name(name))).depth + 1 if is_framed(there, name) else 1
    except (HeirloomError, OSError, ValueError):
        return alone  # the parent's copy went bad: whoever verifies the vault names it, and this one stands by itself
    if not behind or depth >= run.keeper.settings.backup.key_frame_every:
        return alone
    return FrameHeader(name, size, digest, depth, parent.name, behind)
