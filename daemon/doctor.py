"""Is this machine and this home fit to work? Facts are looked up, and judged by small pure functions.

Nothing is mended here: every no says what to type. A question that cannot be answered is a no (law 5). The deep look
into versions and originals is `heirloom verify`; here only what takes a moment is looked at. What is asked of the ledger
stands in `ledger_checks.py`.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from daemon.ledger_checks import Question, ledger_questions
from daemon.probing import judge_machine_file
from guard.checks.verdict import Check, guarded
from guard.errors import HeirloomError
from guard.home import Home
from guard.lock import holder_of, is_locked
from guard.store.keeper import open_reader

__all__ = [
    "DAMAGE", "examine", "file_system_of", "judge_file_system", "judge_lock", "judge_packages", "judge_python", "judge_watches",
]  # fmt: skip

DAMAGE = frozenset({"Home is whole", "Ledger is sound", "Audit trail is unbroken", "Versions are present",
                    "Event export is whole", "Numbers are kept"})  # fmt: skip
"""A no to one of these means that bytes are not what they were: exit code 8 instead of 3."""
OUR_PACKAGES = ("guard", "daemon", "trainer")
_NEEDED_PYTHON = (3, 11)
_NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "fuse.rclone", "fuse.s3fs", "9p", "afs", "ceph", "glusterfs", "lustre")
_SPARE_WATCHES = 16


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
            checks += [guarded(name, question) for name, question in ledger_questions(keeper)]
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
        ("Home lock", lambda: judge_lock(is_locked(home), holder_of(home))),
        ("Folders are writable", lambda: _writable(_working_folders(home))),
        (
            "Inbox file system",
            lambda: judge_file_system("Inbox file system", file_system_of(home.inbox), database=False),
        ),
        (
            "Ledger file system",
            lambda: judge_file_system("Ledger file system", file_system_of(home.data), database=True),
        ),
        ("Machine file", lambda: judge_machine_file(home)),
        ("Folder watches", lambda: judge_watches(_inotify("max_user_watches"), _folders_below(home.inbox))),
    ]


# --- the machine -------------------------------------------------------------------------------------------------


def judge_python(version: Sequence[int]) -> Check:
    """Python 3.11 or newer."""
    text = ".".join(map(str, version))
    if tuple(version[:2]) < _NEEDED_PYTHON:
        return Check("Python", False, f"{text} is too old", "install Python 3.11 or newer, then make venv")
    return Check("Python", True, text)


@functools.cache  # every file list of every installed package is read: a second, and nothing of it changes while we run
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
