"""Outputs that a person names: whether they can be written at all, and the hidden name in which they are made.

An output appears whole or not at all: it is made beside its place, under a name with the number of its process in it, so
that what a killed run left can be told from what another run is making now. Not here: what the outputs are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from guard.durable import make_dir, remove_tree
from guard.errors import UsageError

__all__ = ["Making", "check_writable", "made_beside"]

_NAME_CHARACTERS = 50
_FOR_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR}
"""What says nothing about the folder: told as what it is, where errors become words."""


class Making(NamedTuple):
    """Where to make an output, and the names of what killed runs with the same output had left and is removed."""

    path: Path
    removed: list[str]


def check_writable(folder: Path) -> None:
    """Raises UsageError when nothing can be written into the folder, or into the one it would be made in; makes nothing.

    Only trying tells: permission bits know nothing of a file system that is read-only, or that takes no files (/proc).
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        if error.errno in _FOR_THE_MACHINE:
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(f"nothing can be written into {place}: {reason[:1].lower()}{reason[1:]}", subject=str(folder),
                         hint="name an output in a folder of your own, such as ~/out") from None  # fmt: skip


@contextlib.contextmanager
def made_beside(output: Path) -> Iterator[Making]:
    """A new name beside `output` (absolute), removed when the block ends badly; the block moves it to its place.

    Makes the folder `output` stands in. Raises UsageError when that cannot be written into.
    """
    check_writable(output.parent)
    make_dir(output.parent)
    removed = _clear_dead(output)
    making = output.with_name(f".{output.name[:_NAME_CHARACTERS]}.{os.getpid()}.making")
    try:
        yield Making(making, removed)
    except BaseException:
        if os.path.lexists(making):
            remove_tree(making)
        raise


def _clear_dead(output: Path) -> list[str]:
    """Remove what runs with this output left that no longer live; its own number is this process's by chance."""
    form = re.compile(re.escape(f".{output.name[:_NAME_CHARACTERS]}.") + r"([1-9][0-9]{0,9})\.making")
    found = {name: int(match[1]) for name in os.listdir(output.parent) if (match := form.fullmatch(name))}
    dead = sorted(name for name, process in found.items() if process == os.getpid() or not _lives(process))
    for name in dead:
        remove_tree(output.parent / name)
    return dead


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
