"""Is this machine and this home fit to work? Facts are looked up, and judged by small pure functions.

Nothing is mended here: every no says what to type. A question that cannot be answered is a no (law 5). The deep look
into versions and originals is `heirloom verify`; here only what takes a moment is looked at.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from guard.checks.verdict import Check, guarded
from guard.errors import HeirloomError
from guard.home import Home
from guard.lock import holder_of
from guard.store.event_export import SEGMENT_EVENTS
from guard.store.keeper import Keeper, open_reader

__all__ = [
    "DAMAGE", "examine", "file_system_of", "judge_chain", "judge_disk", "judge_file_system", "judge_lock", "judge_packages",
    "judge_python", "judge_vault", "judge_watches",
]  # fmt: skip

DAMAGE = frozenset({"Home is whole", "Ledger is sound", "Audit trail is unbroken", "Versions are present",
                    "Event export is whole", "Numbers are kept"})  # fmt: skip
"""A no to one of these means that bytes are not what they were: exit code 8 instead of 3."""
OUR_PACKAGES = ("guard", "daemon", "trainer")
_NEEDED_PYTHON = (3, 11)
_NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "fuse.rclone", "fuse.s3fs", "9p", "afs", "ceph", "glusterfs", "lustre")
_SPARE_WATCHES = 16

Question = tuple[str, Callable[[], Check]]


def examine(home: Home | None) -> list[Check]:
    """Every check of the machine and, where there is one, of the home."""
    checks = [guarded(name, question) for name, question in _machine_questions()]
    if home is None:
        return [*checks, Check("Home is whole", None, "there is no home here: heirloom init DIR makes one")]
    checks += [guarded(name, question) for name, question in _folder_questions(home)]
    try:
        with open_reader(home) as keeper:
            # One snapshot for all questions: a daemon may write between two of them.
            keeper.ledger.rows("BEGIN")
            checks += [guarded(name, question) for name, question in _ledger_questions(keeper)]
    except HeirloomError as error:
        checks.append(Check("Ledger is sound", False, error.message, error.hint))
    return checks


def _machine_questions() -> list[Question]:
    return [
        ("Python", lambda: judge_python(sys.version_info[:3])),
        ("Package names", lambda: judge_packages(_owners())),
    ]


def _folder_questions(home: Home) -> list[Question]:
    return [
        ("Home is whole", lambda: _whole(home)),
        ("Home lock", lambda: judge_lock(_is_locked(home), holder_of(home))),
        ("Folders are writable", lambda: _writable(_working_folders(home))),
        (
            "Inbox file system",
            lambda: judge_file_system("Inbox file system", file_system_of(home.inbox), database=False),
        ),
        (
            "Ledger file system",
            lambda: judge_file_system("Ledger file system", file_system_of(home.data), database=True),
        ),
        ("Folder watches", lambda: judge_watches(_inotify("max_user_watches"), _folders_below(home.inbox))),
    ]


def _ledger_questions(keeper: Keeper) -> list[Question]:
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
        ("Vault", lambda: judge_vault(_device_of(home.vault(settings.backup.path)), _device_of(home.models))),
        ("Tokenizer vocabulary", lambda: _vocabulary(keeper)),
    ]


# --- the machine -------------------------------------------------------------------------------------------------


def judge_python(version: Sequence[int]) -> Check:
    """Python 3.11 or newer."""
    text = ".".join(map(str, version))
    if tuple(version[:2]) < _NEEDED_PYTHON:
        return Check("Python", False, f"{text} is too old", "install Python 3.11 or newer, then make venv")
    return Check("Python", True, text)


def _owners() -> dict[str, list[str]]:
    from importlib.metadata import packages_distributions

    known = packages_distributions()
    return {name: known.get(name, []) for name in OUR_PACKAGES}


def judge_packages(owners: Mapping[str, Sequence[str]]) -> Check:
    """Our three package names are generic: no other distribution may own one of them.

    `owners`: distribution names by package; empty when it runs from a checkout that was not installed.
    """
    foreign = [f"{name} belongs to {other}" for name, found in owners.items()
               for other in sorted(set(found)) if other.lower() != "heirloom"]  # fmt: skip
    if foreign:
        return Check("Package names", False, "; ".join(foreign), "install Heirloom in a venv of its own: make venv")
    return Check("Package names", True, "guard, daemon and trainer are ours")


# --- folders -----------------------------------------------------------------------------------------------------


def _whole(home: Home) -> Check:
    name = "Home is whole"
    try:
        home.check()
    except HeirloomError as error:
        return Check(name, False, error.message, error.hint)
    missing = [str(path.relative_to(home.root)) for path in home.folders() if not path.is_dir()]
    if missing:
        return Check(name, False, f"missing: {', '.join(missing)}", "is a disk not mounted? bring it back, then try again")
    return Check(name, True, str(home.root))


def _is_locked(home: Home) -> bool:
    """Whether some process holds the lock now; asked of the kernel, and let go at once."""
    try:
        descriptor = os.open(home.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def judge_lock(locked: bool, holder: Mapping[str, object]) -> Check:
    """Being held is no fault: a daemon holds it for years."""
    if not locked:
        return Check("Home lock", True, "free")
    who = f"{holder.get('command')}, pid {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
    return Check("Home lock", True, f"held by {who}" if holder else "held by another process")


def _working_folders(home: Home) -> list[Path]:
    """Every folder but models/ itself, which is read-only between two acts of ours (`guard/seal.py`)."""
    return [folder for folder in home.folders() if folder != home.models]


def _writable(folders: Iterable[Path]) -> Check:
    name = "Folders are writable"
    closed = [str(path) for path in folders if path.is_dir() and not os.access(path, os.W_OK | os.X_OK)]
    if closed:
        return Check(name, False, f"not writable: {', '.join(closed)}", f"chown -R $USER {closed[0]}, or chmod u+wx")
    return Check(name, True, "every folder takes new files")


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that a path is on, from /proc/mounts (or its text); "unknown" where none tells."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text("utf-8", "surrogateescape")
        except OSError:
            return "unknown"
    wanted = os.path.realpath(path)
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # Blanks in mount points are written as \040; an outer mount comes before what is mounted over it.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), fields[1]).rstrip("/")
        if (wanted == point or wanted.startswith(f"{point}/")) and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def judge_file_system(name: str, kind: str, *, database: bool) -> Check:
    """A network inbox works by sweeps alone; a database on a network file system cannot be trusted with locks."""
    network = kind.startswith(_NETWORK)
    if network and database:
        return Check(name, False, f"{kind} is a network file system: SQLite's locks are not safe there",
                     "keep the home on a local disk and point backup.path at the network")  # fmt: skip
    if network:
        return Check(name, True, f"{kind}: files are found by sweeps, not at once", warning=True)
    return Check(name, True, kind)


def _inotify(name: str) -> int | None:
    try:
        return int(Path(f"/proc/sys/fs/inotify/{name}").read_text("ascii"))
    except (OSError, ValueError):
        return None


def _folders_below(path: Path) -> int:
    return sum(1 for _entry in os.walk(path))


def judge_watches(limit: int | None, folders: int) -> Check:
    """Each folder of the inbox wants one watch; without them sweeps still find everything, later."""
    name = "Folder watches"
    if limit is None:
        return Check(name, None, "this system has no inotify: files are found by sweeps")
    if folders + _SPARE_WATCHES > limit:
        return Check(name, False, f"the inbox has {folders:,} folders and {limit:,} watches are allowed",
                     "sudo sysctl fs.inotify.max_user_watches=524288")  # fmt: skip
    return Check(name, True, f"{limit:,} allowed, {folders:,} needed")


# --- what the ledger tells ---------------------------------------------------------------------------------------


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
    if seq < newest and not _is_locked(keeper.home):
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
