"""What resembles what among the stored examples: data/near/, all of it derived and never the truth itself.

    data/near/signatures/<sha256>.mh   whole signatures of a stored file (`guard/near_file.py`), made by a limited child
    data/near/index.json, 00000001/    sketches of many files as columns (`guard/columns.py`): b0..b7, file, ordinal

Files that no folder of the index holds yet are asked in their own signatures. A sketch only finds candidates; whole
signatures decide. What is found is told and changes nothing that is trained (`near.policy`: report or off).
Not here: making signatures (`guard/near_task.py`), when (`daemon/near_runner.py`), keeping the index (`near_keep.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from guard.columns import BLOCK_ROWS, Columns
from guard.durable import make_dir
from guard.errors import Damage
from guard.failpoints import point
from guard.home import Home
from guard.minhash import VERSION, signatures, similarity
from guard.near_file import SignatureFile
from guard.near_join import SKETCH, candidates
from guard.near_task import SKETCH_COLUMNS, least_equal
from guard.store.derived import is_aside, make_room
from guard.store.files import find_file, stored_path
from guard.store.keeper import Keeper

__all__ = ["SCHEMA", "NearAnswer", "NearIndex", "forget_signatures", "near_answer", "near_folder", "near_hits", "near_request",
           "waiting_files", "note_near", "open_near", "prepare_near", "signature_folder", "unsigned"]  # fmt: skip

SCHEMA = 1


def near_folder(home: Home) -> Path:
    """Everything of this file."""
    return home.data / "near"


def signature_folder(home: Home) -> Path:
    """Where the files of signatures lie."""
    return near_folder(home) / "signatures"


def prepare_near(keeper: Keeper) -> None:
    """Make the folder that the child writes into, and clear the halves that a death left there.

    What lies in the way and is of the wrong form is moved aside: a file in the place of a folder, a folder in that of a file.
    """
    folder = signature_folder(keeper.home)
    for place in (near_folder(keeper.home), folder):
        make_room(place)
    make_dir(folder)
    make_room(near_folder(keeper.home) / "index.json", folder=False)
    for entry in list(os.scandir(folder)):
        if not entry.is_file(follow_symlinks=False):
            if not is_aside(entry.name):
                make_room(Path(entry.path), folder=False)
        elif not entry.name.endswith(".mh"):
            Path(entry.path).unlink(missing_ok=True)


def forget_signatures(keeper: Keeper, sha256: str) -> None:
    """Take away signatures that are damaged: the next request makes them again."""
    (signature_folder(keeper.home) / f"{sha256}.mh").unlink(missing_ok=True)


class NearIndex:
    """The index as one process sees it."""

    def __init__(self, home: Home) -> None:
        self.home, self.stamp = home, _stamp(home)
        self.parts: dict[str, Columns] = {}
        self.damaged: dict[str, str] = {}
        for name in _manifest(home):
            try:
                self.parts[name] = Columns(near_folder(home) / name)
            except Damage as damage:
                self.damaged[name] = damage.message
        self._cover()

    def _cover(self) -> None:
        self.covered = {sha256 for part in self.parts.values() for sha256 in part.file_names()}

    def leave_out(self, name: str, reason: str) -> None:
        """Believe nothing of a folder any more; its files count as loose."""
        self.damaged[name] = reason
        self.parts.pop(name, None)
        self._cover()

    def loose(self) -> list[str]:
        """Files with signatures that no folder holds, ascending."""
        return sorted(name[:-3] for name in _signed(self.home) if name[:-3] not in self.covered)


def _signed(home: Home) -> list[str]:
    """The names of the files of signatures; none where the folder is missing or is none: all are made again then."""
    try:
        return [name for name in os.listdir(signature_folder(home)) if name.endswith(".mh")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _manifest(home: Home) -> list[str]:
    try:
        head = orjson.loads((near_folder(home) / "index.json").read_bytes())
        return [str(name) for name in head["folders"]] if (head["schema"], head["version"]) == (SCHEMA, VERSION) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []  # lost or unreadable: every file is loose, and the index is made again


def _stamp(home: Home) -> tuple[int, int, int]:
    try:
        facts = (near_folder(home) / "index.json").stat()
    except OSError:
        return (0, 0, 0)
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def open_near(keeper: Keeper) -> NearIndex:
    """The index, opened again only when it was changed since this keeper last asked."""
    found: NearIndex | None = keeper.memory.get("near")
    if found is None or found.stamp != _stamp(keeper.home):
        found = keeper.memory["near"] = NearIndex(keeper.home)
    return found


# --- asking -----------------------------------------------------------------------------------------------------------


class NearAnswer(NamedTuple):
    """What resembles a text, and which stored files could not be asked: SHA-256, and whether they could be once."""

    hits: list[dict[str, Any]]
    unasked: dict[str, bool]


def near_hits(keeper: Keeper, texts: Sequence[str], least: float, *, most: int = 100) -> list[dict[str, Any]]:
    """The hits of `near_answer`."""
    return near_answer(keeper, texts, least, most=most).hits


def near_answer(keeper: Keeper, texts: Sequence[str], least: float, *, most: int = 100) -> NearAnswer:
    """Stored examples that resemble one of these texts by at least `least`, the most alike first, at most `most`.

    Each {sha256, file, ordinal, similarity}. Texts that are too short to have a signature resemble nothing.
    Damaged parts are left out on the way and their files asked one by one; what cannot be asked at all is told.
    """
    best: dict[tuple[str, int], int] = {}
    silent: set[str] = set()
    # A set and not np.unique, which imports numpy.ma: a command has half a second.
    for signature in (np.frombuffer(row, dtype=np.uint8) for row in sorted({row.tobytes() for row in signatures(texts)})):
        if signature.any():
            for sha256, ordinal, equal in _alike(open_near(keeper), signature, least_equal(least), silent):
                best[sha256, ordinal] = max(equal, best.get((sha256, ordinal), 0))
    unasked = unsigned(keeper) | dict.fromkeys(silent, True)
    return NearAnswer(_named(keeper, best, most), unasked)


def unsigned(keeper: Keeper) -> dict[str, bool]:
    """Stored files of examples with neither signatures nor sketches, and of each whether it once had them."""
    joined = keeper.ledger.value("SELECT group_concat(sha256) FROM files WHERE examples > 0")
    here = open_near(keeper).covered | {name[:-3] for name in _signed(keeper.home)}
    without = sorted(set(str(joined).split(",") if joined else []) - here)
    found: dict[str, bool] = {}
    for start in range(0, len(without), 500):
        part = without[start : start + 500]
        rows = keeper.ledger.rows(
            "SELECT sha256, json_extract(record, '$.near.version') AS made FROM files "
            f"WHERE sha256 IN ({', '.join('?' * len(part))}) AND json_extract(record, '$.prepared') IS NULL", part)  # fmt: skip
        found |= {row["sha256"]: row["made"] is not None for row in rows}
    return found


def _named(keeper: Keeper, best: dict[tuple[str, int], int], most: int) -> list[dict[str, Any]]:
    names = {sha256: keeper.ledger.value("SELECT name FROM files WHERE sha256 = ?", (sha256,)) for sha256, _ in best}
    order = sorted(best.items(), key=lambda item: (-item[1], item[0]))
    return [{"sha256": sha256, "file": names[sha256], "ordinal": ordinal, "similarity": round(float(similarity(equal)), 3)}
            for (sha256, ordinal), equal in order if names[sha256] is not None][:most]  # fmt: skip


def _alike(index: NearIndex, signature: NDArray[np.uint8], least: int, silent: set[str]) -> Iterator[tuple[str, int, int]]:
    for name, part in list(index.parts.items()):
        try:
            rows = candidates(signature[:SKETCH], [part.columns[column] for column in SKETCH_COLUMNS])
            part.prove(rows // BLOCK_ROWS)
            numbers, ordinals = part.columns["file"][rows], part.columns["ordinal"][rows].astype(np.int64)
        except Damage as damage:
            index.leave_out(name, damage.message)
            continue
        for number in sorted(set(numbers.tolist())):
            yield from _confirm(index, part.file(int(number)), signature, ordinals[numbers == number], least, silent)
    for sha256 in index.loose():
        yield from _confirm(index, sha256, signature, None, least, silent)


def _confirm(index: NearIndex, sha256: str, signature: NDArray[np.uint8], ordinals: NDArray[np.int64] | None,
             least: int, silent: set[str]) -> Iterator[tuple[str, int, int]]:  # fmt: skip
    try:
        file = SignatureFile(signature_folder(index.home) / f"{sha256}.mh", sha256)
        ordinals = np.arange(file.count) if ordinals is None else ordinals
        equal = (file.at(ordinals) == signature).sum(axis=1)
    except Damage:
        silent.add(sha256)  # made again by the daemon; until then nobody knows what it resembles
        return
    for place in np.flatnonzero(equal >= least):
        yield sha256, int(ordinals[place]), int(equal[place])


# --- what the child is asked, and what it answered --------------------------------------------------------------------


def waiting_files(keeper: Keeper, skip: set[str]) -> list[tuple[str, int]]:
    """(sha256, bytes) of the stored files without a report, or whose signatures are gone, oldest first. Reads every row."""
    rows = keeper.ledger.rows("SELECT sha256, size_bytes, json_extract(record, '$.near.version') AS version FROM files "
                              "WHERE examples > 0 AND json_extract(record, '$.prepared') IS NULL ORDER BY rowid")  # fmt: skip
    made = set(_signed(keeper.home))
    return [(row["sha256"], row["size_bytes"]) for row in rows
            if row["sha256"] not in skip and (row["version"] != VERSION or f"{row['sha256']}.mh" not in made)]  # fmt: skip


def near_request(keeper: Keeper, files: Sequence[str]) -> tuple[dict[str, Any], int]:
    """The request of the child for these files, and its size: bytes that stand for the time it may take."""
    index = open_near(keeper)
    stored = [find_file(keeper.ledger, sha256) for sha256 in files]
    loose = [sha256 for sha256 in index.loose() if sha256 not in set(files)]
    body = {
        "task": "near", "id": 0, "threshold": keeper.settings.near.threshold,
        "files": [{"sha256": file.sha256, "path": str(stored_path(keeper.home, file)), "kind": file.kind,
                   "reading": file.record.get("reading") or {}} for file in stored],
        "signatures": str(signature_folder(keeper.home)), "loose": loose,
        "index": [str(near_folder(keeper.home) / name) for name in index.parts],
    }  # fmt: skip
    met = sum(part.rows for part in index.parts.values())
    return body, sum(file.size_bytes for file in stored) + 16 * met


def note_near(keeper: Keeper, reports: Sequence[dict[str, Any]]) -> None:
    """Keep what the child found with the files it is about; a first report also becomes an event."""
    ledger = keeper.ledger
    with ledger.transaction():
        for report in reports:
            facts = {key: value for key, value in report.items() if key != "sha256"}
            facts |= {"version": VERSION, "threshold": keeper.settings.near.threshold}
            row = ledger.row("SELECT name, json_extract(record, '$.near') AS near FROM files WHERE sha256 = ?",
                             (report["sha256"],))  # fmt: skip
            # Whose signatures were lost is not reported anew: by now it would also meet what came after it.
            if row is None or row["near"] is not None:
                continue
            ledger.run("UPDATE files SET record = json_set(record, '$.near', json(?)) WHERE sha256 = ?",
                       (orjson.dumps(facts).decode(), report["sha256"]))  # fmt: skip
            if report["alike"]:
                ledger.event("file.near", str(row["name"]), sha256=report["sha256"], **facts)
    point("near.recorded")
