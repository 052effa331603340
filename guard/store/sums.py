"""Does a folder still hold what SHA256SUMS says? Reading and hashing only, in small steps; nothing is ever changed.

The truth about a version's bytes is a chain: the ledger holds the hash of SHA256SUMS, SHA256SUMS the hash of every
other file. A file that is missing, changed, added, or no plain file any more breaks it and is named.
Not here: writing SHA256SUMS (`birth.py`), or what to do about damage.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Generator, Mapping, Set
from pathlib import Path, PurePosixPath
from typing import TypeVar

from guard.durable import sha256_file
from guard.steps import drain

__all__ = [
    "STEP_BYTES",
    "SUMS",
    "Problem",
    "folder_problems",
    "hash_steps",
    "listed_problem_steps",
    "problem_steps",
    "read_sums",
    "sums_problem",
    "sums_text",
    "unsealed",
]

STEP_BYTES = 8 << 20
SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")

_Result = TypeVar("_Result")

Problem = tuple[str, str]
"""A file by its name in the folder, and what is wrong with it."""


def sums_text(hashes: Mapping[str, str]) -> str:
    """The text of SHA256SUMS, as `sha256sum -c` reads it."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))


def read_sums(folder: Path) -> dict[str, str]:
    """SHA256SUMS as name -> hash. Raises OSError when unreadable, ValueError when it is not such a file."""
    sums: dict[str, str] = {}
    text = (folder / SUMS).read_bytes().decode("utf-8")
    for number, line in enumerate(text.split("\n")[:-1] if text.endswith("\n") else text.split("\n"), 1):
        match = _LINE.fullmatch(line)
        name = match.group(2) if match else ""
        if match is None or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or name in sums:
            raise ValueError(f"line {number} is not `hash  name`")
        sums[name] = match.group(1)
    return sums


def hash_steps(path: Path) -> Generator[int, None, str]:
    """SHA-256 of a file in hex, read from the disk and not from memory where the system allows; yields bytes read."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as handle:
        # Clean pages are dropped, so that reading back tests the disk and not our own cache.
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := handle.read(STEP_BYTES):
            digest.update(block)
            yield len(block)
    return digest.hexdigest()


def _found_files(folder: Path) -> set[str]:
    """Every entry below a folder that is not itself a folder, by its relative name."""
    found = set()
    for place, names, files in os.walk(folder):
        links = [name for name in names if os.path.islink(os.path.join(place, name))]
        found |= {os.path.relpath(os.path.join(place, name), folder) for name in [*files, *links]}
    return found


def sums_problem(folder: Path, sums_sha256: str | None) -> str:
    """What is wrong with a folder's SHA256SUMS itself; empty: nothing."""
    try:
        if not stat.S_ISREG(os.lstat(folder / SUMS).st_mode):
            return "is not a plain file"
        if sums_sha256 is not None and sha256_file(folder / SUMS) != sums_sha256:
            return "is not the one that was sealed"
        read_sums(folder)
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"
    return ""


def problem_steps(
    folder: Path, sums_sha256: str | None, *, hash_it: Callable[[str], bool] = lambda _name: True
) -> Generator[int, None, list[Problem]]:
    """Compare a folder with its SHA256SUMS; yields bytes read, returns what is wrong (empty: intact).

    `sums_sha256` is the ledger's hash of SHA256SUMS (None: unknown). `hash_it` names the files whose content is read;
    for the others only their presence is checked.
    """
    if os.path.islink(folder) or not os.path.isdir(folder):
        return [("", "the folder is missing")]
    problem = sums_problem(folder, sums_sha256)
    if problem:
        # Without a trusted list nothing else in the folder can be judged.
        return [(SUMS, problem)]
    sums = read_sums(folder)
    return (yield from listed_problem_steps(folder, sums, {SUMS}, hash_it))


def listed_problem_steps(
    folder: Path, wanted: Mapping[str, str], besides: Set[str] = frozenset(),
    hash_it: Callable[[str], bool] = lambda _name: True,
) -> Generator[int, None, list[Problem]]:  # fmt: skip
    """Compare a folder with a list of name -> hash; `besides` may be there too. Yields and returns the same way."""
    problems: list[Problem] = [(name, "does not belong there")
                               for name in sorted(_found_files(folder) - wanted.keys() - besides)]  # fmt: skip
    for name, expected in wanted.items():
        problem = yield from _file_problem(folder / name, expected, hash_it(name))
        if problem:
            problems.append((name, problem))
    return problems


def _file_problem(path: Path, expected: str, hashed: bool) -> Generator[int, None, str]:
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return "is not a plain file"
        if hashed and (yield from hash_steps(path)) != expected:
            return "its content changed"
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return ""


def folder_problems(folder: Path, sums_sha256: str | None) -> list[Problem]:
    """`problem_steps` run to its end."""
    return drain(problem_steps(folder, sums_sha256))


def unsealed(folder: Path) -> list[str]:
    """Names below a folder (`.` for itself) that somebody may write to: a sealed version has none."""
    found = []
    for place, _names, files in os.walk(folder):
        for path in [place, *(os.path.join(place, name) for name in files)]:
            mode = os.lstat(path).st_mode
            if not stat.S_ISLNK(mode) and mode & 0o222:
                found.append(os.path.relpath(path, folder))
    return sorted(found)
