"""Is the end of a file already there? A look at its last bytes before it is taken out of the inbox.

A JSON-lines file whose last line is cut off, or a file that was allocated in full and not yet written (zeroes), may
still have a writer that opens it again by name; taking it would part the two. Runs in the reader child.
This judges only the end; `identify.py` judges the whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from guard.checks.folders import members_of, named_missing, shown_name
from guard.checks.kinds import container_of
from guard.folder_tree import list_tree

__all__ = ["TAIL_BYTES", "tail_problem"]

TAIL_BYTES = 1 << 16
_ENDS = {"json": (b"", (b"]", b"}")), "parquet": (b"PAR1", (b"PAR1",)), "arrow": (b"ARROW1", (b"ARROW1",))}
"""How files of some containers begin, and how those then end."""
_DESCRIPTION_BYTES = 1 << 22


def tail_problem(path: Path | str, name: str) -> str:
    """Why the file seems unfinished: "its last line is cut off", "it ends in zeroes", "its end is not there yet", or "" when it
    looks whole. What is packed tells nothing by its end.

    Of a folder: what is not there yet, or the first file in it that seems unfinished. Raises OSError when it cannot be read.
    """
    if os.path.isdir(path):
        return _folder_problem(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        size = os.fstat(descriptor).st_size
        handle.seek(max(0, size - TAIL_BYTES))
        tail = handle.read(TAIL_BYTES)
        handle.seek(0)
        head = handle.read(8)
    if container_of(name) == "tar":
        return ""  # it ends in zeroes when it is whole
    if tail and not tail.strip(b"\0"):
        return "it ends in zeroes"
    container = container_of(name)
    begun, ends = _ENDS.get(container, (b"", ()))
    if ends and head.lstrip().startswith(begun) and not tail.rstrip(b" \t\r\n" if container == "json" else b"").endswith(ends):
        return "its end is not there yet"
    if container != "jsonl" or tail.endswith(b"\n"):
        return ""
    line = tail.rsplit(b"\n", 1)[-1].strip()
    if not line or (len(line) == len(tail.strip()) and size > TAIL_BYTES):
        return ""  # one line longer than our look: the whole reading will judge it
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return "its last line is cut off"
    return ""


def _folder_problem(folder: Path | str) -> str:
    names = [name for name, _facts in list_tree(folder)]
    for name in names:
        inside, _, last = name.rpartition("/")
        if last in ("state.json", "dataset_dict.json") and (problem := named_missing(inside, _told(folder, name), names)):
            return problem
    problems = ((member.name, tail_problem(os.path.join(folder, member.name), member.name)) for member in members_of(names))
    return next((f"{shown_name(name)} in it: {problem}" for name, problem in problems if problem), "")


def _told(folder: Path | str, name: str) -> object:
    """A description in the folder, parsed; None for what cannot be: the files themselves count then."""
    descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        try:
            return json.loads(handle.read(_DESCRIPTION_BYTES))
        except (ValueError, RecursionError):
            return None
