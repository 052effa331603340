"""Recovery: from whatever a sudden death left, to a home in which every file and job is in exactly one state.

A pure function of the disk and the ledger (law 8): it rolls forward what was announced and never guesses. It runs
whenever a process takes the home lock, before anything else, and may itself be killed at any point and run again.
Claimed drops are identified again and running jobs are resumed by the engine, which finds them by their state.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import orjson

from guard import durable
from guard.durable import clear_temporaries, make_dir, remove_tree, replace_link, seal_tree, write_text
from guard.errors import EnvironmentFault, HeirloomError, is_environment
from guard.failpoints import point
from guard.names import index_name
from guard.seal import IMMUTABLE, is_immutable, open_shelf, seal_folder, shut_shelf
from guard.store import views
from guard.store.admission import finish_admission
from guard.store.archive import finish_archives
from guard.store.birth import finish_birth, set_birth_aside
from guard.store.decision import Decision
from guard.store.files import open_drops
from guard.store.folder_drops import spare_histories
from guard.store.indexes import active_index, finish_index, index_high_water, link_documents
from guard.store.intake import resume_claim
from guard.store.intents import open_intents
from guard.store.jobs import Job, find_job, jobs_in, set_job
from guard.store.keeper import Keeper
from guard.store.marks import noted_mark
from guard.store.placing import REREAD, is_itself, take_back
from guard.store.prune import finish_prunes
from guard.store.purge import finish_purges
from guard.store.restore import finish_restores
from guard.store.returning import give_back
from guard.store.rollback import finish_rollbacks
from guard.store.trash import finish_deletes
from guard.store.versions import high_water

__all__ = ["recover"]


def recover(keeper: Keeper) -> list[str]:
    """Finish or set aside everything that was under way; returns what was done, in words.

    Environment faults (a full disk) go up: nothing was lost, and the next start tries again.
    """
    _sync_home(keeper)
    point("recover.synced")
    done: list[str] = _make_work_folders(keeper)
    done += _recover_drops(keeper)
    point("recover.drops")
    done += _recover_jobs(keeper)
    point("recover.jobs")
    done += _recover_trash(keeper)
    point("recover.trash")
    _recover_numbers(keeper)
    point("recover.numbers")
    done += _recover_seals(keeper)
    point("recover.seals")
    done += _sweep_staging(keeper)
    point("recover.swept")
    _recover_links(keeper)
    point("recover.linked")
    if done:
        with keeper.ledger.transaction():
            keeper.ledger.event("home.recovered", "home", done=done)
    # After the event, which is one more thing for the views to follow: the next start finds them current.
    if views.outdated(keeper) and views.refresh(keeper):
        done.append("views made again")
    point("recover.viewed")
    return done


def _sync_home(keeper: Keeper) -> None:
    """What an earlier life left may stand in the page cache alone; nothing is built upon it before it is on the disk.

    A move that was killed between its rename and its fsync looks finished: recorded as such, a power cut would take it.
    """
    home = keeper.home
    places = {path.stat().st_dev: path for path in (home.root, home.state, home.inbox, home.data, home.models)
              if path.is_dir()}  # fmt: skip
    try:
        for path in places.values():
            durable.sync_file_system(path)
    except OSError as error:
        raise EnvironmentFault(f"the disk of {home.root} cannot be synced: {error.strerror}", subject=str(home.root),
                               cause=error, hint="check the disk (dmesg); nothing was changed") from error  # fmt: skip


def _make_work_folders(keeper: Keeper) -> list[str]:
    """Folders that hold nothing but work and what is derived may be made again: nobody takes them for a lost disk."""
    home, done = keeper.home, []
    with open_shelf(home.models):
        for folder in (home.staging, home.trash, home.incoming, home.shards, home.indexes, home.docs):
            if not folder.exists():
                make_dir(folder)
                done.append(f"{folder.relative_to(home.root)} was missing and was made again")
    return done


def _recover_drops(keeper: Keeper) -> list[str]:
    done = []
    for row in open_drops(keeper.ledger, "claiming", "admitting", "returning"):
        try:
            done.append(f"{row['name']}: {_recover_drop(keeper, row)}")
        except (HeirloomError, OSError) as error:
            # One drop never keeps a home from starting: it stays open, and intake tries it again and says so.
            done.append(f"{row['name']}: left for later ({error})")
    return done


def _recover_drop(keeper: Keeper, row: sqlite3.Row) -> str:
    if row["state"] == "claiming":
        state = resume_claim(keeper, row["id"], Path(os.fsdecode(row["source"])), move=row["mode"] == "move")
        return f"claim finished ({state})"
    record = orjson.loads(row["verdict"])
    if row["state"] == "admitting" and not is_itself(keeper, row["id"], str(row["sha256"])):
        take_back(keeper, row["id"], REREAD)
        return "its bytes changed; it is read again"
    if row["state"] == "admitting":
        finish_admission(keeper, row, record, Decision(**record["decision"]))
        return "admission finished"
    give_back(keeper, row["id"], record["verdict"], row["reason"], record["why"], record)
    return "return finished"


def _recover_jobs(keeper: Keeper) -> list[str]:
    done = []
    for job in jobs_in(keeper.ledger, "committing"):
        done.append(_settle(keeper, job, finish_index if job.kind == "index" else finish_birth))
    return done


def _settle(keeper: Keeper, job: Job, finish: Callable[[Keeper, int], str]) -> str:
    """Finish an announced birth or switch; what cannot be finished is set aside for a person, never guessed at."""
    try:
        return f"job {job.id}: {finish(keeper, job.id)} finished"
    except (HeirloomError, OSError) as error:
        if is_environment(error):
            raise
        set_birth_aside(keeper, job.id)
        with keeper.ledger.transaction():
            set_job(keeper.ledger, job.id, "failed", f"could not be finished after a crash: {error}")
        return f"job {job.id}: set aside ({error})"


def _recover_trash(keeper: Keeper) -> list[str]:
    ended = [*finish_deletes(keeper), *finish_purges(keeper), *finish_archives(keeper)]
    return [*ended, *finish_restores(keeper), *finish_rollbacks(keeper), *finish_prunes(keeper)]


def _recover_numbers(keeper: Keeper) -> None:
    """Bring every copy of the high-water mark to the highest one known."""
    mark = high_water(keeper)
    if keeper.ledger.meta("version_high_water") != str(mark):
        with keeper.ledger.transaction():
            keeper.ledger.set_meta("version_high_water", str(mark))
    write_text(keeper.home.high_water_file, f"{mark}\n")
    index_mark = index_high_water(keeper)
    if keeper.ledger.meta("index_high_water") != str(index_mark):
        with keeper.ledger.transaction():
            keeper.ledger.set_meta("index_high_water", str(index_mark))
    path = keeper.home.index_high_water_file
    if noted_mark([path]) != index_mark or not path.exists():
        write_text(path, f"{index_mark}\n")


def _recover_seals(keeper: Keeper) -> list[str]:
    """Seal what was recorded and not yet sealed; the top folder is sealed last, so its mode tells for the whole."""
    seal, done = keeper.settings.storage.seal, []
    known = {row[0] for row in keeper.ledger.rows("SELECT name FROM versions WHERE state IN ('sealed', 'quarantined')")}
    # One look at each folder's entries, and none at ten thousand versions one by one.
    for entry in _folders_in(keeper.home.models, known):
        if entry.stat().st_mode & 0o222 or (seal == IMMUTABLE and not is_immutable(entry.path)):
            seal_folder(entry.path, seal)
            done.append(f"{entry.name} sealed")
    indexes = {index_name(row[0]) for row in keeper.ledger.rows("SELECT id FROM indexes")}
    for entry in _folders_in(keeper.home.indexes, indexes):
        if entry.stat().st_mode & 0o222:
            seal_tree(entry.path)
            done.append(f"{entry.name} sealed")
    shut_shelf(keeper.home.models)
    return done


def _folders_in(place: Path, names: set[str]) -> list[os.DirEntry[str]]:
    """The entries of a folder that are folders with one of these names, sorted."""
    with os.scandir(place) as entries:
        return sorted((entry for entry in entries if entry.name in names and entry.is_dir(follow_symlinks=False)),
                      key=lambda entry: entry.name)  # fmt: skip


def _sweep_staging(keeper: Keeper) -> list[str]:
    """Clear what belongs to nobody any more: folders of finished jobs and drops. They hold no user bytes."""
    done = []
    home = keeper.home
    with open_shelf(home.models):
        for folder in (home.state, home.models, home.data, home.indexes, home.docs, home.configs, home.rejected,
                       home.duplicates):  # fmt: skip
            done += [f"cleared {folder.name}/{name}" for name in clear_temporaries(folder)]
    folders = sorted(keeper.home.staging.iterdir())
    alive = {keeper.home.staging_of(row[0]).name for row in keeper.ledger.rows(
        "SELECT id FROM jobs WHERE state NOT IN ('done', 'cancelled', 'quarantined')")} if folders else set()  # fmt: skip
    for path in folders:
        over = _job_is_over(keeper, path.name) or _remake_is_over(path.name) or _restore_is_over(keeper, path.name)
        over = over or path.name.startswith("ahead-")  # data that was being prepared ahead of its job: derived
        if path.name not in alive and over:
            remove_tree(path)
            done.append(f"cleared {path.name}")
    open_folders = {f"drop-{row['id']:08d}" for row in open_drops(keeper.ledger)}
    for path in sorted(keeper.home.incoming.iterdir()):
        if path.name not in open_folders and (not (path / "content").exists() or _is_let_go(keeper, path)):
            remove_tree(path)
            done.append(f"cleared {path.name}")
    return done


def _is_let_go(keeper: Keeper, folder: Path) -> bool:
    """Whether a claimed folder is stored as an original, so that what is left of the drop may go; its histories went before."""
    number = folder.name.removeprefix("drop-")
    row = keeper.ledger.row("SELECT name, state, sha256 FROM drops WHERE id = ?", (int(number),)) if number.isdecimal() else None
    if row is None or row["state"] not in ("admitted", "registered") or not (folder / "content").is_dir():
        return False
    if not (keeper.home.files / str(row["sha256"])).is_dir():
        return False
    spare_histories(folder, row["name"], keeper.home.rejected)
    return True


def _restore_is_over(keeper: Keeper, folder: str) -> bool:
    """Copies of a restore that no intent speaks of: the ledger was made again meanwhile. Their source was not touched."""
    wanted = {f"restore-{item['version']}" for item in open_intents(keeper.ledger, "restore")}
    return folder.startswith("restore-") and folder not in wanted


def _remake_is_over(folder: str) -> bool:
    """The scratch folder of a `verify --rebuild` (`remake-<version>-<pid>`) whose process was killed: copies and no more."""
    process = folder.rpartition("-")[2]
    return folder.startswith("remake-") and process.isdecimal() and not Path(f"/proc/{process}").exists()


def _job_is_over(keeper: Keeper, folder: str) -> bool:
    """Only a folder named like one of our jobs, whose job ended, may be cleared; anything else is left alone."""
    number = folder.removeprefix("job-")
    if not number.isdecimal():
        return False
    if keeper.ledger.row("SELECT 1 FROM jobs WHERE id = ?", (int(number),)) is None:
        return False
    return find_job(keeper.ledger, int(number)).state in ("done", "cancelled", "quarantined")


def _recover_links(keeper: Keeper) -> None:
    """The links follow the ledger: `latest` to the active index, `data/docs/` to the current documents."""
    active = active_index(keeper)
    latest = keeper.home.indexes / "latest"
    if active and (not latest.is_symlink() or os.readlink(latest) != active["name"]):
        replace_link(latest, active["name"])
    link_documents(keeper)
