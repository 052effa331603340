"""Which folder is this home's vault, is it really ours, and what does it hold.

    versions/<name>/   files/<sha256>/   ledger/ledger-<newest event>.db   events/   configs/   high-water   store-id

Missing is not empty (law 9): a vault that held copies and now shows none of its marks is a disk that is not mounted,
and no new one is begun in its place. Not here: copying into it (`vault.py`), reading it all back (`verify_vault.py`).
"""

from __future__ import annotations

import os
import re
import sqlite3
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.durable import make_dir, sha256_file, write_text
from guard.errors import CheckFailed, EnvironmentFault, HeirloomError
from guard.failpoints import point
from guard.frames import read_header
from guard.home import Home
from guard.store.drills import drill_state
from guard.store.keeper import Keeper
from guard.store.rebuild_facts import rows_of
from guard.store.sums import SUMS
from guard.store.vault_frames import stored_bytes, stored_whole
from guard.store.versions import all_versions

__all__ = [
    "LEDGER_NAME",
    "adopt_vault",
    "begin_anew",
    "backup_status",
    "check_vault",
    "config_files",
    "find_vault",
    "ledger_head",
    "open_vault",
    "other_device",
    "vault_of",
]

LEDGER_NAME = r"ledger-\d{10,}\.db"


def vault_of(keeper: Keeper) -> Path:
    """The vault folder that the settings name; it need not exist."""
    return keeper.home.vault(keeper.settings.backup.path)


def _looks_like_one(vault: Path) -> bool:
    return vault.is_dir() and any((vault / name).exists() for name in ("versions", "files", "ledger"))


def _absent(keeper: Keeper, vault: Path) -> HeirloomError | None:
    """Why the vault is not there; None when there never was one and it may be begun."""
    if _looks_like_one(vault):
        return CheckFailed(f"{vault} holds a vault and its store-id is missing", subject=str(vault),
                           hint="heirloom backup adopt proves that it is this home's and writes it again; "
                                "another backup.path begins a new vault")  # fmt: skip
    held = keeper.ledger.value("SELECT count(*) FROM backups WHERE vault = ?", (str(vault),))
    if held:
        return EnvironmentFault(f"the vault {vault} held {held} copies and is not there now", subject=str(vault),
                                hint="mount its disk. When it is lost for good: heirloom backup adopt --new begins it anew, "
                                     "another backup.path elsewhere")  # fmt: skip
    return None


def check_vault(keeper: Keeper) -> Path:
    """The vault, when it is there and ours; changes nothing.

    Raises EnvironmentFault when it is not there, CheckFailed when it belongs to another home or lost its store id.
    """
    vault = vault_of(keeper)
    try:
        text = (vault / "store-id").read_text("ascii").strip()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _absent(keeper, vault) or EnvironmentFault(
            f"there is no vault at {vault}", subject=str(vault), cause=error,
            hint="is its disk mounted? `heirloom backup run` begins one") from error  # fmt: skip
    if not text and _looks_like_one(vault):
        raise CheckFailed(f"the store-id of the vault {vault} is empty", subject=str(vault),
                          hint="heirloom backup adopt proves that it is this home's and writes it again")  # fmt: skip
    if text != keeper.home.store_id():
        raise CheckFailed(f"the vault {vault} belongs to another home ({text or 'its store-id is empty'})",
                          subject=str(vault), hint="set backup.path to a folder of this home's own")  # fmt: skip
    return vault


def find_vault(keeper: Keeper) -> tuple[Path, bool]:
    """The vault and whether it is there; False: it never was and may be begun. Changes nothing.

    Raises EnvironmentFault when it vanished, CheckFailed when it is foreign, lost its store id or stands in a wrong place.
    """
    vault = vault_of(keeper)
    _refuse_inside(keeper.home, vault)
    if (vault / "store-id").exists():
        return check_vault(keeper), True
    if problem := _absent(keeper, vault):
        raise problem
    return vault, False


def begin_anew(keeper: Keeper, *, dry_run: bool = False) -> dict[str, Any]:
    """Forget what a vault held that is lost for good, so that the next backup begins it anew; returns vault and proof.

    Raises CheckFailed while something lies there, or while an archived version has its only copy in it.
    """
    vault = vault_of(keeper)
    _refuse_inside(keeper.home, vault)
    if os.path.lexists(vault) and (not vault.is_dir() or any(vault.iterdir())):
        raise CheckFailed(f"{vault} is not empty: nothing is begun over it", subject=str(vault),
                          hint="heirloom backup status; heirloom backup adopt takes a vault without a store-id")  # fmt: skip
    if gone := [version.name for version in all_versions(keeper.ledger) if version.state == "archived"]:
        raise CheckFailed(f"{', '.join(gone[:5])} left models/ for the vault and may lie there alone", subject=str(vault),
                          hint=f"heirloom restore {gone[0]} --from ANOTHER_VAULT; or set another backup.path")  # fmt: skip
    held = keeper.ledger.value("SELECT count(*) FROM backups WHERE vault = ?", (str(vault),))
    if not dry_run:
        with keeper.ledger.transaction():
            keeper.ledger.run("DELETE FROM backups WHERE vault = ?", (str(vault),))
            keeper.ledger.event("backup.begun_anew", str(vault), held=held)
    return {"vault": str(vault), "proof": f"the {held} copies it held are given up; the next backup makes them again"}


def adopt_vault(keeper: Keeper, *, dry_run: bool = False) -> dict[str, Any]:
    """Write a vault's lost store id again, once what lies in it proves that it is this home's; returns vault and proof.

    Raises CheckFailed when it has its store id, belongs to another home, or nothing in it proves anything;
    EnvironmentFault when it is not there. What it holds is read back by the next `backup run`, as ever.
    """
    vault = vault_of(keeper)
    _refuse_inside(keeper.home, vault)
    if not _looks_like_one(vault):
        check_vault(keeper)
    path = vault / "store-id"
    if path.exists() and path.read_bytes().strip():
        check_vault(keeper)
        raise CheckFailed(f"{vault} has its store-id and is this home's vault", subject=str(vault), hint="heirloom backup run")
    proof = _proof(keeper, vault)
    if not dry_run:
        write_text(path, f"{keeper.home.store_id()}\n")
        point("adopt.written")
        with keeper.ledger.transaction():
            keeper.ledger.event("backup.adopted", str(vault), proof=proof)
    return {"vault": str(vault), "proof": proof}


def _proof(keeper: Keeper, vault: Path) -> str:
    """What says that a nameless vault is ours: a copy of our ledger, else a version that was sealed here."""
    copies = sorted(path for path in (vault / "ledger").glob("ledger-*.db") if re.fullmatch(LEDGER_NAME, path.name))
    told = {path.name: text for path in copies if (text := _id_in(path))}
    foreign = [name for name, text in told.items() if text != keeper.home.store_id()]
    if foreign:
        raise CheckFailed(f"the vault {vault} belongs to another home: {foreign[0]} says so", subject=str(vault),
                          hint="set backup.path to a folder of this home's own")  # fmt: skip
    if told:
        return f"{max(told)} is a copy of this home's ledger"
    sealed = {version.name: version.sums_sha256 for version in all_versions(keeper.ledger)}
    there = {path.parent.name: sha256_file(path) for path in sorted((vault / "versions").glob(f"v*/{SUMS}"))}
    if there and all(sealed.get(name) == digest for name, digest in there.items()):
        return f"every version in it ({len(there):,}) was sealed in this home"
    hint = "set backup.path to a new folder; what the old one holds: heirloom restore VERSION --from PATH"
    raise CheckFailed(f"nothing in {vault} proves that it is this home's vault", subject=str(vault), hint=hint)


def _id_in(path: Path) -> str:
    """The store id in a copy of a ledger; "" when it cannot be read."""
    rows = rows_of(path, "SELECT value FROM meta WHERE key = 'store_id'")
    return str(rows[0][0]) if rows else ""


def open_vault(keeper: Keeper) -> Path:
    """The vault, begun when there never was one. Raises EnvironmentFault when it vanished, CheckFailed when foreign."""
    vault, there = find_vault(keeper)
    if not there:
        make_dir(vault)
        write_text(vault / "store-id", f"{keeper.home.store_id()}\n")
    check_vault(keeper)
    for name in ("versions", "files", "ledger", "events", "configs"):
        make_dir(vault / name)
    return vault


def _refuse_inside(home: Home, vault: Path) -> None:
    """A vault among the things it copies, or where drops are looked for, would swallow itself."""
    for folder in (home.inbox, home.data, home.models, home.configs, home.state):
        if vault.resolve().is_relative_to(folder.resolve()):
            raise CheckFailed(f"the vault {vault} lies inside {folder}", subject=str(vault),
                              hint="set backup.path to a folder of its own, best on another disk")  # fmt: skip


def other_device(keeper: Keeper, vault: Path) -> bool:
    """Whether the vault lies, or would be begun, on another device than the models: only then it protects."""
    there = next(place for place in (vault, *vault.parents) if place.exists())
    return os.stat(there).st_dev != os.stat(keeper.home.models).st_dev


def config_files(home: Home) -> dict[str, bytes]:
    """Settings and recipes by relative name; what a link points to is taken in its place."""
    paths = sorted(path for path in home.configs.rglob("*") if path.is_file() and not path.name.endswith(".tmp"))
    return {str(path.relative_to(home.configs)): path.read_bytes() for path in paths}


def ledger_head(path: Path) -> tuple[int, str] | None:
    """Number and hash of the newest event in a copy of a ledger; None when it has none or cannot be read."""
    try:
        database = sqlite3.connect(f"file:{urllib.parse.quote(os.fspath(path.absolute()))}?mode=ro", uri=True)
    except sqlite3.DatabaseError:
        return None
    try:
        return database.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    except sqlite3.DatabaseError:
        return None
    finally:
        database.close()


def backup_status(keeper: Keeper) -> dict[str, Any]:
    """What is safe: vault, present, problem, remedy, other_device, protects, versions and originals (total, verified, missing),
    ledger (newest copy, events it lacks), last_verified (UTC or None), bytes; sizes (one row for each version in the
    vault: name, raw_bytes, stored_bytes, ratio, form (key, delta, plain or damaged), stands_on) and raw_bytes,
    stored_bytes, ratio over them; drill (last, passed, problem). Reads only.

    `protects` is true only when everything was read back and the vault is on another device.
    """
    vault = vault_of(keeper)
    problem = remedy = ""
    try:
        check_vault(keeper)
    except HeirloomError as error:
        problem, remedy = error.message, error.hint
    recorded = keeper.ledger.rows("SELECT * FROM backups WHERE vault = ?", (str(vault),))
    rows = [] if problem else recorded  # a row alone vouches for nothing while its vault cannot be looked at
    held = {(row["what"], row["name"]): row["sums_sha256"] for row in rows}
    versions = {version.name: held.get(("version", version.name)) == version.sums_sha256
                for version in all_versions(keeper.ledger, "sealed", "quarantined", "archived")}
    # The only copy of an archived version is worth a look; a row alone would vouch for a folder that is gone.
    versions |= {version.name: versions[version.name] and stored_whole(vault / "versions" / version.name, version.sums_sha256)
                 for version in all_versions(keeper.ledger, "archived")}
    originals = {row[0]: ("original", row[0]) in held for row in keeper.ledger.rows("SELECT sha256 FROM files")}
    apart = not problem and other_device(keeper, vault)
    newest = max((name for what, name in held if what == "ledger"), default=None)
    return {
        "vault": str(vault),
        "present": not problem,
        "problem": problem,
        "remedy": remedy,
        "other_device": apart,
        "protects": apart and all(versions.values()) and all(originals.values()) and newest is not None,
        "versions": _counted(versions),
        "originals": _counted(originals),
        "ledger": {"newest": newest, "behind": keeper.ledger.sequence() - _number(newest)},
        "last_verified": max((row["verified"] for row in recorded), default=None),
        "bytes": sum(row["size_bytes"] for row in rows),
        **_sizes(keeper, vault, held),
        "drill": drill_state(keeper),
    }


def _sizes(keeper: Keeper, vault: Path, held: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """What each version takes in the vault against what it takes in models/, in bytes."""
    rows = []
    for version in all_versions(keeper.ledger):
        folder = vault / "versions" / version.name
        if ("version", version.name) in held and (stored := stored_bytes(folder)):
            rows.append({"name": version.name, **_size_of(folder, stored)})
    raw, stored = (sum(row[key] for row in rows) for key in ("raw_bytes", "stored_bytes"))
    return {"sizes": rows, "raw_bytes": raw, "stored_bytes": stored, "ratio": round(stored / raw, 4) if raw else None}


def _size_of(folder: Path, stored: int) -> dict[str, Any]:
    """`raw_bytes` are exact: a frame's header tells what it stands for, every other file lies there as it is."""
    raw, headers, form = stored, [], ""
    for path in folder.glob("*.frame"):
        try:
            headers.append(header := read_header(path))
        except (HeirloomError, OSError):
            form = "damaged"
            continue
        raw += header.size - path.stat().st_size
    stands_on = next((header.parent for header in headers if header.parent), "")
    form = form or ("delta" if stands_on else "key" if headers else "plain")
    return {"raw_bytes": raw, "stored_bytes": stored, "ratio": round(stored / raw, 4) if raw else None, "form": form,
            "stands_on": stands_on}  # fmt: skip


def _counted(held: dict[str, bool]) -> dict[str, Any]:
    missing = [name for name, safe in held.items() if not safe]
    return {"total": len(held), "verified": sum(held.values()), "missing": missing}


def _number(name: str | None) -> int:
    return int(Path(name).stem.removeprefix("ledger-")) if name else 0
