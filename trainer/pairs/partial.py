"""The unfinished half of a download: for each source the pairs so far, and how far it has come.

A folder beside the output: `<source>.jsonl` grows, `progress.json` says how many of its bytes count. Pairs are made
durable before the progress that counts them, so that a death at any moment leaves a beginning of what one undisturbed
run would have made; what is behind it is cut off. One process at a time: the folder is locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from guard.durable import append_to, clear_temporaries, cut_file, fsync_file, make_dir, remove_file, remove_tree, write_json
from guard.errors import Busy, Damage
from guard.failpoints import point
from trainer.pairs.pair import id_of_line

__all__ = ["LISTED_ROWS", "Partial", "SourceState"]

LISTED_ROWS = 20
_REASONS = 50  # a reason may quote what it found: a hostile file must not make the progress grow without end
_OTHERS = "other reasons"
_SCHEMA = 1


@dataclass
class SourceState:
    """How far one source has come; everything as it stands in `progress.json`."""

    identity: dict[str, Any]
    """What its rows and pairs depend on: when it differs, the source is begun anew."""
    rows: int = 0
    pairs: int = 0
    bytes: int = 0
    done: bool = False
    """Its rows have come to their end."""
    position: dict[str, Any] | None = None
    refused: dict[str, int] = field(default_factory=dict)
    """Reason -> rows that gave no pair."""
    listed: list[dict[str, Any]] = field(default_factory=list)
    """The first refused rows: `row` (from 1, in the hub's order) and `reason`."""

    def refuse(self, reason: str) -> None:
        """Count the current row as one that gives no pair."""
        counted = reason if reason in self.refused or len(self.refused) < _REASONS else _OTHERS
        self.refused[counted] = self.refused.get(counted, 0) + 1
        if len(self.listed) < LISTED_ROWS:
            self.listed.append({"row": self.rows, "reason": reason})


class Partial:
    """The folder of an unfinished download. Use within `hold`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.states: dict[str, SourceState] = {}

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Make the folder, keep it for this process, and read what an earlier life left. Raises Busy, Damage."""
        make_dir(self.folder)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Busy(f"another download works on {self.folder}", subject=str(self.folder), cause=error,
                           hint="wait for it, or name another --out") from error  # fmt: skip
            clear_temporaries(self.folder)
            self.states = self._read()
            yield
        finally:
            os.close(descriptor)
            with contextlib.suppress(OSError):  # where nothing came of it, nothing is left
                self.folder.rmdir()

    def path(self, name: str) -> Path:
        """Where the pairs of a source grow."""
        return self.folder / f"{name}.jsonl"

    def begin(self, name: str, identity: dict[str, Any]) -> SourceState:
        """The state of a source: what an earlier life left of the same, else a fresh one with an empty file."""
        state, path = self.states.get(name), self.path(name)
        size = path.stat().st_size if path.is_file() else -1
        if state is None or state.identity != identity or size < state.bytes:
            remove_file(path)
            append_to(path, b"")
            state = self.states[name] = SourceState(identity)
        elif size > state.bytes:
            cut_file(path, state.bytes)
        return state

    def add(self, name: str, lines: bytes) -> None:
        """Make further pairs of a source durable, and then the progress that counts them."""
        if lines:
            append_to(self.path(name), lines)
            fsync_file(self.path(name))
            point("prefs.appended")
            self.states[name].bytes += len(lines)
        self.note()

    def note(self) -> None:
        """Make the progress durable."""
        states = {name: asdict(state) for name, state in self.states.items()}
        write_json(self.folder / "progress.json", {"schema": _SCHEMA, "sources": states})
        point("prefs.noted")

    def lines(self, name: str) -> Iterator[bytes]:
        """The pairs of a source so far, a line each."""
        with self.path(name).open("rb") as stream:
            yield from stream

    def ids(self, name: str) -> set[bytes]:
        """The ids of the pairs so far, 16 bytes each."""
        return {bytes.fromhex(id_of_line(line).replace("-", "")) for line in self.lines(name)}

    def remove(self) -> None:
        """Remove the folder: the output is whole."""
        remove_tree(self.folder)

    def _read(self) -> dict[str, SourceState]:
        path = self.folder / "progress.json"
        if not path.is_file():
            return {}
        try:
            record = orjson.loads(path.read_bytes())
            return {name: SourceState(**state) for name, state in record["sources"].items()}
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise Damage(f"{path} is not what was written", subject=str(path), cause=error,
                         hint=f"rm -r {self.folder} and start the download again") from error  # fmt: skip
